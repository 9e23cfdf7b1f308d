"""The embedded sets: determinism, shapes, and labels that agree with the pixels and the words."""

import re

import numpy as np
import pytest
from PIL import Image

from beyond_binary.data import figures, rooms, scenes
from beyond_binary.data.embedded import balanced_order, embedded, list_embedded
from beyond_binary.data.items import Items, Splits

DRAWN = ["figures", "rooms", "scenes"]


def small(name, **options):
    return embedded(name, **{"train": 12, "test": 6, "size": 32, **options})


def pixels(items):
    return np.stack([np.asarray(image) for image in items.images])


@pytest.mark.parametrize("name", ["digits", *DRAWN])
def test_the_seed_decides_everything(name):
    first, again, other = small(name, seed=3), small(name, seed=3), small(name, seed=4)
    for a, b, c in ((first.train, again.train, other.train), (first.query, again.query, other.query)):
        assert np.array_equal(pixels(a), pixels(b))
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.ids, b.ids)
        assert not np.array_equal(pixels(a), pixels(c))
        assert len({image.tobytes() for image in pixels(a)}) == len(a)


@pytest.mark.parametrize("name", DRAWN)
def test_more_items_begin_with_the_same_items_and_splits_differ(name):
    few, many = small(name), small(name, train=15, test=12)
    assert np.array_equal(pixels(few.train), pixels(many.train)[:12])
    assert np.array_equal(few.query.labels, many.query.labels[:6])
    assert not np.array_equal(pixels(many.train)[:12], pixels(many.query))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "target"),
    [
        ("digits", (), np.int64, "classes"),
        ("figures", (14, 2), np.float64, "pose(root=(2, 3))"),
        ("rooms", (32, 32), np.uint8, "layout"),
        ("scenes", (5,), np.str_, "captions(vectors='embedded:scenes')"),
    ],
)
def test_shapes_types_and_ids(name, shape, dtype, target):
    splits = small(name)
    assert splits.target == target
    assert splits.gallery is None
    for items, count in ((splits.train, 12), (splits.query, 6)):
        assert items.labels.shape == (count, *shape)
        assert np.issubdtype(items.labels.dtype, dtype)
        assert len(items) == len(items.images) == len(set(items.names)) == count
        assert items.images[0].mode == "RGB"
        assert items.images[-1].size == (32, 32)
    assert len(np.intersect1d(splits.train.ids, splits.query.ids)) == 0


def test_digits_are_scikit_learns_and_every_class_is_split_alike():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = embedded("digits", size=8)
    assert (len(splits.train), len(splits.query)) == (1198, 599)
    for items in (splits.train, splits.query):
        assert np.array_equal(items.labels, bunch.target[items.ids])
        assert np.abs(pixels(items)[..., 0] / 255 - bunch.images[items.ids] / 16).max() < 0.01
    share = np.bincount(splits.query.labels, minlength=10) / np.bincount(bunch.target)
    assert np.abs(share - 1 / 3).max() < 0.01
    assert splits.class_names == list("0123456789")


def test_digits_class_disjoint():
    splits = embedded("digits", size=8, class_disjoint=True)
    assert set(splits.train.labels) == {0, 1, 2, 3, 4}
    assert set(splits.query.labels) == {5, 6, 7, 8, 9}
    assert len(splits.train) + len(splits.query) == 1797


def test_balanced_order_is_a_permutation_that_mixes_the_classes():
    labels = np.repeat([0, 1, 2], [50, 100, 150])
    order = balanced_order(labels, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(300))
    for start in range(0, 300, 60):
        assert np.abs(np.bincount(labels[order[start : start + 60]], minlength=3) - [10, 20, 30]).max() <= 2


def drawn_on(background, seed, size=64):
    """A figure drawn on a plain canvas, and the canvas position [14, 2] of its joints."""
    rng = np.random.default_rng(seed)
    joints, metre = figures.fit(figures.place_joints(figures.random_pose(rng), figures.random_body(rng)), rng)
    canvas = Image.new("RGB", (size, size), background)
    figures.draw_person(canvas, joints * size, metre * size, rng)
    return np.asarray(canvas), joints * size


def test_every_joint_lies_on_the_figure():
    for seed in range(30):
        dark, joints = drawn_on((1, 2, 3), seed, size=256)
        light, _ = drawn_on((250, 249, 251), seed, size=256)
        x, y = joints.astype(int).T
        figure = (dark == light).all(-1)
        assert figure[y, x].all()
        assert 0.02 < figure.mean() < 0.3
        assert not figure[np.clip(y + 90, 0, 255), np.clip(x + 90, 0, 255)].all()


def test_the_labels_of_figures_are_where_the_picture_shows_them():
    """The same random numbers give the background without the person: the picture differs at each joint."""
    image, joints = figures.draw_figure(np.random.default_rng(5), 64)
    rng = np.random.default_rng(5)
    expected, _ = figures.fit(figures.place_joints(figures.random_pose(rng), figures.random_body(rng)), rng)
    assert np.array_equal(joints, expected)
    background = np.asarray(figures.draw_background(rng, 64 * figures.DRAWN).reduce(figures.DRAWN))
    changed = (image != background).any(-1)
    x, y = (64 * joints).astype(int).T
    assert changed[y, x].all()
    assert changed.mean() < 0.3


def test_figures_stay_inside_and_poses_vary_smoothly_with_proportions_kept():
    rng = np.random.default_rng(0)
    poses = [figures.random_pose(rng) for _ in range(200)]
    body = figures.random_body(rng)
    joints = np.stack([figures.fit(figures.place_joints(pose, body), rng)[0] for pose in poses])
    assert joints.min() > 0.05
    assert joints.max() < 0.95
    centred = joints - joints[:, [2, 3]].mean(1, keepdims=True)
    assert centred.std(0)[[0, 5, 6, 11]].max() > 0.08
    plain = figures.place_joints(np.zeros((10, 2)), body)
    trunk, head, arm, forearm, thigh, shin, _, _ = body
    assert np.allclose(plain[[2, 3]].mean(0), 0)
    assert np.isclose(plain[0, 1], thigh + shin)
    assert np.isclose(plain[13, 1], -trunk - head)
    assert np.isclose(np.hypot(*(plain[6] - plain[8])), arm + forearm)
    assert (plain[[0, 1, 2, 6, 7, 8], 0] < 0).all()  # the right side is on the left of the picture


def test_left_limbs_are_darker():
    for seed in range(10):
        image, joints = drawn_on((0, 0, 0), seed, size=256)
        middle = [(joints[a] + joints[b]) / 2 for a, b in ((8, 7), (9, 10))]
        right, left = (image[int(y), int(x)].astype(float).mean() for x, y in middle)
        assert left < 0.75 * right


def test_rooms_show_all_surfaces_floor_below_ceiling_left_before_right():
    maps = small("rooms", train=60).train.labels
    assert set(np.unique(maps)) == {0, 1, 2, 3, 4}
    rows, columns = np.indices((32, 32))
    for layout in maps:
        assert (rows[layout == 0].mean() if (layout == 0).any() else 31) > 16
        for up, down, where in ((1, 0, rows), (2, 3, columns), (3, 4, columns), (2, 4, columns)):
            if (layout == up).any() and (layout == down).any():
                assert where[layout == up].mean() < where[layout == down].mean()


def test_the_layout_is_that_of_a_plain_ray_in_a_box():
    """Each pixel's surface, found again by walking along its ray in small steps until the room ends."""
    rng = np.random.default_rng(1)
    room, camera = rooms.random_room(rng), rooms.random_camera(rng)
    rays = rooms.cast_rays(camera, 8)
    depth, surface = rooms.hit_room(1 / rays, room)
    sides = (2, 0, None, 4, 1, 3)  # the surface beyond the low and high end of x, y, z
    for ray, far, label in zip(rays.T, depth, surface, strict=True):
        steps = np.arange(0, 12, 0.002)[:, None] * ray
        out = np.argmax(((steps < room[0]) | (steps > room[1])).any(1))
        point = steps[out]
        beyond = np.flatnonzero(np.concatenate([point < room[0], point > room[1]]))
        assert label in [sides[side] for side in beyond]
        assert abs(far - 0.002 * out) < 0.01


@pytest.mark.parametrize("axis", [0, 1])
def test_a_room_changes_its_picture_where_its_surface_changes(axis):
    """Neighbouring pixels differ most across the borders of the layout, less across borders shifted by 2."""
    at = {0: [], 2: [], -2: []}
    for seed in range(40):
        image, layout = rooms.draw_room(np.random.default_rng(seed), 32)
        step = np.abs(np.diff(image.astype(float), axis=axis)).mean(-1)
        border = np.diff(layout.astype(int), axis=axis) != 0
        for shift, found in at.items():
            found.extend(step[np.roll(border, shift, axis)])
    assert np.mean(at[0]) > 1.8 * max(np.mean(at[2]), np.mean(at[-2]))


def test_box_is_met_at_its_near_side():
    rays = np.array([[1e-6, 1e-6, 1], [1, 1e-6, 1]], np.float32).T
    far, _ = rooms.hit_box(1 / rays, np.array([[-1, -1, 2], [1, 1, 3]], np.float32))
    assert far[0] == pytest.approx(2)
    assert np.isinf(far[1])


def test_captions_tell_what_the_scene_shows():
    names = {other: name for name, others in scenes.WORDS.items() for other in others}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = scenes.random_scene(rng)
        captions = [tell(scene, rng) for tell in scenes.TELLERS]
        kinds = {(t.colour, t.shape) for t in scene.things}
        assert len(kinds) == len(scene.things)
        plain = [caption.lower() for caption in captions]
        for word, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
            plain = [re.sub(rf"\b{word}\b", name, caption) for caption in plain]
        pattern = rf"\b({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})\b"
        said = [re.findall(pattern, caption) for caption in plain]
        assert set(said[0]) == set(said[4]) == kinds
        assert all(set(pairs) <= kinds and pairs for pairs in said)
        assert scenes.NUMBERS[len(kinds)] in plain[3]
        assert scene.ground in captions[3]
        assert scene.ground in captions[4]
        a, b = (next(t for t in scene.things if (t.colour, t.shape) == pair) for pair in said[1])
        truth = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
        assert [truth[phrase] for phrase in truth if phrase in plain[1]] == [True]
        first = next(t for t in scene.things if (t.colour, t.shape) == said[2][0])
        for word, true in (
            ("top", first.y < 1 / 3),
            ("bottom", first.y > 2 / 3),
            ("left", first.x < 1 / 3),
            ("right", first.x > 2 / 3),
        ):
            assert (word in plain[2]) == true
        for size, colour, shape in re.findall(rf"(small|large) {pattern}", plain[0] + plain[2]):
            assert any((t.size, t.colour, t.shape) == (size, colour, shape) for t in scene.things)


def test_each_thing_of_a_scene_has_its_colour_in_its_middle():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = scenes.random_scene(rng)
        image = scenes.paint_scene(scene, rng, 64)
        for thing in scene.things:
            assert np.array_equal(image[int(64 * thing.y), int(64 * thing.x)], scenes.COLOURS[thing.colour])


@pytest.mark.parametrize("shape", list(scenes.SHAPES))
def test_a_thing_covers_the_area_of_its_shape(shape):
    scene = scenes.Scene((scenes.Thing(shape, "red", "large", 0.5, 0.5, 0.4),), "snow")
    image = scenes.paint_scene(scene, np.random.default_rng(0), 128).astype(int)
    share = ((image[..., 0] - image[..., 2]) > 60).mean()  # nothing else in this picture is red
    x, y = 0.4 * scenes.SHAPES[shape].T
    area = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
    assert area * 0.97 < share < area * 1.1


def test_captions_of_one_scene_differ_and_are_many():
    captions = small("scenes", train=100).train.labels
    assert all(len(set(row)) == 5 for row in captions)
    assert len(np.unique(captions)) > 480
    assert all(text[0].isupper() and text.endswith(".") for text in captions.ravel())


def test_list_and_errors():
    assert list_embedded() == ["digits", "figures", "rooms", "scenes"]
    with pytest.raises(ValueError, match="did you mean 'figures'"):
        embedded("figure")
    with pytest.raises(ValueError, match="train of at least 1, got 0"):
        embedded("rooms", train=0)
    with pytest.raises(ValueError, match="599 test items, got test=600"):
        embedded("digits", test=600, size=8)
    with pytest.raises(ValueError, match="needs classes"):
        embedded("rooms", class_disjoint=True)


def test_items_select_is_lazy_and_keeps_things_together():
    class Images(list):
        def __getitem__(self, i):
            raise AssertionError("decoded")

    items = Items(Images("abc"), np.array([5, 6, 7]), ["a", "b", "c"], np.arange(3))
    picked = items.select(np.array([True, False, True])).select([1, 0])
    assert picked.names == ["c", "a"]
    assert picked.labels.tolist() == [7, 5]
    assert picked.ids.tolist() == [2, 0]
    assert Items(list("abc"), items.labels, items.names, items.ids).select([2, 1]).images[0] == "c"
    with pytest.raises(AssertionError, match="decoded"):
        picked.images[0]


def test_items_and_splits_refuse_what_does_not_fit():
    images, labels, ids = list("abc"), np.arange(3), np.arange(3)
    with pytest.raises(ValueError, match="3 images, 2 labels, 3 names, 3 ids"):
        Items(images, labels[:2], images, ids)
    with pytest.raises(ValueError, match="7 is there 2 times"):
        Items(images, labels, images, np.array([7, 7, 1]))
    with pytest.raises(ValueError, match="float64"):
        Items(images, labels, images, ids.astype(float))
    items = Items(images, labels, images, ids)
    with pytest.raises(ValueError, match="'query' has none"):
        Splits(items, items.select([]))
    with pytest.raises(ValueError, match=r"\[\] in 'train' and \[2\] in 'gallery'"):
        Splits(items, items, Items(images, np.zeros((3, 2)), images, ids))
