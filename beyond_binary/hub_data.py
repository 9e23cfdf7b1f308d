"""A user's images and labels as a data set on the Hub: parquet files and a card, in one commit."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image, ImageOps

from .hub import CARD, Files, check_hub_id, check_token, push
from .preprocess import to_rgb

if TYPE_CHECKING:
    from .data import DataConfig
    from .data.readers import Rows

SHARD_BYTES = 500_000_000
ROWS_AT_ONCE = 64
PNG_MODES = ("1", "L", "LA", "P", "I;16", "RGB", "RGBA")
Column = np.ndarray | list[list[str]]
"""Labels of n images: an array [n ...], or lists of texts."""
ClassNames = Mapping[str, Sequence[str]] | Sequence[str] | None
"""Names of the classes 0, 1, ... by column, or of the column "label"."""
RESERVED = {"image", "split"}
"""What no column of labels can be called."""


def push_dataset(
    images: Sequence[Any],
    labels: Any,
    hub_id: str,
    *,
    split: str | Sequence[str] = "train",
    class_names: ClassNames = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    license: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Send images with their labels as a parquet set that `datasets` and `data.source=hub:USER/NAME` read.

    All files go in one commit, and a push replaces the whole set: parquet files of an earlier push are removed in the same
    commit, those of other splits too. Give all splits in one call.

    Args:
        images: n paths or encoded bytes (sent as they are, with the place and the camera if EXIF has them), or PIL images
            (sent as PNG without loss, upright, without EXIF; CMYK and other modes that PNG lacks as RGB).
        labels: one column [n ...] called "label", or a mapping from names to columns. A column is an array or a list of
            integers (classes), floats or text [n], vectors and grids [n d ...] such as joints [n 16 3], or lists of texts
            (captions, as many as there are).
        hub_id: "user/name".
        split: the split of all images, or one for each [n].
        class_names: names of the classes 0, 1, ... of the column "label", or such names by column.
        private: make a new repository private; None leaves that to the account's settings.
        token: access token with write rights; None takes that of `HF_TOKEN` or `hf auth login`.
        revision: branch, by default main.
        license: for the card, for example cc-by-4.0.
        commit_message: the commit's title.

    Returns:
        the address of the commit.

    Raises:
        ValueError: columns of unlike lengths, labels that are missing or of no such form, or what `push` raises.
        FileNotFoundError: an image file is not there.
        PermissionError, ConnectionError: as `push`.
    """
    check_hub_id(hub_id)
    check_token(token)
    with tempfile.TemporaryDirectory() as folder:
        files = dataset_files(images, labels, hub_id, Path(folder), split, class_names, license)
        return push(
            files, hub_id, private=private, token=token, revision=revision, commit_message=commit_message,
            repo_type="dataset",
        )  # fmt: skip


def dataset_files(
    images: Sequence[Any],
    labels: Any,
    hub_id: str,
    folder: Path,
    split: str | Sequence[str] = "train",
    class_names: ClassNames = None,
    license: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Files:
    """The files of the set, written into `folder` in parts of about `shard_bytes`, and its card."""
    given: dict[str, Any] = dict(labels) if isinstance(labels, Mapping) else {"label": labels}
    splits = [split] * len(images) if isinstance(split, str) else list(split)
    lengths = {"images": len(images), "split": len(splits), **{name: len(column) for name, column in given.items()}}
    if len(set(lengths.values())) > 1 or not len(images):
        found = ", ".join(f"{count} in {name}" for name, count in lengths.items())
        raise ValueError(f"expected as many labels as images, and at least one, got {found}")
    if wrong := [part for part in dict.fromkeys(splits) if part == "all" or not re.fullmatch(r"\w+(\.\w+)*", part)]:
        raise ValueError(f"a split cannot be called {wrong[0]!r}: expected letters, digits, dots and _, and not 'all'")
    if taken := RESERVED & given.keys():
        raise ValueError(f"a column of labels cannot be called {', '.join(sorted(taken))}; name it otherwise")
    columns = {name: tidy(name, column) for name, column in given.items()}
    features = label_features(columns, class_names)
    files: Files = {}
    for part in dict.fromkeys(splits):
        rows = [i for i, name in enumerate(splits) if name == part]
        shards = list(write_shards(images, columns, rows, features, folder, part, shard_bytes))
        for number, shard in enumerate(shards):
            files[f"data/{part}-{number:05d}-of-{len(shards):05d}.parquet"] = shard
    counts = {part: splits.count(part) for part in dict.fromkeys(splits)}
    files[CARD] = dataset_card(hub_id, counts, columns, license).encode()
    return files


@dataclass(frozen=True)
class AsStored(Sequence[Any]):
    """Images of rows as paths or bytes where they are stored as such; else, and with `pixels_only`, as PIL images."""

    images: Sequence[Any]
    pixels_only: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        from .data.items import Picked
        from .data.readers import EncodedImages, StoredImages

        images: Any = self.images
        place = int(index)
        while isinstance(images, Picked):
            images, place = images.images, int(images.positions[place])
        whole = isinstance(images, StoredImages | EncodedImages) and images.size is None and not self.pixels_only
        return images.stored(place) if whole else images[place]


@dataclass(frozen=True)
class FromRows:
    """What `dataset_files` takes, made of the rows of a source.

    Attributes:
        images: [n] paths, bytes or PIL images, each read when it is asked for.
        columns: by name, that of the labels first.
        split: of each row; None where no column says it.
        class_names: by column, where they are integers with names.
        left_out: columns that are no labels, and why.
    """

    images: Sequence[Any]
    columns: dict[str, Any]
    split: list[str] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def from_rows(rows: Rows, config: DataConfig, *, label_name: str | None = None, pixels_only: bool = False) -> FromRows:
    """The images, labels and other columns of a source, as a set to push.

    The labels are those that training would read: the set's own, the column `config.label` (several are stacked), or "label" or
    "class". Integers with class names are called "label".

    Args:
        rows: from `all_rows`.
        config: that they were read with.
        label_name: what the column of the labels is called; unset: its own name, or "label".
        pixels_only: give images decoded, not as their files are.

    Raises:
        ValueError: a label column that is not there, or labels that are missing or unlike each other.
    """
    from .data.columns import class_columns, column_values, read_labels
    from .data.readers import known_columns
    from .data.splits import readable

    if config.bad_images == "skip":
        rows = readable(rows)
    names = rows.columns.column_names
    everything = np.arange(len(rows.names))
    source: str | None = None  # the column that the labels are
    if rows.labels is not None and config.label is None:
        labels, source = rows.labels, "label"
    elif config.label is None:
        source = next(iter(class_columns(rows, config)))
        labels = column_values(rows, source)
    else:
        chosen = known_columns(config.label, names, "label")
        labels = read_labels(rows, config, everything)[0] if len(chosen) > 1 else column_values(rows, chosen[0])
        source = chosen[0] if len(chosen) == 1 else None
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U" and labels.ndim == 2:  # "" follows shorter lists
        labels = [[text for text in row if text.strip()] for row in labels.tolist()]
    named = rows.class_names.get(source or "")
    label_name = label_name or ("label" if named or source is None else source)
    if label_name in names and label_name != source:
        raise ValueError(f"the labels would be called {label_name!r}, as another column is; choose another label_name")
    columns, left_out, split = {label_name: labels}, {}, config.split or "split"
    class_names = {label_name: named} if named else {}
    for name in names:
        values = rows.columns[name].to_pylist()
        if name in (split, source) or [str(value) for value in values] == rows.names:
            continue  # names are of the image files, which have other names in the set
        if name in RESERVED:
            left_out[name] = f"a column of the set is called {name} already"
            continue
        try:
            columns[name] = tidy(name, values)
        except ValueError as error:
            left_out[name] = str(error).removeprefix(f"column {name!r}: ")
        else:
            if name in rows.class_names and min(values) >= 0:  # -1: not known
                class_names[name] = rows.class_names[name]

    splits = [str(value) for value in rows.columns[split].to_pylist()] if split in names else None
    images = AsStored(rows.images, pixels_only)
    return FromRows(images, columns, splits, class_names, left_out)


def tidy(name: str, column: Any) -> Column:
    """A column as an array of numbers [n ...] or text [n], or as a list of lists of texts; ValueError if it is neither."""
    rows = _array(column.to_numpy() if hasattr(column, "to_numpy") else column)  # of pandas
    rows = rows.tolist() if isinstance(rows, np.ndarray) and rows.dtype.kind in "UO" else rows
    if isinstance(rows, list | tuple) and all(isinstance(row, list | tuple) and _are_texts(row) for row in rows):
        return [list(row) for row in rows]
    try:
        array = np.asarray([_array(row) for row in rows] if isinstance(rows, list | tuple) else rows)
    except ValueError:  # rows of unlike lengths
        array = np.empty(0, dtype=object)
    text = array.dtype.kind == "U"
    if array.dtype.kind not in "biufU" or (text and not (array.ndim == 1 and all(isinstance(r, str) for r in rows))):
        types = {type(row): i for i, row in reversed([*enumerate(rows)])}  # each with its first row
        first = max(types.values())
        names = ", ".join(kind.__name__ for kind in sorted(types, key=lambda kind: types[kind]))
        raise ValueError(
            f"column {name!r}: expected numbers or text [n], numbers [n ...], or a list of texts for each image; got "
            f"{names}; row {first} is {repr(rows[first])[:60]}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        raise ValueError(f"column {name!r}: {len(bad)} labels are NaN or infinite, the first at {bad[0]}")
    return array


def _array(value: Any) -> Any:
    """A tensor, on any device and with or without a gradient, as an array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _are_texts(row: Sequence[Any]) -> bool:
    return len(row) > 0 and all(isinstance(text, str) for text in row)


def label_features(columns: Mapping[str, Column], class_names: ClassNames) -> Any:
    """The `datasets` features of the image and of tidy columns; ValueError where class names do not fit."""
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    found: dict[str, Any] = {"image": ImageFeature()}
    for name, column in columns.items():
        if isinstance(column, list):
            found[name] = List(Value("string"))
            continue
        types = {"b": "bool", "i": "int64", "u": "int64", "f": "float32" if column.dtype.itemsize <= 4 else "float64"}
        found[name] = Value(types.get(column.dtype.kind, "string"))
        for length in reversed(column.shape[1:]):
            found[name] = List(found[name], length=length)
    for name, names in by_column(class_names).items():
        classes = columns.get(name, [])
        whole = isinstance(classes, np.ndarray) and classes.dtype.kind in "iu" and classes.ndim == 1
        if not whole or not set(np.asarray(classes).tolist()) <= set(range(len(names))):
            raise ValueError(f"class_names need a column {name} of integers from 0 to {len(names) - 1}")
        found[name] = ClassLabel(names=list(names))
    return Features(found)


def by_column(class_names: ClassNames) -> Mapping[str, Sequence[str]]:
    """Class names by column; those without one are of the column "label"."""
    if class_names is None or isinstance(class_names, Mapping):
        return class_names or {}
    return {"label": class_names}


def write_shards(
    images: Sequence[Any],
    columns: Mapping[str, Column],
    rows: Sequence[int],
    features: Any,
    folder: Path,
    part: str,
    shard_bytes: int,
) -> Iterator[Path]:
    """Write the rows into parquet files of about `shard_bytes` of images each; yields them as they are complete."""
    import pyarrow as pa
    from pyarrow import parquet

    schema, writer, size, number = features.arrow_schema, None, 0, 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chosen = rows[start : start + ROWS_AT_ONCE]
        cells = [encoded(images[i]) for i in chosen]
        table = {name: [_plain(column[i]) for i in chosen] for name, column in columns.items()}
        if writer is None:
            writer = parquet.ParquetWriter(folder / f"{part}-{number}.parquet", schema)
        writer.write_table(pa.table({"image": cells, **table}, schema=schema))
        size += sum(len(cell["bytes"]) for cell in cells)
        if size >= shard_bytes or start + ROWS_AT_ONCE >= len(rows):
            writer.close()
            yield folder / f"{part}-{number}.parquet"
            writer, size, number = None, 0, number + 1


def _plain(value: Any) -> Any:
    """A label as plain Python: arrays, tensors and numpy's numbers as (lists of) numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def encoded(image: Any) -> dict[str, Any]:
    """An image as {"bytes", "path"}: the file of a path, bytes as they are, a PIL image as PNG, upright, without EXIF.

    A PIL image of a mode that PNG lacks (CMYK, F, YCbCr) is sent as RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image by its first bytes, or none of the three.
    """
    if isinstance(image, str | os.PathLike):
        content, name = Path(image).read_bytes(), Path(image).name
    elif isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in PNG_MODES:
            upright = to_rgb(upright)
            upright.info.pop("icc_profile", None)  # it was of the other mode's colours
        buffer = io.BytesIO()
        upright.save(buffer, "PNG", exif=b"")
        content, name = buffer.getvalue(), None
    elif isinstance(image, bytes):
        content, name = image, None
    else:
        raise ValueError(f"expected images as paths, bytes or PIL images, got {type(image).__name__}")
    try:
        with Image.open(io.BytesIO(content)):
            pass
    except OSError as error:
        raise ValueError(f"{name or 'an image'} cannot be read: {error}") from None
    return {"bytes": content, "path": name}


def dataset_card(hub_id: str, counts: Mapping[str, int], columns: Mapping[str, Column], license: str | None) -> str:
    """The card: which files make which split, the columns, and how to train on them with this package."""
    known: dict[str, Any] = {} if license is None else {"license": license}
    known["tags"] = ["beyond_binary", "metric-learning"]
    files = [{"split": part, "path": f"data/{part}-*"} for part in counts]
    known["configs"] = [{"config_name": "default", "data_files": files}]
    label = "label" if "label" in columns else next(iter(columns))
    first = columns[label]
    told = f"'[{label}]'" if isinstance(first, list) else label
    given = "train" in counts and len(counts) > 1
    other = next((part for part in ("test", *counts) if part in counts and part != "train"), None)
    if given:
        division = "" if other == "test" else f" --data.query_split {other}"
    elif isinstance(first, np.ndarray) and first.ndim == 1 and first.dtype.kind in "iuU":
        division = " --data.splitting class_disjoint"
    else:
        total = sum(counts.values())
        test = max(1, total // 5)
        division = f" --data.splitting rows --data.rows '[{total - test}, {test}]' --data.shuffle true"
    rows = "\n".join(f"| `{name}` | {_form(column)} |" for name, column in columns.items())
    splits = ", ".join(f"{count} in `{part}`" for part, count in counts.items())
    return (
        f"---\n{yaml.safe_dump(known, sort_keys=False).strip()}\n---\n\n# {hub_id}\n\nImages with labels: {splits}.\n\n"
        f"| column | each image has |\n|---|---|\n| `image` | the image |\n{rows}\n\n"
        f"To read it: `datasets.load_dataset({hub_id!r})`. To train on it with beyond_binary:\n\n"
        f"```sh\naccelerate launch recipes/train.py --config CONFIG.yaml \\\n"
        f"    --data.source hub:{hub_id} --data.label {told}{division}\n```\n"
    )


def _form(column: Column) -> str:
    """What a column holds for each image, in words."""
    if isinstance(column, list):
        return "a list of texts"
    word = {"i": "an integer", "u": "an integer", "b": "yes or no", "f": "a number", "U": "a text"}[column.dtype.kind]
    return word if column.ndim == 1 else f"numbers {list(column.shape[1:])}"
