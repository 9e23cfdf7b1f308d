"""Proxy losses: the batch against one learned embedding per class (or several).

Most are cross-entropy over the classes and differ only in the logit of the own class (`softmax` has their two forms).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import Rows, register_loss
from .common import any_in_row, log1p_sumexp, softplus, split

CHUNK = 1 << 20  # numbers of the centres whose distances are taken at once
Own = tuple[Tensor, Tensor | float]
_OVER_CLASSES: dict[str, Any] = {
    "reads": "same", "x": "similarity", "geometry": "cosine", "keys": "proxy", "form": "softmax"
}  # fmt: skip


@register_loss(
    "normalized_softmax",
    **_OVER_CLASSES,
    paper="Zhai, Wu: Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019",
)
def normalized_softmax(s: Tensor, *, temperature: float = 0.05) -> Own:
    """Normalised softmax (equation 2 of the paper): cross-entropy on cosines to the proxies over a temperature.

    Equal to pytorch-metric-learning's NormalizedSoftmaxLoss.

    Paper settings: temperature 0.05, LayerNorm without affine before the embedding is normalised, balanced batches.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        temperature: 0.05 in the paper.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    return s / temperature, 1 / temperature


@register_loss(
    "proxy_nca",
    **_OVER_CLASSES,
    others_only=True,
    paper="Movshovitz-Attias et al.: No Fuss Distance Metric Learning using Proxies, ICCV 2017",
)
def proxy_nca(s: Tensor, *, scale: float = 1.0) -> Own:
    """Proxy-NCA (equation 4 of the paper): `-log(exp(-d_y) / sum over z != y of exp(-d_z))`, d a squared distance.

    Points and proxies are brought to length `scale`, so d is `2 scale^2 (1 - cosine)`, and the constant cancels. The
    own proxy is not in the sum, so the loss can be negative. pytorch-metric-learning has only the form with the own
    proxy in the sum: that is `proxy_nca_pp` with temperature `1 / softmax_scale`.

    Paper settings: scale 1; later code of the same group scales both by 3. High learning rate for the proxies.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        scale: length of the points and proxies.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    return 2 * scale**2 * s, 2 * scale**2


@register_loss(
    "proxy_nca_pp",
    **_OVER_CLASSES,
    paper="Teh et al.: ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis, ECCV 2020",
)
def proxy_nca_pp(s: Tensor, *, temperature: float = 1 / 9) -> Own:
    """ProxyNCA++ (equation 6 of the paper): cross-entropy on negative squared distances over a temperature.

    Points and proxies have length 1, so the logits are `2 cosine / temperature` up to a constant. It equals
    pytorch-metric-learning's ProxyNCALoss(softmax_scale=1/temperature), which drops an item whose probability
    underflows; here it keeps its cost.

    Paper settings: temperature 1/9, global max pooling, LayerNorm, proxies with a learning rate of their own.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        temperature: 1/9 in the paper.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    return 2 * s / temperature, 2 / temperature


@register_loss(
    "cosface",
    **_OVER_CLASSES,
    paper="Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018",
)
def cosface(s: Tensor, *, margin: float = 0.35, scale: float = 64.0) -> Own:
    """CosFace (equation 4 of the paper): cross-entropy on scaled cosines, the own class's less a margin.

    Equal to pytorch-metric-learning's CosFaceLoss.

    Paper settings: margin 0.35, scale 64.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        margin: what the own class must be ahead, as a cosine.
        scale: factor of the cosines.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    return scale * (s - margin), scale


def best_center(s: Tensor, *, centers: int = 1) -> Tensor:
    """A class scores what its nearest centre does: [q c * centers] to [q c]."""
    return s if centers == 1 else s.unflatten(1, (-1, centers)).amax(2)


@register_loss(
    "arcface",
    **_OVER_CLASSES,
    merge=best_center,
    paper="Deng et al.: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019",
)
def arcface(s: Tensor, *, margin: float = 0.5, scale: float = 64.0) -> Own:
    """ArcFace (equation 3 of the paper): cross-entropy on scaled cosines, the own class's angle t enlarged by a margin.

    `cos(t + margin)` is `cos t cos margin - sin t sin margin`, so no arc cosine with its infinite slope is taken.
    Beyond `pi - margin` the logit goes on as `cos t - margin sin(margin)`, with a jump, as in the authors' code. With
    several `centers` a class scores its nearest centre (Deng et al.: Sub-center ArcFace, ECCV 2020).
    pytorch-metric-learning's ArcFaceLoss and SubCenterArcFaceLoss take the margin in degrees (28.6).

    Paper settings: margin 0.5 (radians), scale 64; sub-centre ArcFace: 3 centres.
    Cost: O(n c centers d) time, O((n + c centers) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        margin: the angle in radians.
        scale: factor of the cosines.
        centers: sub-centres of each class; the nearest one counts.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    sine = (1 - s.square()).clamp_min(torch.finfo(s.dtype).eps).sqrt()
    further = s * math.cos(margin) - sine * math.sin(margin)
    return scale * torch.where(s < -math.cos(margin), s - margin * math.sin(margin), further), scale


@register_loss(
    "sphereface",
    **_OVER_CLASSES,
    per_row="norm",
    scale_free=False,
    paper="Liu et al.: SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017",
)
def sphereface(
    s: Tensor,
    norm: Tensor,
    *,
    step: Tensor,
    margin: int = 4,
    scale: float = 1.0,
    annealing: bool = True,
    anneal_base: float = 1500.0,
    anneal_rate: float = 0.1,
    anneal_floor: float = 5.0,
) -> Own:
    """SphereFace (equation 7 of the paper): cross-entropy on |x| cos t, for the own class on |x| psi(t).

    `psi(t) = (-1)^k cos(margin t) - 2 k` with `k = floor(margin t / pi)`; cos(margin t) is a polynomial of cos t. The
    authors mix it with the plain cosine, `(lambda cos t + psi) / (1 + lambda)`, where lambda falls with the number of
    training steps, `max(anneal_floor, anneal_base / (1 + anneal_rate step))`. pytorch-metric-learning's
    SphereFaceLoss(margin=4, scale=1) has no annealing. The loss depends on the length of the embeddings.

    Paper settings: margin 4, annealed as by default.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        s: similarity of each item to the proxy of its class [q].
        norm: length of each embedding [q].
        step: number of training steps so far, from the objective.
        margin: factor of the angle, a whole number from 1 on.
        scale: further factor of all logits.
        annealing: whether the cosine is mixed in.
        anneal_base: lambda at the start.
        anneal_rate: how fast it falls.
        anneal_floor: what it falls to.

    Returns:
        Logit of the own class [q] and the factor of the other scores [q].
    """
    if margin < 1:
        raise ValueError(f"margin multiplies an angle and must be 1 or more, got {margin}")
    before, multiple = torch.ones_like(s), s
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * s * multiple - before
    k = torch.zeros_like(s)
    for j in range(1, margin):
        k = k + (s.detach() < math.cos(j * math.pi / margin)).to(s.dtype)
    psi = (1 - 2 * (k % 2)) * multiple - 2 * k
    if annealing:
        mixed = (anneal_base / (1 + anneal_rate * step.to(s.dtype))).clamp_min(anneal_floor)
        psi = (mixed * s + psi) / (1 + mixed)
    return scale * norm * psi, scale * norm


def soft_center(s: Tensor, *, centers: int = 10, gamma: float = 0.1) -> Tensor:
    """A class scores the mean of its centres' scores, weighted by their softmax: [q c * centers] to [q c]."""
    s = s.unflatten(1, (-1, centers)).movedim(2, 0).contiguous()  # short last dimensions are slow
    return ((s / gamma).softmax(0) * s).sum(0)


def few_centers(z: Tensor, proxies: Tensor, *, centers: int = 10, tau: float = 0.2) -> Tensor:
    """`tau` times the mean distance of the centres of a class (equation 13 of the SoftTriple paper)."""
    if len(z) == 0 or centers == 1 or tau == 0:
        return proxies.sum() * 0
    factor = tau / (len(proxies) * (centers - 1))
    if torch.compiler.is_compiling():
        return factor * _center_distances(proxies, centers)
    parts = proxies.split(max(1, CHUNK // (centers * proxies.shape[1])) * centers)
    sums = [checkpoint(_center_distances, w, centers, use_reentrant=False, preserve_rng_state=False) for w in parts]
    return factor * torch.stack(sums).sum()


def _center_distances(proxies: Tensor, centers: int) -> Tensor:
    """Sum of the distances of the centres of each class."""
    w = F.normalize(proxies, dim=1).unflatten(0, (-1, centers))
    first, second = torch.triu_indices(centers, centers, 1, device=w.device)
    return (2 + 1e-5 - 2 * (w @ w.mT)[:, first, second]).sqrt().sum()


@register_loss(
    "soft_triple",
    **_OVER_CLASSES,
    merge=soft_center,
    penalty=few_centers,
    paper="Qian et al.: SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, ICCV 2019",
)
def soft_triple(s: Tensor, *, la: float = 20.0, margin: float = 0.01) -> Own:
    """SoftTriple (equations 10 to 14 of the paper): cross-entropy on the scores of classes with several centres.

    A class scores `S = sum_k softmax_k(s_k / gamma) s_k`; the logits are `la S`, for the own class `la (S - margin)`.
    Added is `tau` times the sum over classes and pairs of their centres of `sqrt(2 - 2 w_k.w_l + 1e-5)`, divided by
    `c centers (centers - 1)`, as in the authors' code (half the mean distance). pytorch-metric-learning's
    SoftTripleLoss has no such part by default; its SparseCentersRegularizer has a smaller constant under the root.

    Paper settings: la 20, gamma 0.1, tau 0.2, margin 0.01, 10 centres.
    Cost: O(n c centers d + c centers^2 d) time, O((n + c centers) d + c centers^2) memory beside a tile.

    Args:
        s: score of each item's class [q].
        la: factor of the scores.
        margin: what the own class must be ahead.
        centers: embeddings of each class, K in the paper.
        gamma: temperature of the softmax over the centres of a class.
        tau: weight of the regulariser that merges centres of a class.

    Returns:
        Logit of the own class [q] and the factor of the other scores.
    """
    return la * (s - margin), la


def _proxy_anchor_by_proxy(
    s: Tensor, row: Tensor, column: Tensor, weights: tuple[float, float], *, alpha: float, margin: float
) -> Tensor:
    pull = alpha * (margin - s[row, column])
    top = pull.new_full(s.shape[:1], -torch.inf).scatter_reduce_(0, row, pull, "amax")
    pull = (pull - top[row]).exp()
    mass = torch.zeros_like(top).index_add_(0, row, pull)
    cost = torch.where(mass > 0, softplus(top + mass.log()), 0)
    pull *= (-alpha * weights[0] * (1 - (-cost).exp()) / mass)[row]

    s.mul_(alpha).add_(alpha * margin)
    s[row, column] = -torch.inf
    top = s.amax(1, keepdim=True).clamp_min_(torch.finfo(s.dtype).min)
    mass = s.sub_(top).exp_().sum(1, keepdim=True)
    others = softplus(top + mass.log())
    s.mul_(alpha * weights[1] * (1 - (-others).exp()) / mass.clamp_min(torch.finfo(s.dtype).tiny))
    s[row, column] = pull
    return torch.stack([cost.sum(), others.sum()])


@register_loss(
    "proxy_anchor",
    by_proxy=_proxy_anchor_by_proxy,
    reads="same",
    x="similarity",
    geometry="cosine",
    rows="proxy",
    between={"alpha": (0, math.inf)},
    paper="Kim et al.: Proxy Anchor Loss for Deep Metric Learning, CVPR 2020",
)
def proxy_anchor(x: Tensor, y: Tensor, valid: Tensor, *, alpha: float = 32.0, margin: float = 0.1) -> Rows:
    """Proxy-Anchor loss (equation 4 of the paper): each proxy is an anchor, the batch its positives and negatives.

    `1/|P+| sum over proxies with positives of log(1 + sum_pos exp(-alpha (s - margin)))` plus
    `1/|P| sum over all proxies of log(1 + sum_neg exp(alpha (s + margin)))`.

    Equal to pytorch-metric-learning's ProxyAnchorLoss.

    Paper settings: alpha 32, margin 0.1, proxies with 100 times the learning rate.
    Cost: O(n c d) time, O((n + c) d) memory beside a tile.

    Args:
        x: similarities of proxies (rows) to items [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        alpha: scale, 32 in the paper.
        margin: delta, 0.1 in the paper.

    Returns:
        value and count [q 2]: the two terms have denominators of their own.
    """
    positive, negative = split(y, valid)
    pull = log1p_sumexp(alpha * (margin - x), positive)
    push = log1p_sumexp(alpha * (margin + x), negative)
    present = any_in_row(positive)
    return torch.stack([pull, push], 1), torch.stack([present, torch.ones_like(present)], 1)
