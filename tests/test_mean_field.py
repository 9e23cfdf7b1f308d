"""Mean-field losses beside the numbers that the authors' code gave, and at sizes where their forms differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import beyond_binary as bb
from beyond_binary.losses import mean_field

CONTRASTIVE, SIMILARITY, CLASSES = (
    "mean_field_contrastive",
    "mean_field_class_wise_multi_similarity",
    "class_wise_multi_similarity",
)
SOFT = {"alpha": 2.0, "beta": 10.0, "base": 0.5}
GOLDEN: list[tuple[str, dict[str, Any], float, float, float | None]] = [
    (CONTRASTIVE, {}, 1.1504925360362694, 0.23703901816120646, 0.16518505529434616),
    (CONTRASTIVE, {"regularizer": 1.0}, 1.1613567434733794, 0.23703901816120646, 0.18537693810318237),
    (SIMILARITY, {}, 69.83404214978144, 0.1693440052511318, 0.1903356623766149),
    (SIMILARITY, {"regularizer": 1.0}, 69.83572562149445, 0.1693440052511318, 0.19159139002961076),
    (SIMILARITY, SOFT, 1.2554846669625714, 0.3507558923917608, 0.5350079749191191),
    (CLASSES, {}, 40.88989902293317, 0.2407442786, None),
    (CLASSES, SOFT, 1.1812885200230152, 0.2360659924, None),
]


@pytest.mark.parametrize(("loss", "options", "value", "grad_e", "grad_w"), GOLDEN)
@pytest.mark.parametrize("block", [1024, None])
def test_official_codes_numbers(
    loss: str, options: dict[str, Any], value: float, grad_e: float, grad_w: float | None, block: int | None
) -> None:
    i, j, c = (torch.arange(float(n), dtype=torch.float64) for n in (8, 4, 5))
    e = torch.sin(1 + 3 * i[:, None] + 7 * j + 0.1 * i[:, None] * j).requires_grad_()
    w = torch.cos(0.5 + 2 * c[:, None] + 5 * j + 0.3 * c[:, None] * j).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    extra = {} if grad_w is None else {"num_classes": 5, "dim": 4}
    objective = bb.create_objective(loss, block=block, **extra, **options)
    got = functional_call(objective, {} if grad_w is None else {"proxies.weight": w}, (e, labels))
    assert got.item() == pytest.approx(value, rel=1e-10)
    leaves = [e] if grad_w is None else [e, w]
    norms = [float(g.norm()) for g in torch.autograd.grad(got, leaves)]
    assert norms == pytest.approx([grad_e, grad_w][: len(leaves)], rel=1e-8)


def both_forms(loss: str, z: Tensor, labels: Tensor, **options: Any) -> list[list[Tensor]]:
    results = []
    for block in (1024, None):
        objective = bb.create_objective(loss, block=block, **options).to(z.dtype)
        if objective.proxies is not None:
            with torch.no_grad():
                objective.proxies.weight.copy_(torch.arange(objective.proxies.weight.numel()).sin().reshape(-1, 6))
        leaf = z.clone().requires_grad_()
        value = objective(leaf, labels)
        results.append([value.detach(), *torch.autograd.grad(value, [leaf, *objective.parameters()])])
    return results


@pytest.mark.parametrize("tile", [1, 7, 100])
@pytest.mark.parametrize("labels", ["random", "one class", "singletons", "one large"])
def test_small_tiles(tile: int, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes larger than a tile are walked in pieces."""
    monkeypatch.setattr(mean_field, "TILE", tile * 23)
    code = {
        "random": torch.randint(6, (23,)),
        "one class": torch.full((23,), 4),
        "singletons": torch.arange(23),
        "one large": torch.tensor([0] * 18 + [1, 1, 2, 3, 3]),
    }[labels]
    z = torch.randn(23, 6, dtype=torch.float64)
    for self_pairs in (True, False):
        fast, plain = both_forms(CLASSES, z, code, self_pairs=self_pairs)
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    for loss in (CONTRASTIVE, SIMILARITY):
        fast, plain = both_forms(loss, z, code, num_classes=30, dim=6, regularizer=0.5)
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_sharp_options_stay_finite_in_single_precision() -> None:
    """exp(2000) is no number, its logarithm is; classes far from the nearest keep their share."""
    z = torch.randn(40, 6)
    labels = torch.randint(6, (40,))
    for loss, options in ((CLASSES, {}), (SIMILARITY, {"num_classes": 6, "dim": 6})):
        sharp = {"alpha": 500.0, "beta": 1000.0, "base": -0.5, **options}
        for form in both_forms(loss, z, labels, **sharp):
            wide = both_forms(loss, z.double(), labels, **sharp)[0]
            torch.testing.assert_close([g.double() for g in form], wide, rtol=1e-3, atol=1e-3)


def test_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="takes target 'classes' alone"):
        bb.create_objective(CLASSES, target="within('euclidean', radius=0.5)")


@pytest.mark.parametrize("alpha", [0.01, 100.0, 450.0, 1000.0])
def test_sets_of_one_label_are_classes_however_sharp(alpha: float) -> None:
    """An item opposite its own mean field beside two that lie on theirs."""
    fields = torch.eye(3, 6, dtype=torch.double)
    z = fields * torch.tensor([[1.0], [1.0], [-1.0]])
    sets = {"target": "within('multi_label', radius=0.999)", "proxy_codes": torch.eye(3, dtype=torch.uint8)}
    found = []
    for given, labels in (({"num_classes": 3}, torch.arange(3)), (sets, torch.eye(3, dtype=torch.int64))):
        objective = bb.create_objective("mean_field_class_wise_multi_similarity", dim=6, alpha=alpha, **given).double()
        objective.proxies.weight.data = fields.clone()
        found.append(objective(z, labels).item())
    assert found[1] == pytest.approx(found[0], rel=1e-9)
