import re
import shutil
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image

from beyond_binary.data.config import DataConfig
from beyond_binary.data.items import Splits
from beyond_binary.data.readers import Rows
from beyond_binary.data.splits import load_splits, split_rows


def folder(tmp_path: Path, **columns: list) -> Path:
    """A folder of one-pixel images 0.png, 1.png, ... and a parquet table with these columns."""
    n = len(next(iter(columns.values())))
    for i in range(n):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(tmp_path / f"{i}.png")
    parquet.write_table(pa.table({"file": [f"{i}.png" for i in range(n)], **columns}), tmp_path / "t.parquet")
    return tmp_path


def load(tmp_path: Path, columns: dict[str, list], **fields) -> Splits:
    return load_splits(DataConfig(source=str(folder(tmp_path, **columns)), **fields))


def rows_with(**columns: list) -> Rows:
    n = len(next(iter(columns.values())))
    return Rows([None] * n, [str(i) for i in range(n)], pa.table(columns))


BY_ROWS = {"splitting": "rows", "rows": [3, 1]}


def test_help_explains_every_field() -> None:
    parser = ArgumentParser(prog="p")
    parser.add_class_arguments(DataConfig, "data")
    text = " ".join(parser.format_help().split("options:")[1].split())
    explained = re.findall(r"--data\.(\w+)\+? (?:[A-Z_]+|{.*?}) (\S[^-].*?) \(type", text)
    assert [name for name, _ in explained] == list(DataConfig.__dataclass_fields__)
    assert all(len(explanation.split()) > 5 and explanation[0] in '"' + ascii_uppercase for _, explanation in explained)
    parsed = parser.parse_args(["--data.label=[a_x,a_y]", "--data.rows=[3,2]", "--data.class_columns=kind"])
    config = DataConfig(**vars(parsed.data))
    assert (config.label, config.rows, config.class_columns) == (["a_x", "a_y"], [3, 2], "kind")


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        ([5, 3, 5, 9], np.int64, [5, 3, 5, 9]),
        ([True, False, True, True], np.int64, [1, 0, 1, 1]),
        ([0.1, 1e-9, 2.0, 3.0], np.float64, [0.1, 1e-9, 2.0, 3.0]),
        (["b", "a", "c", "b"], np.int64, [1, 0, 2, 1]),
        ([[1, 2], [3, 4], [5, 6], [7, 8]], np.float64, [[1, 2], [3, 4], [5, 6], [7, 8]]),
        ([[[0.1, 2]], [[3, 4]], [[5, 6]], [[7, 8]]], np.float64, [[[0.1, 2]], [[3, 4]], [[5, 6]], [[7, 8]]]),
    ],
)
def test_one_label_column(tmp_path: Path, column, dtype, expected) -> None:
    splits = load(tmp_path, {"y": column}, label="y", **BY_ROWS)
    labels = np.concatenate([splits.train.labels, splits.query.labels])
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, expected)
    assert splits.class_names == (["a", "b", "c"] if isinstance(column[0], str) else None)
    assert [image.getpixel((0, 0))[0] for image in splits.train.images] == [0, 1, 2]
    assert splits.query.names == ["3.png"]


def test_columns_are_stacked_in_table_order_without_rounding(tmp_path: Path) -> None:
    columns = {"b_x": [0.1, 0.2, 0.3, 1 / 3], "b_y": [1, 2, 3, 4], "a_x": [7, 8, 9, 10]}
    splits = load(tmp_path, columns, label="*_[xy]", **BY_ROWS)
    assert splits.train.labels.dtype == np.float64
    assert splits.query.labels.tolist() == [[1 / 3, 4, 10]]
    chosen = load_splits(DataConfig(source=str(tmp_path), label=["a_x", "b_*"], **BY_ROWS))
    assert chosen.query.labels.tolist() == [[10, 1 / 3, 4]]


def test_columns_of_text_are_captions(tmp_path: Path) -> None:
    splits = load(tmp_path, {"cap0": ["a dog", "b", "c", "d"], "cap1": list("xyzw")}, label="cap*", **BY_ROWS)
    assert splits.train.labels.tolist() == [["a dog", "x"], ["b", "y"], ["c", "z"]]
    assert splits.query.labels.tolist() == [["d", "w"]]
    assert splits.class_names is None


def test_text_in_a_list_is_captions_and_alone_a_class(tmp_path: Path) -> None:
    one = load(tmp_path, {"cap": ["1 dog", "2", "c", "d"]}, label=["cap"], **BY_ROWS)
    assert one.train.labels.tolist() == [["1 dog"], ["2"], ["c"]]
    assert one.class_names is None
    gaps = load(tmp_path, {"cap0": ["a", "b", "", "d"], "cap1": ["x", None, "z", ""]}, label="cap*", **BY_ROWS)
    assert gaps.train.labels.tolist() == [["a", "x"], ["b", ""], ["", "z"]]
    lists = {"cap": [["a dog", "b"], ["c"], ["d", None, ""], ["e", "f", "g", "h"]], "other": list("wxyz")}
    for label, more in (("cap", []), (["cap"], []), (["cap", "other"], ["w", "x", "y"])):
        many = load(tmp_path, lists, label=label, **BY_ROWS)
        expected = [["a dog", "b", "", ""], ["c", "", "", ""], ["d", "", "", ""]]
        assert many.train.labels.tolist() == [[*row, *more[i : i + 1]] for i, row in enumerate(expected)]
        assert many.query.labels.shape == (1, 4 + bool(more))


def test_fixed_size_lists_and_text_dictionaries() -> None:
    from beyond_binary.data.columns import column_values

    fixed = pa.array([[1.5, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    rows = Rows([None] * 3, ["0", "1", "2"], pa.table({"xy": fixed, "w": words}))
    assert column_values(rows, "xy", np.array([2, 0])).tolist() == [[5, 6], [1.5, 2]]
    assert column_values(rows, "w").tolist() == ["b", "a", "b"]


def test_several_class_columns_make_one_class(tmp_path: Path) -> None:
    columns = {"alphabet": ["x", "y", "x", "y"], "letter": [10, 2, 2, 10]}
    splits = load(tmp_path, columns, class_columns=["alphabet", "letter"], **BY_ROWS)
    assert splits.class_names == ["x/2", "x/10", "y/2", "y/10"]
    assert splits.train.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ({"angle": [1.0] * 4}, {"label": "angel"}, r"data.label: no column 'angel'; did you mean 'angle'"),
        (
            {"a": [1.0] * 4, "b": list("abcd")},
            {"label": ["a", "b"]},
            r"must be numeric, but 'b'.*class_columns",
        ),
        ({"a": [1.0, float("nan"), 2.0, None]}, {"label": "a"}, r"2 of 4 .* first at '1.png', '3.png'"),
        ({"a": [[1.0], [2.0], [float("nan")], [3.0]]}, {"label": "a"}, r"1 of 4 .* first at '2.png'"),
        ({"a": [[1], [2], [None], [3]]}, {"label": "a"}, r"1 of 4 .* first at '2.png'"),
        ({"a": [[1], [2], None, [3]]}, {"label": "a"}, r"1 of 4 .* first at '2.png'"),
        ({"a": [float("inf"), 0.0, 0.0, 0.0]}, {"label": "a"}, r"1 of 4 .* infinite.* '0.png'"),
        ({"a": ["x", "", None, "y"]}, {"label": "a"}, r"2 of 4 .* first at '1.png', '2.png'"),
        ({"a": ["x", "", "z", "y"]}, {"label": "a"}, r"1 of 4 .* first at '1.png'"),
        ({"a": [["x"], [""], [], None]}, {"label": "a"}, r"3 of 4 .* first at '1.png', '2.png', '3.png'"),
        ({"a": list("xyzw"), "b": ["x", "y", "", "w"]}, {"class_columns": ["a", "b"]}, r"1 of 4 .* first at '2.png'"),
        ({"a": ["x", "", "z", "w"], "b": ["x", None, "", "w"]}, {"label": ["a", "b"]}, r"'a, b': 1 of 4 .* at '1.png'"),
        ({"a": [[1, 2], [1], [1], [1]]}, {"label": "a"}, r"lists of lengths \[1, 2\]"),
        ({"a": ["1.5", "2", "?", "4"]}, {"label": "a"}, r"1 values that are none, such as '\?'"),
        ({"a": [{"b": 1}] * 4}, {"label": "a"}, r"cannot be a label"),
        ({"a": [1] * 4}, {}, r"no label: name it in data.label.*columns: file, a"),
        ({"a": [0.5] * 4}, {"class_columns": "a"}, r"'a' holds floats.*no classes"),
        ({"a": [1] * 4, "i": [1, 2, 2, 3]}, {"label": "a", "id": "i"}, r"unique, but 2 is there 2 times"),
        ({"a": [1] * 4}, {"label": "a", "rows": [3, 2]}, r"rows=\[3, 2\].*at most 4"),
        ({"a": [1] * 4}, {"label": "a", "rows": [3]}, r"rows=\[3\]"),
        ({"a": [1] * 4}, {"label": "a", "splitting": "given"}, r"no split is given.*class_disjoint"),
        ({"a": [1] * 4}, {"label": "a", "splitting": "class"}, r"unknown 'class'.*class_"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, columns, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, columns, **{**BY_ROWS, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, r"data.size=0: expected at least 1"),
        ({"limit": 0}, r"data.limit=0: expected at least 1"),
        ({"workers": -1}, r"data.workers=-1: expected at least 0"),
        ({"folds": 1}, r"data.folds=1: expected at least 2"),
        ({"fold": -1}, r"data.fold=-1: expected at least 0"),
        ({"fold": 2, "folds": 2}, r"data.fold=2: expected less than data.folds=2"),
    ],
)
def test_numbers_out_of_range_are_named(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(DataConfig(source="embedded:digits", **fields))


def class_folders(tmp_path: Path, classes: list[str]) -> str:
    for name in classes:
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (1, 1)).save(tmp_path / name / "0.png")
    return str(tmp_path)


def test_classes_named_by_integers_are_sorted_as_numbers(tmp_path: Path) -> None:
    source = class_folders(tmp_path, ["1", "10", "9", "100", "02", "20"])
    splits = load_splits(DataConfig(source=source, splitting="class_disjoint"))
    assert splits.class_names == ["1", "02", "9", "10", "20", "100"]
    assert sorted(splits.train.names) == ["02/0.png", "1/0.png", "9/0.png"]
    assert [splits.class_names[label] + "/0.png" for label in splits.train.labels] == splits.train.names
    class_folders(tmp_path, ["a"])
    splits = load_splits(DataConfig(source=source, splitting="class_disjoint"))
    assert splits.class_names == ["02", "1", "10", "100", "20", "9", "a"]


def test_one_class_cannot_be_divided(tmp_path: Path) -> None:
    source = class_folders(tmp_path, ["im"])
    with pytest.raises(ValueError, match=r"class_disjoint needs two classes.*one class, by class; .*folder per class"):
        load_splits(DataConfig(source=source, splitting="class_disjoint"))


def test_words_among_numbers_may_be_classes(tmp_path: Path) -> None:
    splits = load(tmp_path, {"a": ["1", "2", "x", "4"]}, class_columns="a", **BY_ROWS)
    assert splits.class_names == ["1", "2", "4", "x"]


def test_given_split_reads_only_the_rows_it_uses(tmp_path: Path) -> None:
    columns = {"fold": ["b", "a", "c", "b", "d"], "y": [0.0, 1.0, 2.0, 3.0, None], "key": list("vwxyz")}
    fields = {"split": "fold", "train_split": "b", "query_split": "a", "label": "y", "id": "key"}
    splits = load(tmp_path, columns, **fields, gallery_split="c")
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([0, 3], [1])
    assert splits.gallery is not None
    assert splits.gallery.ids.tolist() == [2]
    assert load_splits(DataConfig(source=str(tmp_path), **fields)).gallery is None
    with pytest.raises(ValueError, match=r"no rows for query; column 'fold' has 'a', 'b', 'c', 'd'"):
        load_splits(DataConfig(source=str(tmp_path), **{**fields, "query_split": "test"}))


def test_rows_are_divided_in_file_order_or_a_seeded_one(tmp_path: Path) -> None:
    columns, fields = {"y": np.arange(20.0)}, {"label": "y", "splitting": "rows", "rows": [9, 6, 5]}
    plain, mixed, again, other = (
        load(tmp_path, columns, **fields, **more)
        for more in ({}, {"shuffle": True}, {"shuffle": True}, {"shuffle": True, "seed": 1})
    )
    parts = [
        [part.ids.tolist() for part in (s.train, s.query, s.gallery) if part] for s in (plain, mixed, again, other)
    ]
    assert parts[0] == [list(range(9)), list(range(9, 15)), list(range(15, 20))]
    assert [len(part) for part in parts[1]] == [9, 6, 5]
    assert sorted(i for part in parts[1] for i in part) == list(range(20))
    assert parts[1] == parts[2]
    assert len({str(part) for part in parts}) == 3


def test_any_integer_or_text_is_an_id_and_items_are_numbered(tmp_path: Path) -> None:
    ids = [2**63 + 5, 0, 2**64 - 1, 7]
    keys = pa.array(ids, pa.uint64())
    splits = load(tmp_path, {"label": list("abcd"), "key": keys}, id="key", **BY_ROWS)
    assert splits.train.ids.tolist() == [0, 1, 2]
    splits = load(tmp_path, {"label": list("abcd"), "key": [-4, -3, -2, -1]}, id="key", **BY_ROWS)
    assert (splits.train.ids.tolist(), splits.query.ids.tolist()) == ([0, 1, 2], [3])
    assert (splits.train.ids.dtype, splits.query.names) == (np.int64, ["3.png"])
    (tmp_path / "t.parquet").unlink()
    lines = [f"{i}.png,{i},{2**70 - i}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,key", *lines]))
    assert load_splits(DataConfig(source=str(tmp_path), id="key", **BY_ROWS)).query.ids.tolist() == [3]


def test_images_without_a_name_are_called_by_their_id(tmp_path: Path) -> None:
    cells = [(folder(tmp_path, label=[0] * 4) / f"{i}.png").read_bytes() for i in range(4)]
    table = pa.table({"image": cells, "label": [0, 1, 0, 1], "key": ["k", "l", "m", "n"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    config = DataConfig(source=str(tmp_path / "t.parquet"), **BY_ROWS)
    assert load_splits(config).train.names == ["row 0", "row 1", "row 2"]
    config.id = "key"
    assert load_splits(config).train.names == ["k", "l", "m"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0.5, 1, 2, 3], "of type double is no id"), (["a", "", "b", "c"], "1 of 4 values are missing.*'1.png'")],
)
def test_what_is_no_id(tmp_path: Path, ids, message) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"label": [1] * 4, "key": ids}, id="key", **BY_ROWS)


def test_split_values_may_differ_in_case_from_what_is_asked() -> None:
    rows = rows_with(split=["Train", "TEST", "Train", "dev"], c=[1, 2, 3, 4])
    parts = split_rows(rows, DataConfig())
    assert {name: index.tolist() for name, index in parts.items()} == {"train": [0, 2], "query": [1]}
    parts = split_rows(rows, DataConfig(splitting="class_folds", folds=2, split="split", class_columns="c"))
    assert {name: index.tolist() for name, index in parts.items()} == {"train": [2], "query": [0]}
    both = rows_with(split=["Train", "train", "Test", "TEST"])
    with pytest.raises(ValueError, match=r"no rows for query; column 'split' has 'TEST', 'Test', 'Train', 'train'"):
        split_rows(both, DataConfig())
    assert split_rows(both, DataConfig(query_split="Test"))["train"].tolist() == [1]


def test_roles_divide_what_is_not_for_training() -> None:
    roles = ["train", "query", "gallery", "gallery", "query"]
    parts = split_rows(rows_with(role=roles), DataConfig(role="role"))
    assert {name: index.tolist() for name, index in parts.items()} == {
        "train": [0],
        "query": [1, 4],
        "gallery": [2, 3],
    }
    rows = rows_with(c=[1, 2, 2, 2, 1], role=roles)
    parts = split_rows(rows, DataConfig(role="role", splitting="class_disjoint", class_columns="c"))
    assert {name: index.tolist() for name, index in parts.items()} == {
        "train": [0, 4],
        "query": [1],
        "gallery": [2, 3],
    }
    rows = rows_with(split=["train", "test", "test"], role=["train", "query", "query"])
    assert split_rows(rows, DataConfig(role="role"))["query"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"must hold train, query or gallery, got 'probe'"):
        split_rows(rows_with(role=["train", "probe"]), DataConfig(role="role"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 12), min_size=2).filter(lambda labels: len(set(labels)) > 1))
def test_class_disjoint_is_first_and_second_half(labels: list[int]) -> None:
    parts = split_rows(rows_with(label=labels), DataConfig(splitting="class_disjoint"))
    classes = sorted(set(labels))
    first = set(classes[: len(classes) // 2])
    assert parts["train"].tolist() == [i for i, label in enumerate(labels) if label in first]
    assert parts["query"].tolist() == [i for i, label in enumerate(labels) if label not in first]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=12, unique=True), st.integers(2, 6))
def test_class_folds_partition_the_first_half(labels: list[int], folds: int) -> None:
    labels = labels * 2
    rows, half = rows_with(label=labels), sorted(set(labels))[: len(set(labels)) // 2]
    held_out = []
    for fold in range(folds):
        parts = split_rows(rows, DataConfig(splitting="class_folds", fold=fold, folds=folds))
        train, query = ({labels[i] for i in parts[name]} for name in ("train", "query"))
        assert train | query == set(half)
        assert not train & query
        assert len(parts["train"]) + len(parts["query"]) == 2 * len(half)
        held_out += sorted(query)
    assert held_out == half


def test_class_folds_of_a_given_training_split() -> None:
    rows = rows_with(label=[1, 2, 3, 4, 1, 9], part=["train"] * 4 + ["test"] * 2)
    fields = {"splitting": "class_folds", "folds": 2, "split": "part"}
    parts = split_rows(rows, DataConfig(**fields, fold=1))
    assert {name: index.tolist() for name, index in parts.items()} == {"train": [0, 1], "query": [2, 3]}
    with pytest.raises(ValueError, match=r"folds <= 4"):
        split_rows(rows, DataConfig(**{**fields, "folds": 5}))


@pytest.mark.parametrize("split", [["train", "test"] * 4, ["train"] * 8, ["data"] * 8, ["train"] * 7 + ["test"]])
def test_class_folds_take_the_first_half_where_a_split_column_divides_no_classes(split: list[str]) -> None:
    rows = rows_with(label=[1, 1, 2, 2, 3, 3, 4, 4], split=split)
    parts = split_rows(rows, DataConfig(splitting="class_folds", folds=2))
    assert {name: index.tolist() for name, index in parts.items()} == {"train": [2, 3], "query": [0, 1]}


def test_class_disjoint_needs_two_classes_and_takes_other_columns_than_the_label(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs two classes or more, but all 2 rows are of one class, by label"):
        split_rows(rows_with(label=[3, 3]), DataConfig(splitting="class_disjoint"))
    columns = {"angle": [0.5, 1.5, 2.5, 3.5], "thing": ["b", "a", "b", "a"]}
    splits = load(tmp_path, columns, label="angle", class_columns="thing", splitting="class_disjoint")
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([1.5, 3.5], [0.5, 2.5])


def test_limit_keeps_whole_items_and_depends_on_the_seed(tmp_path: Path) -> None:
    fields = {"label": "y", "splitting": "rows", "rows": [10, 4], "limit": 5}
    splits = load(tmp_path, {"y": [i / 8 for i in range(14)]}, **fields)
    assert (len(splits.train), len(splits.query)) == (5, 4)
    assert (splits.train.labels * 8).tolist() == splits.train.ids.tolist() == sorted(splits.train.ids)
    assert splits.train.images[2].getpixel((0, 0))[0] == splits.train.ids[2]
    other = load_splits(DataConfig(source=str(tmp_path), **fields, seed=1))
    assert other.train.ids.tolist() != splits.train.ids.tolist()


def test_embedded_sets_take_counts_size_and_classes() -> None:
    splits = load_splits(DataConfig(source="embedded:digits", rows=[60, 20], size=16, splitting="class_disjoint"))
    assert (len(splits.train), len(splits.query), splits.train.images[0].size) == (60, 20, (16, 16))
    assert splits.train.labels.max() < splits.query.labels.min()
    assert len(load_splits(DataConfig(source="embedded:digits", limit=7)).train) == 7
    with pytest.raises(ValueError, match=r"rows=\[1, 2, 3\]"):
        load_splits(DataConfig(source="embedded:digits", rows=[1, 2, 3]))


# ---- labels in array files

ARRAY = np.arange(24, dtype=np.float16).reshape(4, 2, 3)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "elsewhere"])
@pytest.mark.parametrize("kind", ["folder", "zip", "table"])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_labels_of_an_array_file(tmp_path: Path, ending: str, kind: str, inside: bool) -> None:
    (tmp_path / "set").mkdir()
    source = folder(tmp_path / "set", text=["a", "b", "c", "d"])
    file = (source if inside else tmp_path) / f"labels.{ending}"
    if ending == "npy":
        np.save(file, ARRAY)
    else:
        np.savez(file, names=[f"{i}.png" for i in (3, 1, 0, 2, 9)], labels=ARRAY[[3, 1, 0, 2, 2]])
    if kind == "zip":
        path = shutil.make_archive(str(tmp_path / "set"), "zip", source)
    else:
        path = str(source / "t.parquet" if kind == "table" else source)
    fields = {"splitting": "rows", "rows": [2, 2], "shuffle": True, "seed": 1}
    splits = load_splits(DataConfig(source=path, label_file=file.name if inside else str(file), **fields))
    for part in (splits.train, splits.query):
        assert part.labels.dtype == np.float32
        np.testing.assert_array_equal(part.labels, ARRAY[part.ids])
    assert splits.target is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (ARRAY[:3], r"one entry for each of 4 rows, got float16 \[3, 2, 3\]"),
        (np.array(1.0), r"got float64 \[\]"),
        (np.array([1j] * 4), "expected numbers or text"),
        ({"labels": ARRAY}, r"expected the arrays names \[n\] and labels \[n \.\.\.\], got labels \[4, 2, 3\]"),
        ({"names": ["0.png"], "labels": ARRAY}, "expected the arrays names"),
        ({"names": ["0.png", "1.png", "2.png", "1.png"], "labels": ARRAY}, "'1.png' is there more than once"),
        ({"names": ["0.png", "a.png", "2.png", "b.png"], "labels": ARRAY}, r"no labels for 2 of 4 images, the first '1\.png'; its names are like '0\.png'"),
        ({"names": [], "labels": []}, "is empty"),
        (np.array([{}]), "an .npy or .npz file of arrays"),
    ],
)  # fmt: skip
def test_array_files_that_do_not_fit(tmp_path: Path, arrays: Any, message: str) -> None:
    if isinstance(arrays, dict):
        np.savez(tmp_path / "labels", **arrays)
    else:
        np.save(tmp_path / "labels", arrays)
    name = "labels.npz" if isinstance(arrays, dict) else "labels.npy"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"text": ["a", "b", "c", "d"]}, label_file=name, **BY_ROWS)


def test_an_array_file_needs_images_and_is_the_only_label(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'no\.npy' in"):
        load(tmp_path, {"text": ["a", "b", "c", "d"]}, label_file="no.npy", **BY_ROWS)
    with pytest.raises(ValueError, match="leave one of them out"):
        load(tmp_path, {"text": ["a", "b", "c", "d"]}, label="text", label_file="no.npy", **BY_ROWS)
    with pytest.raises(ValueError, match="an embedded set has its labels"):
        load_splits(DataConfig(source="embedded:digits", label_file="no.npy"))
