"""Search images with a trained embedder.

python recipes/search.py build --embedder runs/pose/embedder --data.source photos/ --index photos.index
python recipes/search.py query --embedder runs/pose/embedder --index photos.index --image query.jpg --gallery hits.html
python recipes/search.py query --embedder clip/ --index photos.index --text "a dog on a beach" --gallery hits.html
python recipes/search.py query --index photos.index --vector query.npy

build takes any --data.FIELD of recipes/train.py, and --config FILE.yaml for its section data: hub:USER/NAME with
--data.config_name and --data.revision, embedded:NAME, tables, sets in the files of their authors with --data.options.
"""

from __future__ import annotations

import argparse
import base64
import html
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beyond_binary.config import parse_data
from beyond_binary.devices import usable_device
from beyond_binary.embedder import Embedder
from beyond_binary.hub import limit_silence
from beyond_binary.index import THUMBNAIL, Hits, Index, thumbnail
from beyond_binary.preprocess import open_image

STYLE = """<style>
body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;background:#fff;color:#1d2331}
.hits{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:144px}img{width:144px;border-radius:6px}
figcaption{font-size:12px;overflow-wrap:anywhere;color:#667086}
@media(prefers-color-scheme:dark){body{background:#14171f;color:#e6e9ef}figcaption{color:#98a1b3}}
</style>"""


def build(given: argparse.Namespace, rest: list[str]) -> None:
    """Embed all images of a source and write the index."""
    data = parse_data(rest)
    device = usable_device(given.device)
    index = Index.build(
        Embedder.from_pretrained(given.embedder).to(device),
        data,
        split=given.split,
        geometry=given.geometry,
        kind=given.kind,
        device=device,
        batch_size=given.batch_size,
        thumbnails=160 if given.thumbnails else 0,
        progress=True,
    )
    index.save(given.index)
    print(f"{given.index}: {len(index)} images, {index.dim} dimensions, {index.kind}, {index.geometry}")
    if index.kind in ("ivf", "hnsw"):
        print(f"recall@10 against the exact search, of a sample: {index.recall(10):.4f}")


def query(given: argparse.Namespace, rest: list[str]) -> None:
    """Search for an image, a text or a vector, print the hits and write them as a page."""
    if rest:
        raise ValueError(f"unknown argument {rest[0]}; see --help")
    device = usable_device(given.device)
    index = Index.load(given.index, device=device)
    z, asked = embedded(given, device)
    hits = index.search(z, given.k)
    for item, score in zip(index.items(hits.places), hits.scores[0].tolist(), strict=False):
        print(f"{score:.4f}  {item['name']}")
    if given.gallery:
        Path(given.gallery).write_text(page(asked, index, hits), encoding="utf-8")
        print(given.gallery)


def embedded(given: argparse.Namespace, device: str) -> tuple[Tensor, str]:
    """The embedding [1 d] of what is asked for, and how the page shows that."""
    if given.vector:
        vector = np.load(given.vector, allow_pickle=False)
        if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "iuf":
            raise ValueError(f"{given.vector}: expected an .npy file of numbers, one vector [d] or [1 d]")
        z = torch.as_tensor(vector[None] if vector.ndim == 1 else vector)
        if z.ndim != 2 or len(z) != 1:
            raise ValueError(f"{given.vector}: expected one vector [d] or [1 d], got {list(vector.shape)}")
        return z, html.escape(Path(given.vector).name)
    if not given.embedder:
        raise ValueError("--image and --text need --embedder, the one that the index was built with")
    embedder = Embedder.from_pretrained(given.embedder).to(device)
    if given.text is not None:
        return embedder.encode_text(given.text), html.escape(given.text)
    return embedder.encode(given.image), picture(thumbnail(open_image(given.image)))


def page(asked: str, index: Index, hits: Hits) -> str:
    """A self-contained page of the query and what was found."""
    cards = []
    for item, score in zip(index.items(hits.places), hits.scores[0].tolist(), strict=False):
        facts = {name: value for name, value in item.items() if name not in ("name", THUMBNAIL) and value is not None}
        words = "".join(
            f"<br>{html.escape(name)}: {html.escape(str(value)[:60])}" for name, value in list(facts.items())[:4]
        )
        shown = picture(item[THUMBNAIL]) if isinstance(item.get(THUMBNAIL), bytes) else ""
        cards.append(
            f"<figure>{shown}<figcaption><b>{score:.3f}</b> {html.escape(item['name'])}{words}</figcaption></figure>"
        )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Search</title>{STYLE}'
    return f'{head}<h1>Search</h1><p>{asked}</p><div class="hits">{"".join(cards)}</div></html>\n'


def picture(jpeg: bytes) -> str:
    """An image inside the page."""
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is about the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser(
        "build",
        help="embed images",
        usage="%(prog)s --embedder FOLDER --data.source SOURCE [--data.FIELD VALUE ...] --index FOLDER [...]",
        allow_abbrev=False,
    )
    ask = commands.add_parser("query", help="search", allow_abbrev=False)
    both: dict[str, dict[str, Any]] = {
        "--index": {"required": True, "help": "folder of the index"},
        "--device": {
            "default": "auto",
            "help": "where images are embedded and searched; auto: a GPU where there is one",
        },
    }
    for name, how in both.items():
        make.add_argument(name, **how)
        ask.add_argument(name, **how)
    make.set_defaults(run=build)
    make.add_argument("--embedder", required=True, help="folder of a saved embedder, or a Hub id")
    make.add_argument("--split", help="only the images of this split, by the column data.split")
    make.add_argument("--kind", choices=["exact", "flat", "ivf", "hnsw"], help="how to search; see beyond_binary.index")
    make.add_argument(
        "--geometry",
        choices=["cosine", "dot", "euclidean"],
        help="unset: cosine for embeddings of length 1, else euclidean",
    )
    make.add_argument("--batch-size", type=int, default=64)
    make.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help="keep no small pictures")
    ask.set_defaults(run=query)
    ask.add_argument("--embedder", help="folder of a saved embedder, or a Hub id; a vector needs none")
    what = ask.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", help="an image file")
    what.add_argument("--text", help="a text, for a CLIP embedder")
    what.add_argument("--vector", help="an .npy file of one embedding")
    ask.add_argument("--k", type=int, default=12)
    ask.add_argument("--gallery", help="HTML file to write the hits to")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the command line, then build or search; what does not fit ends with a short message and status 2."""
    given, rest = parse(argv)
    limit_silence()
    try:
        given.run(given, rest)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
