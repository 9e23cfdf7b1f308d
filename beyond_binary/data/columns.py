"""What the columns of a set mean: labels, classes and ids, with every gap or misfit refused by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import DataConfig
from .readers import EncodedImages, Rows, known_column, known_columns, open_file


def column_values(rows: Rows, name: str, index: np.ndarray | None = None, *, gaps: bool = False) -> np.ndarray:
    """One column (of the rows `index`) as int64, float64 or text [n], or float64 [n m ...] or text [n m] for lists.

    Lists of texts may differ in length: "" follows the shorter ones. With `gaps`, text may be missing: "".

    Raises:
        ValueError: missing or infinite values (with their rows), lists of numbers of different lengths, a type that is
            no label.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.columns[name] if index is None else rows.columns[name].take(pa.array(index))
    if _is_text(getattr(column.type, "value_type", None)) and not pa.types.is_dictionary(column.type):
        lists = [[text or "" for text in texts or []] for texts in column.to_pylist()]
        _refuse_missing(name, rows, index, np.array([not any(texts) for texts in lists]))
        longest = pc.max(pc.list_value_length(rows.columns[name])).as_py() or 0
        return np.array([[*texts, *[""] * (longest - len(texts))] for texts in lists], dtype=np.str_)
    values, shape, missing = _unnested(column.combine_chunks(), name)
    if len(shape) > 1:
        _refuse_missing(name, rows, index, missing)  # an empty list has no place in the array
    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        array = np.asarray(values.cast(pa.int64())).reshape(shape)
    elif pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        array = np.asarray(values.cast(pa.float64())).reshape(shape)
    elif len(shape) == 1 and _is_text(values.type):
        array = np.array([text or "" for text in values.to_pylist()], dtype=np.str_)
        missing = np.zeros(len(array), dtype=bool) if gaps else missing | (array == "")
    else:
        raise ValueError(
            f"column {name!r} of type {column.type} cannot be a label; expected numbers, text or lists of either"
        )
    if array.dtype.kind == "f" or array.ndim > 1:
        array = array.astype(np.float64)
        missing = np.asarray(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    _refuse_missing(name, rows, index, missing)
    return array


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _unnested(values: Any, name: str) -> tuple[Any, list[int], np.ndarray]:
    """The innermost values of an arrow array of (lists of) values, their shape, and which rows are empty."""
    import pyarrow as pa

    if isinstance(values.type, pa.ExtensionType):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    shape, missing = [len(values)], np.asarray(values.is_null())
    while hasattr(values, "value_lengths"):
        lengths = sorted(set(values.value_lengths().drop_null().to_pylist()))
        if len(lengths) > 1:
            raise ValueError(f"column {name!r} holds lists of lengths {lengths[:5]}; expected one length")
        shape, values = [*shape, *lengths], values.flatten()
    return values, shape, missing


def _refuse_missing(name: str, rows: Rows, index: np.ndarray | None, missing: np.ndarray) -> None:
    if missing.any():
        where = np.flatnonzero(missing) if index is None else index[missing]
        first = ", ".join(repr(rows.names[i]) for i in where[:3])
        raise ValueError(
            f"column {name!r}: {missing.sum()} of {len(missing)} values are missing, NaN or infinite, the "
            f"first at {first}; complete or remove these rows"
        )


def read_labels(rows: Rows, config: DataConfig, index: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """The labels of the rows `index` as `load_splits` describes them; class names, where there are any."""
    names = rows.columns.column_names
    if config.label_file is not None:
        return array_labels(rows, config)[index], None
    if config.label is None:
        return class_values(rows, class_columns(rows, config), index)
    chosen = known_columns(config.label, names, "label")
    listed = isinstance(config.label, list) or len(chosen) > 1
    columns = [column_values(rows, name, index, gaps=listed) for name in chosen]
    if len(columns) == 1:
        if columns[0].dtype.kind == "U" and columns[0].ndim == 1 and not listed:
            _refuse_near_numbers(chosen[0], columns[0])
            return class_values(rows, chosen, index)
        if columns[0].dtype.kind != "U":
            return columns[0], rows.class_names.get(chosen[0])
    text = [name for name, values in zip(chosen, columns, strict=True) if values.dtype.kind == "U"]
    if len(text) == len(chosen):
        texts = np.concatenate([values.reshape(len(values), -1) for values in columns], axis=1)
        _refuse_missing(", ".join(chosen), rows, index, (texts == "").all(1))
        return texts, None
    if text:
        raise ValueError(
            "several label columns are stacked to a vector and must be numeric, but "
            f"{', '.join(map(repr, text))} holds text (text in all of them would be captions); if the columns make a class together, name them in "
            f"data.class_columns and leave data.label unset"
        )
    return np.concatenate([v.reshape(len(v), -1).astype(np.float64) for v in columns], axis=1), None


def array_labels(rows: Rows, config: DataConfig) -> np.ndarray:
    """The labels of all rows [n ...] from `config.label_file`, by row (.npy) or by name (.npz).

    Raises:
        FileNotFoundError: no such file. ValueError: not numbers or text, another number of labels than rows, or names
            that repeat or are missing.
    """
    if config.label is not None:
        raise ValueError("data.label and data.label_file both say where the labels are; leave one of them out")
    name = config.label_file or ""
    with open_file(config.source, name) as file:
        try:
            loaded = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"data.label_file {name!r}: expected an .npy or .npz file of arrays: {error}") from None
        found = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"labels": loaded}
    labels = found.get("labels", np.empty(0))
    if isinstance(loaded, np.lib.npyio.NpzFile):
        if "names" not in found or len(found["names"]) != len(labels):
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in found.items())
            raise ValueError(
                f"data.label_file {name!r}: expected the arrays names [n] and labels [n ...], got {shapes}"
            )
        labels = labels[_places(found["names"].astype(np.str_).tolist(), read_names(rows, config), name)]
    if labels.dtype.kind not in "biufU" or labels.ndim == 0 or len(labels) != len(rows.names):
        raise ValueError(
            f"data.label_file {name!r}: expected numbers or text, one entry for each of {len(rows.names)} rows, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.float32) if labels.dtype == np.float16 else labels


def _places(names: list[str], wanted: Sequence[str], file: str) -> list[int]:
    """Where each wanted name is among the names."""
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        raise ValueError(f"data.label_file {file!r}: {Counter(names).most_common(1)[0][0]!r} is there more than once")
    if missing := [name for name in wanted if name not in place]:
        raise ValueError(
            f"data.label_file {file!r} has no labels for {len(missing)} of {len(wanted)} images, the first "
            f"{missing[0]!r}; its names are like {names[0]!r}"
            if names
            else f"data.label_file {file!r} is empty"
        )
    return [place[name] for name in wanted]


def _refuse_near_numbers(name: str, text: np.ndarray) -> None:
    """A column of numbers with some words in it must not silently become classes."""

    def is_number(value: str) -> bool:
        try:
            float(value)
        except ValueError:
            return False
        return True

    odd = [value for value in text.tolist() if not is_number(value)]
    if odd and len(odd) < len(text) / 2:
        raise ValueError(
            f"column {name!r} holds numbers, but also {len(odd)} values that are none, such as {odd[0]!r}; "
            f"correct them, or name the column in data.class_columns (not in data.label) if they are classes"
        )


def class_columns(rows: Rows, config: DataConfig) -> list[str]:
    """The columns whose values make the class."""
    names = rows.columns.column_names
    usual = [name for name in ("label", "class") if name in names]
    chosen = config.class_columns or config.label or usual[:1]
    if not chosen:
        raise ValueError(f"no label: name it in data.label (or data.class_columns); columns: {', '.join(names)}")
    return known_columns(chosen, names, "class_columns" if config.class_columns else "label")


def class_values(
    rows: Rows, columns: Sequence[str], index: np.ndarray | None = None
) -> tuple[np.ndarray, list[str] | None]:
    """Classes of the rows: the integers of one integer column, else codes 0..C-1 in sorted order, with names.

    Text is sorted by value where all of it is integers ("2" before "10"). Several columns make one class together; their names are joined with "/". Raises ValueError for floats
    and lists.
    """
    values = [column_values(rows, name, index) for name in columns]
    if bad := [n for n, v in zip(columns, values, strict=True) if v.ndim > 1 or v.dtype.kind == "f"]:
        raise ValueError(
            f"column {bad[0]!r} holds floats or lists, which are no classes; name a column of integers or "
            f"text in data.class_columns"
        )
    if len(values) == 1 and values[0].dtype.kind == "i":
        return values[0], rows.class_names.get(columns[0])
    codes = np.stack([_ranks(v) for v in values])
    _, first, labels = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    names = ["/".join(str(v[i]) for v in values) for i in first]
    return labels.reshape(-1).astype(np.int64), names


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value [n] among the different ones; text is sorted by value where all of it is integers."""
    known, code = np.unique(values, return_inverse=True)
    if known.dtype.kind != "U" or not all(re.fullmatch(r"-?\d+", text) for text in known.tolist()):
        return code
    order = sorted(range(len(known)), key=lambda i: int(known[i]))
    return np.argsort(order)[code]


def read_names(rows: Rows, config: DataConfig) -> Sequence[str]:
    """A readable name per row: that of its file, else its id where there is an id column, else its row number.

    Raises ValueError where ids are missing, repeat, or are neither integers nor text.
    """
    import pyarrow as pa

    if config.id is None:
        return rows.names
    name = known_column(config.id, rows.columns.column_names, "id")
    values, shape, missing = _unnested(rows.columns[name].combine_chunks(), name)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if len(shape) > 1 or not (is_text or pa.types.is_integer(values.type)):
        raise ValueError(f"data.id: column {name!r} of type {values.type} is no id; expected integers or text")
    ids = values.cast(pa.string()).to_pylist()
    _refuse_missing(name, rows, None, missing | np.array([text == "" for text in ids], dtype=bool))
    most, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"data.id: column {name!r} must be unique, but {most} is there {count} times")
    return ids if isinstance(rows.images, EncodedImages) else rows.names
