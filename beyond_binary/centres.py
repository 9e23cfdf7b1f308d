"""Centres of a label space: where proxies sit when labels are not classes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .targets import Target
from .targets.algebra import Within
from .targets.sets import MultiLabel

TILE = 1 << 21  # pairs that are compared at once


def proxy_codes(target: Target, code: Tensor, count: int | None) -> Tensor:
    """Labels for proxies: `count` centres of the items' labels, or without a count each label of label sets alone.

    Raises:
        ValueError: no count, and the labels are no sets.
    """
    if count is not None:
        return label_centres(target, code, count)
    if isinstance(target, Within) and isinstance(target.target, MultiLabel):
        return torch.eye(code.shape[1], dtype=code.dtype)
    raise ValueError("proxies on labels that are not classes sit at centres of the labels: set objective.num_proxies")


def nearest(target: Target, code: Tensor, centres: Tensor) -> Tensor:
    """Which of `centres` [c ...] is nearest to each item [n ...], -1 where no distance is known. Int64 [n]."""
    parts = code.split(max(1, TILE // len(centres)))
    found = [_known(target.distance(part, centres)).min(1) for part in parts]
    return torch.cat([least.indices.where(least.values.isfinite(), -1) for least in found])


def belonging(target: Target, code: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The items [p] and centres [p] that belong together: each of `code` [n ...] and the nearest of `centres` [c ...],
    all of them where several are equally near. Where a target tells only same from different, those that are the same.
    """
    parts, found = code.split(max(1, TILE // len(centres))), []
    for part in parts:
        y = _known(target.distance(part, centres))
        found.append(y.isfinite() & (y == (0 if target.gives == "same" else y.amin(1, keepdim=True))))
    item, centre = torch.cat(found).nonzero().unbind(1)
    return item, centre


def _known(y: Tensor) -> Tensor:
    return y.double().nan_to_num(nan=torch.inf)


@torch.no_grad()
def label_centres(target: Target, code: Tensor, count: int, *, rounds: int = 20, seed: int = 0) -> Tensor:
    """`count` centres of the items' labels by k-means, started by k-means++ (Arthur and Vassilvitskii, SODA 2007).

    A centre is the mean of its items' labels where the target has one (`target.mean`), else that of its items which is
    nearest to all of them (k-medoids). All distances are the target's. Items whose label is unknown (its distance to itself
    is) are left out.

    Args:
        target: the target that encoded `code`.
        code: [n ...] what the target encodes per item.
        count: how many centres, at most as many as there are different labels.
        rounds: most rounds of k-means.
        seed: of the start.

    Returns:
        the centres' codes [count ...].

    Warns:
        UserWarning: items that know the distance to no centre.

    Raises:
        ValueError: fewer different labels than centres.
    """
    mean: Any = getattr(target, "mean", None)
    code = code[~torch.cat([target.distance(part, part).diagonal().isnan() for part in code.split(64)])]
    if not len(code):
        raise ValueError("expected labels of which some are known, got none")
    centres = code[_start(target, code, count, seed)]
    before = None
    for _ in range(rounds):
        own = nearest(target, code, centres)
        if before is not None and torch.equal(own, before):
            break
        before, moved = own, centres.clone()
        for number in own[own >= 0].unique().tolist():
            members = code[own == number]
            if mean is not None:
                moved[number] = mean(torch.full((1, len(members)), 1 / len(members), dtype=torch.double), members)[0]
            else:
                moved[number] = members[_middle(target, members)]
        centres = torch.where(moved.isnan(), centres, moved) if moved.is_floating_point() else moved
    if lost := int((nearest(target, code, centres) < 0).sum()):
        warnings.warn(
            f"{lost} of {len(code)} items know the label distance to none of the {count} centres and are in no pair with "
            "them; ask for more centres, or leave such items out",
            stacklevel=3,
        )
    return centres


def _middle(target: Target, code: Tensor) -> int:
    """The item with the least sum of squared distances from all others; an unknown one counts like the largest."""
    known, unknown, most = [], [], torch.zeros((), dtype=torch.double)
    for part in code.split(max(1, TILE // len(code))):
        y = target.distance(part, code).double()
        unknown.append(y.isnan().sum(1))
        squares = y.nan_to_num(nan=0.0).square()
        known.append(squares.sum(1))
        most = torch.maximum(most.to(squares), squares.max())
    return int((torch.cat(known) + most * torch.cat(unknown)).argmin())


def _start(target: Target, code: Tensor, count: int, seed: int) -> Tensor:
    """Items drawn one after the other, each by its squared distance from the nearest drawn so far.

    One of which no distance to those is known counts like the farthest of the others. Items that know much fewer others than
    these know are drawn last.
    """
    draw = torch.Generator().manual_seed(seed)
    usual = _usual(target, code, seed)
    places = usual.nonzero()[:, 0]
    chosen = [int(places[torch.randint(len(places), (1,), generator=draw)])]
    reach = _known(target.distance(code, code[chosen]))[:, 0]
    while len(chosen) < count:
        known = reach.isfinite()
        most = reach[known].max().clamp_min(torch.finfo(torch.double).tiny)
        weight = (reach.where(known, most) / most).square().cpu()
        weight = weight * usual if (weight * usual).sum() > 0 else weight
        if not weight.sum() > 0:
            raise ValueError(
                f"expected at most {len(chosen)} centres, as many as there are different labels, got {count}"
            )
        chosen.append(int(torch.multinomial(weight, 1, generator=draw)))
        reach = torch.minimum(reach, _known(target.distance(code, code[chosen[-1:]]))[:, 0])
    return torch.tensor(chosen)


def _usual(target: Target, code: Tensor, seed: int) -> Tensor:
    """Which items [n], on the CPU, know at least half as many of some others, drawn for all, as those others do on average
    that they know."""
    place = torch.randperm(len(code), generator=torch.Generator().manual_seed(seed))[:256].to(code.device)
    parts = code.split(max(1, TILE // len(place)))
    known = torch.cat([~target.distance(part, code[place]).isnan() for part in parts]).double().cpu()
    count = known.sum(1)
    return ~(2 * count.square() < known @ count[place.cpu()])
