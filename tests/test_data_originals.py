"""Readers of published data sets, on tiny files of their form."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from beyond_binary.config import check_config, parse_config
from beyond_binary.data import DataConfig, Splits, load_checked, load_splits
from beyond_binary.data.originals import LAYOUT_TYPES, MPII, ORIGINALS, named_surfaces, whole_groups
from beyond_binary.data.rooms import SURFACES
from beyond_binary.registry import options_of
from beyond_binary.targets import create_target

CONFIGS = Path(__file__).parent.parent / "recipes" / "configs"


def structs(*rows: dict[str, Any]) -> np.ndarray:
    """A MATLAB struct array; fields that a struct lacks are []."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for i, row in enumerate(rows):
        for name in names:
            array[0, i][name] = row.get(name, np.zeros((0, 0)))
    return array


def picture(file: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, "BMP")  # lossless under any name
    return pixels


def load(source: str, **fields: Any) -> Splits:
    return load_splits(DataConfig(source=source, **fields))


def names_of(splits: Splits) -> list[list[str]]:
    parts = (splits.train, splits.query, splits.gallery)
    return [list(part.names) for part in parts if part is not None]


# ---------------------------------------------------------------- MPII


def person(x: float, y: float, scale: float = 0.2, joints: int = 16, hidden: int | None = None) -> dict[str, Any]:
    points = [
        {"x": x + j, "y": y - j, "id": j, "is_visible": np.zeros((0, 0)) if j > 8 else j != hidden}
        for j in range(joints)
    ]
    return {
        "x1": 1, "scale": scale, "objpos": structs({"x": x, "y": y}), "annopoints": structs({"point": structs(*points)})
    }  # fmt: skip


def write_mpii(root: Path, images: list[dict[str, Any]], train: list[int], folder: str = "") -> Path:
    annotations = [
        {
            "image": structs({"name": f"{i:03d}.jpg"}),
            "annorect": image.get("people", np.zeros((0, 0))),
            **image.get("more", {}),
        }
        for i, image in enumerate(images)
    ]
    (root / folder).mkdir(parents=True, exist_ok=True)
    savemat(
        root / folder / MPII, {"RELEASE": structs({"annolist": structs(*annotations), "img_train": np.array([train])})}
    )
    for i in range(len(images)):
        picture(root / "images" / f"{i:03d}.jpg", (60, 48), i)
    return root


def plain_mpii(root: Path, count: int = 9) -> Path:
    """Images of one person each, three to a video."""
    images = [{"people": structs(person(25, 20)), "more": {"vididx": i // 3 + 1}} for i in range(count)]
    return write_mpii(root, images, [1] * count)


def test_mpii_people_are_cropped_with_their_joints(tmp_path: Path) -> None:
    two = structs(person(20, 24), person(33, 21, scale=0.1, hidden=3))
    root = write_mpii(
        tmp_path, [{"people": two}, {"people": structs(person(30, 20))}], [1, 1], "mpii_human_pose_v1_u12_2"
    )
    splits = load(f"mpii:{root}", options={"margin": 1.0, "train": 0.7})
    assert sorted(n for part in names_of(splits) for n in part) == [
        "000.jpg person 1",
        "000.jpg person 2",
        "001.jpg person 1",
    ]
    assert splits.target == "pose"
    part = splits.train if len(splits.train) == 2 else splits.query
    j = np.arange(16)
    assert part.labels.shape == (2, 16, 3)
    # the first: 40 pixels wide, around (20, 24)
    np.testing.assert_allclose(part.labels[0], np.stack([(20 + j) / 40, (20 - j) / 40, j == j], axis=1))
    pixels = picture(tmp_path / "again.bmp", (60, 48), 0)
    np.testing.assert_array_equal(np.asarray(part.images[0]), pixels[4:44, 0:40])
    # the second: 20 pixels wide, around (33, 21)
    np.testing.assert_allclose(part.labels[1], np.stack([(10 + j) / 20, (10 - j) / 20, j == j], axis=1))
    np.testing.assert_array_equal(np.asarray(part.images[1]), pixels[11:31, 23:43])
    create_target(splits.target).encode(part.labels)
    seen = load(f"mpii:{root}", options={"occluded": False, "train": 0.7})
    part = seen.train if len(seen.train) == 2 else seen.query
    assert np.flatnonzero(part.labels[1, :, 2] == 0).tolist() == [3]
    assert part.labels[0, :, 2].all()


def test_mpii_crop_reaches_beyond_the_image_and_is_shrunk(tmp_path: Path) -> None:
    root = write_mpii(tmp_path, [{"people": structs(person(5, 5))}] * 2, [1, 1])
    splits = load(f"mpii:{root}", options={"margin": 1.0})
    image = np.asarray(splits.train.images[0])
    assert image.shape == (40, 40, 3)
    assert not image[:15].any()
    assert not image[:, :15].any()
    assert image[15:, 15:].any(axis=2).all()
    assert load(f"mpii:{root}", size=10).train.images[0].size == (10, 10)
    assert load(f"mpii:{root}", options={"margin": 2.0}).train.images[0].size == (80, 80)


def test_mpii_leaves_out_who_has_no_pose(tmp_path: Path) -> None:
    no_place, no_scale, no_points, few = (person(20, 20) for _ in range(4))
    no_place["objpos"], no_scale["scale"], no_points["annopoints"] = (np.zeros((0, 0)),) * 3
    few["annopoints"] = person(20, 20, joints=14)["annopoints"]
    no_number = person(20, 20)
    no_number["annopoints"][0, 0]["point"][0, 7]["x"] = np.zeros((0, 0))
    one_point = {**person(20, 20), "annopoints": structs({"point": structs({"x": 1.0, "y": 2.0, "id": 9})})}
    only_head = structs({"x1": 1, "x2": 2})
    images = [
        {"people": structs(no_place, no_scale, no_points, few, one_point, person(20, 20), no_number)},
        {},
        {"people": only_head},
        {"people": structs(person(9, 9))},
        {"people": structs(person(20, 20))},
    ]
    root = write_mpii(tmp_path, images, [1, 1, 1, 0, 1])
    splits = load(f"mpii:{root}", options={"train": 0.6})
    assert sorted([*splits.train.names, *splits.query.names]) == ["000.jpg person 6", "004.jpg person 1"]
    splits = load(f"mpii:{root}", options={"missing": 2, "train": 0.6})
    names = [*splits.train.names, *splits.query.names]
    labels = np.concatenate([splits.train.labels, splits.query.labels])
    assert sorted(names) == [*(f"000.jpg person {i}" for i in (4, 6, 7)), "004.jpg person 1"]
    assert labels[names.index("000.jpg person 7")][7].tolist() == [0, 0, 0]
    assert labels[names.index("000.jpg person 4")][14:].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_mpii_keeps_videos_whole_and_takes_the_first_test_people_as_queries(tmp_path: Path) -> None:
    root = plain_mpii(tmp_path)
    splits = load(f"mpii:{root}", options={"train": 0.4, "queries": 2}, role="role")
    train, query, gallery = ([int(name[:3]) for name in part] for part in names_of(splits))
    assert len({i // 3 for i in train}) == 1
    assert len(train) == 3
    assert sorted([*query, *gallery]) == [i for i in range(9) if i not in train]
    assert query == sorted([*query, *gallery])[:2]
    seeds = {tuple(load(f"mpii:{root}", options={"train": 0.4}, seed=seed).train.names) for seed in range(8)}
    assert len(seeds) == 3


def test_whole_groups_fill_the_share() -> None:
    groups = [f"g{i}" for i in np.random.default_rng(0).integers(0, 40, 500)]
    first = whole_groups(groups, 0.555, 3)
    assert 0.5 < first.mean() <= 0.555
    assert not {g for g, f in zip(groups, first, strict=True) if f} & {
        g for g, f in zip(groups, first, strict=True) if not f
    }
    assert whole_groups(["a", "b"], 0.1, 0).sum() == 1


# ---------------------------------------------------------------- LSUN


ROOM = np.array([[9, 9, 9, 9], [4, 4, 7, 7], [4, 4, 7, 7], [2, 2, 2, 2]])  # ceiling, two walls, floor by any numbers


def write_lsun(root: Path, kinds: Sequence[int] = (5, 5, 5, 5), tests: int = 2, png: bool = False) -> Path:
    parts = {"training": range(len(kinds) - tests), "validation": range(len(kinds) - tests, len(kinds))}
    for part, numbers in parts.items():
        rooms = [
            {"image": f"room{i}", "scene": "den", "type": kinds[i], "point": np.zeros((6, 2)), "resolution": [[8, 8]]}
            for i in numbers
        ]
        savemat(root / f"{part}.mat", {part: structs(*rooms)})
    (root / "layout_seg").mkdir()
    for i in range(len(kinds)):
        picture(root / "images" / f"room{i}.jpg", (12, 10), i)
        big = np.kron(ROOM, np.ones((2, 3), dtype=np.uint8)).astype(np.uint8)
        if png:
            Image.fromarray(big).save(root / "layout_seg" / f"room{i}.png")
        else:
            savemat(root / "layout_seg" / f"room{i}.mat", {"layout": big.astype(float)})
    return root


@pytest.mark.parametrize("png", [False, True])
def test_lsun_rooms_have_maps_of_named_surfaces(tmp_path: Path, png: bool) -> None:
    splits = load(f"lsun_rooms:{write_lsun(tmp_path, png=png)}", options={"side": 4})
    assert names_of(splits) == [["room0", "room1"], ["room2", "room3"]]
    assert splits.target == "layout"
    assert splits.train.labels.dtype == np.uint8
    assert splits.train.labels[0].tolist() == [[1] * 4, [2, 2, 4, 4], [2, 2, 4, 4], [0] * 4]
    assert [SURFACES[i] for i in (1, 2, 4, 0)] == ["ceiling", "left wall", "right wall", "floor"]
    create_target("layout").encode(splits.train.labels)
    np.testing.assert_array_equal(np.asarray(splits.query.images[0]), picture(tmp_path / "x", (12, 10), 2))


def test_lsun_types_are_chosen_and_unknown_ones_left_out(tmp_path: Path) -> None:
    root = write_lsun(tmp_path, [5, 11, 4, 5, 5], 2)
    assert names_of(load(f"lsun_rooms:{root}", options={"layout_type": 5})) == [["room0"], ["room3", "room4"]]
    with pytest.raises(
        ValueError, match=r"1 of 4 layouts .*room2.*4 regions, but layout type 4 has 3.*bad_images=skip"
    ):
        load(f"lsun_rooms:{root}")
    with pytest.warns(UserWarning, match=r"1 of 4 layouts .* these rooms are left out"):
        skipped = load(f"lsun_rooms:{root}", bad_images="skip")
    assert names_of(skipped) == [["room0"], ["room3", "room4"]]
    with pytest.raises(ValueError, match=r"layout_type=0; types there \(rooms\): 4 \(1\), 5 \(3\), 11 \(1\)"):
        load(f"lsun_rooms:{root}", options={"layout_type": 0})


def test_lsun_maps_may_be_missing_when_bad_ones_are_skipped(tmp_path: Path) -> None:
    root = write_lsun(tmp_path)
    (root / "layout_seg" / "room0.mat").unlink()
    savemat(root / "layout_seg" / "room2.mat", {"a": np.ones((2, 2)), "b": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"2 of 4 layouts .*first: no .*room0.mat' \(or .png\)"):
        load(f"lsun_rooms:{root}")
    with pytest.warns(UserWarning, match=r"2 of 4 layouts"):
        assert names_of(load(f"lsun_rooms:{root}", bad_images="skip")) == [["room1"], ["room3"]]
    for i in (1, 3):
        (root / "layout_seg" / f"room{i}.mat").write_bytes(b"")
    with pytest.raises(ValueError, match=r"4 of 4 layouts"):
        load(f"lsun_rooms:{root}", bad_images="skip")


def test_lsun_labels_may_be_other_columns(tmp_path: Path) -> None:
    splits = load(f"lsun_rooms:{write_lsun(tmp_path)}", label="scene")
    assert (splits.class_names, splits.target, splits.train.labels.tolist()) == (["den"], None, [0, 0])


@pytest.mark.parametrize("kind", range(len(LAYOUT_TYPES)))
def test_surfaces_are_named_by_place_for_every_type(kind: int) -> None:
    surfaces = LAYOUT_TYPES[kind]
    walls = [s for s in surfaces if s > 1]
    truth = np.empty((40, 30), dtype=np.uint8)
    for wall, columns in zip(walls, np.array_split(np.arange(30), len(walls)), strict=True):
        truth[:, columns] = wall
    truth[:9] = 1 if 1 in surfaces else truth[:9]
    truth[33:] = 0 if 0 in surfaces else truth[33:]
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(50)[truth]
        found = named_surfaces(shuffled, kind, 10)
        np.testing.assert_array_equal(found, truth[2::4, 1::3])


@pytest.mark.parametrize("value", [-1.0, 0.5, 1e6, float("inf"), float("nan")])
def test_regions_must_be_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="no numbers from 0 to 65535"):
        named_surfaces(np.array([[1.0, value]]), 10, 2)


# ---------------------------------------------------------------- Karpathy


def write_karpathy(root: Path, splits: str, folder: bool = True, sentences: int = 5) -> Path:
    names = {"t": "train", "r": "restval", "v": "val", "e": "test"}
    images = []
    for i, split in enumerate(splits):
        place = {"filepath": "train2014"} if folder else {}
        picture(root / place.get("filepath", "") / f"{i}.jpg", (8, 6), i)
        texts = [{"raw": f"a dog\n number {i}  line {s}\n", "tokens": ["a"], "sentid": s} for s in range(sentences)]
        images.append({**place, "filename": f"{i}.jpg", "split": names[split], "sentences": texts, "imgid": i})
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root / "dataset_coco.json"


@pytest.mark.parametrize("folder", [True, False])
def test_karpathy_splits_and_captions(tmp_path: Path, folder: bool) -> None:
    file = write_karpathy(tmp_path, "trveee", folder, sentences=7)
    splits = load(f"karpathy:{file}")
    prefix = "train2014/" if folder else ""
    assert names_of(splits) == [[f"{prefix}{i}.jpg" for i in part] for part in ([0, 1], [3, 4, 5])]
    assert splits.train.labels[1].tolist() == [f"a dog number 1 line {s}" for s in range(5)]
    np.testing.assert_array_equal(np.asarray(splits.query.images[1]), picture(tmp_path / "x", (8, 6), 4))
    assert len(load(f"karpathy:{file}", options={"restval": False}).train) == 1
    assert names_of(load(f"karpathy:{file}", query_split="val"))[1] == [f"{prefix}2.jpg"]
    divided = load(f"karpathy:{file}", options={"queries": 1}, role="role")
    assert [len(part) for part in names_of(divided)] == [2, 1, 2]


def test_karpathy_pads_captions_and_takes_images_from_elsewhere(tmp_path: Path) -> None:
    file = write_karpathy(tmp_path, "tte", sentences=2)
    moved = file.rename(tmp_path / "train2014" / "d.json")
    splits = load(f"karpathy:{moved}", options={"images": str(tmp_path), "captions": 3})
    assert splits.train.labels[0].tolist() == ["a dog number 0 line 0", "a dog number 0 line 1", ""]


def test_missing_images_are_named_or_skipped(tmp_path: Path) -> None:
    file = write_karpathy(tmp_path, "ttee")
    (tmp_path / "train2014" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images are missing, the first: '.*1.jpg'.*cocodataset.org"):
        load(f"karpathy:{file}")
    splits, bad = load_checked(DataConfig(source=f"karpathy:{file}", bad_images="skip"))
    assert ([b.name for b in bad], len(splits.train)) == (["train2014/1.jpg"], 1)
    for root in (plain_mpii(tmp_path / "m"), write_lsun(tmp_path)):
        image = next((root / "images").iterdir())
        image.unlink()
        with pytest.raises(FileNotFoundError, match=rf"images are missing, the first: '.*{image.name}'"):
            load(f"{'lsun_rooms' if root == tmp_path else 'mpii'}:{root}")


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("name", ORIGINALS.names())
def test_missing_files_say_what_is_expected_and_from_where(tmp_path: Path, name: str) -> None:
    site = {"mpii": "human-pose.mpi-inf.mpg.de", "lsun_rooms": "lsun.cs.princeton.edu", "karpathy": "cs.stanford.edu"}
    for path in [tmp_path / "none"] if name == "karpathy" else [tmp_path / "none", tmp_path]:
        with pytest.raises(FileNotFoundError, match=rf"no '{path}.*expected .*{site[name]}"):
            load(f"{name}:{path}")


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", pickle.dumps({"RELEASE": 1}), b"x" * 500])
def test_files_of_another_form_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MPII).write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read '.*{MPII}' as a MATLAB file"):
        load(f"mpii:{tmp_path}")
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(ValueError, match="not of the form of Karpathy's splits"):
        load(f"karpathy:{tmp_path / 'd.json'}")


def test_matlab_files_with_other_content_are_refused(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / MPII).write_bytes(header + bytes(512))
    with pytest.raises(ValueError, match=r"MATLAB 7.3 \(HDF5\).*save\(..., '-v7'\)"):
        load(f"mpii:{tmp_path}")
    savemat(tmp_path / MPII, {"OTHER": 1})
    with pytest.raises(ValueError, match="no struct RELEASE"):
        load(f"mpii:{tmp_path}")
    savemat(tmp_path / MPII, {"RELEASE": structs({"annolist": structs({"image": 1}), "img_train": 1})})
    with pytest.raises(ValueError, match="not of the form of MPII Human Pose"):
        load(f"mpii:{tmp_path}")
    write_mpii(tmp_path, [{"people": structs(person(9, 9, joints=17))}], [1])
    with pytest.raises(ValueError, match=r"000.jpg has a joint with the id 16, expected 0 to 15"):
        load(f"mpii:{tmp_path}")
    write_mpii(tmp_path, [{"people": structs(person(9, 9))}], [0])
    with pytest.raises(ValueError, match="no person with a place, a scale and 16 joints"):
        load(f"mpii:{tmp_path}")
    savemat(tmp_path / "training.mat", {"training": structs({"image": "a"})})
    with pytest.raises(ValueError, match=r"no struct array 'training' with image and type"):
        load(f"lsun_rooms:{tmp_path}")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"images": [{}]}', '{"images": [{"split": 1, "filename": 2, "sentences": 3}]}']
)
def test_json_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match="not of the form of Karpathy's splits"):
        load(f"karpathy:{tmp_path / 'd.json'}")


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"query": 1}, {}, r"'karpathy' has no option query; its options: images, captions, restval, queries"),
        ({"captions": "5"}, {}, r"'karpathy': captions must be an int"),
        ({"captions": 0}, {}, r"captions=0: expected at least 1"),
        ({"queries": 1}, {}, r"set data.role to role"),
        ({"queries": 2}, {"role": "role"}, r"queries=2: expected 1 <= queries < 2 \(test rows\)"),
        ({}, {"query_split": "tset"}, r"no rows for query; column 'split' has 'test', 'train'"),
        ({}, {"label": "lines"}, r"data.label: no column 'lines'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    file = write_karpathy(tmp_path, "tree")
    with pytest.raises(ValueError, match=message):
        load(f"karpathy:{file}", options=options, **fields)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mpii", {"train": 1.0}), ("mpii", {"missing": 16}), ("mpii", {"margin": 0.0}),
     ("lsun_rooms", {"side": 0}), ("lsun_rooms", {"layout_type": 11})],
)  # fmt: skip
def test_numbers_out_of_range(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data.options: expected"):
        load(f"{name}:{tmp_path}", options=options)


def test_every_option_is_named_in_the_help() -> None:
    text = (DataConfig.__doc__ or "").split("options: ")[1].split("table: ")[0]
    for name in ORIGINALS.names():
        assert f"{name}:" in text
        for option in set(options_of(ORIGINALS[name].build)) - {"path", "config"}:
            assert option in text


def test_options_are_for_original_files_alone(tmp_path: Path) -> None:
    for source in (str(tmp_path), "embedded:digits"):
        with pytest.raises(ValueError, match=r"data.options are for"):
            load(source, options={"queries": 1})
    with pytest.raises(FileNotFoundError, match="mpii:PATH"):
        load("mpi:folder")


# ---------------------------------------------------------------- the configs


def test_configs_load_their_sets(tmp_path: Path) -> None:
    writers = {
        "mpii_pose": ("mpii", lambda root: plain_mpii(root)),
        "lsun_rooms": ("lsun_rooms", lambda root: write_lsun(root)),
        "coco_captions": ("karpathy", lambda root: write_karpathy(root, "trvee")),
    }
    for name, (source, write) in writers.items():
        (tmp_path / name).mkdir()
        argv = ["--config", str(CONFIGS / f"{name}.yaml"), "--data.source", f"{source}:{write(tmp_path / name)}"]
        config = parse_config([*argv, "--data.options.queries", "1"])
        check_config(config)
        assert config.optimizer.schedule == "constant"
        assert "NOT RUN HERE" in (CONFIGS / f"{name}.yaml").read_text()
        splits = load_splits(config.data)
        assert splits.gallery is not None
        assert len(splits.query) == 1
        if source != "karpathy":
            create_target(config.objective.target).encode(splits.train.labels)
        if config.augment.mirror:
            assert [config.augment.mirror[j] for j in config.augment.mirror] == list(range(16))
