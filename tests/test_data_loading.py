import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as reference

from beyond_binary.data.augment import Augment, crop_box, jitter_colours, with_mirror
from beyond_binary.data.config import DataConfig
from beyond_binary.data.items import Items, Splits
from beyond_binary.data.loading import ImageSet, check_images, collate, load_checked, without_bad
from beyond_binary.data.splits import load_splits
from beyond_binary.preprocess import image_to_tensor

PREPROCESS = {"size": [12, 10], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def items(n: int = 9, labels: np.ndarray | None = None) -> Items:
    labels = np.arange(n) % 3 if labels is None else labels
    return Items([noise(i) for i in range(n)], labels, [f"{i}.png" for i in range(n)], np.arange(n) + 100)


IN_WORKERS = pytest.mark.filterwarnings(
    "ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
RANDOM = {"crop_scale": (0.3, 1.0), "flip": 0.5}


def photo_zip(tmp_path: Path, broken: tuple[str, ...] = ()) -> str:
    """Twelve images in four class folders; the broken ones are cut off in the middle."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            buffer, name = io.BytesIO(), f"{'abcd'[i // 3]}/{i}.jpg"
            noise(i).save(buffer, "JPEG")
            data = buffer.getvalue()
            archive.writestr(name, data[:-120] if name in broken else data)
    return str(path)


def batches(dataset: ImageSet, order: list[list[int]], workers: int = 0) -> list[dict]:
    return list(DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers))


# ---------------------------------------------------------------- batches


def test_batches_hold_images_labels_and_ids() -> None:
    labels = np.random.default_rng(0).random((9, 4, 2))
    dataset = ImageSet(items(labels=labels), lambda image: image_to_tensor(image, **PREPROCESS))
    batch = batches(dataset, [[3, 1, 8]])[0]
    assert batch["images"].shape == (3, 3, 12, 10)
    assert batch["images"].is_contiguous()
    assert batch["labels"].dtype == torch.float64
    np.testing.assert_array_equal(batch["labels"], labels[[3, 1, 8]])
    assert batch["ids"].tolist() == [103, 101, 108]
    torch.testing.assert_close(batch["images"][1], image_to_tensor(noise(1), **PREPROCESS))


def test_text_labels_stay_text() -> None:
    words = np.array([["a cat", "one cat"], ["a dog", "the dog"]])
    batch = batches(ImageSet(items(2, words), Augment(PREPROCESS, **RANDOM), seed=0), [[1, 0]])[0]
    assert batch["labels"].tolist() == words[::-1].tolist()


@pytest.mark.parametrize("cache", [False, True])
def test_augmentation_depends_on_seed_epoch_index_and_occurrence_alone(cache: bool) -> None:
    transform = Augment(PREPROCESS, **RANDOM, jitter=0.2)
    dataset = ImageSet(items(), transform, seed=5, cache=cache)
    dataset.set_epoch(2)
    first, second = (batch["images"] for batch in batches(dataset, [[4, 7, 4], [7, 4]]))
    expected, _ = transform(noise(4), None, np.random.default_rng((5, 2, 4, 1)))
    assert torch.equal(first[2], expected)
    assert torch.equal(first[[0, 1]], second[[1, 0]])
    assert torch.equal(dataset[4]["image"], first[0])
    assert not torch.equal(first[0], first[2])
    dataset.set_epoch(3)
    assert not torch.equal(dataset[4]["image"], first[0])
    assert not torch.equal(
        ImageSet(items(), transform, seed=6)[4]["image"], ImageSet(items(), transform, seed=5)[4]["image"]
    )


@IN_WORKERS
def test_workers_give_the_same_batches_from_a_zip_and_follow_the_epoch(tmp_path: Path) -> None:
    train = load_splits(DataConfig(source=photo_zip(tmp_path), splitting="class_disjoint")).train
    train.images[0].load()  # the parent has the archive open before the workers start
    order = [[0, 1, 2], [5, 0, 0], [4, 3, 1], [2, 2, 5]]
    dataset = ImageSet(train, Augment(PREPROCESS, **RANDOM), seed=1, cache=True)
    loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for here, there in zip(batches(dataset, order), loader, strict=True):
            assert all(torch.equal(here[key], there[key]) for key in here)


@IN_WORKERS
def test_processes_do_not_share_the_position_in_a_zip(tmp_path: Path) -> None:
    train = load_splits(DataConfig(source=photo_zip(tmp_path), splitting="class_disjoint")).train
    order = [[i % 6] * 10 for i in range(120)]
    dataset = ImageSet(train, lambda image: torch.from_numpy(np.array(image)))
    expected = [dataset[i]["image"] for i in range(6)]
    for i, batch in enumerate(batches(dataset, order, workers=2)):
        assert all(torch.equal(image, expected[i % 6]) for image in batch["images"])


def test_cache_decodes_once_and_only_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    source = items(4)
    counted = Items(Counted(source.images), source.labels, source.names, source.ids)

    def reads(cache: bool | None) -> int:
        dataset = ImageSet(counted, Augment(PREPROCESS, **RANDOM), seed=0, cache=cache)
        Counted.reads = 0
        batches(dataset, [[0, 1], [2, 3], [3, 2], [1, 0]])
        return Counted.reads

    assert (reads(False), reads(True), reads(None)) == (8, 4, 4)
    monkeypatch.setattr("beyond_binary.data.loading.CACHE_BYTES", 4 * 24 * 20 * 3)
    assert reads(None) == 8


# ---------------------------------------------------------------- unreadable images


def test_bad_images_are_found_named_and_skipped_or_refused(tmp_path: Path) -> None:
    config = DataConfig(source=photo_zip(tmp_path, ("a/1.jpg", "c/6.jpg", "d/11.jpg")), splitting="class_disjoint")
    with pytest.raises(
        ValueError, match=r"3 images cannot be read.*'a/1.jpg' \(train\).*truncated.*data.bad_images=skip"
    ):
        load_checked(config)
    config.bad_images = "skip"
    splits, bad = load_checked(config)
    assert [(b.split, b.index, b.name) for b in bad] == [
        ("train", 1, "a/1.jpg"),
        ("query", 0, "c/6.jpg"),
        ("query", 4, "d/11.jpg"),
    ]
    assert splits.train.names == ["a/0.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]
    assert splits.query.ids.tolist() == [7, 8, 9, 11]
    assert check_images(splits, workers=3) == []
    assert splits.class_names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("zip_it", [False, True])
def test_files_that_the_table_names_but_are_missing_are_bad_images(tmp_path: Path, zip_it: bool) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    if not zip_it:
        zipfile.ZipFile(photo_zip(tmp_path)).extractall(root)
    lines = ["gone.jpg,1,train", "a/0.jpg,1,train", "d/9.jpg,2,test", ",2,test"]
    (root / "labels.csv").write_text("\n".join(["file,label,split", *lines]))
    source = photo_zip(tmp_path) if zip_it else str(root)
    config = DataConfig(source=source, table=str(root / "labels.csv") if zip_it else None, bad_images="skip")
    splits, bad = load_checked(config)
    assert [(b.split, b.index, b.name) for b in bad] == [("train", 0, "gone.jpg"), ("query", 1, "")]
    assert (splits.train.names, splits.query.names) == (["a/0.jpg"], ["d/9.jpg"])


def test_a_split_of_bad_images_is_an_error(tmp_path: Path) -> None:
    source = photo_zip(tmp_path, tuple(f"{'abcd'[i // 3]}/{i}.jpg" for i in range(6)))
    with pytest.raises(ValueError, match="none of the 6 images of split 'train'"):
        load_checked(DataConfig(source=source, splitting="class_disjoint", bad_images="skip"))


def test_gallery_is_checked_too() -> None:
    class Broken(list):
        def __getitem__(self, index):
            raise SyntaxError("broken PNG file")

    good = items(3)
    splits = Splits(good, good, Items(Broken(good.images), good.labels, good.names, good.ids))
    bad = check_images(splits)
    assert [(b.split, b.index, b.error) for b in bad] == [
        ("gallery", i, "SyntaxError: broken PNG file") for i in range(3)
    ]
    keeping = without_bad(splits, bad[:2], "skip")
    assert keeping.gallery is not None
    assert keeping.gallery.names == ["2.png"]
    assert len(keeping.query) == 3


@IN_WORKERS
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_fails_later_is_named(tmp_path: Path, workers: int) -> None:
    train = load_splits(DataConfig(source=photo_zip(tmp_path, ("a/1.jpg",)), splitting="class_disjoint")).train
    with pytest.raises(OSError, match=r"image 'a/1.jpg' cannot be read: OSError: image file is truncated"):
        batches(ImageSet(train, Augment(PREPROCESS, **RANDOM), seed=0), [[0, 1]], workers)


# ---------------------------------------------------------------- augmentation


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.floats(0.01, 1),
    *[st.floats(0, 1, exclude_max=True)] * 3,
)
def test_crop_boxes_have_their_area_and_stay_inside(size, share, shape, across, down) -> None:
    left, top, right, bottom = crop_box(size, share, shape, across, down)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert (right - left) * (bottom - top) == pytest.approx(share * size[0] * size[1], rel=1e-6)
    ratio = (right - left) / (bottom - top)
    touches = right - left > size[0] * (1 - 1e-9) or bottom - top > size[1] * (1 - 1e-9)
    assert touches or 3 / 4 - 1e-9 <= ratio <= 4 / 3 + 1e-9


def test_crop_boxes_reach_every_shape_and_corner() -> None:
    np.testing.assert_allclose(crop_box((100, 100), 0.48, 0.0, 0.0, 0.0), (0, 0, 60, 80))
    np.testing.assert_allclose(crop_box((100, 100), 0.48, 1.0, 1.0, 1.0), (20, 40, 100, 100))
    np.testing.assert_allclose(crop_box((100, 100), 0.25, 0.5, 0.5, 0.2), (25, 10, 75, 60))
    assert crop_box((30, 70), 1.0, 0.3, 0.9, 0.1) == (0, 0, 30, 70)


@settings(max_examples=30, deadline=None)
@given(*[st.floats(0.5, 1.5)] * 3, st.integers(0, 99))
def test_jitter_is_torchvision_without_clipping_in_between(brightness, contrast, saturation, seed) -> None:
    image = np.random.default_rng(seed).uniform(90, 140, (3, 5, 6)).astype(np.float32)
    expected = torch.from_numpy(image) / 255
    expected = reference.adjust_saturation(expected, saturation)
    expected = reference.adjust_contrast(expected, contrast)
    expected = reference.adjust_brightness(expected, brightness) * 255
    result = jitter_colours(image, brightness, contrast, saturation)
    assert (result.dtype, result.shape) == (np.float32, image.shape)
    np.testing.assert_allclose(result, expected, atol=0.15)  # torchvision rounds the weights of grey to 4 digits


def test_jitter_stays_in_range() -> None:
    assert jitter_colours(np.full((3, 2, 2), 200, dtype=np.float32), 1.5, 1, 1).max() == 255


def test_flip_and_crop_are_the_plain_operations() -> None:
    image = noise(3)
    draws = np.random.default_rng(0).random(8)
    box = crop_box(image.size, 0.2 + 0.6 * draws[0], *draws[1:4])
    plain = image.resize((10, 12), Image.Resampling.BILINEAR, box=box).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    transform = Augment({**PREPROCESS, "interpolation": "bilinear"}, crop_scale=(0.2, 0.8), flip=1.0)
    expected = reference.normalize(reference.to_tensor(plain), PREPROCESS["mean"], PREPROCESS["std"])
    result, label = transform(image, 7, np.random.default_rng(0))
    assert label == 7
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_without_cropping_it_is_the_evaluation_preprocessing(mode: str) -> None:
    preprocess = {**PREPROCESS, "resize_mode": mode}
    result, _ = Augment(preprocess)(noise(1, 40, 17), None, np.random.default_rng(0))
    torch.testing.assert_close(result, image_to_tensor(noise(1, 40, 17), **preprocess), rtol=0, atol=2e-6)


def test_flip_and_crop_share_are_drawn_as_often_as_asked() -> None:
    half = Image.fromarray(np.repeat(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8), 2, axis=0))
    transform = Augment({**PREPROCESS, "size": [2, 2]}, flip=0.25)
    images = [transform(half, None, np.random.default_rng(i))[0] for i in range(400)]
    flipped = [bool(x[0, 0, 0] > x[0, 0, 1]) for x in images]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize(
    "options", [{"crop_scale": (0, 1)}, {"crop_scale": (0.8, 0.5)}, {"flip": 1.5}, {"jitter": 1.0}]
)
def test_impossible_ranges_are_refused(options) -> None:
    with pytest.raises(ValueError, match=r"expected augment\.(crop_scale|flip)"):
        Augment(PREPROCESS, **options)


def test_mirrored_items_have_ids_of_their_own() -> None:
    big = Items([noise(i) for i in range(2)], np.zeros((2, 3, 2)), ["a", "b"], np.array([-5, 2**63 - 1]))
    both = with_mirror(big, [1, 0, 2])
    assert both.ids.tolist() == [0, 1, 2, 3]
    assert both.names[2:] == ["a (mirrored)", "b (mirrored)"]


def test_flat_points_with_visibility_are_mirrored_and_moved_as_those_in_rows() -> None:
    joints = np.concatenate([np.random.default_rng(0).random((2, 3, 2)), [[[1], [0], [1]]] * 2], 2)
    rows, flat = (
        Items([noise(0), noise(1)], labels, ["a", "b"], np.arange(2)) for labels in (joints, joints.reshape(2, -1))
    )
    mirrored = with_mirror(flat, [1, 0, 2], 3).labels
    np.testing.assert_array_equal(mirrored.reshape(4, 3, 3), with_mirror(rows, [1, 0, 2]).labels)
    np.testing.assert_array_equal(mirrored[2:, 2::3], [[0, 1, 1]] * 2)
    with pytest.raises(ValueError, match="for each of the 0 joints"):
        with_mirror(flat, [1, 0, 2], 2)
    move = {"shift": 0.2, "zoom": 0.3, "rotate": 40.0, "move_labels": True}
    for label in (joints[0], torch.from_numpy(joints[0])):
        ends = [
            Augment(PREPROCESS, **move, point=3)(noise(0), given, np.random.default_rng(5))[1]
            for given in (label, label.reshape(-1))
        ]
        np.testing.assert_array_equal(ends[1].reshape(3, 3), ends[0])
        np.testing.assert_array_equal(ends[0][:, 2], joints[0, :, 2])
        assert np.abs(np.asarray(ends[0]) - joints[0])[:, :2].min() > 1e-3
