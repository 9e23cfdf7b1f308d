"""Targets on captions: several texts an item, two items as far apart as their best matching texts, both ways."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parallel import in_parallel
from ..unfinished import Unfinished
from . import TARGETS, Gives, LabelError, transport
from .vectors import as_floating, exact_cdist
from .words import STOP_WORDS, Reader, WordVectors, load_word_vectors

TILE = 2**22
"""Pairs of captions whose distances are held at a time."""


@TARGETS.register("captions")
class Captions:
    """Captions under word mover's distance: how far the words of one text must move to become those of the other.

    Two items are as far apart as the sum, over the captions of both, of the distance to the best matching caption of
    the other item (Kim et al., CVPR 2019). Between two captions it is the word mover's distance (Kusner et al., 2015):
    the 1-Wasserstein distance of their bags of words under the Euclidean distance of word vectors. `relaxed` takes
    the larger of its two one-sided relaxations instead, each word to the nearest word of the other text: a lower bound
    that is quick enough for every batch, but has no triangle inequality. The exact distance needs POT
    (`pip install beyond_binary[text]`) and is best computed once, by `label_distances` or `label_neighbours`.

    Labels: text [n captions]; an empty text is no caption. Words without a vector are left out, and a warning counts
    them; a caption without any known word is refused.

    Args:
        vectors: file of word vectors (text of GloVe, word2vec or gensim, or npz), or what `load_word_vectors` gives.
        relaxed: use the relaxed distance.
        stop_words: leave function words out; or the words to leave out.
        stemming: look an unknown word up without its ending, or by the parts between its hyphens.
        reduce: `sum` of the best matches (the paper), or their `mean`, which suits items with few and many captions.
        length: most words of a caption, the width of the code.
    """

    gives: ClassVar[Gives] = "magnitude"
    slow: ClassVar[bool] = True  # enough for processes

    def __init__(
        self,
        vectors: Any,
        relaxed: bool = True,
        stop_words: bool | Sequence[str] = False,
        stemming: bool = True,
        reduce: Literal["sum", "mean"] = "sum",
        length: int = 64,
    ) -> None:
        if length < 1:
            raise ValueError(f"captions: length must be at least 1, got {length}")
        if not relaxed and find_spec("ot") is None:
            raise ImportError("captions(relaxed=False) needs POT; install beyond_binary[text]")
        self.vectors = vectors if isinstance(vectors, WordVectors) else load_word_vectors(vectors)
        self.relaxed, self.reduce, self.length = relaxed, reduce, length
        left_out = (STOP_WORDS if stop_words else ()) if isinstance(stop_words, bool) else stop_words
        self.reader = Reader(self.vectors.index, frozenset(left_out), stemming)

    def __repr__(self) -> str:
        return f"Captions({self.vectors}, relaxed={self.relaxed}, reduce={self.reduce!r})"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Sorted numbers of the words of each caption, then -1 [n captions length] int32."""
        texts = as_texts(labels, "captions")
        code = np.full((*texts.shape, self.length), -1, dtype=np.int32)
        for place in np.ndindex(texts.shape):
            text = str(texts[place])
            if not text.strip():
                continue
            words = self.reader(text)
            if not 1 <= len(words) <= self.length:
                item, caption = place
                wrong = (
                    f"has {len(words)} known words, more than length={self.length}" if words else "has no known word"
                )
                raise LabelError(item, f"target 'captions': caption {caption} of item {item} {wrong}: {text!r}")
            code[(*place, slice(len(words)))] = sorted(words)
        empty = (code < 0).all((1, 2))
        if empty.any():
            item = int(np.flatnonzero(empty)[0])
            raise LabelError(item, f"target 'captions': item {item} has no caption")
        self.reader.warn_once()
        return torch.from_numpy(code)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k], NaN for pairs that do not count: relaxed float32, exact float64."""
        if self.relaxed:
            return in_tiles(self._relaxed, code_q, code_k, valid)
        return in_tiles(self._exact, code_q, code_k, valid, torch.float64)

    def _relaxed(self, code_q: Tensor, code_k: Tensor, valid: Tensor) -> Tensor:
        return best_matches(Block(code_q, code_k, self.vectors.vectors).relaxed(), self.reduce)

    def _exact(self, code_q: Tensor, code_k: Tensor, valid: Tensor) -> Tensor:
        bounds = Block(code_q, code_k, self.vectors.vectors).relaxed().cpu().numpy()
        size = [max(q, k) for q, k in zip(code_q.shape[1:], code_k.shape[1:], strict=True)]
        padded = [F.pad(c, (0, size[1] - c.shape[2], 0, size[0] - c.shape[1]), value=-1) for c in (code_q, code_k)]
        texts = transport.Texts.of(torch.cat(padded), self.vectors.vectors)
        y = np.full(valid.shape, np.nan)
        for row, keys in enumerate(valid.cpu().numpy()):
            if keys.any():
                others, known = texts[len(code_q) + np.flatnonzero(keys)], bounds[:, row][:, :, keys].transpose(2, 0, 1)
                y[row, keys] = transport.From(texts, row).to(others, known, mean=self.reduce == "mean")
        return torch.from_numpy(y).to(code_q.device)

    @property
    def neighbours(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """A search for the nearest items under the exact distance; None for the relaxed one, which needs none of its own."""
        return None if self.relaxed else self._neighbours

    def _neighbours(
        self, code: Tensor, k: int, ids: Tensor | None = None, progress: bool = False, draft: Path | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `k` nearest items of each under the exact distance, as `label_neighbours` gives them.

        All items are ordered by their relaxed distances, and solves go on until these exceed the k-th smallest exact
        one. What is found is kept in the file `draft` until all is.
        """
        return search(code, self.vectors.vectors, k, ids, self.reduce, progress, draft=draft)[:2]


def search(
    code: Tensor,
    vectors: Tensor,
    k: int,
    ids: Tensor | None = None,
    reduce: str = "sum",
    progress: bool = False,
    rows: Tensor | None = None,
    draft: Path | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Nearest items [n k] under the exact distance over all cores, their distances, and the number of solves."""
    texts = transport.Texts.of(code, vectors)
    numbers = np.arange(len(code)) if ids is None else ids.cpu().numpy()
    asked = np.arange(len(code)) if rows is None else rows.cpu().numpy()
    tile = min(max(TILE // (code.shape[1] ** 2 * len(code)), 1), 64)
    parts = np.array_split(np.arange(len(asked)), max(len(asked) // tile, 1))
    found = Unfinished(len(asked), k, len(parts), draft)
    left, solved = found.left(), 0
    jobs = [(part, asked[parts[part]]) for part in left]
    shared = (texts, k, numbers, reduce == "mean")
    with found.kept():
        for part, where, near, solves in in_parallel(
            _search, shared, jobs, title="label neighbours", progress=progress, done=len(parts) - len(left)
        ):
            at = torch.from_numpy(parts[part])
            found.indices[at], found.distances[at] = torch.from_numpy(where), torch.from_numpy(near)
            found.finish(part)
            solved += solves
    return found.indices, found.distances, solved


def _search(shared: tuple[transport.Texts, int, Any, bool], job: tuple[int, Any]) -> tuple[int, Any, Any, int]:
    (texts, k, ids, mean), (part, rows) = shared, job
    code = torch.from_numpy(texts.words)
    bounds = Block(code[rows], code, torch.from_numpy(texts.vectors)).relaxed().numpy()
    found = [
        transport.nearest(texts, bounds[:, i].transpose(2, 0, 1), row, k, ids == ids[row], mean)
        for i, row in enumerate(rows)
    ]
    where, distance, solves = zip(*found, strict=True)
    return part, np.stack(where), np.stack(distance), sum(solves)


def as_texts(labels: Any, target: str) -> np.ndarray[Any, Any]:
    """Texts as an array [n captions]; raises a ValueError otherwise."""
    try:
        texts = np.asarray(labels)
    except ValueError:
        texts = np.zeros(0)
    if texts.dtype.kind == "O" and all(isinstance(text, str) for text in texts.flat):
        texts = texts.astype(np.str_)
    if texts.ndim == 1 and texts.dtype.kind == "U":
        texts = texts[:, None]
    if texts.ndim != 2 or (texts.dtype.kind != "U" and texts.size):
        raise ValueError(
            f"target {target!r} needs texts [n captions], as many for each item ('' where there is none), "
            f"got {_what_else(labels, texts)}"
        )
    return texts if texts.dtype.kind == "U" else texts.astype(np.str_)


def _what_else(labels: Any, texts: np.ndarray[Any, Any]) -> str:
    """What labels are that are no table of texts, with the first row that is to blame."""
    if texts.dtype.kind == "O" and texts.ndim == 2:
        row, column = next(place for place in np.ndindex(texts.shape) if not isinstance(texts[place], str))
        return f"{texts[row, column]!r} as caption {column} of item {row}"
    if not texts.size and isinstance(labels, list | tuple) and all(isinstance(row, list | tuple) for row in labels):
        odd = next((i for i, row in enumerate(labels) if len(row) != len(labels[0])), 0)
        return f"{len(labels[odd])} captions for item {odd} and {len(labels[0])} for item 0"
    return f"{texts.dtype} {list(texts.shape)}"


@torch.no_grad()
def embed_captions(
    labels: Any, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], *, batch: int = 256, progress: bool = False
) -> Tensor:
    """Embed captions with the text tower of an open_clip model, as labels for the target `sentences`.

    Args:
        labels: texts [n captions]; an empty text is no caption.
        model: of open_clip, or anything with `encode_text(tokens) -> Tensor [m d]`; it is used in evaluation mode.
        tokenizer: the model's, for example `open_clip.get_tokenizer('ViT-B-32')`.
        batch: texts at a time.
        progress: show a progress bar.

    Returns:
        embeddings [n captions d] float32 on the CPU, zero where there is no caption.
    """
    from tqdm import tqdm

    captions = as_texts(labels, "sentences")
    texts, place = np.unique(captions, return_inverse=True)
    parts = np.array_split(texts, max(-(-len(texts) // batch), 1))
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        encode: Any = model.encode_text
        rows = [
            encode(tokenizer(p.tolist()).to(device)).float().cpu()
            for p in tqdm(parts, "captions", disable=not progress)
        ]
    finally:
        model.train(training)
    z = torch.cat(rows)
    z[torch.tensor([not text.strip() for text in texts.tolist()], dtype=torch.bool)] = 0
    return z[torch.from_numpy(place).view(captions.shape)]


def in_tiles(
    between: Callable[[Tensor, Tensor, Tensor], Tensor],
    code_q: Tensor,
    code_k: Tensor,
    valid: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`between(code_q, code_k, valid)` [q k] by tiles of `TILE` pairs of captions, but for rows and columns without any
    valid pair, and NaN where not valid."""
    y = torch.full((len(code_q), len(code_k)), torch.nan, dtype=dtype, device=code_q.device)
    if valid is None:
        valid = torch.ones_like(y, dtype=torch.bool)
    rows, keys = valid.any(1).nonzero()[:, 0], valid.any(0).nonzero()[:, 0]
    if not len(rows):
        return y
    side = max(int(TILE**0.5) // max(code_q.shape[1], 1), 1)
    for row in rows.split(side):
        for key in keys.split(side):
            part = between(code_q[row], code_k[key], valid[row[:, None], key])
            y[row[:, None], key] = part.to(y)
    return y.masked_fill_(~valid, torch.nan)


def best_matches(pairs: Tensor, reduce: str = "sum") -> Tensor:
    """Distance of items [q k] from those of their captions [captions q captions k], infinite where there is none."""
    of_q = functools.reduce(torch.minimum, pairs.unbind(2))  # [captions q k]
    of_k = functools.reduce(torch.minimum, pairs.unbind(0)).transpose(0, 1)  # [captions q k]
    sums = [functools.reduce(torch.add, _or_0(x).unbind(0)) for x in (of_q, of_k)]  # in one order: symmetric
    if reduce == "sum":
        return sums[0] + sums[1]
    return (sums[0] + sums[1]) / (of_q.isfinite().sum(0) + of_k.isfinite().sum(0))


def _or_0(x: Tensor) -> Tensor:
    return x.masked_fill(x.isinf(), 0)


@dataclass(frozen=True)
class Bags:
    """The captions [captions n width] of some items as bags of their different words.

    `place` [bag width] is where a word stands in `words`, rows by falling length as `order` has them, and `counts` how
    many bags have more than 0, 1, ... words. `flat` and `first` are all places in the bags' own order and where each
    bag begins.
    """

    words: Tensor
    place: Tensor
    order: Tensor
    counts: list[int]
    flat: Tensor
    first: Tensor
    missing: Tensor

    @classmethod
    def of(cls, code: Tensor) -> Bags:
        """Bags of a code [n captions width]."""
        code = code.transpose(0, 1).flatten(0, 1)
        known = code >= 0
        words, flat = torch.unique(code[known], return_inverse=True)
        place = flat.new_zeros(code.shape)
        place[known] = flat
        length = known.sum(1)
        order = length.argsort(descending=True)
        counts = [count for count in known.sum(0).tolist() if count]
        return cls(words, place[order], order, counts, flat, length.cumsum(0) - length, length == 0)

    def nearest(self, d: Tensor) -> Tensor:
        """Smallest row of `d` [words v] over the words of each bag [bag v]."""
        near = d.new_empty(len(self.order), d.shape[1])
        for columns in range(0, d.shape[1], 512):  # so that the part of d stays in the cache
            part = d[:, columns : columns + 512].contiguous()
            least = part[self.place[:, 0]]
            for width, count in enumerate(self.counts[1:], 1):
                least[:count] = torch.minimum(least[:count], part[self.place[:count, width]])
            near[self.order, columns : columns + 512] = least
        return near

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the words of each bag of the rows of `x` [words m]: [bag m]."""
        return F.embedding_bag(self.flat, x, self.first, mode="mean")


class Block:
    """All captions of some items against those of others: distances of their words, and bounds from these."""

    def __init__(self, code_q: Tensor, code_k: Tensor, vectors: Tensor) -> None:
        self.q, self.k = Bags.of(code_q), Bags.of(code_k)
        self.shape = (code_q.shape[1], len(code_q), code_k.shape[1], len(code_k))
        q, k = (vectors[bags.words.to(vectors.device)].to(code_q.device) for bags in (self.q, self.k))
        self.costs = exact_cdist(q, k)

    def relaxed(self) -> Tensor:
        """Relaxed word mover's distances of captions [captions q captions k], infinite where there is none."""
        to_k = self.q.mean(self.k.nearest(self.costs.T).T.contiguous())
        to_q = self.k.mean(self.q.nearest(self.costs).T.contiguous())
        pairs = torch.maximum(to_k, to_q.T)
        if self.q.missing.any() or self.k.missing.any():
            pairs.masked_fill_(self.q.missing[:, None] | self.k.missing[None, :], torch.inf)
        return pairs.view(self.shape)


@TARGETS.register("sentences")
class Sentences:
    """Captions as sentence embeddings under the cosine distance, 1 - cos.

    Two items are as far apart as the sum, over the captions of both, of the distance to the best matching caption of
    the other item. Labels: numbers [n captions d], the embeddings of any text model (`embed_captions` has open_clip's),
    in the trainer from `data.label_file`; a row of zeros is no caption.

    Args:
        reduce: `sum` of the best matches, or their `mean`, which suits items with few and many captions.
    """

    gives: ClassVar[Gives] = "magnitude"

    def __init__(self, reduce: Literal["sum", "mean"] = "sum") -> None:
        self.reduce = reduce

    def __repr__(self) -> str:
        return f"Sentences(reduce={self.reduce!r})"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Unit vectors [n captions d], zero where there is no caption."""
        code = as_floating(labels, "sentences")
        if code.ndim != 3:
            raise ValueError(f"target 'sentences' needs embeddings [n captions d], got shape {list(code.shape)}")
        size = torch.linalg.vector_norm(code, dim=2, keepdim=True)
        if not torch.compiler.is_compiling() and (size == 0).all(1).any():
            item = int((size == 0).all(1).nonzero()[0, 0])
            raise ValueError(f"target 'sentences': item {item} has no caption (all its embeddings are zero)")
        return code / torch.where(size > 0, size, 1)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k], NaN for pairs that do not count."""
        return in_tiles(self._between, code_q, code_k, valid, code_q.dtype)

    def _between(self, code_q: Tensor, code_k: Tensor, valid: Tensor) -> Tensor:
        q, k = (code.transpose(0, 1).flatten(0, 1) for code in (code_q, code_k))
        pairs = exact_cdist(q, k).square_().div_(2)
        pairs.masked_fill_((q == 0).all(1)[:, None] | (k == 0).all(1)[None, :], torch.inf)
        return best_matches(pairs.view(code_q.shape[1], len(code_q), code_k.shape[1], len(code_k)), self.reduce)
