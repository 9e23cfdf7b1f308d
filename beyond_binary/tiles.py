"""A tile of pairs as in-place forms of losses see it: its numbers, and the places of the pairs that are special."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .geometry import Shared


def split(y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [q k] of the valid pairs that are the same, and of those that are different."""
    same = ~y if y.dtype == torch.bool else y == 0
    return valid & same, valid & ~same


SOME_PAIRS = 1 << 17  # that fit into a core's cache


@dataclass(frozen=True)
class Places:
    """Some entries of a tile: their rows and their positions in the flattened tile, int64, ordered by row."""

    row: Tensor
    flat: Tensor

    @staticmethod
    def of(mask: Tensor) -> Places:
        """The entries of a mask [rows k]."""
        if mask.device.type == "cpu":
            flat = torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch
        else:
            flat = mask.flatten().nonzero()[:, 0]
        return Places(flat // max(mask.shape[1], 1), flat)


def listed(places: Places | Tensor) -> Places:
    """Places, whether they are listed already or a mask [rows k]."""
    return Places.of(places) if isinstance(places, Tensor) else places


class Tile:
    """What an in-place form gets: `x` [rows k] to overwrite, and where the same and the uncounted pairs are.

    Args:
        x: similarities or distances; the form leaves d(sum of values)/dx here.
        places: gives `same` (valid pairs of the same) and `off` (pairs that do not count), or both as masks [rows k].
        labels: gives label distances and valid pairs of some rows, [rows k] each.
        shared: what tiles of the same walk share.
        row: what the loss reads beside the pairs [rows]; the form leaves the gradient in `grad_row`.

    A form whose gradient is 0 but for some places may leave these and their gradient in `sparse`, and x as it is.
    """

    def __init__(
        self,
        x: Tensor,
        places: Callable[[], tuple[Places, Places] | tuple[Tensor, Tensor]],
        labels: Callable[[slice], tuple[Tensor, Tensor]],
        shared: Shared | None = None,
        row: Tensor | None = None,
    ) -> None:
        self.x, self.row, self.labels = x, row, labels
        self.grad_row: Tensor | None = None
        self.sparse: tuple[Places, Tensor] | None = None
        self._places = places
        self._shared = shared or Shared()

    @cached_property
    def _both(self) -> tuple[Places, Places] | tuple[Tensor, Tensor]:
        return self._places()

    @cached_property
    def same(self) -> Places:
        """Valid pairs of the same."""
        return listed(self._both[0])

    @cached_property
    def off(self) -> Places:
        """Pairs that do not count."""
        return listed(self._both[1])

    @cached_property
    def different(self) -> Places | None:
        """Valid pairs of the different, if a miner may have left few; None: they are nearly the whole tile."""
        same, off = self._both
        return Places.of(~(same | off)) if isinstance(same, Tensor) and isinstance(off, Tensor) else None

    def parts(self) -> list[slice]:
        """Slices of rows, few enough to stay in a cache."""
        step = max(1, SOME_PAIRS // max(self.x.shape[1], 1))
        return [slice(start, min(start + step, len(self.x))) for start in range(0, len(self.x), step)]

    def memory(self, name: str) -> Tensor:
        """As much memory as x has, with anything in it, used again by the next tile."""
        return self._shared.memory(f"tile {name}", self.x.shape, self.x)

    def take(self, places: Places) -> Tensor:
        """Entries of x."""
        return self.x.view(-1)[places.flat]

    def put(self, places: Places, value: Tensor | float) -> None:
        """Set entries of x."""
        if isinstance(value, Tensor):
            self.x.view(-1).scatter_(0, places.flat, value)
        else:
            self.x.view(-1).index_fill_(0, places.flat, value)

    def sums(self, places: Places, value: Tensor | None = None) -> Tensor:
        """Sums over each row's places of one value a place; without values their number [rows]."""
        value = self.x.new_ones(len(places.row)) if value is None else value
        return self.x.new_zeros(len(self.x)).index_add_(0, places.row, value)

    def valid(self) -> Tensor:
        """Number of each row's valid pairs [rows]."""
        return self.x.shape[1] - self.sums(self.off)

    def powers_(self, logits: Tensor, extra: float | None = None) -> tuple[Tensor, Tensor]:
        """Turn logits [rows k] in place into powers, and return the row's top logit and the sum of powers [rows 1].

        A power is `exp(logit - top)`. Entries at -inf are out of it, and get (as good as) 0; a row of nothing else has
        a very low top. `extra` is one more logit that every row has.
        """
        top = logits.amax(1, keepdim=True) if logits.shape[1] else logits.new_zeros(len(logits), 1)
        top.clamp_min_(torch.finfo(logits.dtype).min / 4 if extra is None else extra)
        floor = -80.0 if logits.dtype == torch.float32 else -700.0  # exp of less is slow, and lost in the sum
        total = logits.sub_(top).clamp_min_(floor).exp_().sum(1, keepdim=True)
        if extra is not None:
            total += (extra - top).exp_()
        return top, total

    def softmax_(self, logits: Tensor, extra: float | None = None) -> Tensor:
        """Turn logits [rows k] in place into their softmax, and return their log-sum-exp [rows].

        Entries at -inf are out of it, and get (as good as) 0; a row of nothing else gives 0 and some finite numbers.
        `extra` is one more logit that every row has.
        """
        top, total = self.powers_(logits, extra)
        logits.div_(total)
        return (total.log_() + top)[:, 0]

    def place_softmax(self, places: Places, logits: Tensor, extra: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-sum-exp [rows] of logits given at places, and their softmax there; -inf for a row without any."""
        low = torch.finfo(logits.dtype).min / 4 if extra is None else extra
        top = logits.new_full((len(self.x),), low).scatter_reduce_(0, places.row, logits, "amax")
        power = (logits - top[places.row]).exp_()
        total = self.sums(places, power)
        if extra is not None:
            total += (extra - top).exp_()
        return total.log() + top, power / total[places.row]
