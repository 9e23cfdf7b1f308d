"""Read class folders, folders or zips with a table, and `datasets` sets into rows: images and columns."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageOps

from ..preprocess import to_rgb
from ..registry import suggest
from .config import DataConfig

IMAGE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif")
)
IMAGE_COLUMNS = ("image", "file_name", "file", "filename", "path", "img")
TABLE_ENDINGS = frozenset((".csv", ".tsv", ".jsonl", ".parquet"))
TABLE_NAMES = frozenset(("labels.csv", "labels.tsv", "labels.jsonl", "metadata.csv", "metadata.jsonl"))
SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "eval", "query", "gallery"))


@dataclass(frozen=True)
class Rows:
    """n images with their columns, before any of them is read as a label.

    columns is a pyarrow table of n rows (of none where there is no column); class_names holds the names of integer columns
    that declare them. A set that is read from its original files has labels [n ...] beside the columns, and perhaps the spec
    of the target that fits them. A set from the Hub has an origin: what exactly was read (set, config, splits, revision, commit).
    """

    images: Sequence
    names: Sequence[str]
    columns: Any
    class_names: dict[str, list[str]] = field(default_factory=dict)
    labels: Any = None
    target: str | None = None
    origin: dict[str, Any] | None = None


def read_rows(config: DataConfig) -> Rows:
    """Read `config.source`: every image stays encoded, every column is there.

    Raises:
        FileNotFoundError: no such source, no images, or images that the table names but that are not there (unless
            `bad_images` is "skip": then they fail like unreadable images when they are read).
        ValueError: a column that is not there, a source that cannot be read.
        ConnectionError: a Hub set without a connection and without a local copy.
    """
    from .from_datasets import dataset_rows, load_hub
    from .originals import ORIGINALS, is_original, read_original

    if config.streaming and not config.source.startswith("hub:"):
        raise ValueError(f"data.streaming is for sets on the Hub, hub:USER/NAME, got {config.source!r}")
    if is_original(config.source):
        return read_original(config)
    if config.options:
        raise ValueError(f"data.options are for sources {_one_of(ORIGINALS.names())}, got {config.source!r}")
    if config.source.startswith("hub:"):
        loaded, origin = load_hub(config)
        return replace(dataset_rows(loaded, config), origin=origin)
    path = Path(config.source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no file or folder {config.source!r}; expected a path, hub:USER/NAME, embedded:NAME or "
            f"{_one_of(ORIGINALS.names())}"
        )
    if path.is_dir():
        return _folder_rows(path, config)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if not m.endswith("/")]
        return _file_rows(path, sorted(m for m in members if not any(map(_hidden, PurePosixPath(m).parts))), config)
    if path.suffix.lower() in TABLE_ENDINGS:
        return _file_rows(path.parent, _walk(path.parent), config, table=str(path))
    raise ValueError(
        f"cannot read {config.source!r}: expected a folder, a zip or a table ({', '.join(sorted(TABLE_ENDINGS))})"
    )


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(f"{name}:PATH" for name in names)


# ---------------------------------------------------------------- images


def decode(file: Any, size: int | None = None) -> Image.Image:
    """Decode a path or binary file to an upright RGB image; raises what Pillow raises.

    With `size`, an image whose shorter side (pixels) is longer than that is shrunk to it.
    """
    with Image.open(file) as image:
        if size is not None and min(image.size) > size:
            image.draft("RGB", (2 * size, 2 * size))
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        rgb = to_rgb(ImageOps.exif_transpose(image) if rotated else image)
    return shrink(rgb, size)


def shrink(image: Image.Image, size: int | None) -> Image.Image:
    """The image, reduced to a shorter side of `size` pixels if that is longer."""
    if size is None or min(image.size) <= size:
        return image
    scale = size / min(image.size)
    smaller = (round(image.width * scale), round(image.height * scale))
    return image.resize(smaller, Image.Resampling.BICUBIC, reducing_gap=2.0)


@lru_cache(maxsize=8)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    """The zip, opened once per process: file positions must not be shared between loader workers."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class StoredImages(Sequence):
    """Images in files, or in the members of the zip `archive`; nothing is extracted, any process may read."""

    files: list[str]
    archive: str | None = None
    size: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        stored = self.stored(index)
        return decode(io.BytesIO(stored) if isinstance(stored, bytes) else stored, self.size)

    def stored(self, index: int) -> str | bytes:
        """The path of an image, or its bytes in the archive."""
        if self.archive is None:
            return self.files[index]
        return _archive(self.archive, os.getpid()).read(self.files[index])


@dataclass(frozen=True)
class EncodedImages(Sequence):
    """Images in a column of encoded bytes, paths, or `datasets` cells {"bytes", "path"}."""

    column: Any
    size: int | None = None

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        stored = self.stored(index)
        return decode(io.BytesIO(stored) if isinstance(stored, bytes) else stored, self.size)

    def stored(self, index: int) -> str | bytes:
        """The bytes of an image, or its path; ValueError where there is neither."""
        cell = self.column[int(index)]
        cell = cell.as_py() if hasattr(cell, "as_py") else cell
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if cell is None:
            raise ValueError("the cell is empty")
        found: str | bytes = cell
        return found


# ---------------------------------------------------------------- folders and zips


def _walk(root: Path) -> list[str]:
    """All files below a folder that are not hidden, as sorted paths relative to it with forward slashes."""
    found = []
    for name, folders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        folders[:] = [f for f in folders if not _hidden(f) and not _is_loop(folder / f)]
        found += [(folder / file).relative_to(root).as_posix() for file in files if not _hidden(file)]
    return sorted(found)


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_loop(folder: Path) -> bool:
    """Whether the folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.parents}


def _folder_rows(root: Path, config: DataConfig) -> Rows:
    """A folder that `datasets` wrote or can read, or one with image files."""
    from .from_datasets import dataset_rows

    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        from datasets import load_from_disk

        return dataset_rows(load_from_disk(str(root)), config)
    members = _walk(root)
    has_images = any(_is_image(m) for m in members)
    tables = [m for m in members if PurePosixPath(m).name in ("metadata.csv", "metadata.jsonl")]
    readable = any(PurePosixPath(m).suffix.lower() in {*TABLE_ENDINGS, ".arrow"} for m in members)
    if config.table is None and ((not has_images and readable) or len(tables) > 1):
        from datasets import load_dataset

        return dataset_rows(load_dataset(str(root), config.config_name), config)
    return _file_rows(root, members, config)


def _is_image(member: str) -> bool:
    return PurePosixPath(member).suffix.lower() in IMAGE_ENDINGS


def _file_rows(root: Path, members: list[str], config: DataConfig, table: str | None = None) -> Rows:
    """Rows of a folder or zip: by its table where there is one, else by its folders."""
    images = [m for m in members if _is_image(m)]
    table = table or _table_name(members, images, config)
    if table is None:
        if not images:
            raise FileNotFoundError(
                f"no images in {config.source!r}: expected files ending in {' '.join(sorted(IMAGE_ENDINGS))}"
            )
        return Rows(_stored(root, images, config.size), images, _folder_columns(images, config))
    columns = _read_table(root, table, members, config)
    column = image_column(columns.column_names, config.image)
    if not _is_text(columns[column].type):
        rows = [f"row {i}" for i in range(len(columns))]
        return Rows(EncodedImages(columns[column], config.size), rows, columns.drop_columns([column]))
    names = columns[column].to_pylist()
    folder = PurePosixPath(table).parent if table in members else PurePosixPath()
    found = _locate(names, root, images, folder)
    if config.bad_images == "error":
        _refuse_unfound(names, found, root, table)
    files = [str(folder / (name or "")) if file is None else file for name, file in zip(names, found, strict=True)]
    return Rows(_stored(root, files, config.size), [str(name) for name in names], columns)


def _stored(root: Path, files: list[str], size: int | None) -> StoredImages:
    if root.is_dir():
        return StoredImages([str(root / file) for file in files], None, size)
    return StoredImages(files, str(root), size)


def _table_name(members: list[str], images: list[str], config: DataConfig) -> str | None:
    """The table to read: a member, a path of its own, or None for class folders.

    A table of a usual name (or parquet) goes before one in the root, that is the innermost folder of everything; where
    the folders make no two classes, any table counts.
    """
    asked, tables = config.table, [m for m in members if PurePosixPath(m).suffix.lower() in TABLE_ENDINGS]
    if asked is not None:
        if asked in members:
            return asked
        inside = [m for m in members if PurePosixPath(m).name == asked]
        if len(inside) == 1:
            return inside[0]
        if Path(asked).expanduser().is_file():
            return asked
        raise FileNotFoundError(f"no table {asked!r} in the source or on disk{suggest(asked, tables)}")
    usual = [m for m in tables if PurePosixPath(m).name.lower() in TABLE_NAMES or m.lower().endswith(".parquet")]
    above = os.path.commonpath([PurePosixPath(m).parent for m in (*images, *tables)]) if tables else ""
    found = usual or [m for m in tables if PurePosixPath(m).parent == PurePosixPath(above)]
    if tables and not found and len(set(_folder_columns(images, config)["class"].to_pylist())) < 2:
        found = tables
    if len(found) > 1:
        raise ValueError(f"several tables ({', '.join(found[:5])}); say which one in data.table")
    return found[0] if found else None


@contextmanager
def open_file(source: str, name: str) -> Iterator[BinaryIO]:
    """A file inside a folder, zip or beside a table, or at a path of its own; FileNotFoundError if there is none."""
    root = Path(source).expanduser()
    folder = root.parent if root.suffix.lower() in TABLE_ENDINGS else root
    path = next((p for p in (folder / name, Path(name).expanduser()) if p.is_file()), None)
    if path is not None:
        with path.open("rb") as file:
            yield file
    elif root.is_file() and zipfile.is_zipfile(root) and name in _archive(str(root), os.getpid()).namelist():
        yield io.BytesIO(_archive(str(root), os.getpid()).read(name))
    else:
        raise FileNotFoundError(f"no file {name!r} in {source!r} or on disk")


def _read_table(root: Path, table: str, members: list[str], config: DataConfig) -> Any:
    """The table as a pyarrow table; columns of ids or file names are read as text, even if numbers."""
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    if table not in members:
        data = Path(table).expanduser().read_bytes()
    elif root.is_dir():
        data = (root / table).read_bytes()
    else:
        data = _archive(str(root), os.getpid()).read(table)
    ending = PurePosixPath(table).suffix.lower()
    try:
        if ending == ".parquet":
            columns = parquet.read_table(io.BytesIO(data))
        elif ending == ".jsonl":
            columns = json.read_json(io.BytesIO(data))
        else:
            text = [*([config.image] if config.image else IMAGE_COLUMNS), *([config.id] if config.id else [])]
            columns = csv.read_csv(
                io.BytesIO(data),
                parse_options=csv.ParseOptions(delimiter=_delimiter(data, table), newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
            )
    except pa.ArrowInvalid as error:
        raise ValueError(f"cannot read the table {table!r}: {error}") from None
    if double := [name for name, count in Counter(columns.column_names).items() if count > 1]:
        raise ValueError(f"the table {table!r} has the column {double[0]!r} more than once; rename or remove one")
    return columns


def _delimiter(data: bytes, table: str) -> str:
    """What separates the columns of a CSV or TSV table; a ValueError if its text or header say otherwise."""
    try:
        header = data.decode("utf-8").partition("\n")[0]
    except UnicodeDecodeError as error:
        raise ValueError(f"the table {table!r} is not UTF-8 ({error}); save it as UTF-8") from None
    words = {",": "commas", "\t": "tabs", ";": "semicolons"}
    delimiter = "\t" if table.lower().endswith(".tsv") else ","
    other = next((sign for sign in words if sign in header), delimiter)
    if delimiter not in header and other != delimiter:
        raise ValueError(
            f"the columns of {table!r} are separated by {words[other]}, expected {words[delimiter]}; save it with commas "
            f"as .csv or with tabs as .tsv"
        )
    return delimiter


def image_column(names: Sequence[str], asked: str | None) -> str:
    """The image column: the asked one, or the first usual name. Raises ValueError where there is none."""
    if asked is not None:
        return known_column(asked, names, "image")
    for name in IMAGE_COLUMNS:
        if name in names:
            return name
    raise ValueError(f"no image column found; name it in data.image; columns: {', '.join(names)}")


def known_column(name: str, names: Sequence[str], field_name: str) -> str:
    """`name` if it is a column; otherwise a ValueError with the nearest name and all columns."""
    if name in names:
        return name
    raise ValueError(f"data.{field_name}: no column {name!r}{suggest(name, names)}; columns: {', '.join(names)}")


def known_columns(patterns: Sequence[str] | str, names: Sequence[str], field_name: str) -> list[str]:
    """The columns that names or patterns ("*_x") choose, patterns in table order, none twice."""
    chosen: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matching = [] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        chosen.update(dict.fromkeys(matching or [known_column(pattern, names, field_name)]))
    return list(chosen)


def _is_text(arrow_type: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def _endings(member: str) -> Iterator[str]:
    """Every way to name a file by the end of its path: a/b.jpg gives a/b.jpg, a/b, b.jpg, b."""
    parts = PurePosixPath(member).parts
    for start in range(len(parts)):
        path = PurePosixPath(*parts[start:])
        yield str(path)
        yield str(path.with_suffix(""))


def _locate(names: list[str | None], root: Path, images: list[str], folder: PurePosixPath) -> list[str | None]:
    """The file of each name: relative to the table, to the source, or the only one whose path ends so, else None."""
    exact, ends = set(images), Counter(end for member in images for end in _endings(member))
    by_end = {end: member for member in images for end in _endings(member) if ends[end] == 1}

    def find(name: str | None) -> str | None:
        if not name:
            return None
        inside = next((c for c in (str(folder / name), str(PurePosixPath(name))) if c in exact), None)
        if inside or (inside := by_end.get(str(PurePosixPath(name)))):
            return inside
        return name if root.is_dir() and (root / name).is_file() else None

    return [find(name) for name in names]


def _refuse_unfound(names: list[str | None], files: list[str | None], root: Path, table: str) -> None:
    if missing := [str(name) for name, file in zip(names, files, strict=True) if file is None]:
        first = ", ".join(repr(name) for name in missing[:3])
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images that the table {table!r} names are not in {str(root)!r} "
            f"(or are there more than once), the first: {first}; correct the table, or leave them out with "
            f"data.bad_images=skip"
        )


def _folder_columns(images: list[str], config: DataConfig) -> Any:
    """Columns "class" (the folder of each image) and, where the outer folders are split names, "split"; of images without
    folders none."""
    import pyarrow as pa

    folders = [PurePosixPath(image).parent.parts for image in images]
    if not any(folders):
        return pa.table({})
    asked = (config.train_split, config.query_split, config.gallery_split)
    known = SPLIT_NAMES | {split.lower() for split in asked if split}

    def outer_are_splits() -> bool:
        return all(len(parts) > 1 and parts[0].lower() in known for parts in folders)

    while len({parts[:1] for parts in folders}) == 1 and min(map(len, folders)) > 1 and not outer_are_splits():
        folders = [parts[1:] for parts in folders]
    columns = {}
    if outer_are_splits():
        columns["split"] = [parts[0] for parts in folders]
        folders = [parts[1:] for parts in folders]
    return pa.table({**columns, "class": ["/".join(parts) for parts in folders]})
