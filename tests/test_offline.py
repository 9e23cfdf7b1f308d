"""Offline mining against a plain loop in double precision, its lists under two processes, and batches made of them."""

import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from beyond_binary import offline
from beyond_binary.offline import mine_offline
from beyond_binary.sampling import create_sampler
from beyond_binary.targets import create_target

INSTALLED = importlib.util.find_spec("faiss") is not None
SEARCHES = ["faiss", "torch"] if INSTALLED else ["torch"]


def reach_of(a: list[float], b: list[float], geometry: str) -> float:
    """How far b is from a, in plain floats; -similarity for similarities."""
    if geometry == "cosine":
        size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return -sum(x * y for x, y in zip(a, b, strict=True)) / size
    if geometry == "dot":
        return -sum(x * y for x, y in zip(a, b, strict=True))
    if geometry == "snr":
        unit = [[x / math.sqrt(sum(x * x for x in v)) for x in v] for v in (a, b)]
        mean = [sum(v) / len(v) for v in unit]
        a, b = ([x - m for x in v] for v, m in zip(unit, mean, strict=True))
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / sum(x * x for x in a)
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def loop(z, y, *, geometry, find="negatives", count=4, skip=0, radius=0.0, ids=None) -> list[list[int]]:
    """Plain sorting of (distance, index) for each item."""
    z, y, n = z.tolist(), y.tolist(), len(z)
    ids = list(range(n)) if ids is None else ids
    found = []
    for i in range(n):
        fits = [
            j for j in range(n) if ids[i] != ids[j] and (y[i][j] > radius if find == "negatives" else y[i][j] <= radius)
        ]
        sign = 1 if find == "negatives" else -1
        best = sorted(fits, key=lambda j: (sign * reach_of(z[i], z[j], geometry), j))[skip : skip + count]
        found.append(best + [-1] * (count - len(best)))
    return found


def poses(n: int) -> torch.Tensor:
    joints = torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(4))
    joints[::5] = torch.nan  # unknown to all others
    return joints


LABELS = {
    "classes": (lambda n: torch.arange(n) % 7, {}),
    "euclidean": (lambda n: torch.arange(n) % 11 / 4.0, {"radius": 0.5}),
    "pose(root=(0, 1))": (poses, {"radius": 0.8}),
    "within('euclidean', radius=0.5)": (lambda n: torch.arange(n) % 11 / 4.0, {}),
    "nearest('euclidean', k=9)": (lambda n: torch.arange(n) % 13 / 4.0, {}),
    "within(\"nearest('euclidean', k=9)\", radius=0.5)": (lambda n: torch.arange(n) % 13 / 4.0, {}),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("target", LABELS)
@pytest.mark.parametrize("find", ["negatives", "positives"])
def test_any_target_agrees_with_the_loop(search, target, find):
    n, (labels, options) = 60, LABELS[target]
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    code = create_target(target).encode(labels(n))
    y = create_target(target).distance(code, code, ~torch.eye(n, dtype=torch.bool)).double()
    found = mine_offline(z, labels(n), target=target, geometry="euclidean", find=find, k=10, search=search, **options)
    assert found.dtype == torch.int64
    assert found.tolist() == loop(z.double(), y, geometry="euclidean", find=find, **options)
    assert (found >= 0).any()
    if "pose" in target:
        assert (found[::5] == -1).all()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("geometry", ["cosine", "dot", "euclidean", "squared_euclidean", "snr"])
@pytest.mark.parametrize("find", ["negatives", "positives"])
def test_any_geometry_agrees_with_the_loop(search, geometry, find):
    z = 0.3 + torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(50) % 4
    y = (labels[:, None] != labels).double()
    found = mine_offline(z, labels, geometry=geometry, find=find, count=3, skip=2, k=9, search=search)
    assert found.tolist() == loop(z.double(), y, geometry=geometry, find=find, count=3, skip=2)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ties_small_sets_and_any_options_follow_the_loop(data):
    """Points on a coarse grid, so that equal distances are everywhere and come out exactly."""
    n = data.draw(st.integers(1, 14))
    z = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(-1, 2)] * 2), min_size=n, max_size=n))).float()
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    options = {
        "geometry": data.draw(st.sampled_from(["euclidean", "dot"])),
        "find": data.draw(st.sampled_from(["negatives", "positives"])),
        "count": data.draw(st.integers(1, 5)),
        "skip": data.draw(st.integers(0, 3)),
        "ids": data.draw(st.none() | st.lists(st.integers(0, 5), min_size=n, max_size=n)),
    }
    expected = loop(z.double(), (labels[:, None] != labels).double(), **options)
    k = data.draw(st.integers(1, 16))
    for search in SEARCHES:
        assert mine_offline(z, labels, k=k, search=search, **options).tolist() == expected
    assert mine_offline(z.double(), labels, **options).tolist() == expected


@pytest.mark.parametrize("search", SEARCHES)
def test_tiles_and_neighbours_looked_at_change_nothing(search, monkeypatch):
    z = torch.randn(300, 6, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(300) % 3
    whole = mine_offline(z, labels, search=search)
    assert torch.equal(mine_offline(z, labels, search=search), whole)
    for k in (1, 3, 299, 1000):
        assert torch.equal(mine_offline(z, labels, search=search, k=k), whole)
    monkeypatch.setattr(offline, "PAIRS_PER_TILE", {"cpu": 2000})
    assert torch.equal(mine_offline(z, labels, search=search), whole)


@pytest.mark.skipif(not INSTALLED, reason="needs faiss")
def test_faiss_decides_what_it_can_and_torch_the_rest(monkeypatch):
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(3))
    z[:20] = 0.1 * z[:20] + 5  # a class that lies together, far from all
    labels = torch.where(torch.arange(200) < 20, 0, 1 + torch.arange(200))
    asked = []
    search = offline._Miner.among_all
    monkeypatch.setattr(
        offline._Miner, "among_all", lambda self, rows: asked.extend(rows.tolist()) or search(self, rows)
    )
    found = mine_offline(z, labels, geometry="euclidean", search="faiss", k=8)
    assert asked == list(range(20))
    assert torch.equal(found, mine_offline(z, labels, geometry="euclidean", search="torch"))


def test_without_faiss_torch_searches(monkeypatch):
    monkeypatch.setattr(offline.importlib.util, "find_spec", lambda name: None)
    z, labels = torch.randn(30, 3), torch.arange(30) % 5
    assert torch.equal(mine_offline(z, labels), mine_offline(z, labels, search="torch"))
    with pytest.raises(ModuleNotFoundError, match="pip install faiss-cpu"):
        mine_offline(z, labels, search="faiss")


def test_nothing_to_find():
    assert mine_offline(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    assert mine_offline(torch.randn(1, 3), [0]).tolist() == [[-1] * 4]
    assert (mine_offline(torch.randn(5, 3), [0] * 5) == -1).all()
    assert (mine_offline(torch.randn(5, 3), range(5), find="positives") == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "1 or more to mine"),
        ({"k": 0}, "k=0"),
        ({"skip": -1}, "skip=-1"),
        ({"radius": 0.5}, "0 for a target of same or different, got 0.5"),
        ({"target": "clases"}, "did you mean"),
        ({"geometry": "cosin"}, "did you mean"),
        ({"embeddings": torch.full((4, 2), torch.nan)}, "NaN"),
        ({"labels": [0, 1]}, "one label and one id"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        mine_offline(**{"embeddings": torch.randn(4, 2), "labels": [0, 0, 1, 1], **options})


# several processes ----------------------------------------------------------------------------------

ASKED = [
    {"search": search, "find": find, "geometry": geometry, "count": 3, "k": 6}
    for search in SEARCHES
    for find in ("negatives", "positives")
    for geometry in ("cosine", "euclidean")
]


def lists(n: int) -> dict[str, torch.Tensor]:
    z = torch.randn(n, 6, generator=torch.Generator().manual_seed(8))
    return {f"{n}/{i}": mine_offline(z, torch.arange(n) % 5, **asked) for i, asked in enumerate(ASKED)}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        save_file({**lists(101), **lists(2), **lists(1)}, f"{folder}/{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_mine_what_one_mines(tmp_path: Path) -> None:
    running = mp.start_processes(worker, (str(tmp_path),), nprocs=2, join=False, start_method="spawn")
    deadline = time.monotonic() + 120
    while not running.join(timeout=5):
        assert time.monotonic() < deadline
    expected = {**lists(101), **lists(2), **lists(1)}
    for rank in range(2):
        got = load_file(tmp_path / f"{rank}.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)


# batches --------------------------------------------------------------------------------------------


def sampler_of(labels, **options):
    return create_sampler(
        "offline_hard", items_count=len(labels), labels=labels, seed=options.pop("seed", 0), **options
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batches_hold_anchors_their_positives_and_the_hardest_negatives(data):
    n = data.draw(st.integers(4, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    labels, z = rng.integers(0, 5, n), torch.from_numpy(rng.normal(size=(n, 3)))
    positives, negatives = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3))
    group = 1 + positives + negatives
    batch_size = data.draw(st.integers(min(group, n), n))
    hard = data.draw(st.booleans())
    if batch_size < group:
        return
    sampler = sampler_of(
        labels, batch_size=batch_size, positives=positives, negatives=negatives, hard_positives=hard, skip=1
    )
    sampler.snapshot.renew(z, 0)
    mined = mine_offline(z, labels, count=negatives, skip=1).tolist()
    far = mine_offline(z, labels, count=max(positives, 1), skip=1, find="positives").tolist()
    batches = list(sampler)
    assert len(batches) == len(sampler) == max(1, n // batch_size)
    for batch in batches:
        assert len(set(batch)) == len(batch) == batch_size
        assert set(batch) <= set(range(n))
        anchor, seen = batch[0], set(batch)
        rest = [j for j in mined[anchor] if j >= 0]
        assert seen >= set(rest)
        same = {j for j in range(n) if labels[j] == labels[anchor] and j != anchor}
        if hard and positives:
            assert seen >= {j for j in far[anchor] if j >= 0}
        else:
            drawn = batch[1 : 1 + min(positives, len(same))]
            assert set(drawn) <= same
            assert batch[1 + len(drawn) : 1 + len(drawn) + len(rest)] == rest


def test_positives_are_drawn_evenly_within_a_radius():
    labels = np.array([0.0, 0.4, 0.5, 3.0, 3.1, 9.0])
    sampler = sampler_of(labels, target="euclidean", radius=0.5, batch_size=3, negatives=1, batches_per_epoch=6)
    sampler.snapshot.renew(torch.randn(6, 2), 0)
    partners = {i: set() for i in range(6)}
    for epoch in range(60):
        sampler.set_epoch(epoch)
        heads = [batch[0] for batch in sampler]
        assert sorted(heads) == list(range(6))  # each an anchor before any is one again
        for batch in sampler:
            partners[batch[0]].add(batch[1])
    assert [partners[i] for i in range(5)] == [{1, 2}, {0, 2}, {0, 1}, {4}, {3}]


def test_a_snapshot_is_renewed_when_due_and_survives_a_checkpoint():
    labels = np.arange(40) % 8
    sampler = sampler_of(labels, batch_size=12, refresh=2)
    snapshot = sampler.snapshot
    assert snapshot.due(0)
    with pytest.raises(RuntimeError, match=r"call snapshot.renew\(embeddings, epoch\)"):
        next(iter(sampler))
    snapshot.renew(torch.randn(40, 4), 0)
    assert [snapshot.due(epoch) for epoch in range(5)] == [False, False, True, True, True]
    snapshot.renew(torch.randn(40, 4), 2)
    assert [snapshot.due(epoch) for epoch in range(2, 5)] == [False, False, True]
    again = sampler_of(labels, batch_size=12, refresh=2)
    again.snapshot.load_state_dict(snapshot.state_dict())
    assert list(again) == list(sampler)
    assert not again.snapshot.due(3)
    first = list(sampler)
    snapshot.renew(torch.randn(40, 4), 2)
    assert list(sampler) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "reads labels"),
        ({"batch_size": 5}, "takes 6 places of batch_size=5"),
        ({"batch_size": 41}, "may not exceed the 40 training items"),
        ({"negatives": 0}, "1 or more to mine"),
        ({"positives": -1}, "positives=-1"),
        ({"refresh": 0}, "refresh to be at least 1, got 0"),
        ({"radius": 1.0}, "radius of at least 0, and 0 for"),
        ({"labels": np.arange(39)}, "expected 40 labels, one per item, got 39"),
        ({"geometrie": "dot"}, "no option geometrie"),
    ],
)
def test_sampler_refusals(options, message):
    given = {"items_count": 40, "labels": np.arange(40) % 4, "batch_size": 12, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        create_sampler("offline_hard", **given)
