"""One battery for every registered loss: its oracle, its gradients, its forms and its edges."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from cases import (
    CASES,
    CLASSES,
    DERIVED,
    DIM,
    FIRST,
    OF_ITEMS,
    batch,
    build,
    call,
    facts_of,
    inputs,
    oracle,
    value_and_grads,
)
from oracles import ORACLES, Case, some_classes
from torch import Tensor

import beyond_binary as bb
from beyond_binary.losses import LOSSES, scores
from beyond_binary.losses.continuous import log_ratio, soft_contrastive
from beyond_binary.losses.triplets import triplet
from beyond_binary.registry import options_of
from beyond_binary.tiles import Places, Tile

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_loss = pytest.mark.parametrize("case", FIRST, ids=str)
every_derived_case = pytest.mark.parametrize("case", DERIVED, ids=str)
every_item_case = pytest.mark.parametrize("case", OF_ITEMS, ids=str)
tiled_and_dense = pytest.mark.parametrize("block", [2, None])
close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def assert_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.isfinite().all(), tensor


def test_every_registered_loss_has_a_case_and_an_oracle() -> None:
    assert sorted(c.loss for c in FIRST) == bb.list_losses()
    assert sorted(ORACLES) == bb.list_losses()


@every_case
@tiled_and_dense
def test_value_is_the_oracles(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case)
    value = call(build(case, block=block), z, labels, proxies).item()
    assert value == pytest.approx(oracle(case, z, labels, proxies), rel=1e-10)
    assert abs(value) > 1e-3  # a case that costs nothing would prove nothing


@every_case
def test_repeated_ids_never_count(case: Case) -> None:
    z, labels, proxies = inputs(case)
    again = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1])  # sampled with replacement
    ids = again + 100
    value = call(build(case, block=5), z[again], labels[again], proxies, ids=ids)
    assert value.item() == pytest.approx(oracle(case, z[again], labels[again], proxies, ids), rel=1e-10)
    (grad,) = torch.autograd.grad(value, z)
    assert_finite(grad)


@every_item_case
@tiled_and_dense
def test_other_references(case: Case, block: int | None) -> None:
    z, labels, _ = inputs(case, 9)
    refs, ref_labels, _ = inputs(case, 14)
    value = build(case, block=block)(z, labels, refs, ref_labels).item()
    queries, keys = batch(z, labels, torch.arange(9)), batch(refs, ref_labels, 50 + torch.arange(14))
    assert value == pytest.approx(ORACLES[case.loss](queries, keys, **case.options), rel=1e-10)


@every_derived_case
@tiled_and_dense
def test_gradcheck(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case, 7)
    objective = build(case, block=block and 4)
    assert torch.autograd.gradcheck(lambda z, *p: call(objective, z, labels, list(p)), (z, *proxies))


@every_derived_case
def test_second_derivatives_through_the_tiles(case: Case) -> None:
    z, labels, proxies = inputs(case, 7)
    objective = build(case, block=3)
    _, *first = value_and_grads(objective, z, labels, proxies)
    with_graph = torch.autograd.grad(call(objective, z, labels, proxies), [z, *proxies], create_graph=True)
    close([g.detach() for g in with_graph], first)
    assert torch.autograd.gradgradcheck(
        lambda z, *p: call(objective, z, labels, list(p)), (z, *proxies), fast_mode=True
    )


@every_case
@pytest.mark.parametrize("block", [1, 2, 7, 9, 100])
def test_tiles_equal_dense(case: Case, block: int) -> None:
    for z, labels, proxies in (inputs(case), inputs(case, 31)):
        expected = value_and_grads(build(case, block=None), z, labels, proxies)
        close(value_and_grads(build(case, block=block), z, labels, proxies), expected)


@pytest.mark.parametrize("chunk", [1, 2 * DIM, 3 * DIM])
@pytest.mark.parametrize("geometry", ["cosine", "dot"])
def test_tiles_equal_dense_for_pd_loss_with_proxies_in_chunks(
    geometry: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean and covariance of all proxies come from those of their chunks."""
    monkeypatch.setattr(scores, "CHUNK", chunk)
    case = next(case for case in FIRST if case.loss == "pd_loss")
    z, labels, proxies = inputs(case)
    expected = value_and_grads(build(case, block=None, geometry=geometry), z, labels, proxies)
    close(value_and_grads(build(case, geometry=geometry), z, labels, proxies), expected)


@every_case
def test_single_precision_is_the_double_result_to_rounding(case: Case) -> None:
    z, labels, proxies = inputs(case, 31, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in (z, *proxies)]
    expected = value_and_grads(build(case), wide[0], labels, wide[1:])
    assert expected[0].dtype == torch.float64
    for block in (4, None):
        got = value_and_grads(build(case, block=block), z, labels, proxies)
        assert got[0].dtype == torch.float32
        torch.testing.assert_close([g.double() for g in got], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if facts_of(c).in_place is not None], ids=str)
def test_in_place_form_equals_plain_form(case: Case) -> None:
    build, in_place = LOSSES[case.loss].build, facts_of(case).in_place
    assert in_place is not None
    own = {o: v for o, v in case.options.items() if o in options_of(build)}
    options = {o: v for o, v in {**options_of(build), **own}.items() if o in options_of(in_place)}
    same = some_classes(9)[:, None] == some_classes(9)[None, :]
    y = ~same if facts_of(case).reads == "same" else torch.randint(0, 6, (9, 9)).double() * ~same
    nothing = torch.zeros(9, 9, dtype=torch.bool)
    for valid in (~torch.eye(9, dtype=torch.bool), torch.rand(9, 9) < 0.4, ~nothing, nothing, same, ~same):
        x = torch.randn(9, 9, dtype=torch.float64)
        x = (x.abs() if facts_of(case).x == "distance" else x).requires_grad_()
        row = [torch.rand(9, dtype=torch.float64, requires_grad=True)] if facts_of(case).per_row else []
        value, count = build(x, y, valid, *row, **own)
        expected = torch.autograd.grad(torch.where(count > 0, value, 0).sum(), [x, *row])
        untouched, masks = x.detach().clone(), (valid & same, ~valid)
        for found in ((Places.of(masks[0]), Places.of(masks[1])), masks):
            tile = Tile(
                untouched.clone(),
                lambda: found,  # noqa: B023
                lambda rows: (y[rows], valid[rows]),  # noqa: B023
                row=row[0].detach() if row else None,
            )
            got = in_place(tile, **options)
            if got is None:
                close(tile.x, untouched)
                continue
            close(got, (value.detach(), count), check_dtype=False)
            grad = tile.x
            if tile.sparse is not None:
                grad = (
                    torch.zeros_like(tile.x).view(-1).index_add_(0, tile.sparse[0].flat, tile.sparse[1]).view_as(tile.x)
                )
            close([grad, *([tile.grad_row] if row else [])], list(expected))


@pytest.mark.parametrize("case", [c for c in CASES if c.loss != "n_pairs"], ids=str)  # takes a class's first two items
def test_order_of_the_batch_does_not_matter(case: Case) -> None:
    z, labels, proxies = inputs(case)
    order = torch.randperm(9)
    objective = build(case, block=4)
    value, grad, *rest = value_and_grads(objective, z, labels, proxies)
    close(
        value_and_grads(objective, z[order].detach().requires_grad_(), labels[order], proxies),
        [value, grad[order], *rest],
    )


@every_item_case
@tiled_and_dense
def test_the_batch_as_its_own_references(case: Case, block: int | None) -> None:
    z, labels, _ = inputs(case)
    objective, ids = build(case, block=block), torch.arange(9)
    square = value_and_grads(objective, z, labels, [])
    copy = z.detach().clone().requires_grad_()
    value = objective(z, labels, copy, labels, ids=ids, ref_ids=ids)
    close([value.detach(), sum(torch.autograd.grad(value, (z, copy)))], square)
    close(objective(bb.Points(z, objective.target.encode(labels), ids)), square[0])


def test_proxy_losses_refuse_references() -> None:
    for case in FIRST:
        if facts_of(case).needs_proxies:
            z, labels, _ = inputs(case, dtype=torch.float32)
            with pytest.raises(ValueError, match="takes no references"):
                build(case)(z, labels, z, labels)


@every_item_case
@tiled_and_dense
def test_nothing_valid_is_zero_with_a_graph(case: Case, block: int | None) -> None:
    z, labels, _ = inputs(case)
    objective = build(case, block=block)
    if facts_of(case).penalty is not None:  # which does not ask for pairs
        return
    one_thing = value_and_grads(objective, z, labels, [], ids=torch.zeros(9, dtype=torch.int64))
    close(one_thing, [torch.zeros_like(t) for t in one_thing])
    alone = value_and_grads(objective, z[:1].detach().requires_grad_(), labels[:1], [])
    close(alone, [torch.zeros_like(t) for t in alone])


@every_case
@tiled_and_dense
def test_empty_batch_is_zero_with_a_graph(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case, dtype=torch.float32)
    got = value_and_grads(build(case, block=block), z[:0].detach().requires_grad_(), labels[:0], proxies)
    assert got[1].shape == (0, DIM)
    close(got, [torch.zeros_like(t) for t in got])
    if not proxies and facts_of(case).penalty is None:  # references without a single one
        value = build(case, block=block)(z, labels, z[:0].detach(), labels[:0])
        close(list(torch.autograd.grad(value, z)), [torch.zeros_like(z)])


@every_case
@pytest.mark.parametrize("labels", ["one class", "singletons", "two items"])
@tiled_and_dense
def test_degenerate_labels(case: Case, labels: str, block: int | None) -> None:
    n = {"one class": 9, "singletons": CLASSES, "two items": 2}[labels]
    z, given, proxies = inputs(case, n)
    if case.target == "classes":
        given = torch.full((n,), 3) if labels == "one class" else torch.arange(n)
    elif labels == "one class":
        given = given[:1].expand(n, -1)
    value, *grads = value_and_grads(build(case, block=block), z, given, proxies)
    assert value.item() == pytest.approx(oracle(case, z, given, proxies), rel=1e-9, abs=1e-12)
    assert_finite(*grads)


@every_case
@tiled_and_dense
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_points_have_finite_gradients(case: Case, block: int | None, dtype: torch.dtype) -> None:
    z, labels, proxies = inputs(case, 9, dtype)
    collapsed = z[:1].detach().expand(9, -1).clone()
    in_twos = z.detach()[torch.arange(9) // 2]
    at_zero = torch.zeros_like(collapsed)
    for points in (collapsed, in_twos, at_zero):
        assert_finite(*value_and_grads(build(case, block=block), points.requires_grad_(), labels, proxies))
    if proxies:
        with torch.no_grad():
            proxies[0].copy_(collapsed[:1].expand_as(proxies[0]))
        assert_finite(*value_and_grads(build(case, block=block), collapsed, labels, proxies))


@every_case
@tiled_and_dense
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_huge_and_tiny_embeddings(case: Case, block: int | None, scale: float) -> None:
    z, labels, proxies = inputs(case, 9, torch.float32)
    objective = build(case, block=block, **({"eps": 0.0, "inner_eps": 0.0} if case.loss == "log_ratio" else {}))
    value, grad, *rest = value_and_grads(objective, z, labels, proxies)
    scaled = value_and_grads(objective, (z * scale).detach().requires_grad_(), labels, proxies)
    if not facts_of(case).scale_free:
        assert_finite(*scaled)
        return
    # the others are invariant to the scale of the embeddings, so the gradient shrinks as they grow
    torch.testing.assert_close([scaled[0], scaled[1] * scale, *scaled[2:]], [value, grad, *rest], rtol=1e-3, atol=1e-4)
    assert_finite(*value_and_grads(build(case, block=block), (z * scale).detach().requires_grad_(), labels, proxies))


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_single(case: Case, dtype: torch.dtype) -> None:
    z, labels, proxies = inputs(case, 9, dtype)
    proxies = [p.detach().float().requires_grad_() for p in proxies]
    value, grad, *rest = value_and_grads(build(case, block=4), z, labels, proxies)
    single = value_and_grads(build(case, block=4), z.detach().float().requires_grad_(), labels, proxies)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close([value, grad, *rest], [single[0], single[1].to(dtype), *single[2:]], rtol=0, atol=0)


@every_case
@tiled_and_dense
def test_autocast_changes_nothing(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case, 31, torch.float32)
    expected = value_and_grads(build(case, block=block), z, labels, proxies)
    with torch.autocast("cpu", torch.bfloat16):
        value = call(build(case, block=block), z, labels, proxies)
    got = [value.detach(), *torch.autograd.grad(value, [z, *proxies])]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_case
@tiled_and_dense
def test_nan_in_nan_out(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case)
    broken = z.detach().clone()
    broken[7, 1] = math.nan  # the only item of its class
    assert call(build(case, block=block), broken, labels, proxies).isnan()
    if proxies:
        with torch.no_grad():
            proxies[0][4, 0] = math.nan  # a class that the batch does not have
        assert call(build(case, block=block), z, labels, proxies).isnan()


@pytest.mark.slow
@every_loss
def test_compiles_in_one_graph(case: Case) -> None:
    z, labels, proxies = inputs(case)
    objective = build(case).double()
    learned = [] if objective.proxies is None else [objective.proxies.weight]
    for own, p in zip(learned, proxies, strict=True):
        own.data.copy_(p.detach())
    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    value = compiled(z, labels)
    got = [value.detach(), *torch.autograd.grad(value, [z, *learned])]
    close(got, value_and_grads(build(case), z, labels, proxies))


@every_case
def test_shared_embeddings_and_accumulation(case: Case) -> None:
    z, labels, proxies = inputs(case)
    objective, wide = build(case, block=4), build(case, block=None)
    _, grad, *rest = value_and_grads(objective, z, labels, proxies)
    both = call(objective, z, labels, proxies) + 2 * call(wide, z, labels, proxies)
    close(list(torch.autograd.grad(both, [z, *proxies], retain_graph=True)), [3 * grad, *(3 * r for r in rest)])
    both.backward()
    call(objective, z, labels, proxies).backward()
    close([z.grad, *(p.grad for p in proxies)], [4 * grad, *(4 * r for r in rest)])


@every_item_case
def test_labels_are_never_rounded_to_single_precision(case: Case) -> None:
    """Class numbers past 2^24 and float64 labels 1e-9 apart stay different."""
    z, labels, _ = inputs(case, dtype=torch.float32)
    if case.target == "classes":
        assert build(case)(z, labels + 2**24).equal(build(case)(z, labels))
    elif "label_floor" not in case.options:
        expected = build(case)(z, labels)  # label distances enter as ratios or ranks: their unit does not matter
        unit = {"sigma": 1e-18 * case.options.get("sigma", 1.0)} if case.loss == "soft_contrastive" else {}
        torch.testing.assert_close(build(case, **unit)(z, 1000 + 1e-9 * labels), expected, rtol=1e-3, atol=0)


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """E [8 4], W [5 4] and labels [8]: the closed formulas behind the numbers that the official code gave."""
    i, j, c = (
        torch.arange(8.0).double()[:, None],
        torch.arange(4.0).double()[None, :],
        torch.arange(5.0).double()[:, None],
    )
    e = torch.sin(1 + 3 * i + 7 * j + 0.1 * i * j)
    w = torch.cos(0.5 + 2 * c + 5 * j + 0.3 * c * j)
    return e.requires_grad_(), w.requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])


def test_log_ratio_gives_the_official_codes_number() -> None:
    """One anchor; the authors add 1e-4 / d under the root, 1e-6 inside both logarithms, and include ties."""
    e, _, _ = golden_inputs()
    x = ((e[:1] - e[1:]).square().sum(1) + 1e-4 / 4).sqrt()[None]
    y = torch.tensor([[0.1, 0.4, 0.4, 0.9, 1.7, 2.0, 5.0]], dtype=torch.float64) + 1e-6
    value, _ = log_ratio(x, y, torch.ones_like(y, dtype=torch.bool), ties="include", eps=1e-6)
    assert value.item() == pytest.approx(4.4838033643156585, rel=1e-12)
    (grad,) = torch.autograd.grad(value.sum(), e)
    assert float(grad.norm()) == pytest.approx(2.9140306098, rel=1e-6)


@pytest.mark.parametrize("keys", [1, 9, 90])  # few positives and many are counted in different ways
@pytest.mark.parametrize("triplets", ["all", "semi_hard"])
def test_triplets_at_the_edges_of_their_definition(keys: int, triplets: str) -> None:
    """Distances on a grid that the margin is a multiple of: many triplets lie exactly on a boundary."""
    x = torch.randint(0, 6, (4, keys)).double() / 4
    y, valid = torch.rand(4, keys) < 0.4, torch.rand(4, keys) < 0.9
    value, count = triplet(x, y, valid, margin=0.5, triplets=triplets)
    for i in range(4):
        near = [x[i, j].item() for j in range(keys) if valid[i, j] and not y[i, j]]
        far = [x[i, j].item() for j in range(keys) if valid[i, j] and y[i, j]]
        costs = [p - n + 0.5 for p in near for n in far if p - n + 0.5 > 0 and (triplets == "all" or p < n)]
        assert value[i].item() == pytest.approx(sum(costs), abs=1e-12)
        assert count[i].item() == len(costs)


def test_wrong_option_values_are_refused() -> None:
    z = torch.randn(6, 3)
    for loss, options in {
        "contrastive": {"average": "median"},
        "triplet": {"triplets": "hardest"},
        "log_ratio": {"ties": "maybe"},
    }.items():
        case = next(c for c in FIRST if c.loss == loss)
        with pytest.raises(ValueError, match=next(iter(options.values()))):
            build(case, **options)(z, case.labels(6))


def test_rank_n_contrast_gives_the_official_codes_number() -> None:
    e, _, _ = golden_inputs()
    value = bb.create_objective("rank_n_contrast", target="euclidean")(
        e, torch.tensor([0.0, 0, 1, 1, 1, 1, 3, 3]).double()[:, None]
    )
    assert value.item() == pytest.approx(1.6261583569844478, rel=1e-12)
    (grad,) = torch.autograd.grad(value, e)
    assert float(grad.norm()) == pytest.approx(0.1326071276, rel=1e-6)


def test_soft_contrastive_without_gradient_of_the_mean() -> None:
    x, y = torch.rand(3, 5, dtype=torch.float64, requires_grad=True), torch.rand(3, 5, dtype=torch.float64)
    valid = torch.ones(3, 5, dtype=torch.bool)
    value, _ = soft_contrastive(x, y, valid, mean_gradient=False)
    (grad,) = torch.autograd.grad(value.sum(), x)
    ratio, same, mean = x.detach() / x.detach().mean(1, keepdim=True), (-y.square()).exp(), x.detach().mean(1)[:, None]
    close(grad, (2 * same * ratio - 2 * (1 - same) * (1 - ratio).relu()) / mean)
    close(value, soft_contrastive(x, y, valid)[0])
