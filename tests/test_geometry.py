"""Geometries: the plain formula, the engine's tile, and what the tile promises for near points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from beyond_binary.geometry import GEOMETRIES, Geometry, create_geometry, safe_sqrt

SPECS = [*GEOMETRIES.names(), "snr(normalize=False)", "euclidean(normalize=True)", "squared_euclidean(normalize=True)"]
every_geometry = pytest.mark.parametrize("spec", SPECS)


def points(n: int, d: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, dtype=dtype)


def through_tile(geometry: Geometry, q: Tensor, k: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x and the gradients of sum(grad * x) as the engine takes them (for prepared points)."""
    x, pull = geometry.tile(q, k)
    grad_q, grad_k = torch.zeros_like(q), torch.zeros_like(k)
    pull(grad, grad_q, grad_k)
    return x, grad_q, grad_k


def through_pairs(geometry: Geometry, q: Tensor, k: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    x = geometry.pairs(q, k)
    return x.detach(), *torch.autograd.grad(x, (q, k), grad)


@every_geometry
def test_values_are_scipys(spec: str) -> None:
    geometry = create_geometry(spec)
    q, k = points(4), points(7)
    a, b = q.numpy(), k.numpy()
    if "normalize=True" in spec or spec == "snr":
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    expected = {
        "cosine": lambda: 1 - cdist(a, b, "cosine"),
        "dot": lambda: a @ b.T,
        "euclidean": lambda: cdist(a, b),
        "squared_euclidean": lambda: cdist(a, b, "sqeuclidean"),
        "snr": lambda: (a[:, None] - b[None]).var(2, ddof=1) / a.var(1, ddof=1)[:, None],
    }[spec.split("(")[0]]()
    prepared = geometry.prepare(q), geometry.prepare(k)
    for x in (geometry.pairs(*prepared), geometry.tile(*prepared)[0], geometry.block(*prepared)):
        np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-12)


def test_kinds() -> None:
    assert [create_geometry(s).kind for s in ("cosine", "dot")] == ["similarity"] * 2
    assert [create_geometry(s).kind for s in ("euclidean", "squared_euclidean", "snr")] == ["distance"] * 3
    z, move = points(6), points(1)
    for spec in SPECS:
        geometry = create_geometry(spec)
        q = geometry.prepare(z)
        unmoved = torch.allclose(geometry.pairs(q, q), geometry.pairs(q + move, q + move))
        assert unmoved == geometry.shift_invariant


@every_geometry
def test_tile_equals_pairs(spec: str) -> None:
    geometry = create_geometry(spec)
    z = geometry.prepare(points(9))
    for q, k in ((z[:4], z), (z, z), (z, z[:1]), (z[:0], z)):
        grad = torch.randn(len(q), len(k), dtype=torch.float64)
        torch.testing.assert_close(
            through_tile(geometry, q, k, grad), through_pairs(geometry, q, k, grad), rtol=1e-10, atol=1e-10
        )


@every_geometry
def test_pull_of_each_is_that_of_the_diagonal(spec: str) -> None:
    geometry = create_geometry(spec)
    q, k, slope = geometry.prepare(points(6)), geometry.prepare(points(6)), torch.randn(6, dtype=torch.float64)
    k[1] = q[1]
    q[2] = 0.0
    expected = through_pairs(geometry, q, k, slope.diag())[1:]
    torch.testing.assert_close(geometry.pull_each(q, k, slope), expected, rtol=1e-10, atol=1e-10)


@every_geometry
def test_pull_adds_to_what_is_there(spec: str) -> None:
    geometry = create_geometry(spec)
    q, k = geometry.prepare(points(3)), geometry.prepare(points(4))
    grad = torch.randn(3, 4, dtype=torch.float64)
    _, grad_q, grad_k = through_tile(geometry, q, k, grad)
    before_q, before_k, kept = torch.ones_like(q), torch.ones_like(k), grad.clone()
    geometry.tile(q, k)[1](grad, before_q, before_k)
    torch.testing.assert_close((before_q, before_k), (grad_q + 1, grad_k + 1))
    assert grad.equal(kept)


@pytest.mark.parametrize("spec", ["cosine", "dot"])
def test_similarities_may_be_overwritten_before_the_pull(spec: str) -> None:
    """As an in-place loss does."""
    geometry = create_geometry(spec)
    q, k = geometry.prepare(points(3)), geometry.prepare(points(4))
    grad = torch.randn(3, 4, dtype=torch.float64)
    expected = through_tile(geometry, q, k, grad)
    x, pull = geometry.tile(q, k)
    x.copy_(grad)
    got = torch.zeros_like(q), torch.zeros_like(k)
    pull(x, *got)
    torch.testing.assert_close(got, expected[1:])


@pytest.mark.parametrize("spec", ["euclidean", "squared_euclidean"])
@pytest.mark.parametrize("norm", [1.0, 100.0])
def test_near_points_are_exact_in_single_precision(spec: str, norm: float) -> None:
    """Pairs at distance 1e-4: the matrix product alone would lose all of it."""
    geometry = create_geometry(spec)
    z = torch.nn.functional.normalize(points(12, 16)) * norm
    near = (z + 1e-4 * torch.nn.functional.normalize(points(12, 16))).float()
    q, k = z.float(), torch.cat([near, z[:5].float() * 1.3])
    grad = torch.zeros(12, 17)
    grad[range(12), range(12)] = torch.rand(12) + 0.5
    x, grad_q, grad_k = through_tile(geometry, q, k, grad)
    wide = through_pairs(geometry, q.double(), k.double(), grad.double())
    gap = wide[0].diagonal().sqrt() if spec == "squared_euclidean" else wide[0].diagonal()
    assert ((gap > 0.5e-4) & (gap < 2e-4)).all()
    torch.testing.assert_close(x.diagonal().double(), wide[0].diagonal(), rtol=1e-3, atol=0)
    torch.testing.assert_close(x.double(), wide[0], rtol=1e-3, atol=0)
    for got, expected in ((grad_q, wide[1]), (grad_k, wide[2])):
        assert ((got.double() - expected).norm(dim=1) <= 1e-3 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("spec", ["euclidean", "squared_euclidean"])
def test_all_other_points_keep_five_digits_in_single_precision(spec: str) -> None:
    geometry = create_geometry(spec)
    z = points(1, 8) + torch.logspace(-4, 1, 40, dtype=torch.float64)[:, None] * points(40, 8)
    q = z.float()
    grad = torch.randn(40, 40)
    got = through_tile(geometry, q, q, grad)
    expected = through_pairs(geometry, q.double(), q.double(), grad.double())
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close([g.double() for g in got[1:]], list(expected[1:]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", ["euclidean", "squared_euclidean"])
def test_coincident_points(spec: str) -> None:
    geometry = create_geometry(spec)
    z = points(1).float().expand(6, -1) * 37
    x, grad_q, grad_k = through_tile(geometry, z, z, torch.ones(6, 6))
    for tensor in (x, grad_q, grad_k, *through_pairs(geometry, z, z, torch.ones(6, 6))):
        assert tensor.equal(torch.zeros_like(tensor))


def test_signal_to_noise_of_near_points_and_of_constant_embeddings() -> None:
    geometry = create_geometry("snr")
    z = points(6, 16)
    near = (z + 1e-4 * points(6, 16)).float()
    q, k = geometry.prepare(z.float()), geometry.prepare(near)
    x, grad_q, grad_k = through_tile(geometry, q, k, torch.eye(6))
    wide = through_pairs(geometry, q.double(), k.double(), torch.eye(6).double())
    assert (wide[0].diagonal() < 1e-6).all()
    for got, expected in zip((x, grad_q, grad_k), wide, strict=True):
        assert ((got.double() - expected).norm(dim=1) <= 1e-3 * expected.norm(dim=1)).all()
    flat = geometry.prepare(torch.cat([torch.zeros(2, 4), 2 * torch.ones(2, 4), torch.randn(2, 4)]).double())
    got = through_tile(geometry, flat, flat, torch.ones(6, 6).double())
    for a, b in zip(got, through_pairs(geometry, flat, flat, torch.ones(6, 6).double()), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


def test_zero_embeddings_have_cosine_zero() -> None:
    geometry = create_geometry("cosine")
    z = torch.zeros(2, 3, requires_grad=True)
    x = geometry.pairs(geometry.prepare(z), geometry.prepare(torch.randn(4, 3)))
    assert x.equal(torch.zeros(2, 4))
    assert torch.autograd.grad(x.sum(), z)[0].isfinite().all()


def test_safe_sqrt() -> None:
    x = torch.tensor([0.0, 4.0, 1e-30], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(safe_sqrt(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert safe_sqrt(x).tolist() == [0, 2, 1e-15]
    assert first.tolist() == pytest.approx([0, 0.25, 5e14])
    assert second.tolist() == pytest.approx([0, -1 / 32, -2.5e44])


def test_many_near_pairs_are_redone_in_parts() -> None:
    geometry = create_geometry("squared_euclidean")
    z = (100 + 1e-3 * points(300, 3)).float()  # 90,000 near pairs: more than one part
    torch.testing.assert_close(
        geometry.tile(z, z)[0].double(), geometry.pairs(z.double(), z.double()), rtol=1e-5, atol=0
    )


def test_create_geometry() -> None:
    geometry = create_geometry("euclidean(normalize=True)")
    assert create_geometry(geometry) is geometry
    with pytest.raises(ValueError, match="unknown geometry 'cosin'; did you mean 'cosine'"):
        create_geometry("cosin")
    with pytest.raises(ValueError, match="has no option normalise; its options: normalize"):
        create_geometry("euclidean(normalise=True)")
