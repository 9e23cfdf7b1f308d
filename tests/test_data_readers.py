import csv
import gc
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image, UnidentifiedImageError

from beyond_binary.data.config import DataConfig
from beyond_binary.data.from_datasets import collect, with_fields
from beyond_binary.data.readers import decode, read_rows
from beyond_binary.data.splits import load_splits


def picture(i: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (10 * i, 20, 255 - 10 * i))


def encoded(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root: Path, files: list[str]) -> Path:
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(encoded(i))
    return root


def write_table(root: Path, name: str, rows: list[dict]) -> None:
    if name.lower().endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), root / name)
    elif name.lower().endswith(".jsonl"):
        (root / name).write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with open(root / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)


def zipped(folder: Path, prefix: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def red(images) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in images]


def rows_of(source: Path, **fields):
    return read_rows(DataConfig(source=str(source), **fields))


TABLE = [{"file": f"000{i}.png", "angle": i / 2, "kind": "ab"[i % 2]} for i in range(4)]


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl", "rows.parquet"])
@pytest.mark.parametrize("zip_it", [False, True])
def test_table_is_found_and_rows_keep_its_order(tmp_path: Path, name: str, zip_it: bool) -> None:
    root = write_images(tmp_path / "set", [f"images/000{i}.png" for i in range(4)])
    write_table(root, name, TABLE[::-1])
    rows = rows_of(zipped(root, "inner/") if zip_it else root)
    assert red(rows.images) == [30, 20, 10, 0]
    assert list(rows.names) == ["0003.png", "0002.png", "0001.png", "0000.png"]
    assert rows.columns["angle"].to_pylist() == [1.5, 1.0, 0.5, 0.0]


def test_table_by_name_by_path_and_as_source(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", [f"000{i}.png" for i in range(4)])
    write_table(root, "mine.tsv", TABLE)
    write_table(tmp_path, "other.csv", TABLE[:2])
    assert rows_of(root, table="mine.tsv").columns["kind"].to_pylist() == ["a", "b", "a", "b"]
    assert red(rows_of(root, table=str(tmp_path / "other.csv")).images) == [0, 10]
    assert red(rows_of(zipped(root), table=str(tmp_path / "other.csv")).images) == [0, 10]
    assert len(rows_of(root / "mine.tsv").images) == 4


@pytest.mark.parametrize("name", ["annotations.csv", "Labels.CSV", "labels.tsv", "mine.JSONL"])
@pytest.mark.parametrize("where", ["", "im/", "meta/"])
@pytest.mark.parametrize("zip_it", [False, True])
def test_the_only_table_is_read_whatever_its_name(tmp_path: Path, name: str, where: str, zip_it: bool) -> None:
    root = write_images(tmp_path / "set", [f"im/000{i}.png" for i in range(4)])
    (root / where).mkdir(exist_ok=True)
    write_table(root / where, name, TABLE[::-1])
    rows = rows_of(zipped(root, "inner/") if zip_it else root)
    assert red(rows.images) == [30, 20, 10, 0]
    assert rows.columns["kind"].to_pylist() == ["b", "a", "b", "a"]


def test_which_of_several_tables_is_said_or_of_a_usual_name(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["a/0000.png", "b/0001.png"])
    write_table(root / "a", "notes.csv", TABLE)
    assert rows_of(root).columns["class"].to_pylist() == ["a", "b"]
    write_table(root, "one.csv", TABLE[:1])
    assert len(rows_of(root).images) == 1
    write_table(root, "two.tsv", TABLE[:2])
    with pytest.raises(ValueError, match=r"several tables \(one.csv, two.tsv\); say which one in data.table"):
        rows_of(root)
    write_table(root, "Labels.csv", TABLE[:2])
    assert len(rows_of(root).images) == 2


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["0.png", "1.png"])
    with pytest.raises(ValueError, match=r"2 images in .*expected one folder per class, or a table"):
        load_splits(DataConfig(source=str(root)))
    assert list(rows_of(root).names) == ["0.png", "1.png"]  # search and export need none


def test_images_without_folders_have_their_labels_in_a_file(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", [f"{i}.png" for i in range(8)])
    np.save(tmp_path / "ages.npy", np.arange(8.0))
    splits = load_splits(
        DataConfig(source=str(root), label_file=str(tmp_path / "ages.npy"), splitting="rows", rows=[5, 3])
    )
    assert sorted([*splits.train.labels, *splits.query.labels]) == [*range(8)]


@pytest.mark.parametrize("zip_it", [False, True])
def test_hidden_files_and_folders_are_not_there(tmp_path: Path, zip_it: bool) -> None:
    hidden = ["cat/.0.png", ".thumbs/0.png", "cat/.thumbs/0.png", "__MACOSX/cat/0.png", ".git/labels.csv"]
    root = write_images(tmp_path / "set", ["cat/0.png", "dog/0.png", *hidden])
    rows = rows_of(zipped(root) if zip_it else root)
    assert list(rows.names) == ["cat/0.png", "dog/0.png"]
    assert rows.columns["class"].to_pylist() == ["cat", "dog"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", ["cat/0.png", "dog/0.png"])
    write_images(tmp_path / "far", ["0.png"])
    (root / "bird").symlink_to(tmp_path / "far")
    (root / "cat" / "all").symlink_to(root)
    (tmp_path / "far" / "home").symlink_to(root / "bird")
    assert list(rows_of(root).names) == ["bird/0.png", "cat/0.png", "dog/0.png"]


def test_file_names_that_are_numbers_without_ending(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["train/0001.png", "train/0002.png"])
    write_table(root, "labels.csv", [{"image": "0002", "y": 1}, {"image": "0001", "y": 2}])
    assert red(rows_of(root).images) == [10, 0]


def test_several_tables_and_unknown_table_are_errors(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["0000.png"])
    write_table(root, "labels.csv", TABLE[:1])
    write_table(root, "b.parquet", TABLE[:1])
    with pytest.raises(ValueError, match=r"several tables \(b.parquet, labels.csv\).*data.table"):
        rows_of(root)
    with pytest.raises(FileNotFoundError, match=r"label.csv.*labels.csv"):
        rows_of(root, table="label.csv")


@pytest.mark.parametrize("zip_it", [False, True])
def test_missing_images_are_named_and_counted(tmp_path: Path, zip_it: bool) -> None:
    root = write_images(tmp_path / "set", ["0000.png", "a/0003.png", "b/0003.png"])
    write_table(root, "labels.csv", TABLE)
    with pytest.raises(FileNotFoundError, match=r"3 of 4 .*'0001.png', '0002.png', '0003.png'.*bad_images=skip"):
        rows_of(zipped(root) if zip_it else root)


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rows_of(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no images"):
        rows_of(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"a\.txt.*expected a folder"):
        rows_of(tmp_path / "a.txt")
    write_images(tmp_path, ["x.png"])
    (tmp_path / "labels.csv").write_text('file,a\n"x.png,1\nx.png,2,3\n')
    with pytest.raises(ValueError, match=r"cannot read the table 'labels.csv'"):
        rows_of(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"file,a,a\n0.png,1,2\n", r"'labels.csv' has the column 'a' more than once"),
        ("file,a\n0.png,\u00e9\n".encode("latin-1"), r"'labels.csv' is not UTF-8 .*save it as UTF-8"),
        (b"file;a\n0.png;1,5\n", r"'labels.csv' are separated by semicolons, expected commas"),
        (b"file\ta\n0.png\t1\n", r"'labels.csv' are separated by tabs, expected commas"),
    ],
)
def test_tables_that_are_no_csv(tmp_path: Path, data: bytes, message: str) -> None:
    (write_images(tmp_path, ["0.png"]) / "labels.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path)


def test_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    (write_images(tmp_path, ["0.png"]) / "labels.csv").write_bytes(b"\xef\xbb\xbffile,a\n0.png,1\n")
    assert rows_of(tmp_path).columns.column_names == ["file", "a"]


def test_image_column_is_named_or_usual(tmp_path: Path) -> None:
    root = write_images(tmp_path, ["0000.png"])
    write_table(root, "labels.csv", [{"photo": "0000.png", "a": 1}])
    with pytest.raises(ValueError, match=r"data.image; columns: photo, a"):
        rows_of(root)
    with pytest.raises(ValueError, match="no column 'foto'; did you mean 'photo'"):
        rows_of(root, image="foto")
    assert red(rows_of(root, image="photo").images) == [0]


@pytest.mark.parametrize("zip_it", [False, True])
@pytest.mark.parametrize(
    ("files", "classes", "splits"),
    [
        (["cat/0.png", "dog/0.png"], ["cat", "dog"], None),
        (["set/cat/0.png", "set/dog/0.png"], ["cat", "dog"], None),
        (["test/cat/0.png", "train/cat/0.png"], ["cat", "cat"], ["test", "train"]),
        (["set/test/cat/0.png", "set/train/cat/0.png"], ["cat", "cat"], ["test", "train"]),
        (["greek/alpha/0.png", "latin/a/0.png"], ["greek/alpha", "latin/a"], None),
        (["mine/a/0.png", "test/b/0.png"], ["a", "b"], ["mine", "test"]),
    ],
)
def test_folders_are_classes_and_splits(tmp_path: Path, files, classes, splits, zip_it: bool) -> None:
    root = write_images(tmp_path / "root", [*files, "__MACOSX/cat/0.png"])
    rows = rows_of(zipped(root) if zip_it else root, train_split="mine")
    assert rows.columns["class"].to_pylist() == classes
    assert (rows.columns["split"].to_pylist() if "split" in rows.columns.column_names else None) == splits
    assert list(rows.names) == files


def whole_dataset(n: int = 4, first: int = 0) -> datasets.Dataset:
    features = datasets.Features(picture=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))
    data = {"picture": [picture(first + i) for i in range(n)], "label": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(data, features=features)


def test_datasets_folders(tmp_path: Path) -> None:
    whole_dataset().select([3, 1]).save_to_disk(str(tmp_path / "one"))
    rows = rows_of(tmp_path / "one")
    assert red(rows.images) == [30, 10]
    assert rows.columns["label"].to_pylist() == [1, 1]
    assert rows.class_names == {"label": ["no", "yes"]}
    assert "split" not in rows.columns.column_names
    both = datasets.DatasetDict({"train": whole_dataset(), "test": whole_dataset(2, 7), "extra": whole_dataset(1)})
    both.save_to_disk(str(tmp_path / "two"))
    rows = rows_of(tmp_path / "two")
    assert red(rows.images) == [0, 10, 20, 30, 70, 80]
    assert rows.columns["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    assert rows.names[4] == "test[0]"
    assert len(rows_of(tmp_path / "two", splitting="class_disjoint").images) == 7


@pytest.fixture
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("dataset_cache")
def test_folder_that_load_dataset_reads(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split, n in (("train", 3), ("test", 2)):
        whole_dataset(n).to_parquet(str(tmp_path / "set" / f"{split}-00000-of-00001.parquet"))
    rows = rows_of(tmp_path / "set")
    assert red(rows.images) == [0, 10, 20, 0, 10]
    assert rows.columns["split"].to_pylist() == ["train"] * 3 + ["test"] * 2
    assert rows.columns["label"].to_pylist() == [0, 1, 0, 0, 1]


@pytest.mark.usefixtures("dataset_cache")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves tables open
def test_folder_with_metadata_in_every_split(tmp_path: Path) -> None:
    for split, i in (("train", 0), ("test", 1)):
        root = write_images(tmp_path / "set" / split, ["a.png", "b.png"][: i + 1])
        write_table(root, "metadata.csv", [{"file_name": "ab"[i] + ".png", "angle": i / 2}])
    rows = rows_of(tmp_path / "set")
    assert red(rows.images) == [0, 10]
    assert rows.columns["split"].to_pylist() == ["train", "test"]
    assert rows.columns["angle"].to_pylist() == [0, 0.5]
    del rows
    gc.collect()  # the warnings about the open tables come here, not in some later test


def test_parquet_with_encoded_images(tmp_path: Path) -> None:
    table = [{"image": {"bytes": encoded(i), "path": None}, "raw": encoded(i), "y": i} for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "all.parquet")
    assert red(rows_of(tmp_path / "all.parquet").images) == [0, 10, 20]
    assert red(rows_of(tmp_path / "all.parquet", image="raw").images) == [0, 10, 20]


@pytest.mark.parametrize(
    ("thrown", "expected", "message"),
    [
        (ConnectionError("offline"), ConnectionError, "cannot reach the Hub set 'user/name'.*save_to_disk"),
        (FileNotFoundError("gone"), FileNotFoundError, "no set 'user/name' on the Hub"),
        (
            RuntimeError("Dataset scripts are no longer supported"),
            ValueError,
            "refs/convert/parquet.*convert_to_parquet user/name",
        ),
        (ValueError("Config name is missing"), ValueError, "data.config_name"),
    ],
)
def test_hub_errors_name_the_way_out(monkeypatch: pytest.MonkeyPatch, thrown, expected, message) -> None:
    def load(name: str, config_name: str | None, revision: str | None) -> None:
        assert (name, config_name, revision) == ("user/name", "small", "v1")
        raise thrown

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(expected, match=message):
        read_rows(DataConfig(source="hub:user/name", config_name="small", revision="v1"))


def test_hub_set_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder())
    rows = read_rows(DataConfig(source="hub:user/name", splitting="class_disjoint"))
    assert red(rows.images) == [0, 10, 20, 50, 60]
    assert rows.origin == {
        "set": "user/name", "config": "default", "splits": ["train", "more"], "revision": "main", "commit": "c0ffee"
    }  # fmt: skip
    rows = read_rows(DataConfig(source="hub:user/name", train_split="more", query_split="train", revision="v1"))
    assert red(rows.images) == [50, 60, 0, 10, 20]
    assert rows.origin is not None
    assert (rows.origin["splits"], rows.origin["revision"]) == (["more", "train"], "v1")


def large_dataset(n: int) -> datasets.Dataset:
    """Pictures of 12 x 10 pixels beside a second column of images; the second cell is no image."""
    rng, cells = np.random.default_rng(n), []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
        cells.append({"bytes": b"no image" if i == 1 else buffer.getvalue(), "path": None})
    data = {"mask": cells, "image": cells, "score": [i / 2 for i in range(n)]}
    features = datasets.Features(mask=datasets.Image(), image=datasets.Image(), score=datasets.Value("float32"))
    return datasets.Dataset.from_dict(data, features=features)


class Builder:
    """What `datasets` gives for a set on the Hub, as far as it is used here."""

    config, hash, base_path = SimpleNamespace(name="default"), "c0ffee", "hf://datasets/user/name@c0ffee"

    def __init__(self, made: Callable[[int], datasets.Dataset] = whole_dataset) -> None:
        self.parts = datasets.DatasetDict(
            {"train": made(3), "more": whole_dataset(2, 5) if made is whole_dataset else made(2)}
        )

    def download_and_prepare(self) -> None:
        pass

    def as_dataset(self) -> datasets.DatasetDict:
        return self.parts

    def as_streaming_dataset(self) -> datasets.IterableDatasetDict:
        return datasets.IterableDatasetDict({name: part.to_iterable_dataset() for name, part in self.parts.items()})


@pytest.mark.usefixtures("dataset_cache")
@pytest.mark.parametrize("size", [None, 5])
def test_streamed_rows_are_those_of_the_whole_set(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder(large_dataset))
    fields = {"source": "hub:user/name", "splitting": "class_disjoint", "image": "image", "size": size}
    whole, streamed = (read_rows(DataConfig(**fields, streaming=on)) for on in (False, True))
    assert streamed.columns.to_pylist() == whole.columns.to_pylist()
    assert (list(streamed.names), streamed.origin) == (list(whole.names), whole.origin)
    for i in range(5):
        if i in (1, 4):  # the second of each split
            with pytest.raises(UnidentifiedImageError):
                streamed.images[i]
        else:
            np.testing.assert_array_equal(np.asarray(streamed.images[i]), np.asarray(whole.images[i]))
    stored = decode(io.BytesIO(streamed.images.column[0]["bytes"])).size
    assert stored == ((12, 10) if size is None else (6, 5))


@pytest.mark.parametrize(("rows", "read"), [([1, 1], 2), ([3, 1], 4), ([1, 2], 3)])
def test_streaming_ends_with_the_last_row_that_is_wanted(monkeypatch: pytest.MonkeyPatch, rows, read) -> None:
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder())
    fields = {"source": "hub:user/name", "splitting": "rows", "rows": rows, "streaming": True}
    assert red(read_rows(DataConfig(**fields)).images) == [0, 10, 20, 50, 60][:read]
    assert len(read_rows(DataConfig(**fields, shuffle=True)).images) == 5


def test_only_hub_sets_are_streamed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.streaming is for sets on the Hub"):
        rows_of(write_images(tmp_path, ["cat/0.png"]), streaming=True)


def test_fields_of_structs_are_columns() -> None:
    table = pa.table({
        "box": [{"x": 1, "y": 2.5}, {"x": 3, "y": None}],
        "sentences": [[{"raw": "a cat", "id": 1}, {"raw": "cats", "id": 2}], [{"raw": "a dog", "id": 3}]],
    })  # fmt: skip
    for part in (table, pa.concat_tables([table, table]).slice(1, 2)):
        found = with_fields(part)
        rows = part.to_pylist()
        assert found["box.x"].to_pylist() == [row["box"]["x"] for row in rows]
        assert found["box.y"].to_pylist() == [row["box"]["y"] for row in rows]
        assert found["sentences.raw"].to_pylist() == [[s["raw"] for s in row["sentences"]] for row in rows]
    lost = with_fields(pa.table({"sentences": pa.array([None, [{"raw": "a"}]])}))
    assert lost["sentences.raw"].to_pylist() == [None, ["a"]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = np.full((5, 7), 51, dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    result = decode(io.BytesIO(buffer.getvalue()))
    assert (result.mode, result.size) == ("RGB", (7, 5))
    assert mode == "1" or np.abs(np.asarray(result).astype(int) - 51).max() <= 1


def test_photos_are_upright_and_shrunk() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300)).save(buffer, "JPEG", exif=exif)
    assert decode(io.BytesIO(buffer.getvalue())).size == (300, 400)
    assert decode(io.BytesIO(buffer.getvalue()), size=30).size == (30, 40)
    assert decode(io.BytesIO(buffer.getvalue()), size=500).size == (300, 400)


def test_zip_is_read_by_threads_and_survives_pickling(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", [f"a/{i:02}.png" for i in range(24)])
    images = rows_of(zipped(root)).images
    expected = [10 * i for i in range(24)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: red([images[i]])[0], range(24))) == expected
    assert red(pickle.loads(pickle.dumps(images))) == expected


def test_streamed_batches_may_lack_the_values_of_a_column() -> None:
    """Without declared types, a batch of 32 rows with no value has a column of type null."""

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(70):
            yield {"image": f"{i}.jpg", "note": "late" if i >= 32 else None, "y": i}

    part = datasets.IterableDataset.from_generator(rows)
    kept = collect({"train": part}, DataConfig(source="hub:a/b"))["train"]
    assert kept["y"][:] == list(range(70))
    assert kept["note"][30:34] == [None, None, "late", "late"]
