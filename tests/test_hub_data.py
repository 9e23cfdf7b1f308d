"""Data sets on the Hub with the unmodified clients, against a double on loopback; and what is sent for one."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hub_client import Client
from hub_double import Fault, Hub
from originals import plain_mpii, write_inaturalist, write_inshop, write_sop
from PIL import Image
from pyarrow import parquet

from beyond_binary.data import DataConfig, load_splits
from beyond_binary.data.from_datasets import dataset_rows
from beyond_binary.data.splits import all_rows
from beyond_binary.hub_data import dataset_card, dataset_files, encoded, from_rows, label_features, push_dataset, tidy
from beyond_binary.preprocess import to_rgb
from recipes import ROOT

PUSH = """
import io, json, numpy as np, datasets
from PIL import Image
from beyond_binary.hub_data import push_dataset
from beyond_binary.preprocess import to_rgb
from beyond_binary.data import DataConfig, load_splits
rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
images = [Image.fromarray(p) for p in pixels]
def read(name="tester/set", **fields):
    return load_splits(DataConfig(source=f"hub:{name}", **fields))
"""


def test_what_was_pushed_comes_back_whole_and_streamed(hub: Hub, client: Client) -> None:
    client.run(PUSH + """
joints, ages = rng.random((6, 16, 3)), np.arange(6) / 4
captions = [["a dog", "a cat"], ["one"], ["x", "y", "z"], ["a"], ["b"], ["c"]]
columns = {"label": [0, 1, 0, 1, 2, 2], "age": ages, "joints": joints, "captions": captions, "kind": list("abcabc")}
print(push_dataset(images, columns, "tester/set", split=["train"] * 4 + ["test"] * 2, class_names=["x", "y", "z"], license="mit"))
back = datasets.load_dataset("tester/set")
assert {k: len(v) for k, v in back.items()} == {"train": 4, "test": 2}
assert back["train"].features["label"].names == ["x", "y", "z"]
assert np.array_equal(np.asarray(back["test"][1]["image"]), pixels[5])
assert back["train"]["captions"][:] == captions[:4] and back["train"]["age"][:] == ages[:4].tolist()
assert np.array_equal(back["test"]["joints"][:], joints[4:])
for streaming in (False, True):
    splits = read(label="label", streaming=streaming)
    assert splits.train.labels.tolist() == [0, 1, 0, 1] and splits.class_names == ["x", "y", "z"]
    assert all(np.array_equal(np.asarray(splits.train.images[i]), pixels[i]) for i in range(4))
    assert np.array_equal(read(label="joints", streaming=streaming).query.labels, joints[4:])
    assert read(label=["captions"], streaming=streaming).train.labels[2].tolist() == ["x", "y", "z"]
    assert splits.origin == {
        "set": "tester/set", "config": "default", "splits": ["train", "test"], "revision": "main",
        "commit": splits.origin["commit"],
    }
    print("commit:", splits.origin["commit"])
small = read(label="label", streaming=True, size=3)
assert small.train.images[0].size == (4, 3)
""")  # fmt: skip
    commit = hub.repos["datasets:tester/set"].at()
    assert commit is not None
    assert sorted(commit.files)[1:] == [
        "README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"
    ]  # fmt: skip
    told = (client.home / "output.txt").read_text()
    assert told.count(f"commit: {commit.sha}") == 2
    assert f"/datasets/tester/set/commit/{commit.sha}" in told


def test_streaming_downloads_no_file_as_a_whole(hub: Hub, client: Client) -> None:
    told = client.run(PUSH + """
import os
def kept():
    return [f for _, _, files in os.walk(os.environ["HF_HOME"]) for f in files if f.endswith((".arrow", ".parquet"))]
push_dataset(images, [0, 1, 2, 0, 1, 2], "tester/streamed")
before = kept()
assert len(read("tester/streamed", splitting="class_disjoint", streaming=True).train) == 2
assert kept() == before
read("tester/streamed", splitting="class_disjoint")
assert len(kept()) > len(before)
""")  # fmt: skip
    assert hub.count(r"GET .*(parquet|/lfs/)") > 0, told


def test_a_revision_is_read_as_it_was(hub: Hub, client: Client) -> None:
    client.run(PUSH + """
name = "tester/twice"
push_dataset(images[:4], np.arange(4) / 2, name)
before = read(name, splitting="rows", rows=[2, 1], label="label").origin["commit"]
push_dataset(images, {"height": np.arange(6.0)}, name, split="whole")
later = read(name, splitting="rows", rows=[2, 1], label="height")
assert later.origin["commit"] != before and later.origin["splits"] == ["whole"]
first = read(name, splitting="rows", rows=[3, 1], label="label", revision=before)
assert first.origin["commit"] == before == first.origin["revision"]
assert first.train.labels.tolist() == [0, 0.5, 1]
print("later:", later.origin["commit"])
""")  # fmt: skip
    repo = hub.repos["datasets:tester/twice"]
    assert repo.history() == ["initial commit", *["Data set of beyond_binary"] * 2]
    there = [name for name in hub.files("datasets:tester/twice") if "parquet" in name]
    assert there == ["data/whole-00000-of-00001.parquet"]


def test_a_copy_in_the_cache_is_not_taken_for_another_revision(hub: Hub, client: Client) -> None:
    client.run(PUSH + """
push_dataset(images, np.arange(6) / 2, "tester/gone")
print(read("tester/gone", splitting="rows", rows=[2, 1], label="label").origin)
""")  # fmt: skip
    hub.repos.clear()
    client.run(PUSH + """
fields = {"name": "tester/gone", "splitting": "rows", "rows": [2, 1], "label": "label"}
commit = read(**fields).origin["commit"]
assert read(**fields, revision=commit).origin["commit"] == commit
try:
    read(**fields, revision="v1")
except ValueError as error:
    assert f"did not give revision 'v1' of 'tester/gone', and the local cache has commit {commit}" in str(error), error
else:
    raise AssertionError
""")  # fmt: skip


def test_a_set_with_a_script_names_the_way_out(hub: Hub, client: Client) -> None:
    client.run(PUSH + 'push_dataset(images, [0, 1, 2, 0, 1, 2], "tester/script")')
    repo = hub.repos["datasets:tester/script"]
    data = dict(hub.files("datasets:tester/script"))
    repo.commit("refs/convert/parquet", "converted", data, {name for name in data if name.endswith("parquet")})
    repo.commit("main", "a script", {"README.md": b"", "script.py": b"import datasets\n"}, set())
    client.run(PUSH + """
try:
    read("tester/script", splitting="class_disjoint")
except ValueError as error:
    assert "found script.py" in str(error) and "data.revision to refs/convert/parquet" in str(error), error
    assert "datasets-cli convert_to_parquet tester/script" in str(error), error
else:
    raise AssertionError
splits = read("tester/script", splitting="class_disjoint", revision="refs/convert/parquet")
assert sorted(set(splits.train.labels)) == [0] and splits.origin["revision"] == "refs/convert/parquet"
""")  # fmt: skip


def test_a_set_that_is_not_there_or_not_ones_own(hub: Hub, client: Client) -> None:
    client.run(PUSH + """
try:
    read("tester/none")
except FileNotFoundError as error:
    assert "no set 'tester/none' on the Hub" in str(error), error
else:
    raise AssertionError
try:
    push_dataset(images, range(6), "other/set")
except PermissionError as error:
    assert "write rights" in str(error), error
else:
    raise AssertionError
""")  # fmt: skip
    assert hub.repos == {}


# ---- of a source that training reads


def recipe(*words: str) -> str:
    """Code that runs push_dataset.py in the client's process."""
    path = str(ROOT / "recipes" / "push_dataset.py")
    return f"import runpy, sys; sys.argv = {[path, *words]!r}; runpy.run_path({path!r}, run_name='__main__')"


def write_shots(folder: Path) -> Path:
    """A zip with a table of angles, image files with EXIF, and what is no label in two columns."""
    exif = Image.Exif()
    exif[271] = "a maker"
    lines = ["file_name,pan,tilt,room,note,split"]
    with zipfile.ZipFile(folder / "shots.zip", "w") as archive:
        for i in range(6):
            buffer = io.BytesIO()
            picture(i).save(buffer, "JPEG", exif=exif)
            archive.writestr(f"images/{i}.jpg", buffer.getvalue())
            note = "" if i else "1.5"
            lines.append(f"{i}.jpg,{i / 4},{i / 8},{'ab'[i % 2]},{note},{'train' if i < 4 else 'test'}")
        archive.writestr("labels.csv", "\n".join(lines))
    return folder / "shots.zip"


def test_a_zip_with_a_table_is_pushed_and_read_back(hub: Hub, client: Client, tmp_path: Path) -> None:
    source = ["--data.source", str(write_shots(tmp_path)), "--data.label", "[pan, tilt]"]
    told = client.run(recipe(*source, "--hub-id", "tester/shots", "--dry-run", "--license", "cc0-1.0"))
    assert "data/train-00000-of-00001.parquet" in told
    assert "left out: note (" in told
    assert "license: cc0-1.0" in told
    assert hub.repos == {}
    assert "pushed to " in client.run(recipe(*source, "--hub-id", "tester/shots", "--private"))
    assert hub.repos["datasets:tester/shots"].private
    client.run(PUSH + """
back = datasets.load_dataset("tester/shots")
assert back["train"].column_names == ["image", "label", "pan", "tilt", "room"], back["train"].column_names
assert back["test"]["room"][:] == ["a", "b"]
splits = read("tester/shots", label="label")
assert splits.train.labels.tolist() == [[i / 4, i / 8] for i in range(4)], splits.train.labels
assert back["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"].find(b"a maker") > 0
""")  # fmt: skip
    client.run(recipe(*source, "--hub-id", "tester/shots", "--private", "--pixels-only"))
    client.run(PUSH + """
again = datasets.load_dataset("tester/shots", split="train").cast_column("image", datasets.Image(decode=False))
assert b"a maker" not in again[0]["image"]["bytes"] and again[0]["image"]["bytes"].startswith(b"\\x89PNG")
""")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "source", "write", "label", "hub_name"),
    [
        ("sop", "sop", write_sop, "class_id", "stanford-online-products"),
        ("mpii_pose", "mpii", plain_mpii, "joints", "mpii-people"),
        ("inaturalist", "inaturalist", write_inaturalist, "category_id", "inaturalist"),
    ],
)
def test_the_configs_for_the_hub_read_what_is_pushed(
    hub: Hub, client: Client, tmp_path: Path, name: str, source: str, write: Any, label: str, hub_name: str
) -> None:
    source = f"{source}:{write(tmp_path / 'files')}"
    client.run(recipe("--data.source", source, "--hub-id", f"tester/{hub_name}", "--label-name", label))
    configs = [
        word for folder in ("", "hub/") for word in ("--config", str(ROOT / f"recipes/configs/{folder}{name}.yaml"))
    ]
    own = ["--data.source", f"hub:tester/{hub_name}", "--data.label", label, "--data.revision", "main"]
    own += ["--data.options", "{}", "--data.role", "null"]
    client.run(PUSH + f"""
from beyond_binary.config import parse_data
there = load_splits(parse_data({[*configs, *own]!r}))
here = load_splits(parse_data({[*configs[:2], "--data.source", source, "--data.options", "{}", "--data.role", "null"]!r}))
if {name!r} != "inaturalist":  # the config for the Hub divides otherwise
    for a, b in ((there.train, here.train), (there.query, here.query)):
        assert a.labels.dtype == b.labels.dtype and np.array_equal(a.labels, b.labels)
        assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
assert there.train.labels.shape[1:] == here.train.labels.shape[1:]
""")  # fmt: skip


def test_queries_and_gallery_of_inshop_travel_by_the_hub(hub: Hub, client: Client, tmp_path: Path) -> None:
    source = f"inshop:{write_inshop(tmp_path / 'files')}"
    client.run(recipe("--data.source", source, "--hub-id", "tester/inshop", "--label-name", "item_id"))
    config = ["--config", str(ROOT / "recipes/configs/inshop.yaml")]
    there = [*config, "--data.source", "hub:tester/inshop", "--data.label", "item_id"]
    client.run(PUSH + f"""
from beyond_binary.config import parse_data
here = load_splits(parse_data({[*config, "--data.source", source]!r}))
there = load_splits(parse_data({there!r}))
for a, b in ((there.train, here.train), (there.query, here.query), (there.gallery, here.gallery)):
    assert np.array_equal(a.labels, b.labels) and len(a.labels), (a.labels, b.labels)
    assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
""")  # fmt: skip


def test_class_names_and_embedded_sets_and_captions(tmp_path: Path) -> None:
    digits = DataConfig(source="embedded:digits", rows=[20, 10])
    made = from_rows(all_rows(digits), digits)
    assert made.class_names == {"label": [str(i) for i in range(10)]}
    assert made.split == ["train"] * 20 + ["test"] * 10
    files = dataset_files(made.images, made.columns, "a/b", tmp_path, made.split, made.class_names)
    assert sorted(name for name in files if "parquet" in name) == [
        f"data/{part}-00000-of-00001.parquet" for part in ("test", "train")
    ]
    scenes = DataConfig(source="embedded:scenes", rows=[3, 2])
    captions = from_rows(all_rows(scenes), scenes, label_name="captions").columns["captions"]
    assert captions == [list(row) for row in load_splits(scenes).train.labels] + [
        list(row) for row in load_splits(scenes).query.labels
    ]


TABLE = "file,label,path,pan,tilt,img,image"


def table_of_pictures(folder: Path) -> DataConfig:
    rows = [TABLE]
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},road {i},{i},{-i},{10 * i},{i}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return DataConfig(source=str(folder), image="file", label=["pan", "tilt"])


def test_all_columns_of_a_table_are_sent_or_told_of(tmp_path: Path) -> None:
    config = table_of_pictures(tmp_path)
    rows = all_rows(config)
    with pytest.raises(ValueError, match="would be called 'label', as another column is; choose another label_name"):
        from_rows(rows, config)
    made = from_rows(rows, config, label_name="pose")
    assert list(made.columns) == ["pose", "label", "path", "pan", "tilt", "img"]
    assert made.columns["pose"].tolist() == [[i, -i] for i in range(4)]
    assert made.columns["path"].tolist() == [f"road {i}" for i in range(4)]
    assert made.left_out == {"image": "a column of the set is called image already"}
    dataset_files(made.images, made.columns, "a/b", tmp_path, "train", made.class_names)


def test_all_columns_of_classes_keep_their_names(tmp_path: Path) -> None:
    import datasets

    columns = {"image": [picture(i) for i in range(4)], "kind": [0, 1, 1, 0], "place": [2, 0, 1, 2], "note": [*"abcd"]}
    columns["unsure"] = [-1, 0, 0, 1]
    names = {"kind": ["tit", "wren"], "place": ["sea", "hill", "wood"], "unsure": ["no", "yes"]}
    features = {"image": datasets.Image(), "note": datasets.Value("string")}
    features |= {name: datasets.ClassLabel(names=known) for name, known in names.items()}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    config = DataConfig(source="hub:a/b", label="kind")
    for label_name, called in ((None, "label"), ("species", "species")):
        found = from_rows(dataset_rows(made, config), config, label_name=label_name)
        assert found.class_names == {called: names["kind"], "place": names["place"]}  # not of "unsure"
        files = dataset_files(found.images, found.columns, "a/b", tmp_path, "train", found.class_names)
        (shard,) = (file for name, file in files.items() if name.endswith("parquet"))
        read = datasets.Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache" / called))
        assert read.features[called].names == names["kind"]
        assert read.features["place"].names == names["place"]
        assert (read[called], read["place"]) == (columns["kind"], columns["place"])


def test_images_that_cannot_be_read_are_left_out_on_request(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    config = DataConfig(source=str(tmp_path), bad_images="skip")
    made = from_rows(all_rows(config), config)
    assert list(made.images) == [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")]
    assert {name: list(column) for name, column in made.columns.items()} == {"class": ["a", "b"]}
    assert made.split is None


def test_what_cannot_be_pushed_ends_with_status_2(client: Client, tmp_path: Path) -> None:
    for words, told in (
        (["--data.source", "embedded:digits", "--hub-id", "digits"], "error: expected a Hub id"),
        (["--data.source", str(tmp_path / "no"), "--hub-id", "a/b"], "error: no file or folder"),
        (["--data.source", "embedded:digits", "--hub-id", "a/b", "--data.label", "kind"], "no column 'kind'"),
        (["--data.source", "embedded:digits", "--hub-id", "a/b", "--publc"], "unknown argument --publc"),
    ):
        assert told in client.run(recipe(*words, "--dry-run"), status=2)


# ---- what is sent


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))


def test_large_sets_are_cut_into_several_files(tmp_path: Path) -> None:
    images = [picture(i) for i in range(150)]
    files = dataset_files(images, np.arange(150), "a/b", tmp_path, shard_bytes=20_000)
    names = [name for name in files if name.startswith("data/")]
    assert len(names) > 1
    assert names == [f"data/train-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))]
    labels = [label for name in names for label in parquet.read_table(files[name])["label"].to_pylist()]
    assert labels == list(range(150))


def test_files_are_sent_as_they_are_and_pictures_without_loss(tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg")
    raw = (tmp_path / "photo.jpg").read_bytes()
    images = [tmp_path / "photo.jpg", raw, picture(1)]
    (tmp_path / "out").mkdir()
    files = dataset_files(images, ["a", "b", "c"], "a/b", tmp_path / "out")
    cells = parquet.read_table(files["data/train-00000-of-00001.parquet"])["image"].to_pylist()
    assert [cell["path"] for cell in cells] == ["photo.jpg", None, None]
    assert cells[0]["bytes"] == cells[1]["bytes"] == raw
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(cells[2]["bytes"]))), np.asarray(picture(1)))


@pytest.mark.parametrize(
    ("images", "labels", "more", "message"),
    [
        ([picture()], [1, 2], {}, r"got 1 in images, 1 in split, 2 in label"),
        ([], [], {}, r"at least one, got 0 in images"),
        ([picture()], {"image": [1]}, {}, r"cannot be called image"),
        ([picture()], [1], {"split": "all"}, r"a split cannot be called 'all'"),
        ([picture()], [1], {"split": ["a b"]}, r"a split cannot be called 'a b'"),
        ([picture()], [None], {}, r"column 'label': expected numbers or text \[n\].* got NoneType"),
        ([picture()] * 2, [[1, 2], [3]], {}, r"column 'label': expected numbers or text"),
        ([picture()] * 2, [1, "a"], {}, r"got int, str; row 1 is 'a'"),
        ([picture()] * 3, ["a", "b", None], {}, r"got str, NoneType; row 2 is None"),
        ([picture()] * 2, pd.Series(["a", float("nan")]), {}, r"got str, float; row 1 is nan"),
        ([picture()] * 2, [0.5, float("nan")], {}, r"1 labels are NaN or infinite, the first at 1"),
        ([picture()], [3], {"class_names": ["a", "b"]}, r"integers from 0 to 1"),
        ([picture()], [0.5], {"class_names": ["a", "b"]}, r"integers from 0 to 1"),
        ([b"no image"], [1], {}, r"cannot be read"),
        ([7], [1], {}, r"paths, bytes or PIL images, got int"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path: Path, images, labels, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_files(images, labels, "a/b", tmp_path, **more)


def test_names_are_checked_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="expected a Hub id"):
        push_dataset([], [], "name")


def test_features_keep_the_type_of_labels() -> None:
    columns = {
        "whole": [1, 2], "small": np.zeros((2, 3), dtype=np.float32), "text": ["a", "b"], "texts": [["a"], ["b", "c"]],
        "grid": np.zeros((2, 4, 5)), "array": np.array([["a", "b"], ["c", "d"]]), "series": pd.Series(["a", "b"], [7, 3]),
    }  # fmt: skip
    tidied = {name: tidy(name, column) for name, column in columns.items()}
    found = {name: str(kind) for name, kind in label_features(tidied, None).items()}
    assert found["whole"] == "Value('int64')"
    assert found["small"] == "List(Value('float32'), length=3)"
    assert found["grid"] == "List(List(Value('float64'), length=5), length=4)"
    assert found["texts"] == found["array"] == "List(Value('string'))"
    assert found["text"] == found["series"] == "Value('string')"


@pytest.mark.parametrize(
    ("counts", "columns", "told"),
    [
        ({"train": 8}, {"label": [1, 2]}, "--data.label label --data.splitting class_disjoint"),
        (
            {"train": 8},
            {"age": [0.5, 2.0]},
            "--data.label age --data.splitting rows --data.rows '[7, 1]' --data.shuffle",
        ),
        (
            {"train": 4},
            {"age": [0.5, 2.0]},
            "--data.label age --data.splitting rows --data.rows '[3, 1]' --data.shuffle",
        ),
        ({"train": 8, "test": 2}, {"text": [["a"], ["b"]]}, "--data.label '[text]'\n"),
        ({"train": 8, "dev": 2}, {"label": [1, 2]}, "--data.label label --data.query_split dev\n"),
    ],
)
def test_the_card_says_how_to_train(counts: dict[str, int], columns: dict[str, list], told: str) -> None:
    card = dataset_card("user/set", counts, {name: tidy(name, c) for name, c in columns.items()}, "cc0-1.0")
    assert f"--data.source hub:user/set {told}" in card
    known = yaml.safe_load(card.split("---\n")[1])
    assert known["license"] == "cc0-1.0"
    assert [entry["split"] for entry in known["configs"][0]["data_files"]] == list(counts)


def test_pictures_are_sent_upright_and_without_their_notes() -> None:
    plain = picture()
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a maker"  # Orientation: turned by a quarter; Make
    buffer = io.BytesIO()
    plain.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as turned:
        sent = encoded(turned)
    with Image.open(io.BytesIO(sent["bytes"])) as back:
        assert dict(back.getexif()) == {}
        np.testing.assert_array_equal(np.asarray(back), np.rot90(np.asarray(plain), -1))


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr", "I"])
def test_pictures_of_modes_that_png_lacks_are_sent_as_the_reader_would_see_them(mode: str) -> None:
    other = picture().convert("L").convert(mode) if mode in "FI" else picture().convert(mode)
    other.info["icc_profile"] = b"of other colours"
    with Image.open(io.BytesIO(encoded(other)["bytes"])) as back:
        assert "icc_profile" not in back.info
        np.testing.assert_array_equal(np.asarray(back), np.asarray(to_rgb(other)))


@pytest.mark.parametrize("column", [torch.ones(2, 3, requires_grad=True), [torch.ones(3, requires_grad=True)] * 2])
def test_columns_may_be_tensors(column: Any) -> None:
    tidied = tidy("label", column)
    assert isinstance(tidied, np.ndarray)
    assert (tidied.dtype, tidied.tolist()) == (np.float32, [[1.0] * 3] * 2)


# ---- faults

TELL = (
    PUSH
    + """
def tell(action, **names):
    try:
        action()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("nothing was raised")
def push(name="tester/faults", labels=(0, 1, 0, 1, 2, 2), **more):
    return push_dataset(images, list(labels), name, split=["train"] * 4 + ["test"] * 2, **more)
"""
)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 503), Fault("GET .*/tree/", 502), Fault("PUT /lfs/", "cut"), Fault("PUT /lfs/", 500),
        Fault("POST .*/commit/", 504), Fault("POST .*/commit/", 412),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.kind}",
)  # fmt: skip
def test_a_push_survives_a_passing_fault(hub: Hub, client: Client, fault: Fault) -> None:
    hub.faults = [Fault(fault.pattern, fault.kind, fault.times)]
    client.run(TELL + "push()")
    assert hub.faults[0].times == 0
    assert hub.repos["datasets:tester/faults"].history() == ["initial commit", "Data set of beyond_binary"]


def test_a_push_that_fails_leaves_the_set_as_it_was(hub: Hub, client: Client) -> None:
    client.run(TELL + "push()")
    before = dict(hub.files("datasets:tester/faults"))
    for fault in (Fault("PUT /lfs/", "cut", 999), Fault("POST .*/commit/", 503, 999)):
        hub.faults = [fault]
        told = client.run(TELL + "tell(lambda: push(labels=[5, 4, 5, 4, 3, 3]))")
        assert "ConnectionError: tester/faults was not pushed, the Hub cannot be reached or keeps failing" in told
        assert hub.files("datasets:tester/faults") == before
    hub.faults = []
    told = client.run(TELL + 'tell(lambda: push(token="hf_wrong"))')
    assert "PermissionError: the Hub does not let this account write to tester/faults" in told
    assert "hf_wrong" not in told
    assert hub.files("datasets:tester/faults") == before


EMPTY = """
import datasets, huggingface_hub, os, tempfile
datasets.config.HF_DATASETS_CACHE = tempfile.mkdtemp(dir=os.environ["HF_HOME"])
huggingface_hub.constants.HF_HUB_CACHE = tempfile.mkdtemp(dir=os.environ["HF_HOME"])
"""
READS = 'assert read("tester/faults", label="label", streaming={}).train.labels.tolist() == [0, 1, 0, 1]'


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("GET /api/models/", 503),
        ("GET /api/models/", "cut"),
        ("GET .*/tree/", 503),
        ("/resolve/", 502),
        ("GET /lfs/", "cut"),
        ("GET /lfs/", 503),
    ],
)
def test_reading_survives_a_passing_fault(
    hub: Hub, client: Client, pattern: str, kind: int | str, streaming: bool
) -> None:
    client.run(TELL + "push()")
    hub.faults = [Fault(pattern.replace("models", "datasets"), kind)]
    client.run(EMPTY + TELL + READS.format(streaming))
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_reading_that_fails_says_why(hub: Hub, client: Client, streaming: bool) -> None:
    client.run(TELL + "push(private=True)")
    read = f"tell(lambda: read('tester/faults', label='label', streaming={streaming}))"
    for fault in (Fault("GET /api/datasets/", 503, 9999), Fault("GET /lfs/", "cut", 9999)):
        hub.faults = [fault]
        told = client.run(EMPTY + TELL + read)
        assert re.search(
            "^ConnectionError: .*(did not give|cannot reach) the (Hub )?set 'tester/faults'", told, re.MULTILINE
        )
    hub.faults = []
    for token in ("hf_wrong", ""):
        told = client.run(f"import os; os.environ['HF_TOKEN'] = {token!r}\n" + EMPTY + TELL + read)
        refused = "PermissionError: the Hub does not let this account read|FileNotFoundError: no set"
        assert re.search(f"^({refused}) 'tester/faults'", told, re.MULTILINE)
        assert "hf_wrong" not in told


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_told(client: Client) -> None:
    with Hub() as gone:
        closed = gone.url
    environment = {**client.environment, "HF_ENDPOINT": closed, "HF_HOME": str(client.home / "empty")}
    for code in (TELL + "tell(push)", TELL + "tell(lambda: read('tester/faults', label='label'))"):
        quick = "import time; time.sleep = lambda seconds: None\n" + code
        done = subprocess.run(
            [sys.executable, "-c", quick], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        assert re.search(
            "^ConnectionError: .*tester/faults.*(cannot be reached|no copy in the local cache)", done.stdout, re.M
        )
