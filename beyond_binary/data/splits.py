"""From rows to labelled items in train, query and gallery: labels are read, rows or classes divided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..registry import suggest
from .columns import class_columns, class_values, column_values, read_labels, read_names
from .config import DataConfig
from .items import Items, Picked, Splits
from .readers import Rows, known_column, read_rows

Parts = dict[str, np.ndarray]  # "train", "query" and, where there is one, "gallery" -> row numbers


def load_splits(config: DataConfig) -> Splits:
    """Read the set that `config` describes; images stay undecoded (see `loading.check_images` for those).

    Labels are int64 [n] for one column of integers, float64 [n] of floats, int64 [n] codes 0..C-1 (in sorted
    order, with `class_names`) of text or of several class columns, float64 [n m ...] of several numeric
    columns or of lists, what `label_file` holds, or the own labels of a set in its original files. Ids are row numbers.

    Raises:
        FileNotFoundError, ConnectionError: the source or some of its images cannot be found.
        ValueError: a field out of range, a column that is not there, labels that are missing or do not fit
        together, an empty split.
    """
    _check_ranges(config)
    if config.source.startswith("embedded:"):
        return _limited(_embedded(config), config)
    rows = read_rows(config)
    if not rows.columns.column_names and rows.labels is None and config.label_file is None:
        raise ValueError(
            f"{len(rows.images)} images in {config.source!r}, but nothing that labels them: expected one folder per class, "
            "or a table such as labels.csv with one row per image (or name it in data.table)"
        )
    parts = split_rows(rows, config)
    used = np.unique(np.concatenate(list(parts.values())))
    own = rows.labels is not None and config.label is None and config.label_file is None
    labels, class_names = (rows.labels[used], None) if own else read_labels(rows, config, used)
    names = read_names(rows, config)
    whole = Items(Picked(rows.images, used), labels, [str(names[i]) for i in used], used.astype(np.int64))
    items = {name: whole.select(np.searchsorted(used, index)) for name, index in parts.items()}
    target = rows.target if own else None
    splits = Splits(items["train"], items["query"], items.get("gallery"), target, class_names, rows.origin)
    return _limited(splits, config)


def all_rows(config: DataConfig, split: str | None = None) -> Rows:
    """The rows of a source as it stands, embedded sets too: all of them, however training would divide them, or one split.

    A set that is streamed by numbers of rows ends with the last of them; `limit` is not looked at.

    Args:
        config: which source, and how it is read.
        split: only rows with this value in the split column (`config.split`, or "split").

    Raises:
        What `read_rows` raises; ValueError where there is no such column or value.
    """
    _check_ranges(config)
    if config.source.startswith("embedded:"):
        rows = _embedded_rows(config)
    elif split is not None and config.split in (None, "split"):  # a Hub set is asked for this split alone
        asked = {"splitting": "given", "train_split": split, "query_split": split}
        rows = read_rows(replace(config, **asked, gallery_split=None, role=None))  # type: ignore[arg-type]
    else:  # of a Hub set, "given" would leave splits out
        rows = read_rows(config if config.splitting == "rows" else replace(config, splitting="class_disjoint"))
    if split is None:
        return rows
    values = _text(rows, config.split or "split", "split")
    index = np.flatnonzero(values == _spelling(values, split))
    if not len(index):
        raise ValueError(f"no rows of split {split!r}; {_what_exists(rows, config)}")
    return _select(rows, index)


def readable(rows: Rows) -> Rows:
    """The rows whose images can be decoded."""

    def decodes(place: int) -> bool:
        try:
            rows.images[place].load()
        except Exception:  # a decoder may raise anything
            return False
        return True

    return _select(rows, np.flatnonzero([decodes(place) for place in range(len(rows.names))]))


def _select(rows: Rows, index: np.ndarray) -> Rows:
    names = [rows.names[i] for i in index.tolist()]
    labels = None if rows.labels is None else rows.labels[index]
    images = Picked(rows.images, index)
    return replace(rows, images=images, names=names, columns=rows.columns.take(index), labels=labels)


def _embedded_rows(config: DataConfig) -> Rows:
    """An embedded set with its labels and a column "split" (train or test)."""
    import pyarrow as pa

    made = _embedded(config)
    parts = {"train": made.train, "test": made.query}
    columns = pa.table({"split": [name for name, items in parts.items() for _ in range(len(items))]})
    images = [image for items in parts.values() for image in items.images]
    names = [name for items in parts.values() for name in items.names]
    classes = {} if made.class_names is None else {"label": made.class_names}
    labels = np.concatenate([items.labels for items in parts.values()])
    return Rows(images, names, columns, classes, labels, made.target)


def _check_ranges(config: DataConfig) -> None:
    """A ValueError that names the first number of the config that cannot be."""
    for name, least in (("size", 1), ("limit", 1), ("workers", 0), ("folds", 2), ("fold", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"data.{name}={value}: expected at least {least}")
    if config.fold >= config.folds:
        raise ValueError(f"data.fold={config.fold}: expected less than data.folds={config.folds}")


def _limited(splits: Splits, config: DataConfig) -> Splits:
    """At most `config.limit` items of each split, in their old order."""
    if config.limit is None:
        return splits
    rng = np.random.default_rng(config.seed)

    def some(items: Items) -> Items:
        return items.select(np.sort(rng.permutation(len(items))[: config.limit]))

    gallery = None if splits.gallery is None else some(splits.gallery)
    return replace(splits, train=some(splits.train), query=some(splits.query), gallery=gallery)


def _embedded(config: DataConfig) -> Splits:
    """An embedded set; `rows` are its numbers of train and test items."""
    from .embedded import embedded

    if config.label_file is not None:
        raise ValueError("data.label_file is for images of your own; an embedded set has its labels")
    if config.options:
        raise ValueError("data.options are for sets in their original files; an embedded set has none")
    if config.rows is not None and len(config.rows) != 2:
        raise ValueError(f"data.rows={config.rows}: an embedded set takes two numbers, of train and test items")
    options: dict[str, Any] = dict(zip(("train", "test"), config.rows or (), strict=False))
    options["seed"], options["class_disjoint"] = config.seed, config.splitting == "class_disjoint"
    if config.size is not None:
        options["size"] = config.size
    return embedded(config.source.removeprefix("embedded:"), **options)


def split_rows(rows: Rows, config: DataConfig) -> Parts:
    """Divide the rows as `config.splitting` says; a ValueError with the values there are if one is empty."""
    ways = {
        "given": _given,
        "class_disjoint": _class_disjoint,
        "class_folds": _class_folds,
        "rows": _by_count,
    }
    if config.splitting not in ways:
        raise ValueError(f"data.splitting: unknown {config.splitting!r}{suggest(config.splitting, ways)}")
    parts = ways[config.splitting](rows, config)
    if empty := [name for name, index in parts.items() if len(index) == 0]:
        raise ValueError(f"no rows for {' and '.join(empty)}; {_what_exists(rows, config)}")
    return parts


def _what_exists(rows: Rows, config: DataConfig) -> str:
    names = rows.columns.column_names
    found = [name for name in (config.split or "split", config.role or "") if name in names]
    values = [
        f"column {name!r} has {', '.join(map(repr, np.unique(column_values(rows, name))[:8].tolist()))}"
        for name in found
    ]
    return "; ".join(values) or f"there are {len(rows.names)} rows and no split column"


def _text(rows: Rows, name: str, field_name: str) -> np.ndarray:
    return column_values(rows, known_column(name, rows.columns.column_names, field_name)).astype(np.str_)


def _roles(rows: Rows, config: DataConfig) -> np.ndarray | None:
    """The role column [n], checked, or None."""
    if config.role is None:
        return None
    roles = _text(rows, config.role, "role")
    if unknown := sorted(set(roles.tolist()) - {"train", "query", "gallery"}):
        raise ValueError(
            f"data.role: column {config.role!r} must hold train, query or gallery, got "
            f"{', '.join(map(repr, unknown[:3]))}"
        )
    return roles


def _held_out(held_out: np.ndarray, roles: np.ndarray | None) -> Parts:
    """Rows that are not for training [n] bool: all of them queries, or queries and gallery by role."""
    if roles is None:
        return {"query": np.flatnonzero(held_out)}
    parts = {role: np.flatnonzero(held_out & (roles == role)) for role in ("query", "gallery")}
    return parts if (roles == "gallery").any() else {"query": parts["query"]}


def _spelling(split: np.ndarray, wanted: str) -> str:
    """The value as the split column [n] writes it: itself, or the only one that differs in upper and lower case."""
    alike = [value for value in np.unique(split).tolist() if value.lower() == wanted.lower()]
    return alike[0] if len(alike) == 1 else wanted


def _given(rows: Rows, config: DataConfig) -> Parts:
    roles = _roles(rows, config)
    column = config.split or ("split" if "split" in rows.columns.column_names else None)
    if column is not None:
        split = _text(rows, column, "split")
        train = split == _spelling(split, config.train_split)
        if roles is None:
            wanted = {
                "train": config.train_split,
                "query": config.query_split,
                "gallery": config.gallery_split,
            }
            return {part: np.flatnonzero(split == _spelling(split, v)) for part, v in wanted.items() if v}
    elif roles is not None:
        train = roles == "train"
    else:
        raise ValueError(
            "no split is given: name its column in data.split (or data.role), or set data.splitting to "
            f"class_disjoint, class_folds or rows; columns: {', '.join(rows.columns.column_names)}"
        )
    return {"train": np.flatnonzero(train), **_held_out(~train, roles)}


def _sorted_classes(rows: Rows, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Class of each row [n], and the different classes in sorted order."""
    labels, _ = class_values(rows, class_columns(rows, config))
    return labels, np.unique(labels)


def _class_disjoint(rows: Rows, config: DataConfig) -> Parts:
    labels, classes = _sorted_classes(rows, config)
    if len(classes) < 2:
        raise ValueError(
            f"data.splitting=class_disjoint needs two classes or more, but all {len(labels)} rows are of one class, by "
            f"{', '.join(class_columns(rows, config))}; expected one folder per class, or a table with classes (name "
            f"it in data.table, its column in data.class_columns)"
        )
    train = np.isin(labels, classes[: len(classes) // 2])
    return {"train": np.flatnonzero(train), **_held_out(~train, _roles(rows, config))}


def _class_folds(rows: Rows, config: DataConfig) -> Parts:
    labels, classes = _sorted_classes(rows, config)
    column = config.split or ("split" if "split" in rows.columns.column_names else None)
    usable = np.zeros(len(labels), dtype=bool)
    if column is not None:
        split = _text(rows, column, "split")
        usable = split == _spelling(split, config.train_split)
    if config.split is not None or _classes_differ(labels, usable):
        classes = np.unique(labels[usable])
    else:
        classes = classes[: len(classes) // 2]
        usable = np.isin(labels, classes)
    if config.folds > len(classes):
        raise ValueError(f"data.folds={config.folds}: expected 2 <= folds <= {len(classes)} (training classes)")
    held_out = np.isin(labels, np.array_split(classes, config.folds)[config.fold])
    roles = _roles(rows, config)
    if roles is not None and not (roles[usable] == "query").any():
        roles = None  # they divide the test rows, none of which is used
    return {"train": np.flatnonzero(usable & ~held_out), **_held_out(usable & held_out, roles)}


def _classes_differ(labels: np.ndarray, train: np.ndarray) -> bool:
    """Whether the rows `train` [n] bool and the others are both there and have no class in common."""
    return bool(train.any() and not train.all() and not np.isin(labels[train], labels[~train]).any())


def _by_count(rows: Rows, config: DataConfig) -> Parts:
    counts, n = config.rows or [], len(rows.names)
    if len(counts) not in (2, 3) or min(counts) < 1 or sum(counts) > n:
        raise ValueError(
            f"data.rows={counts}: expected the numbers of train, query and (optional) gallery rows, "
            f"together at most {n}"
        )
    order = np.random.default_rng(config.seed).permutation(n) if config.shuffle else np.arange(n)
    parts = np.split(order, np.cumsum(counts))[: len(counts)]
    return {name: np.sort(part) for name, part in zip(("train", "query", "gallery"), parts, strict=False)}
