"""Readers of published data sets, on tiny files of their form."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import (
    person,
    picture,
    plain_mpii,
    sample,
    structs,
    upright,
    write_cars,
    write_cub,
    write_inaturalist,
    write_inshop,
    write_karpathy,
    write_lfw,
    write_lsun,
    write_mpii,
    write_samples,
    write_sop,
    write_text,
)
from scipy.io import savemat

from beyond_binary.data import DataConfig, Splits, load_checked, load_splits
from beyond_binary.data.originals import ORIGINALS
from beyond_binary.data.originals.poses import MPII, whole_groups
from beyond_binary.data.originals.rooms import LAYOUT_TYPES, named_surfaces
from beyond_binary.data.readers import read_rows
from beyond_binary.data.rooms import SURFACES
from beyond_binary.data.splits import split_rows
from beyond_binary.registry import options_of
from beyond_binary.targets import create_target


def load(source: str, **fields: Any) -> Splits:
    return load_splits(DataConfig(source=source, **fields))


def names_of(splits: Splits) -> list[list[str]]:
    parts = (splits.train, splits.query, splits.gallery)
    return [list(part.names) for part in parts if part is not None]


# ---------------------------------------------------------------- MPII


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


def test_mpii_is_read_as_fiftyone_exports_it(tmp_path: Path) -> None:
    lacking = [*upright(10, 8)[:3], [float("nan")] * 2, *upright(10, 8)[4:]]
    root = write_samples(
        tmp_path,
        sample(0, upright(20, 10), video_id="a"),
        sample(1, upright(30, 5), lacking, video_id="a"),
        sample(2, upright(30, 5), lacking, video_id="b"),  # those of the image before
        sample(3, upright(5, 5), tag="test"),
        sample(4, annopoints=None),
        sample(5, upright(12, 9), metadata=None),
    )
    splits = load(f"mpii:{root}", options={"margin": 1.0, "train": 0.7})
    names = [f"data/data_0/{i:03d}.jpg person 1" for i in (0, 1, 5)]
    assert sorted(name for part in names_of(splits) for name in part) == names
    assert list(splits.train.names) == (names[:2] if len(splits.train) == 2 else names[2:])  # videos are whole
    people = {n: (part, i) for part in (splits.train, splits.query) for i, n in enumerate(part.names)}
    for name, (x, y), number in zip(names, ((20, 10), (30, 5), (12, 9)), (0, 1, 5), strict=True):
        part, i = people[name]
        left, top = np.rint([x - 7.5, y])
        expected = (np.array(upright(x, y)) - [left, top]) / 30
        assert np.allclose(part.labels[i], np.column_stack([expected, np.ones(16)]), atol=1e-12)
        inside = np.asarray(part.images[i])[: 48 - y]
        shown = picture(tmp_path / "again", (60, 48), number)[y : y + 30, int(left) : int(left) + 30]
        assert np.array_equal(inside[: len(shown), : shown.shape[1]], shown)
    assert splits.target == "pose"
    more = load(f"mpii:{root}", options={"missing": 1, "occluded": False})
    assert len(more.train) + len(more.query) == 4
    labels = np.concatenate([more.train.labels, more.query.labels])
    assert (labels[:, 1, 2] == 0).all()
    assert (labels[:, [0, *range(4, 16)], 2] == 1).all()
    assert sorted(labels[:, 3].any(axis=1)) == [False, True, True, True]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSONDecodeError"),
        ('{"items": []}', "KeyError: 'samples'"),
        ('{"samples": [{"tags": ["train"], "annopoints": {"keypoints": [{}]}}]}', "KeyError: 'points'"),
        (json.dumps({"samples": [sample(0, upright(1, 1))]}).replace("thorax", "tail"), "not in tuple"),
    ],
)
def test_other_exports_are_told_from_mpii(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=f"is not FiftyOne's export of MPII Human Pose: .*{told}"):
        load(f"mpii:{tmp_path}")


def test_people_of_images_without_a_size(tmp_path: Path) -> None:
    made = [
        sample(i, upright(5 * i, 9), metadata=None, video_id=[0, None, "b", {"$numberDouble": "NaN"}][i])
        for i in range(4)
    ]
    root = write_samples(tmp_path, *made)
    splits = load(f"mpii:{root}", options={"train": 0.5})
    assert len(splits.train) == len(splits.query) == 2
    (root / made[1]["filepath"]).write_text("no image")
    with pytest.raises(OSError, match=r"001\.jpg.* has no size in samples\.json and cannot be read"):
        load(f"mpii:{root}")
    kept = load(f"mpii:{root}", options={"train": 0.5}, bad_images="skip")
    assert len(kept.train) + len(kept.query) == 3
    (root / made[1]["filepath"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.jpg.* has no size"):
        load(f"mpii:{root}")


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


@pytest.mark.parametrize("folder", ["flickr30k-images", "Flicker8k_Dataset"])
def test_karpathy_finds_the_images_where_they_are_unpacked_to(tmp_path: Path, folder: str) -> None:
    splits = load(f"karpathy:{write_karpathy(tmp_path, 'tte', folder=False, images=folder)}")
    np.testing.assert_array_equal(np.asarray(splits.query.images[0]), picture(tmp_path / "x", (8, 6), 2))


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


# ---------------------------------------------------------------- classes


def files_of(splits: Splits) -> list[list[str]]:
    """Names of the images of each part, without folders."""
    return [[Path(name).name for name in names] for names in names_of(splits)]


def same_picture(image: Any, folder: Path, size: tuple[int, int], seed: int) -> None:
    np.testing.assert_array_equal(np.asarray(image), picture(folder / "again", size, seed))


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_cub_divides_classes_by_their_number(tmp_path: Path, inner: str) -> None:
    write_cub(tmp_path / inner)
    splits = load(f"cub:{tmp_path}")
    assert files_of(splits) == [
        ["Bird_2_0000_0.jpg", "Bird_1_0001_7.jpg", "Bird_1_0004_28.jpg"], ["Bird_3_0002_14.jpg", "Bird_4_0003_21.jpg"]
    ]  # fmt: skip
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([1, 0, 0], [2, 3])
    assert splits.class_names == [f"{c:03d}.Bird_{c}" for c in (1, 2, 3, 4)]
    same_picture(splits.query.images[1], tmp_path, (20, 12), 3)
    cropped = load(f"cub:{tmp_path}", options={"crop": True}).query.images[1]
    np.testing.assert_array_equal(np.asarray(cropped), picture(tmp_path / "again", (20, 12), 3)[2:5, 4:10])


@pytest.mark.parametrize("form", ["joined", "devkit", "csv"])
def test_cars_are_read_in_three_forms(tmp_path: Path, form: str) -> None:
    splits = load(f"cars:{write_cars(tmp_path, form)}")
    assert files_of(splits) == [[f"00000{i}.jpg" for i in part] for part in ([1, 3, 5], [2, 4])]
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([0, 1, 1], [2, 3])
    assert splits.class_names is not None
    assert splits.class_names[1] == "Ram C/V Cargo Van Minivan 2012"
    same_picture(splits.query.images[1], tmp_path, (20, 12), 3)
    cropped = load(f"cars:{tmp_path}", options={"crop": True}).query.images[1]
    np.testing.assert_array_equal(np.asarray(cropped), picture(tmp_path / "again", (20, 12), 3)[2:5, 4:10])


@pytest.mark.parametrize("form", ["devkit", "csv"])
def test_cars_annos_counts_only_beside_its_images(tmp_path: Path, form: str) -> None:
    write_cars(tmp_path, "joined", (2, 2, 2, 2, 2))
    shutil.rmtree(tmp_path / "car_ims")
    with pytest.raises(
        FileNotFoundError, match=r"5 of 5 images are missing.*expected the images that '.*cars_annos.mat"
    ):
        load(f"cars:{tmp_path}")
    splits = load(f"cars:{write_cars(tmp_path, form)}")
    assert files_of(splits) == [[f"00000{i}.jpg" for i in part] for part in ([1, 3, 5], [2, 4])]
    shutil.rmtree(tmp_path / {"devkit": "cars_train", "csv": "car_data"}[form])
    with pytest.raises(FileNotFoundError, match=r"expected the images that '[^']*(devkit|anno_train.csv)' lists"):
        load(f"cars:{tmp_path}")


def test_cars_without_labels_of_the_test_images_are_refused(tmp_path: Path) -> None:
    root = write_cars(tmp_path, "devkit")
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": structs({"fname": "1.jpg", "bbox_x1": 1})})
    with pytest.raises(ValueError, match=r"no struct array annotations with fname and class .*withlabels"):
        load(f"cars:{root}")
    with pytest.raises(ValueError, match=r"has the class 5, but the set names 4 classes, from 1 on"):
        load(f"cars:{write_cars(tmp_path / 'more', 'csv', [1, 5, 2])}")


@pytest.mark.parametrize("inner", ["", "Stanford_Online_Products"])
def test_sop_products_are_divided_by_its_lists(tmp_path: Path, inner: str) -> None:
    write_sop(tmp_path / inner)
    splits = load(f"sop:{tmp_path}")
    assert files_of(splits) == [["11_0.JPG", "11_1.JPG", "12_0.JPG"], ["13_0.JPG", "13_1.JPG"]]
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([0, 0, 1], [2, 2])
    assert load(f"sop:{tmp_path}", label="superclass").class_names == ["bicycle", "toaster"]
    same_picture(splits.query.images[0], tmp_path, (8, 6), 3)


@pytest.mark.parametrize("place", ["", "Img"])
def test_inshop_has_queries_and_a_gallery(tmp_path: Path, place: str) -> None:
    write_inshop(tmp_path, place)
    splits = load(f"inshop:{tmp_path}", role="role")
    assert files_of(splits) == [
        ["02_1_front.jpg", "02_2_side.jpg", "01_1_front.jpg"], ["01_1_front.jpg"], ["01_2_side.jpg", "03_4_full.jpg"]
    ]  # fmt: skip
    assert splits.class_names == ["id_00000002", "id_00000007", "id_00000009", "id_00000080"]
    assert splits.gallery is not None
    assert [part.labels.tolist() for part in (splits.train, splits.query, splits.gallery)] == [[0, 0, 3], [1], [1, 2]]
    same_picture(splits.query.images[0], tmp_path, (8, 6), 3)
    with pytest.raises(FileNotFoundError, match=r"6 of 6 images are missing, the first: '.*img_highres/WOMEN"):
        load(f"inshop:{tmp_path}", options={"highres": True})
    write_inshop(tmp_path, "Img", "img_highres")
    assert "img_highres" in load(f"inshop:{tmp_path}", options={"highres": True}).train.names[0]


def test_inshop_lists_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    file = write_inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    lines = file.read_text().splitlines()
    write_text(file, *lines[:-1])
    with pytest.raises(ValueError, match=r"says 6 images in its first line, but lists 5; it is not complete"):
        load(f"inshop:{tmp_path}")
    write_text(file, *lines[:-1], lines[-1].replace("gallery", "probe"))
    with pytest.raises(ValueError, match=r"expected train, query or gallery, got 'probe'"):
        load(f"inshop:{tmp_path}")


@pytest.mark.parametrize("lists", ["", "Inat_dataset_splits"])
def test_inaturalist_by_the_lists_or_by_halves(tmp_path: Path, lists: str) -> None:
    splits = load(f"inaturalist:{write_inaturalist(tmp_path, lists)}")
    assert files_of(splits) == [["0a.jpg", "1a.jpg", "2a.jpg", "3a.jpg"], ["4a.jpg", "5a.jpg", "6a.jpg"]]
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([2761, 2761, 7477, 3000], [12, 12, 9])
    same_picture(splits.query.images[2], tmp_path, (8, 6), 6)
    halves = load(f"inaturalist:{tmp_path}", options={"division": "halves"})
    assert (halves.train.labels.tolist(), halves.query.labels.tolist()) == ([12, 12, 9], [2761, 2761, 7477, 3000])
    assert load(f"inaturalist:{tmp_path}", label="superclass").class_names == ["Aves", "Fungi", "Plantae"]
    (tmp_path / "train2018.json").write_text('{"images": [{}]}')
    with pytest.raises(ValueError, match=r"not of the form of iNaturalist \(KeyError: 'annotations'\)"):
        load(f"inaturalist:{tmp_path}", options={"division": "halves"})


@pytest.mark.parametrize("folder", ["lfw", "lfw_funneled", "lfw-deepfunneled", ""])
def test_lfw_tests_on_one_fold_of_people(tmp_path: Path, folder: str) -> None:
    splits = load(f"lfw:{write_lfw(tmp_path, folder)}", options={"fold": 2})
    assert files_of(splits)[1] == [f"Cy_000{i}.jpg" for i in (1, 2, 3)]
    assert splits.class_names == ["Ann_A", "Bo", "Cy", "Di_D", "Ed"]
    assert (splits.train.labels.tolist(), splits.query.labels.tolist()) == ([0, 0, 1, 3, 4, 4], [2, 2, 2])
    same_picture(splits.query.images[0], tmp_path, (8, 6), 3)
    with pytest.raises(ValueError, match=r"fold=4: expected 1 to 3"):
        load(f"lfw:{tmp_path}", options={"fold": 4})


@pytest.mark.parametrize(
    "lines", [[], ["x"], ["1", "2", "Ann\t1"], ["1", "1", "Ann\t1", "Bo\t1"], ["1", "1", "Ann\tx"], ["0"]]
)
def test_lists_of_people_that_do_not_add_up_are_refused(tmp_path: Path, lines: list[str]) -> None:
    write_text(tmp_path / "people.txt", *lines)
    with pytest.raises(ValueError, match=r"not of the form of people.txt"):
        load(f"lfw:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "file", "lines", "message"),
    [
        ("cub", "images.txt", ["1 a.jpg", "2"], r"images.txt', line 2: expected 2 words, got '2'"),
        ("cub", "image_class_labels.txt", ["1 2"], r"lacks 4 images of images.txt, the first: 2"),
        ("cub", "image_class_labels.txt", [f"{i} x" for i in range(1, 6)], r"expected whole numbers \(.*'x'\)"),
        ("cub", "classes.txt", ["1 a"], r"has the class 2, but the set names 1 classes, from 1 on"),
        ("cub", "classes.txt", [], r"classes.txt' has no lines"),
        ("sop", "Ebay_test.txt", ["image_id class_id", "1 2 3"], r"line 2: expected 4 words, got '1 2 3'"),
    ],
)
def test_lists_of_another_form_are_refused(
    tmp_path: Path, name: str, file: str, lines: list[str], message: str
) -> None:
    write_text({"cub": write_cub, "sop": write_sop}[name](tmp_path) / file, *lines)
    with pytest.raises(ValueError, match=message):
        load(f"{name}:{tmp_path}")


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("name", ORIGINALS.names())
def test_missing_files_say_what_is_expected_and_from_where(tmp_path: Path, name: str) -> None:
    site = {
        "mpii": "human-pose.mpi-inf.mpg.de", "lsun_rooms": "lsun.cs.princeton.edu", "karpathy": "cs.stanford.edu",
        "cub": "www.vision.caltech.edu", "cars": "ai.stanford.edu", "sop": "cvgl.stanford.edu",
        "inshop": "mmlab.ie.cuhk.edu.hk", "inaturalist": "github.com/visipedia", "lfw": "vis-www.cs.umass.edu",
    }  # fmt: skip
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


@pytest.mark.parametrize("role", [{}, {"split": "split", "role": "role"}])
@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("cub", write_cub),
        ("cars", lambda root: write_cars(root, "devkit")),
        ("sop", write_sop),
        ("inshop", write_inshop),
        ("inaturalist", write_inaturalist),
        ("lfw", write_lfw),
    ],
)
def test_class_folds_stay_inside_the_official_training_classes(
    tmp_path: Path, source: str, write: Callable[[Path], Path], role: dict[str, str]
) -> None:
    config = DataConfig(source=f"{source}:{write(tmp_path)}", role="role" if source == "inshop" else None)
    rows = read_rows(config)
    split = np.array(rows.columns["split"].to_pylist())
    classes = np.array(rows.columns["class"].to_pylist())
    held_out = []
    for fold in range(2):
        parts = split_rows(rows, replace(config, splitting="class_folds", folds=2, fold=fold, **role))
        both = np.concatenate([parts["train"], parts["query"]])
        assert sorted(both.tolist()) == np.flatnonzero(split == "train").tolist()
        assert not set(classes[parts["train"]]) & set(classes[parts["query"]])
        assert "gallery" not in parts
        held_out += parts["query"].tolist()
    assert sorted(held_out) == np.flatnonzero(split == "train").tolist()


def test_sop_names_the_list_with_the_wrong_number(tmp_path: Path) -> None:
    write_sop(tmp_path)
    with (tmp_path / "Ebay_test.txt").open("a") as file:
        file.write("6 x 1 bicycle_final/13_1.JPG\n")
    with pytest.raises(ValueError, match=r"Ebay_test.txt': expected whole numbers"):
        load(f"sop:{tmp_path}")


def test_karpathy_finds_the_folder_although_the_first_image_is_missing(tmp_path: Path) -> None:
    write_karpathy(tmp_path, "ttvee", folder=False, images="flickr30k-images")
    (tmp_path / "flickr30k-images" / "0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 images are missing, the first: '.*flickr30k-images/0.jpg'"):
        load(f"karpathy:{tmp_path / 'dataset_coco.json'}")
