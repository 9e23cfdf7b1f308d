"""Search images with a trained embedder.

python recipes/search.py build --embedder runs/pose/embedder --data.source photos/ --index photos.index
python recipes/search.py query --embedder runs/pose/embedder --index photos.index --image query.jpg --gallery hits.html
python recipes/search.py query --embedder clip/ --index photos.index --text "a dog on a beach" --gallery hits.html
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow import types

from beyond_binary.data import DataConfig
from beyond_binary.data.readers import read_rows
from beyond_binary.embedder import Embedder
from beyond_binary.index import Hits, Index
from beyond_binary.preprocess import open_image, to_rgb

THUMBNAIL = "thumbnail"
STYLE = """<style>
body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;background:#fff;color:#1d2331}
.hits{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:144px}img{width:144px;border-radius:6px}
figcaption{font-size:12px;overflow-wrap:anywhere;color:#667086}
@media(prefers-color-scheme:dark){body{background:#14171f;color:#e6e9ef}figcaption{color:#98a1b3}}
</style>"""


def thumbnail(image: Image.Image, side: int = 160) -> bytes:
    """A small JPEG."""
    small, file = to_rgb(image).copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def build(given: argparse.Namespace) -> None:
    """Embed all images of a source and write the index."""
    embedder = Embedder.from_pretrained(given.embedder)
    rows = read_rows(DataConfig(source=given.source, table=given.table, image=given.image_column))
    z = embedder.encode(rows.images, batch_size=given.batch_size, progress=True)
    columns = {
        f.name: rows.columns[f.name]
        for f in rows.columns.schema
        if not (types.is_nested(f.type) or types.is_binary(f.type))
    }
    if given.thumbnails:
        columns[THUMBNAIL] = [thumbnail(image) for image in rows.images]
    geometry = "cosine" if embedder.normalize else "euclidean"
    index = Index(z, rows.names, columns, geometry=given.geometry or geometry, kind=given.kind)
    index.save(given.index)
    print(f"{given.index}: {len(index)} images, {index.dim} dimensions, {index.kind}, {index.geometry}")
    if index.kind in ("ivf", "hnsw"):
        print(f"recall@10 against the exact search, of a sample: {index.recall(10):.4f}")


def query(given: argparse.Namespace) -> None:
    """Search for an image or a text, print the hits and write them as a page."""
    embedder, index = Embedder.from_pretrained(given.embedder), Index.load(given.index)
    z = embedder.encode_text(given.text) if given.text else embedder.encode(given.image)
    hits = index.search(z, given.k)
    for item, score in zip(index.items(hits.places), hits.scores[0].tolist(), strict=False):
        print(f"{score:.4f}  {item['name']}")
    if given.gallery:
        asked = html.escape(given.text) if given.text else picture(thumbnail(open_image(given.image)))
        Path(given.gallery).write_text(page(asked, index, hits), encoding="utf-8")
        print(given.gallery)


def page(asked: str, index: Index, hits: Hits) -> str:
    """A self-contained page of the query and what was found."""
    cards = []
    for item, score in zip(index.items(hits.places), hits.scores[0].tolist(), strict=False):
        facts = {name: value for name, value in item.items() if name not in ("name", THUMBNAIL) and value is not None}
        words = "".join(
            f"<br>{html.escape(name)}: {html.escape(str(value)[:60])}" for name, value in list(facts.items())[:4]
        )
        shown = picture(item[THUMBNAIL]) if item.get(THUMBNAIL) else ""
        cards.append(
            f"<figure>{shown}<figcaption><b>{score:.3f}</b> {html.escape(item['name'])}{words}</figcaption></figure>"
        )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Search</title>{STYLE}'
    return f'{head}<h1>Search</h1><p>{asked}</p><div class="hits">{"".join(cards)}</div></html>\n'


def picture(jpeg: bytes) -> str:
    """An image inside the page."""
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    both: dict[str, dict[str, Any]] = {
        "--embedder": {"required": True, "help": "folder of a saved embedder, or a Hub id"},
        "--index": {"required": True, "help": "folder of the index"},
    }
    make, ask = commands.add_parser("build", help="embed images"), commands.add_parser("query", help="search")
    for name, how in both.items():
        make.add_argument(name, **how)
        ask.add_argument(name, **how)
    make.set_defaults(run=build)
    make.add_argument("--data.source", dest="source", required=True, help="folder, zip, table or hub:USER/NAME")
    make.add_argument("--data.table", dest="table", help="table of the images, where there are several")
    make.add_argument("--data.image", dest="image_column", help="column with the images")
    make.add_argument("--kind", choices=["exact", "flat", "ivf", "hnsw"], help="how to search; see beyond_binary.index")
    make.add_argument("--geometry", choices=["cosine", "dot", "euclidean"], help="unset: as the embedder was trained")
    make.add_argument("--batch-size", type=int, default=64)
    make.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help="keep no small pictures")
    ask.set_defaults(run=query)
    what = ask.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", help="an image file")
    what.add_argument("--text", help="a text, for a CLIP embedder")
    ask.add_argument("--k", type=int, default=12)
    ask.add_argument("--gallery", help="HTML file to write the hits to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = parse(sys.argv[1:])
    given.run(given)
