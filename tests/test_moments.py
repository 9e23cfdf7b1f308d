"""Decidability losses: from moments as from the scores themselves, where floating point makes it hard too."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Largest
from torch import Tensor
from torch.func import functional_call

import beyond_binary as bb
from beyond_binary.geometry import create_geometry
from beyond_binary.losses import moments, scores
from beyond_binary.points import Points
from beyond_binary.targets import create_target
from beyond_binary.walks import Pairs

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def outcome(loss: str, block: int | None, z: Tensor, labels: Tensor, proxies: Tensor | None, **options: Any) -> Any:
    """Value and gradients, in float64, of a loss by moments (block=1024) or from scores (block=None)."""
    leaves = [t.clone().requires_grad_() for t in (z, proxies) if t is not None]
    extra = {} if proxies is None else {"num_classes": len(proxies), "dim": proxies.shape[1]}
    objective = bb.create_objective(loss, block=block, **extra, **options)
    own = {} if proxies is None else {"proxies.weight": leaves[1]}
    value = functional_call(objective, own, (leaves[0], labels))
    return [t.detach().double() for t in (value, *torch.autograd.grad(value, leaves))]


def golden() -> tuple[Tensor, Tensor, Tensor]:
    i, j, c = (torch.arange(float(n), dtype=torch.float64) for n in (8, 4, 5))
    e = torch.sin(1 + 3 * i[:, None] + 7 * j + 0.1 * i[:, None] * j)
    w = torch.cos(0.5 + 2 * c[:, None] + 5 * j + 0.3 * c[:, None] * j)
    return e, w, torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])


@pytest.mark.parametrize("block", [1024, None])
def test_pd_loss_gives_the_published_forms_number(block: int | None) -> None:
    """The published form takes the absolute gap; turning the embeddings round makes this gap positive."""
    e, w, labels = golden()
    value, *grads = outcome("pd_loss", block, -e, labels, w, variance_floor=0.0)
    assert value.item() == pytest.approx(1.7388359478727327, rel=1e-12)
    assert [float(g.norm()) for g in grads] == pytest.approx([2.4744491129, 0.785281434], rel=1e-9)


@pytest.mark.parametrize("block", [1024, None])
def test_d_loss_of_the_golden_batch(block: int | None) -> None:
    e, _, labels = golden()
    value, _ = outcome("d_loss", block, e, labels, None, form="neg", variance_floor=0.0)
    assert value.item() == pytest.approx(0.6747366573636868, rel=1e-12)


def as_good_as_scores(run: Callable[[int | None, torch.dtype], Any], rounding: float, dtype: torch.dtype) -> None:
    """The fast form strays from the double result no further than the scores themselves in that precision."""
    expected, plain, fast = run(None, torch.float64), run(None, dtype), run(1024, dtype)
    for e, p, f in zip(expected, plain, fast, strict=True):
        assert (f - e).norm() < 3 * (p - e).norm() + rounding * e.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2])
def test_nearly_equal_scores(dtype: torch.dtype, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variances are centred, not differences of squares; also with proxies in several chunks."""
    monkeypatch.setattr(scores, "CHUNK", 48)
    labels = torch.randint(6, (40,))
    proxies = (torch.ones(7, 16) + spread * torch.randn(7, 16)).to(dtype)
    z = (proxies[labels] + spread * torch.randn(40, 16)).to(dtype)
    rounding = (4e-6 if dtype == torch.float32 else 1e-12) / spread  # of the gap of two nearly equal means
    as_good_as_scores(
        lambda block, d: outcome("pd_loss", block, z.to(d), labels, proxies.to(d), variance_floor=0.0), rounding, dtype
    )
    for classes in (labels, labels.clamp_max(1), torch.arange(40) // 2):
        as_good_as_scores(
            lambda block, d, c=classes: outcome("d_loss", block, z.to(d), c, None, variance_floor=0.0), rounding, dtype
        )


@pytest.mark.parametrize("width", [3, 60])
@pytest.mark.parametrize("form", ["neg_log", "inverse", "neg"])
def test_d_loss_of_classes_larger_and_smaller_than_the_width(form: str, width: int) -> None:
    """Classes of 1, 2, 9 and 20 items, by their scores and by matrices of the width; ids repeat, across classes too."""
    labels = torch.tensor([0] * 20 + [1] * 9 + [2] * 9 + [3] * 2 + [4])
    z = torch.randn(41, width, dtype=torch.float64) + 2 * torch.nn.functional.one_hot(labels % 3, width)
    ids = torch.arange(41)
    ids[1], ids[30], ids[39] = 0, 2, 5
    refs, ref_labels = torch.randn(50, width, dtype=torch.float64), torch.randint(1, 7, (50,))
    for extra in ((), (refs, ref_labels)):
        given: dict[str, Tensor] = {"ids": ids, **({"ref_ids": torch.arange(50) // 2 + 20} if extra else {})}
        got = []
        for block in (1024, None):
            leaf = z.clone().requires_grad_()
            value = bb.create_objective("d_loss", form=form, block=block)(leaf, labels, *extra, **given)
            got.append([value.detach(), *torch.autograd.grad(value, leaf)])
        close(got[0], got[1])


def test_proxies_of_no_length_and_without_items_get_finite_gradients() -> None:
    proxies = torch.randn(9, 4)
    proxies[3] = proxies[0] = 0
    labels = torch.tensor([0, 1, 1, 2])
    z = torch.randn(4, 4)
    fast, plain = (outcome("pd_loss", block, z, labels, proxies) for block in (1024, None))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1024, None])
def test_pd_loss_still_pulls_where_impostors_are_nearer(block: int | None) -> None:
    proxies = torch.eye(3, 4, dtype=torch.float64)
    z = torch.tensor([[0.1, 1.0, 0.0, 0.2], [1.0, 0.2, 0.1, 0.0]], dtype=torch.float64)
    value, grad, _ = outcome("pd_loss", block, z, torch.tensor([0, 1]), proxies)
    before, after = (torch.nn.functional.normalize(at)[[0, 1], [0, 1]].mean() for at in (z, z - 1e-3 * grad))
    assert after > before
    assert value.item() > 2


@pytest.mark.parametrize("form", ["neg_log", "inverse", "neg"])
@pytest.mark.parametrize("loss", ["pd_loss", "d_loss"])
def test_a_collapse_is_no_way_out(loss: str, form: str) -> None:
    """Embeddings that draw together keep their decidability; the loss must not reward it, whatever the gap is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    away = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    away += 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)[labels]
    proxies = None if loss == "d_loss" else torch.randn(4, 6, generator=generator, dtype=torch.float64)
    centre = torch.tensor([3.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    values = []
    for size in (0.3, 0.03, 0.003):
        ends = None if proxies is None else centre + size * proxies
        values.append(float(outcome(loss, 1024, centre + size * away, labels, ends, form=form)[0]))
    assert values[2] > values[0] - 0.1
    assert values[2] > values[1] - 0.1


def test_few_genuine_pairs_warn_once_and_while_training_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = torch.randn(9, 3), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7])

    def told(labels: torch.Tensor, **options: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bb.create_objective("d_loss", **options)(z, labels)
        return [str(w.message) for w in caught]

    monkeypatch.setattr(moments, "_looks", [5])
    assert told(torch.zeros(9, dtype=torch.int64)) == []  # 36 pairs
    assert told(torch.zeros(9, dtype=torch.int64), warn_below=36) == []
    with torch.no_grad():
        assert told(labels) == []
    assert told(labels, warn_below=0) == []
    assert "1 genuine pairs, fewer than 30; draw batches of classes times items" in told(labels)[0]
    assert told(labels) == []
    monkeypatch.setattr(moments, "_looks", [1])
    assert told(torch.zeros(9, dtype=torch.int64)) == told(labels) == []  # no longer looked at


def test_other_targets_are_walked_in_tiles() -> None:
    z, labels = torch.randn(30, 3, dtype=torch.float64), torch.rand(30, 2)
    near = (torch.cdist(labels, labels) <= 0.4)[~torch.eye(30, dtype=torch.bool)]
    unit = torch.nn.functional.normalize(z)
    scores = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    genuine, impostor = scores[near], scores[~near]
    spread = (genuine.var(correction=0) + impostor.var(correction=0)) / 2 + 1e-4
    for block in (4, None):
        objective = bb.create_objective("d_loss", target="within('euclidean', radius=0.4)", form="neg", block=block)
        close(objective(z, labels), (impostor.mean() - genuine.mean()) / spread.sqrt())


@pytest.mark.parametrize("block", [4, None])
@pytest.mark.parametrize("loss", ["pd_loss", "d_loss"])
def test_the_gradient_with_a_hardness_takes_the_counts_as_given(loss: str, block: int | None) -> None:
    labels, proxies = torch.arange(12) % 4, torch.randn(5, 6, dtype=torch.float64)
    z = (proxies[labels] + torch.randn(12, 6, dtype=torch.float64)).requires_grad_()
    ends = None if loss == "d_loss" else proxies.requires_grad_()
    own = None if ends is None else ends.detach()
    value, *grads = outcome(loss, block, z.detach(), labels, own, form="neg", hardness=7.0, variance_floor=1e-3)
    unit = torch.nn.functional.normalize
    scores = unit(z) @ unit(z if ends is None else ends).T
    same = labels[:, None] == (labels if ends is None else torch.arange(5))
    impostor = (7 * scores.detach()).exp() * ~same
    impostor *= (~same).sum(1, keepdim=True) / impostor.sum(1, keepdim=True)
    genuine = same & ~torch.eye(*same.shape, dtype=torch.bool) if ends is None else same
    means, variances = [], []
    for weight in (genuine.double(), impostor):
        means.append((weight * scores).sum() / weight.sum())
        variances.append((weight * (scores - means[-1]).square()).sum() / weight.sum())
    half = 2 if ends is None else 1
    expected = (means[1] - means[0]) / (sum(variances) / half + 1e-3).sqrt()
    close(value, expected.detach())
    close(grads, list(torch.autograd.grad(expected, [z] if ends is None else [z, ends])))


@pytest.mark.parametrize("block", [1024, 4, None])
@pytest.mark.parametrize("options", [{}, {"hardness": 10.0}], ids=["plain", "hardness"])
@pytest.mark.parametrize("loss", ["pd_loss", "d_loss"])
def test_an_embedding_that_is_not_finite_is_not_hidden(loss: str, options: dict[str, float], block: int | None) -> None:
    z, labels = torch.randn(12, 6), torch.arange(12) % 4
    z[3, 2] = torch.inf
    assert outcome(loss, block, z, labels, None if loss == "d_loss" else torch.randn(4, 6), **options)[0].isnan()


def test_hardness_keeps_no_list_of_genuine_pairs() -> None:
    z, labels = torch.randn(400, 3, dtype=torch.double, requires_grad=True), torch.arange(400) % 2
    with Largest() as largest:
        bb.create_objective("d_loss", hardness=5.0, block=10)(z, labels).backward()
    assert largest.numbers <= 10 * 400


@pytest.mark.parametrize("n", [5, 60])
def test_moments_of_joined_keys_are_those_of_all(n: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(n + 40, 6, dtype=torch.float64) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    code, ids = torch.arange(n + 40) % 4, torch.cat([torch.arange(n), torch.arange(40) + 2])  # some met before
    everything = Points(z, code, ids)
    q, past = everything[:n], everything[n:]
    geometry, target = create_geometry("cosine"), create_target("classes")

    def found(keys: Points) -> list[torch.Tensor]:
        found = scores.class_moments(Pairs.of(q, keys, geometry, target, None, 1024))
        return [value.double() for kind in found for value in kind]

    close(found(Points.cat(q, past, past[:0])), found(everything))
    close(found(Points.cat(Points.cat(q, past[:7]), past[7:])), found(everything))
