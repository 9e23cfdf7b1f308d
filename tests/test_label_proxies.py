"""Labels that are not classes, for losses that grew up with classes: weighted moments, label sets, proxies with labels."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import Largest
from torch import Tensor

import beyond_binary as bb
from beyond_binary import centres
from beyond_binary.centres import label_centres, nearest
from beyond_binary.objective import create_objective
from beyond_binary.targets import create_target
from beyond_binary.targets.tables import Precomputed

SETS = "within('multi_label', radius=0.999)"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def unit(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=1)


def moments(scores: list[float], weights: list[float]) -> tuple[float, float]:
    mean = sum(w * s for s, w in zip(scores, weights, strict=True)) / sum(weights)
    return mean, sum(w * (s - mean) ** 2 for s, w in zip(scores, weights, strict=True)) / sum(weights)


def loop_gap(
    z: Tensor, w: Tensor, y: np.ndarray, bandwidth: float, skip_diagonal: bool = False, hardness: float = 0.0
) -> tuple[float, float]:
    """Gap of the means and sum of the variances of genuine and impostor scores, pair by pair."""
    scores, genuine, impostor = [], [], []
    for i in range(len(z)):
        own = [j for j in range(len(w)) if not (skip_diagonal and i == j)]
        row = [float(unit(z.detach())[i] @ unit(w.detach())[j]) for j in own]
        near = [math.exp(-((y[i, j] / bandwidth) ** 2) / 2) for j in own]
        far = [(1 - g) * math.exp(hardness * s) for g, s in zip(near, row, strict=True)]
        scores, genuine = scores + row, genuine + near
        impostor += [weight * (len(near) - sum(near)) / sum(far) for weight in far]
    (mean_g, var_g), (mean_i, var_i) = moments(scores, genuine), moments(scores, impostor)
    return mean_g - mean_i, var_g + var_i


@pytest.mark.parametrize("block", [None, 4, 1024])
def test_pd_loss_weighs_pairs_by_label_distance(block: int | None) -> None:
    labels, own = draw(20, 2, seed=1), draw(6, 2, seed=2)
    objective = bb.create_objective(
        "pd_loss", target="euclidean", proxy_codes=own, dim=5, bandwidth=0.8, d_floor=1e-6, block=block
    ).double()
    z = (unit(labels @ draw(2, 5, seed=3)) + 0.3 * draw(20, 5, seed=4)).requires_grad_()
    with torch.no_grad():
        objective.proxies.weight.copy_(own @ draw(2, 5, seed=3))
    gap, variance = loop_gap(z, objective.proxies.weight, torch.cdist(labels, own).numpy(), 0.8)
    assert gap > 0.05
    loss = objective(z, labels)
    assert loss.item() == pytest.approx(-math.log(gap) + 0.5 * math.log(variance + 1e-6), rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: objective(z, labels), (z,))
    loss.backward()
    assert objective.proxies.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("block", [None, 4])
def test_d_loss_weighs_pairs_by_label_distance_and_impostors_by_hardness(block: int | None) -> None:
    labels = draw(15, 1, seed=1)
    z = unit(torch.cat([labels, labels.square(), 1 + 0 * labels], 1)) + 0.2 * draw(15, 3)
    options = {"bandwidth": 0.5, "hardness": 3.0, "form": "neg", "variance_floor": 0.0}
    objective = bb.create_objective("d_loss", target="euclidean", block=block, **options)
    gap, variance = loop_gap(z, z, torch.cdist(labels, labels).numpy(), 0.5, skip_diagonal=True, hardness=3.0)
    assert objective(z, labels).item() == pytest.approx(-gap / math.sqrt(variance / 2), rel=1e-9)


def test_d_loss_weighs_pairs_by_label_distance() -> None:
    labels = draw(15, 1, seed=1)
    z = (unit(torch.cat([labels, labels.square(), 1 + 0 * labels], 1)) + 0.2 * draw(15, 3)).requires_grad_()
    objective = bb.create_objective("d_loss", target="euclidean", bandwidth=0.5, form="neg", variance_floor=0.0)
    gap, variance = loop_gap(z, z, torch.cdist(labels, labels).numpy(), 0.5, skip_diagonal=True)
    assert objective(z, labels).item() == pytest.approx(-gap / math.sqrt(variance / 2), rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: objective(z, labels), (z,))


@pytest.mark.parametrize("loss", ["pd_loss", "d_loss"])
@pytest.mark.parametrize("target", ["euclidean", "within('euclidean', radius=0.1)"])
def test_far_apart_labels_are_classes(loss: str, target: str) -> None:
    classes, z = torch.arange(24) % 4, draw(24, 6)
    proxies = {"num_classes": 4, "dim": 6} if loss == "pd_loss" else {}
    usual = bb.create_objective(loss, **proxies).double()
    code = {"proxy_codes": torch.arange(4.0)[:, None].double(), "dim": 6} if loss == "pd_loss" else {}
    more = {"bandwidth": 0.1} if target == "euclidean" else {}
    other = bb.create_objective(loss, target=target, **code, **more).double()
    if loss == "pd_loss":
        other.proxies.weight.data.copy_(usual.proxies.weight.data)
    results = []
    for objective, labels in ((usual, classes), (other, classes[:, None].double())):
        z.requires_grad_().grad = None
        objective(z, labels).backward()
        results.append((objective(z, labels).item(), z.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-10)


def test_no_impostors_and_tiny_embeddings_do_no_harm() -> None:
    labels = draw(8, 2)
    one_place = bb.create_objective("d_loss", target="euclidean", bandwidth=1.0)
    z = draw(8, 3).requires_grad_()
    loss = one_place(z, torch.ones(8, 2).double())
    loss.backward()
    assert loss.item() == 0
    assert z.grad.abs().sum() == 0
    assert math.isfinite(float(one_place(1e-12 * draw(8, 3), labels)))


# ---- sets of labels


def some_sets(n: int, labels: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    table = rng.random((n, labels)) < 0.35
    table[np.arange(n), rng.integers(labels, size=n)] = True
    return torch.from_numpy(table.astype(np.int64))


def loop_fields(z: Tensor, w: Tensor, sets: Tensor, alpha: float, beta: float, base: float) -> float:
    s, n, c = (unit(z) @ unit(w).T).detach().tolist(), len(z), len(w)
    members = [[i for i in range(n) if sets[i, k]] for k in range(c)]
    present = [k for k in range(c) if members[k]]
    pull = 0.0
    for k in present:
        pull += math.log(1 + sum(math.exp(alpha * (base - s[i][k])) for i in members[k]) / len(members[k]))

    def push(a: int, b: int) -> float:
        rest = [i for i in members[a] if not sets[i, b]]
        return sum(math.exp(beta * (s[i][b] - base)) for i in rest) / len(rest) if rest else 0.0

    both = sum(math.log(1 + push(a, b) + push(b, a)) for a in range(c) for b in range(c) if a != b)
    return (pull / alpha + both / (2 * beta)) / len(present)


def loop_class_wise(z: Tensor, sets: Tensor, alpha: float, beta: float, base: float, self_pairs: bool) -> float:
    s, n = (unit(z) @ unit(z).T).detach().tolist(), len(z)
    members = [[i for i in range(n) if sets[i, k]] for k in range(sets.shape[1])]
    present = [k for k in range(sets.shape[1]) if members[k]]
    pull = push = 0.0
    for a in present:
        near = [s[i][j] for i in members[a] for j in members[a] if self_pairs or i != j]
        if near:
            pull += math.log(1 + 0.5 * sum(math.exp(alpha * (base - x)) for x in near) / len(near))
        for b in present:
            far = [s[i][j] for i in members[a] for j in members[b] if not (sets[i] & sets[j]).any()]
            if a != b and far:
                push += math.log(1 + sum(math.exp(beta * (x - base)) for x in far) / len(far))
    return (pull / alpha + push / (2 * beta)) / len(present)


SHARP: dict[str, Any] = {"alpha": 2.0, "beta": 20.0, "base": 0.2}


def fields(c: int, dim: int, loss: str = "mean_field_class_wise_multi_similarity", **options: Any) -> bb.Objective:
    eye = torch.eye(c, dtype=torch.uint8)
    return bb.create_objective(loss, target=SETS, proxy_codes=eye, dim=dim, **options).double()


def test_mean_fields_of_label_sets_equal_loops() -> None:
    sets, z = some_sets(12, 5), draw(12, 4).requires_grad_()
    objective = fields(5, 4, **SHARP)
    loss = objective(z, sets)
    assert loss.item() == pytest.approx(loop_fields(z, objective.proxies.weight, sets, **SHARP), rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: objective(z, sets), (z,))
    contrastive = fields(5, 4, "mean_field_contrastive")
    d = 1 - unit(z) @ unit(contrastive.proxies.weight).T
    each = torch.where(sets > 0, (d - 0.02).relu(), (0.3 - d).relu()).sum(1)
    assert contrastive(z, sets).item() == pytest.approx(each.mean().item(), rel=1e-10)


@pytest.mark.parametrize("self_pairs", [True, False])
def test_class_wise_loss_of_label_sets_equals_a_loop(self_pairs: bool) -> None:
    sets, z = some_sets(12, 5, seed=1), draw(12, 4).requires_grad_()
    objective = bb.create_objective("class_wise_multi_similarity", target=SETS, self_pairs=self_pairs, **SHARP)
    assert objective(z, sets).item() == pytest.approx(
        loop_class_wise(z, sets, self_pairs=self_pairs, **SHARP), rel=1e-10
    )
    assert torch.autograd.gradcheck(lambda z: objective(z, sets), (z,))


@pytest.mark.parametrize(
    "loss",
    ["mean_field_contrastive", "mean_field_class_wise_multi_similarity", "class_wise_multi_similarity", "pd_loss"],
)
@pytest.mark.parametrize("options", [{}, SHARP], ids=["default", "sharp"])
def test_sets_of_one_label_are_classes(loss: str, options: dict[str, Any]) -> None:
    options = options if "multi_similarity" in loss else {}
    classes, z = torch.tensor([0, 1, 3, 3, 1, 0, 4, 4, 1]), draw(9, 4)
    needs = bb.losses.LOSSES[loss].info["facts"].needs_proxies
    usual = bb.create_objective(loss, **({"num_classes": 6, "dim": 4} if needs else {}), **options).double()
    other = fields(6, 4, loss, **options) if needs else bb.create_objective(loss, target=SETS, **options)
    if needs:
        other.proxies.weight.data.copy_(usual.proxies.weight.data)
    results = []
    for objective, labels in ((usual, classes), (other, torch.nn.functional.one_hot(classes, 6))):
        z.requires_grad_().grad = None
        loss_value = objective(z, labels)
        loss_value.backward()
        results.append((loss_value.item(), z.grad.clone()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-9)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("loss", ["mean_field_class_wise_multi_similarity", "class_wise_multi_similarity"])
def test_losses_of_sets_of_many_labels_make_no_matrix_of_labels(loss: str) -> None:
    few, many = 8, 2_000
    sets = torch.zeros(6, many, dtype=torch.int64)
    sets[:, 500 : 500 + few] = some_sets(6, few)
    objective = fields(many, 4, loss) if loss.startswith("mean") else bb.create_objective(loss, target=SETS)
    z = draw(6, 4).requires_grad_()
    with Largest() as largest:
        objective(z, sets).backward()
    assert largest.numbers <= few * many
    small = fields(few, 4, loss) if loss.startswith("mean") else objective
    if loss.startswith("mean"):  # labels that nobody has push, too; here they are far away
        away = torch.zeros(many, 4, dtype=torch.double) - unit(z.detach().sum(0, keepdim=True))
        away[500 : 500 + few] = small.proxies.weight.data
        objective.proxies.weight.data.copy_(away)
    assert objective(z, sets).item() == pytest.approx(small(z, sets[:, 500 : 500 + few]).item(), rel=1e-9)


# ---- centres of a label space


@pytest.mark.parametrize("target", ["euclidean", "cosine", "pose"])
def test_centres_are_the_means_of_clear_groups(target: str) -> None:
    rng = np.random.default_rng(0)
    places = 10 * rng.normal(size=(5, 4, 2))
    labels = (places[np.arange(60) % 5] + 0.01 * rng.normal(size=(60, 4, 2))).reshape(
        60, *((8,) if target != "pose" else (4, 2))
    )
    made = create_target(target)
    code = made.encode(labels)
    found = label_centres(made, code, 5)
    own = nearest(made, code, found)
    assert [len(own[i::5].unique()) for i in range(5)] == [1] * 5
    assert sorted(own[:5].tolist()) == list(range(5))
    means = torch.stack([made.mean(torch.full((1, 12), 1 / 12), code[i::5])[0] for i in range(5)])
    assert float(made.distance(means, found).amin(1).max()) < 1e-4
    assert torch.equal(found, label_centres(made, code, 5))


def test_centres_without_a_mean_are_items_in_the_middle() -> None:
    sets = some_sets(40, 6)
    target = create_target("multi_label")
    code = target.encode(sets)
    found = label_centres(target, code, 4)
    assert all((row == code).all(1).any() for row in found)
    own = nearest(target, code, found)
    for number in range(4):
        members = code[own == number]
        cost = target.distance(members, members).square().sum(1)
        centre = (members == found[number]).all(1).nonzero()[0, 0]
        assert cost[centre] == cost.min()


def test_centres_lower_the_spread_and_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    target, code = create_target("euclidean"), draw(300, 2)
    found = label_centres(target, code, 10)
    spread = torch.cdist(code, found).amin(1).square().mean()
    assert spread < 0.8 * torch.cdist(code, code[:10]).amin(1).square().mean()
    monkeypatch.setattr(centres, "TILE", 70)
    assert torch.equal(found, label_centres(target, code, 10))


def test_unknown_labels_have_no_centre_and_no_proxy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(100, 3, 2)) + 20 * np.arange(4).repeat(25)[:, None, None] * [[0, 0], [1, 0], [0, 1]]
    target = create_target("pose(root=(0, 1))")
    known = label_centres(target, target.encode(labels), 4)
    labels[[3, 30]] = np.nan
    code = target.encode(labels)
    found = label_centres(target, code, 4)
    assert not target.distance(found, found).isnan().any()
    assert target.distance(known, found).amin(1).max() < 3
    own = nearest(target, code, found)
    assert (own == -1).nonzero()[:, 0].tolist() == [3, 30]
    assert own.clamp_min(0).bincount().min() > 20
    with pytest.raises(ValueError, match="some are known, got none"):
        label_centres(target, code[[3, 30]], 2)
    objective = bb.create_objective("pd_loss", target="pose(root=(0, 1))", proxy_codes=found, dim=4, bandwidth=1.0)
    z = draw(100, 4).float()
    z[[3, 30]] = 1e6
    objective.start_at_means(z, labels)
    means = torch.stack([unit(z[own == number]).mean(0) for number in range(4)])
    torch.testing.assert_close(unit(objective.proxies.weight), unit(means))


def test_labels_that_share_nothing_with_the_centres_so_far_are_drawn_like_the_farthest() -> None:
    """Visible in other joints each: of the two groups one is unknown to the other, and each has its centre."""
    labels = draw(40, 4, 2).numpy()
    labels[:20, 2:] = np.nan
    labels[20:, :2] = np.nan
    target = create_target("pose")
    code = target.encode(labels)
    for seed in range(5):
        found = label_centres(target, code, 4, seed=seed)
        assert len(found.unique(dim=0)) == 4
        assert nearest(target, code, found).min() >= 0


def test_more_centres_than_labels() -> None:
    target = create_target("euclidean")
    with pytest.raises(ValueError, match="at most 3 centres, as many as there are different labels, got 4"):
        label_centres(target, target.encode([0.0, 1.0, 2.0] * 5), 4)


def test_proxies_start_at_the_means_of_what_is_nearest() -> None:
    own = torch.tensor([[0.0], [10.0], [20.0]])
    objective = bb.create_objective("pd_loss", target="euclidean", proxy_codes=own, dim=3, bandwidth=2.0)
    before = objective.proxies.weight[2].clone()
    z = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0]])
    objective.start_at_means(z, [1.0, 2.0, 9.0])
    torch.testing.assert_close(objective.proxies.weight[0], torch.tensor([1.5, 1.5, 0]).sqrt())
    torch.testing.assert_close(objective.proxies.weight[1], torch.tensor([0, 0, 3.0]).sqrt())
    assert torch.equal(objective.proxies.weight[2], before)
    assert "proxies.code" in objective.state_dict()


def test_proxies_of_labels_start_at_the_means_of_all_items_that_have_the_label() -> None:
    objective = fields(4, 3)
    before = objective.proxies.weight[3].clone()
    z = torch.eye(3).double()[[0, 0, 1, 2, 2]]
    sets = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    objective.start_at_means(z, sets)
    expected = torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(unit(objective.proxies.weight[:3]), unit(expected))
    assert torch.equal(objective.proxies.weight[3], before)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (
            "pd_loss",
            {"num_classes": 4, "dim": 3, "proxy_codes": torch.arange(4)},
            "has the proxy of each class and takes no proxy_codes",
        ),
        ("triplet", {"proxy_init": "class_mean"}, "has no proxies and takes no proxy_init, got 'class_mean'"),
        (
            "pd_loss",
            {"num_classes": 4, "dim": 3, "variance_floor": -1.0},
            "variance_floor must not be below 0, got -1.0",
        ),
        ("pd_loss", {"target": "euclidean", "dim": 3, "bandwidth": 1.0}, "give proxy_codes=, such as label_centres"),
        ("pd_loss", {"target": "euclidean", "dim": 3, "proxy_codes": torch.zeros(4, 1)}, "reads same/different"),
        (
            "pd_loss",
            {"num_classes": 3, "dim": 3, "bandwidth": 1.0},
            "with bandwidth reads the value of label distances",
        ),
        ("pd_loss", {"num_classes": 3, "dim": 3, "bandwidth": 0.0}, "bandwidth must be greater than 0"),
        ("proxy_nca", {"dim": 3, "proxy_codes": torch.zeros(4, 1)}, "takes no proxy_codes"),
        ("triplet", {"proxy_codes": torch.zeros(4, 1)}, "has no proxies and takes no proxy_codes"),
        ("class_wise_multi_similarity", {"target": "within('euclidean', radius=1.0)"}, "target 'classes' alone"),
    ],
)
def test_what_does_not_fit_is_refused(loss: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bb.create_objective(loss, **options)


def test_items_and_proxies_must_have_labels_of_one_shape() -> None:
    objective = fields(4, 3)
    with pytest.raises(ValueError, match=r"the proxies have labels \[4\] but the items \[5\]"):
        objective(torch.randn(6, 3), some_sets(6, 5))


@pytest.mark.parametrize("loss", ["pd_loss", "d_loss"])
def test_without_a_bandwidth_the_way_to_distances_is_told(loss: str) -> None:
    with pytest.raises(ValueError, match=rf"or give bandwidth=, with which {loss} reads distances"):
        bb.create_objective(loss, target="euclidean", dim=4)
    with pytest.raises(ValueError, match=r"nearest\('euclidean', k=5\)$"):
        bb.create_objective("contrastive", target="euclidean")
    with pytest.raises(ValueError, match="take a target with distances"):
        bb.create_objective(loss, target="classes", bandwidth=1.0, num_classes=3, dim=4)


@pytest.mark.parametrize("seed", range(4))
def test_centres_are_items_that_know_the_others(seed: int) -> None:
    """Two groups on a line; every twentieth item knows few of the others, and only those of its kind know it."""
    draw = np.random.default_rng(0)
    place = np.concatenate([draw.normal(0, 1, 100), draw.normal(50, 1, 100)])
    rare, known = np.arange(200) % 20 == 0, draw.random((200, 200)) < 0.95
    known[rare] &= draw.random((10, 200)) < 0.02
    known = np.triu(known, 1) & ~(rare & ~rare[:, None] & (draw.random((200, 200)) > 0.02))
    known |= known.T | np.eye(200, dtype=bool)
    table = np.where(known, np.abs(place[:, None] - place), np.nan)
    with pytest.warns(UserWarning, match="items know the label distance to none of the 2 centres"):
        centres = label_centres(Precomputed(table), torch.arange(200), 2, seed=seed)
    assert not rare[centres.numpy()].any()
    assert sorted(place[centres.numpy()] > 25) == [False, True]
    own = nearest(Precomputed(table), torch.arange(200), centres).numpy()
    assert (own[~rare] >= 0).mean() > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_a_small_block_of_labels_has_centres_of_its_own(seed: int) -> None:
    """Between two blocks of 160 and 40 items no distance is known."""
    block = np.arange(200) < 160
    table = np.where(block[:, None] == block, np.abs(np.arange(200.0)[:, None] - np.arange(200.0)), np.nan)
    centres = label_centres(Precomputed(table), torch.arange(200), 10, seed=seed)
    assert 0 < (centres >= 160).sum() < 10


def test_an_unknown_distance_is_none_of_zero() -> None:
    line = np.abs(np.arange(21.0)[:, None] - np.arange(21.0))
    line[20, :19] = line[:19, 20] = np.nan
    with pytest.warns(UserWarning, match="1 of 21 items know"):
        assert label_centres(Precomputed(line), torch.arange(21), 1).tolist() in ([9], [10])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_labels_of_proxies_and_of_a_memory_keep_their_type(kind: torch.dtype) -> None:
    code = torch.tensor([[10.123], [40.456], [70.789]])
    objective = create_objective("pd_loss", target="euclidean", bandwidth=5.0, proxy_codes=code, dim=4).to(kind)
    assert objective.proxies.weight.dtype == kind
    assert torch.equal(objective.proxies.code, code)
    z, ages = torch.randn(6, 4), torch.rand(6, 1) * 80
    remembers = create_objective("d_loss", target="euclidean", bandwidth=5.0, memory=4, warn_below=0)
    remembers(z, ages)
    kept = remembers.memory.code.clone()
    remembers.to(kind)
    assert remembers.memory.z.dtype == kind
    assert remembers.memory.code.dtype == kept.dtype
    assert torch.equal(remembers.memory.code, kept)
    assert objective.to("meta").to_empty(device="cpu").proxies.code.dtype == code.dtype


def test_proxies_that_were_never_started_are_told_of_once(recwarn: pytest.WarningsRecorder) -> None:
    z, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 4

    def told(objective: torch.nn.Module) -> int:
        recwarn.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for _ in range(2):
                objective(z, labels)
        return sum("proxies of pd_loss are random still" in str(warning.message) for warning in recwarn)

    fresh = create_objective("pd_loss", num_classes=4, dim=4)
    with torch.no_grad():
        assert told(fresh) == 0
    assert told(fresh) == 1
    assert told(create_objective("pd_loss", num_classes=4, dim=4).eval()) == 0
    assert told(create_objective("pd_loss", num_classes=4, dim=4, proxy_init="random")) == 0
    loaded = create_objective("pd_loss", num_classes=4, dim=4)
    loaded.load_state_dict(fresh.state_dict())
    assert told(loaded) == 0
    started = create_objective("pd_loss", num_classes=4, dim=4)
    started.start_at_means(z, labels)
    assert told(started) == 0
