import warnings
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beyond_binary.neighbours import label_neighbours
from beyond_binary.sampling import create_sampler, list_samplers
from beyond_binary.targets import create_target

LABELS = np.random.default_rng(3).normal(size=(60, 2))
CLASSES = np.arange(60) % 12


def table(k, labels=LABELS):
    target = create_target("euclidean")
    return label_neighbours(target, target.encode(labels), k)[0]


def make(spec, *, batch_size=24, seed=5, **more):
    sampler = create_sampler(
        spec,
        items_count=60,
        classes=CLASSES,
        neighbours=table,
        labels=CLASSES,
        batch_size=batch_size,
        seed=seed,
        **more,
    )
    if sampler.snapshot is not None:
        sampler.snapshot.renew(torch.from_numpy(LABELS), 0)
    return sampler


SPECS = [
    "random",
    "random(drop_last=True)",
    "classes",
    "classes(batches_per_epoch=7)",
    "dense_triplet(anchors=7, k=2)",
    "dense_triplet(anchors=3, k=2, pool=9)",
    "offline_hard(negatives=3, batches_per_epoch=5)",
]


def test_names():
    assert list_samplers() == ["classes", "dense_triplet", "offline_hard", "random"]


@pytest.mark.parametrize("spec", SPECS)
def test_batches_depend_on_seed_and_epoch_alone(spec):
    sampler = make(spec)
    first = list(sampler)
    np.random.seed(1)
    torch.manual_seed(1)
    assert list(sampler) == first == list(make(spec))  # again, and in another object
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(make(spec, seed=6)) not in (first, second)
    other = make(spec)
    other.set_epoch(1)  # without epoch 0 before it
    assert list(other) == second
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("spec", SPECS)
def test_yields_lists_of_int_and_its_length_is_exact(spec):
    sampler = make(spec)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    assert all(type(batch) is list and type(index) is int for batch in batches for index in batch)
    assert sampler.batch_size == 24
    assert sampler.drop_last is (spec != "random")
    assert all(len(batch) == 24 for batch in (batches if sampler.drop_last else batches[:-1]))


def test_the_draws_are_the_recorded_ones():
    """Pins the streams: a change of the draws would break the resumption of runs made before it."""
    shuffled = create_sampler("random", items_count=6, batch_size=4, seed=0)
    assert list(shuffled) == [[5, 3, 0, 1], [2, 4]]
    near = [[1, 2], [0, 2], [1, 3], [2, 1]]
    dense = create_sampler("dense_triplet(k=1)", items_count=4, neighbours=near, batch_size=3, seed=0)
    assert list(dense) == [[1, 0, 2], [0, 1, 2], [3, 2, 1], [2, 1, 3]]
    by_class = create_sampler(
        "classes(samples_per_class=2)", items_count=6, classes=list("aabbcc"), batch_size=4, seed=0
    )
    assert list(by_class) == [[1, 0, 3, 2]]


# resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_resumed_epoch_continues_where_it_stopped_and_the_next_is_whole(spec, stop):
    straight = make(spec)
    straight.set_epoch(3)
    expected = list(straight)
    straight.set_epoch(4)
    following = list(straight)

    stopped = make(spec)
    stopped.set_epoch(3)
    batches = iter(stopped)
    done = [next(batches) for _ in range(stop)]
    assert stopped.state_dict() == {"epoch": 3, "batch": stop}

    resumed = make(spec)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == stopped.state_dict()
    resumed.set_epoch(3)  # the training loop announces the epoch, which must not lose the place
    assert done + list(resumed) == expected
    assert resumed.state_dict() == {"epoch": 3, "batch": len(expected)}
    resumed.set_epoch(4)
    assert list(resumed) == following


def test_only_the_first_pass_after_loading_is_short_and_another_epoch_is_whole():
    sampler = make("random")
    whole = list(sampler)
    sampler.load_state_dict({"epoch": 0, "batch": 2})
    assert list(sampler) == whole[2:]
    assert list(sampler) == whole
    sampler.load_state_dict({"epoch": 0, "batch": 2})
    sampler.set_epoch(1)
    assert sampler.state_dict() == {"epoch": 1, "batch": 0}
    assert len(list(sampler)) == len(sampler)
    sampler.load_state_dict({"epoch": 1, "batch": len(sampler)})  # saved after the last batch
    assert list(sampler) == []


def test_a_data_loader_takes_it():
    sampler = make("random")
    loader = torch.utils.data.DataLoader(torch.arange(60), batch_sampler=sampler)
    assert [batch.tolist() for batch in loader] == list(sampler)
    assert len(loader) == 3


# several processes ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SPECS), st.integers(1, 24), st.integers(0, 3))
def test_parts_of_the_ranks_joined_are_the_global_batch(spec, world_size, epoch):
    samplers = [make(spec), *(make(spec, world_size=world_size, rank=rank) for rank in range(world_size))]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    whole, *ranks = map(list, samplers)
    assert all(len(batches) == len(whole) == len(samplers[0]) for batches in ranks)
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert list(chain(*parts)) == batch
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_each_rank_resumes_its_own_part():
    ranks = [make("dense_triplet", world_size=2, rank=rank) for rank in range(2)]
    whole = list(make("dense_triplet"))
    for sampler in ranks:
        sampler.load_state_dict({"epoch": 0, "batch": 50})
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole[50:]


# random ---------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_random_takes_every_item_once(n, batch_size, drop_last):
    if drop_last and batch_size > n:
        return
    sampler = create_sampler("random", items_count=n, batch_size=batch_size, seed=0, drop_last=drop_last)
    batches = list(sampler)
    items = list(chain(*batches))
    assert len(set(items)) == len(items) == (n // batch_size * batch_size if drop_last else n)
    assert set(items) <= set(range(n))
    assert [len(b) for b in batches] == [min(batch_size, len(items) - i * batch_size) for i in range(len(sampler))]


# classes --------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_classes_come_evenly_and_so_do_the_images_within_each(data):
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    classes = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    per_class, per_batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, len(sizes)))
    length = data.draw(st.none() | st.integers(1, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = create_sampler(
            "classes",
            items_count=len(classes),
            classes=classes,
            batch_size=per_batch * per_class,
            seed=data.draw(st.integers(0, 99)),
            samples_per_class=per_class,
            batches_per_epoch=length,
        )
    assert len(sampler) == (length or max(1, len(classes) // (per_batch * per_class)))
    class_uses, image_uses = Counter(range(len(sizes))), Counter(range(len(classes)))
    for batch in sampler:
        groups = np.array(batch).reshape(per_batch, per_class)
        drawn = classes[groups]
        assert (drawn == drawn[:, :1]).all()  # M neighbouring places per class
        assert len(set(drawn[:, 0])) == per_batch  # P distinct classes
        for group, c in zip(groups, drawn[:, 0], strict=True):
            times = Counter(dict.fromkeys(np.flatnonzero(classes == c).tolist(), 0))
            times.update(group.tolist())
            assert max(times.values()) - min(times.values()) <= 1  # no image twice before each came once
        class_uses.update(drawn[:, 0].tolist())
        image_uses.update(batch)
        # at every moment, not only at the end: nothing comes again before its peers had their turn
        assert max(class_uses.values()) - min(class_uses.values()) <= 1
        for c in range(len(sizes)):
            uses = [image_uses[i] for i in np.flatnonzero(classes == c)]
            assert max(uses) - min(uses) <= 1


def test_classes_of_equal_size_use_every_image_once_per_epoch():
    sampler = make("classes(samples_per_class=5)", batch_size=20)
    assert sorted(chain(*sampler)) == list(range(60))


def test_class_choice_is_not_tied_to_the_order_of_classes():
    """All 6 pairs of 4 classes turn up about equally often over epochs."""
    sampler = create_sampler(
        "classes(samples_per_class=1)",
        items_count=4,
        classes=[3, 1, 0, 2],
        batch_size=2,
        seed=0,
        batches_per_epoch=1,
    )
    pairs = Counter()
    for epoch in range(1200):
        sampler.set_epoch(epoch)
        pairs.update(frozenset(batch) for batch in sampler)
    assert len(pairs) == 6
    assert all(150 < count < 250 for count in pairs.values())


def test_classes_may_be_strings_or_a_tensor():
    for classes in (list("abab"), torch.tensor([7, -2, 7, -2])):
        (batch,) = create_sampler("classes(samples_per_class=2)", items_count=4, classes=classes, batch_size=4, seed=0)
        assert {frozenset(batch[:2]), frozenset(batch[2:])} == {frozenset((0, 2)), frozenset((1, 3))}


def test_too_few_classes_with_a_pair_is_a_warning():
    with pytest.warns(UserWarning, match="only 1 classes have two items or more and each batch takes 2 classes"):
        create_sampler("classes(samples_per_class=2)", items_count=4, classes=[0, 0, 1, 2], batch_size=4, seed=0)


# dense triplet --------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_dense_triplet_holds_anchors_their_neighbours_and_random_others(data):
    n = data.draw(st.integers(3, 30))
    k = data.draw(st.integers(1, n - 2))
    anchors = data.draw(st.integers(1, n // (1 + k)))
    batch_size = data.draw(st.integers(anchors * (1 + k), n))
    length = data.draw(st.none() | st.integers(1, 40))
    near = table(n - 1, np.random.default_rng(n).integers(0, 9, size=(n, 1)).astype(float)).numpy()
    near[np.random.default_rng(n).random(near.shape) < 0.1] = -1
    sampler = create_sampler(
        f"dense_triplet(anchors={anchors}, k={k})",
        items_count=n,
        neighbours=near,
        batch_size=batch_size,
        seed=data.draw(st.integers(0, 99)),
        batches_per_epoch=length,
    )
    assert len(sampler) == (length or -(-n // anchors))
    used = Counter(range(n))
    for step, batch in enumerate(sampler):
        assert len(set(batch)) == len(batch) == batch_size
        heads = batch[: anchors if length else min(anchors, n - step * anchors)]
        expected = list(dict.fromkeys(heads + [int(j) for a in heads for j in near[a, :k] if j >= 0]))
        assert batch[: len(expected)] == expected
        used.update(heads)
        assert max(used.values()) - min(used.values()) <= 1
    if length is None:
        assert set(used.values()) == {2}  # 1 from the start of the count, 1 as anchor


def test_dense_triplet_fills_with_every_other_item_alike():
    near = [[1], [2], [0], [0], [0], [0]]
    sampler = create_sampler(
        "dense_triplet(k=1, batches_per_epoch=6)", items_count=6, neighbours=near, batch_size=4, seed=0
    )
    fill = Counter()
    for epoch in range(500):
        sampler.set_epoch(epoch)
        fill.update(i for batch in sampler if batch[0] == 0 for i in batch[2:])
    assert set(fill) == {2, 3, 4, 5}
    assert all(210 < count < 290 for count in fill.values())  # 1000 places over 4 items


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_neighbours_drawn_from_a_pool(data):
    n = data.draw(st.integers(4, 30))
    k = data.draw(st.integers(1, n - 3))
    pool = data.draw(st.integers(k, n - 1))
    anchors = data.draw(st.integers(1, n // (1 + k)))
    batch_size = data.draw(st.integers(anchors * (1 + k), n))
    near = table(n - 1, np.random.default_rng(n).integers(0, 9, size=(n, 1)).astype(float)).numpy()
    near[:, n // 2 :][np.random.default_rng(n).random((n, n - 1 - n // 2)) < 0.1] = -1
    spec = f"dense_triplet(anchors={anchors}, k={k}, pool={pool})"
    sampler = create_sampler(
        spec, items_count=n, neighbours=near, batch_size=batch_size, seed=data.draw(st.integers(0, 9))
    )
    for step, batch in enumerate(sampler):
        assert len(set(batch)) == len(batch) == batch_size
        heads = batch[: min(anchors, n - step * anchors)]
        pools = [set(near[a, :pool].tolist()) - {-1} for a in heads]
        partners = set().union(*pools) - set(heads)
        for around in pools:
            assert len(around & set(batch)) >= min(k, len(around))
        if batch_size <= n - len(partners):  # random items suffice: no more of a pool than was drawn
            assert len(partners & set(batch)) <= k * len(heads)


def test_every_neighbour_of_a_pool_comes_alike():
    near = [[1, 2, 3], *([[0, 1, 2]] * 7)]
    spec = "dense_triplet(k=1, pool=3, batches_per_epoch=8)"
    sampler = create_sampler(spec, items_count=8, neighbours=near, batch_size=4, seed=0)
    drawn, fill = Counter(), Counter()
    for epoch in range(600):
        sampler.set_epoch(epoch)
        for batch in sampler:
            if batch[0] == 0:
                drawn[batch[1]] += 1
                fill.update(batch[2:])
    assert set(drawn) == {1, 2, 3}
    assert all(150 < count < 250 for count in drawn.values())
    assert set(fill) == {4, 5, 6, 7}
    assert all(240 < count < 360 for count in fill.values())


def test_neighbours_may_be_a_function_called_with_k_only_when_they_are_read():
    asked = []

    def neighbours(k):
        asked.append(k)
        return table(k)

    for spec in ("random", "classes", "dense_triplet(k=3)"):
        create_sampler(spec, items_count=60, classes=CLASSES, neighbours=neighbours, batch_size=20, seed=0)
    with pytest.raises(ValueError, match="places"):
        create_sampler("dense_triplet(k=30)", items_count=60, neighbours=neighbours, batch_size=20, seed=0)
    assert asked == [3]


# refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "more", "message"),
    [
        ("clases", {}, "unknown sampler 'clases'; did you mean 'classes'"),
        (
            "classes",
            {"samples": 3},
            "'classes' has no option samples; its options: samples_per_class, batches_per_epoch$",
        ),
        ("random(classes=3)", {}, "'random' has no option classes; its options: drop_last$"),
        ("random", {"batch_size": 0}, "batch_size to be at least 1, got 0"),
        (
            "random",
            {"batch_size": 61, "drop_last": True},
            "batch_size=61 exceeds the 60 items, .* at most 60",
        ),
        ("random", {"seed": -1}, "seed of 0 or more, got -1"),
        ("random", {"rank": 2, "world_size": 2}, "rank=2 and world_size=2"),
        (
            "random",
            {"batch_size": 3, "world_size": 4},
            "batch_size=3 .* cannot feed 4 processes; raise it to at least 4",
        ),
        (
            "classes",
            {"batch_size": 22},
            "22 is not a multiple of samples_per_class=4; use batch_size=20 or 24",
        ),
        ("classes", {"batch_size": 3}, "3 is not a multiple of samples_per_class=4; use batch_size=4$"),
        (
            "classes",
            {"batch_size": 52},
            "needs 13 classes, the training items have 12; lower batch_size to at most 48",
        ),
        ("classes", {"samples_per_class": 0}, "samples_per_class to be at least 1, got 0"),
        ("classes", {"batches_per_epoch": 0}, "batches_per_epoch to be at least 1, got 0"),
        (
            "classes",
            {"classes": None},
            "reads classes, which this data set does not give; .*dense_triplet, offline_hard, random",
        ),
        ("classes", {"classes": CLASSES * 1.0}, r"60 integer or string classes, .* float64 \[60\]"),
        ("classes", {"classes": CLASSES[:-1]}, r"60 integer or string classes, .* \[59\]"),
        ("dense_triplet", {"neighbours": None}, "reads neighbours, .*classes, offline_hard, random"),
        ("dense_triplet", {"batch_size": 61}, "batch_size=61 exceeds the 60 training items"),
        (
            "dense_triplet",
            {"anchors": 5},
            "anchors=5 with k=5 .* need 30 places, more than batch_size=24; .* lower anchors",
        ),
        ("dense_triplet(pool=4)", {}, "cannot draw k=5 neighbours from the pool=4 nearest"),
        ("dense_triplet(pool=6)", {"neighbours": np.zeros((60, 5), int)}, r"\[60, 6 or more\], got int64 \[60, 5\]"),
        ("dense_triplet", {"k": 0}, "k to be at least 1, got 0"),
        ("dense_triplet", {"neighbours": np.zeros((60, 4), int)}, r"\[60, 5 or more\], got int64 \[60, 4\]"),
        ("dense_triplet", {"neighbours": np.zeros((59, 5), int)}, r"\[60, 5 or more\], got int64 \[59, 5\]"),
        ("dense_triplet", {"neighbours": np.zeros((60, 5))}, "table of integers"),
    ],
)
def test_refusals_say_what_to_do(spec, more, message):
    given = {"items_count": 60, "classes": CLASSES, "neighbours": table, "batch_size": 24, "seed": 0}
    with pytest.raises(ValueError, match=message):
        create_sampler(spec, **{**given, **more})
