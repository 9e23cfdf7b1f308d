"""Every ready config resolves against a tiny set of the form that the real one has, in its own files and from the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from hub_client import Client
from hub_double import Hub, Repo
from originals import (
    plain_mpii,
    sample,
    upright,
    write_cars,
    write_cub,
    write_inaturalist,
    write_inshop,
    write_karpathy,
    write_lfw,
    write_lsun,
    write_samples,
    write_sop,
)
from PIL import Image

from beyond_binary.config import Config, check_config, parse_config
from beyond_binary.data import Splits, load_splits
from beyond_binary.targets import create_target

CONFIGS = Path(__file__).parent.parent / "recipes" / "configs"
FLICKR = {"folder": False, "images": "flickr30k-images", "name": "dataset_flickr30k.json"}
ORIGINALS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "cub200": ("cub", write_cub),
    "cars196_full": ("cars", lambda root: write_cars(root, "devkit")),
    "sop": ("sop", write_sop),
    "inshop": ("inshop", write_inshop),
    "inaturalist": ("inaturalist", write_inaturalist),
    "lfw": ("lfw", write_lfw),
    "mpii_pose": ("mpii", plain_mpii),
    "lsun_rooms": ("lsun_rooms", write_lsun),
    "coco_captions": ("karpathy", lambda root: write_karpathy(root, "trvee")),
    "flickr30k": ("karpathy", lambda root: write_karpathy(root, "ttvee", **FLICKR)),
}
QUERIES = ("mpii_pose", "lsun_rooms", "coco_captions", "flickr30k")


def resolved(name: str, *argv: str) -> tuple[Config, Splits]:
    config = parse_config(["--config", str(CONFIGS / f"{name}.yaml"), *argv])
    check_config(config)
    return config, load_splits(config.data)


def classes_differ(splits: Splits) -> bool:
    held_out = [part.labels for part in (splits.query, splits.gallery) if part is not None]
    return not set(splits.train.labels.tolist()) & set(np.concatenate(held_out).tolist())


def ready(folder: Path) -> list[str]:
    """Names of the configs whose data one has to download."""
    return sorted(file.stem for file in folder.glob("*.yaml") if "NOT RUN HERE" in file.read_text())


def test_the_tables_here_have_all_ready_configs() -> None:
    assert ready(CONFIGS) == sorted(ORIGINALS)
    assert ready(CONFIGS / "hub") == sorted([*HUB, "mpii_pose"]) == sorted(set(ORIGINALS) - {"lsun_rooms"})


@pytest.mark.parametrize("name", ORIGINALS)
def test_ready_configs_read_the_files_of_the_authors(tmp_path: Path, name: str) -> None:
    source, write = ORIGINALS[name]
    fewer = ["--data.options.queries", "1"] if name in QUERIES else []
    config, splits = resolved(name, "--data.source", f"{source}:{write(tmp_path)}", *fewer)
    assert (splits.gallery is not None) == (name in (*QUERIES, "inshop"))
    if config.objective.target == "classes":
        assert classes_differ(splits)
    elif source != "karpathy":  # their target needs a file of word vectors
        create_target(config.objective.target).encode(splits.train.labels)
    if config.augment.mirror:
        assert [config.augment.mirror[j] for j in config.augment.mirror] == list(range(16))
    assert splits.train.images[0].mode == "RGB"


# ---------------------------------------------------------------- from the Hub


def parts(counts: dict[str, int], column: Callable[[int], dict[str, Any]], **features: Any) -> datasets.DatasetDict:
    """A set with `counts` rows in each split; `column(i)` gives what row i of all has beside its image."""
    made, row = {}, 0
    known = datasets.Features({"image": datasets.Image(), **features}) if features else None
    for split, count in counts.items():
        rows = [{"image": Image.new("RGB", (4, 4)), **column(i)} for i in range(row, row + count)]
        made[split], row = datasets.Dataset.from_list(rows, features=known), row + count
    return datasets.DatasetDict(made)


def labelled(classes: int) -> datasets.DatasetDict:
    """image and label, all classes in both halves, as classification sets are uploaded."""
    names = datasets.ClassLabel(names=[f"class {c}" for c in range(classes)])
    return parts({"train": classes, "test": classes}, lambda i: {"label": i % classes}, label=names)


def captions(i: int) -> list[str]:
    return [f"picture {i}", "a dog", f"line {i % 3}"]


HUB: dict[str, Callable[[], datasets.DatasetDict]] = {
    "cub200": lambda: labelled(6),
    "cars196_full": lambda: labelled(6),
    "sop": lambda: parts(
        {"train": 4, "test": 4}, lambda i: {"item_id": str(i // 2), "image_path": f"{i // 2}_{i}.JPG"}
    ),
    "inshop": lambda: parts(
        {"data": 6},
        lambda i: {
            "item_ID": f"id_0000{i // 2}",
            **dict.fromkeys(("category1", "category2", "category3", "color", "description", "text"), "men"),
        },
    ),
    "inaturalist": lambda: labelled(6),
    "lfw": lambda: labelled(6),
    "coco_captions": lambda: parts(
        {"train": 4, "validation": 1, "test": 2},
        lambda i: {
            "split": ["train", "train", "restval", "train", "val", "test", "test"][i],
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": i} for text in captions(i)],
            "cocoid": i,
        },
    ),
    "flickr30k": lambda: parts(
        {"train": 3, "validation": 1, "test": 2},
        lambda i: {
            "caption": captions(i),
            "sentids": [str(2 * i), str(2 * i + 1)],
            "split": ["train", "train", "train", "val", "test", "test"][i],
            "img_id": str(i),
            "filename": f"{i}.jpg",
        },
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_ready_configs_read_the_columns_of_uploads(tmp_path: Path, name: str) -> None:
    HUB[name]().save_to_disk(str(tmp_path))
    over = ["--config", str(CONFIGS / "hub" / f"{name}.yaml")]
    asked = parse_config(["--config", str(CONFIGS / f"{name}.yaml"), *over]).data
    assert asked.source.startswith("hub:")
    assert asked.revision
    config, splits = resolved(name, *over, "--data.source", str(tmp_path), "--data.streaming", "false")
    assert splits.gallery is None
    if config.objective.target == "classes":
        assert classes_differ(splits)
    else:
        assert splits.train.labels[2].tolist() == captions(3 if name == "coco_captions" else 2)
        assert len(splits.query) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", HUB)
def test_ready_configs_read_uploads_under_the_names_they_give(
    tmp_path: Path, running: tuple[Hub, Client], name: str
) -> None:
    """The unchanged config (but for a commit that it names), through the Hub's own clients; and streamed."""
    hub, process = running
    config = parse_config(
        ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(CONFIGS / "hub" / f"{name}.yaml")]
    )
    uploaded = config.data.source.removeprefix("hub:")
    files = {}
    for split, part in HUB[name]().items():
        part.to_parquet(tmp_path / split)
        files[split] = (tmp_path / split).read_bytes()
    hub.repos[f"datasets:{uploaded}"] = repo = Repo(f"datasets:{uploaded}", private=False)
    commit = repo.commit(
        "main", "upload", {f"data/{split}-00000-of-00001.parquet": f for split, f in files.items()}, set()
    )
    revision = commit.sha if re.fullmatch("[0-9a-f]{40}", config.data.revision or "") else "main"
    process.run(f"""
from beyond_binary.config import check_config, parse_config
from beyond_binary.data import load_splits
config = parse_config(["--config", {str(CONFIGS / name)!r} + ".yaml", "--config", {str(CONFIGS / "hub" / name)!r} + ".yaml"])
check_config(config)
config.data.revision = {revision!r}
for streaming in (config.data.streaming, True):
    config.data.streaming = streaming
    splits = load_splits(config.data)
    assert splits.train.images[0].size == (4, 4)
    origin = dict(splits.origin)
    assert set(origin.pop("splits")) <= {set(files)!r}
    assert origin == {{"set": {uploaded!r}, "config": "default", "revision": {revision!r}, "commit": {commit.sha!r}}}, origin
""")


@pytest.mark.slow
def test_poses_come_from_the_hub_in_the_files_of_fiftyone(tmp_path: Path, running: tuple[Hub, Client]) -> None:
    """The config's repository and options; a commit of the double in place of that in the config."""
    hub, process = running
    configs = [str(CONFIGS / f"{name}.yaml") for name in ("mpii_pose", "hub/mpii_pose")]
    config = parse_config([word for name in configs for word in ("--config", name)])
    uploaded = config.data.source.removeprefix("mpii:hub:")
    assert re.fullmatch("[0-9a-f]{40}", config.data.revision or "")
    write_samples(tmp_path, *[sample(i, upright(2 * i, i), video_id=str(i // 2)) for i in range(8)])
    hub.repos[f"datasets:{uploaded}"] = repo = Repo(f"datasets:{uploaded}", private=False)
    files = {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    commit = repo.commit("main", "upload", files, set())
    process.run(f"""
from beyond_binary.config import check_config, parse_config
from beyond_binary.data import load_splits
from beyond_binary.targets import create_target
config = parse_config([word for name in {configs!r} for word in ("--config", name)])
check_config(config)
config.data.revision, config.data.options = {commit.sha!r}, {{"queries": 1}}
splits = load_splits(config.data)
assert (len(splits.train), len(splits.query), len(splits.gallery)) == (4, 1, 3)
assert splits.train.labels.shape == (4, 16, 3) and splits.train.images[0].size[0] == splits.train.images[0].size[1]
create_target(config.objective.target).encode(splits.train.labels)
assert splits.origin == {{"set": {uploaded!r}, "revision": {commit.sha!r}, "commit": {commit.sha!r}}}, splits.origin
for source, error in (("mpii:hub:tester/none", FileNotFoundError), ("mpii:hub:" + {uploaded!r} + "/data", FileNotFoundError)):
    config.data.source = source
    try:
        load_splits(config.data)
        raise AssertionError(source)
    except error as told:
        assert "tester/none" in str(told) or "samples.json" in str(told), told
""")


@pytest.mark.slow
def test_pairs_of_faces_come_from_the_hub(tmp_path: Path, running: tuple[Hub, Client]) -> None:
    """Configuration pairs of logasja/lfw: the threshold of split train is taken to split test."""

    def split(kinds: list[tuple[int, int, int]]) -> bytes:
        face = datasets.Image()
        rows = [
            {"pair": s, "img_0": Image.new("L", (4, 4), a), "img_1": Image.new("L", (4, 4), b)} for a, b, s in kinds
        ]
        known = datasets.Features({"pair": datasets.Value("int64"), "img_0": face, "img_1": face})
        datasets.Dataset.from_list(rows, features=known).to_parquet(tmp_path / "part")
        return (tmp_path / "part").read_bytes()

    hub, process = running
    hub.repos["datasets:logasja/lfw"] = repo = Repo("datasets:logasja/lfw", private=False)
    files = [{"split": name, "path": f"pairs/{name}-*"} for name in ("train", "test")]
    card = yaml.safe_dump({"configs": [{"config_name": "pairs", "data_files": files}]})
    train = [(10, 20, 1), (200, 215, 1), (10, 60, 0), (100, 0, 0)]  # accepted up to a difference of 32.5
    test = [
        (10, 40, 1),
        (90, 90, 1),
        (50, 85, 1),
        (0, 40, 0),
        (0, 255, 0),
    ]  # the third one is missed; 37.5 would be right on all
    named = {"pairs/train-0.parquet": split(train), "pairs/test-0.parquet": split(test)}
    repo.commit("main", "upload", {"README.md": f"---\n{card}---\n".encode(), **named}, set())
    command = ["--embedder", "any", "--data.source", "hub:logasja/lfw", "--data.config_name", "pairs"]
    told = process.run(f"""
import sys
import torch
from beyond_binary.embedder import Embedder

class Grey:
    normalize = False

    def to(self, device):
        return self

    def encode(self, images, batch_size, progress):
        return torch.tensor([[image.getextrema()[0] / 1.0] for image in images])

Embedder.from_pretrained = lambda name: Grey()
sys.path.insert(0, {str(CONFIGS.parent)!r})
import verify
verify.main({command!r})
for wrong in (["--columns", "image", "img_1", "pair"], ["--fold", "1"]):
    try:
        verify.main([*{command!r}, *wrong])
        raise AssertionError(wrong)
    except SystemExit as stop:
        assert stop.code == 2
""")
    assert re.search(r"^accuracy +0\.8000$", told, re.M)
    assert re.search(r"^genuine +3\.0000$", told, re.M)
    assert "no split 'train' with columns image, img_1, pair; it has {'train': ['pair', 'img_0', 'img_1']" in told
    assert "pairs on the Hub have no folds" in told
