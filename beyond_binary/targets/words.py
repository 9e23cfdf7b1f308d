"""Word vectors from a file, and captions as the numbers of their words."""

from __future__ import annotations

import gzip
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..data.scenes import scene_words

STOP_WORDS = frozenset({
    "a", "an", "the", "this", "that", "these", "those", "and", "or", "but", "nor", "so", "of", "in", "on", "at",
    "by", "to", "from", "with", "into", "onto", "for", "as", "than", "then", "it", "its", "he", "she", "they",
    "them", "him", "her", "his", "hers", "their", "theirs", "we", "us", "our", "you", "your", "i", "me", "my",
    "mine", "is", "are", "was", "were", "be", "been", "being", "am", "do", "does", "did", "has", "have", "had",
    "having", "there", "here", "who", "whom", "which", "what", "where", "while", "when", "how", "not", "no",
})  # fmt: skip
"""Function words that `stop_words=True` leaves out: articles, pronouns, auxiliaries, prepositions of place and time."""

ENDINGS = (
    ("'s", ""), ("ies", "y"), ("es", ""), ("s", ""), ("ied", "y"), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"),
    ("er", ""), ("er", "e"), ("est", ""), ("ly", ""), ("y", ""),
)  # fmt: skip
"""Endings and what stands for them in the word that is looked up instead of an unknown one."""


@dataclass(frozen=True)
class WordVectors:
    """Words and their vectors [words dim] float32; `index` finds a word's row."""

    vectors: Tensor
    index: dict[str, int]

    def __repr__(self) -> str:
        return f"WordVectors({len(self.vectors)} words of {self.vectors.shape[1]} numbers)"


def load_word_vectors(path: str | Path) -> WordVectors:
    """Read word vectors: a text file of GloVe, word2vec or gensim (`.gz` as well), or an npz file.

    A text file has a word and its numbers on each line, after a first line with two counts in the form of word2vec.
    An npz file has `words` (text) and `vec` [words dim]. Nothing is unpickled. Of a word that comes twice, the first
    counts; a word that is there with capitals alone is found in lower case too.

    `embedded:scenes` stands for vectors of the words that the embedded set `scenes` uses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another form, a line that does not fit (it is named), numbers that are not finite.
    """
    if str(path) == "embedded:scenes":
        words, vectors = scene_words()
    else:
        words, vectors = _read(Path(path))
    if not len(words):
        raise ValueError(f"{path} holds no word vectors")
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        raise ValueError(f"{path}: the vector of {words[int(np.flatnonzero(bad)[0])]!r} is not finite")
    index: dict[str, int] = {}
    for spelled in (words, [word.lower() for word in words]):
        for row, word in enumerate(spelled):
            index.setdefault(word, row)
    return WordVectors(torch.from_numpy(vectors), index)


def _read(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of word vectors {str(path)!r}")
    return _read_npz(path) if path.suffix == ".npz" else _read_text(path)


def _read_npz(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            words, vectors = file["words"], file["vec"]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected an npz file of `words` (text) and `vec` [words dim]: {error}") from None
    if words.dtype.kind != "U" or vectors.dtype.kind != "f" or words.ndim != 1 or vectors.ndim != 2:
        raise ValueError(
            f"{path}: expected `words` as text [words] and `vec` as numbers [words dim], "
            f"got {words.dtype} {list(words.shape)} and {vectors.dtype} {list(vectors.shape)}"
        )
    if len(words) != len(vectors):
        raise ValueError(f"{path}: {len(words)} words but {len(vectors)} vectors")
    return words.tolist(), np.ascontiguousarray(vectors, dtype=np.float32)


def _read_text(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    file: IO[str]
    try:
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            words, rows = _read_lines(path, file)
    except (UnicodeDecodeError, gzip.BadGzipFile):
        raise ValueError(
            f"{path} is no text file; expected lines of a word and its numbers, or an npz file (a binary model is "
            "converted by gensim: KeyedVectors.load_word2vec_format(..., binary=True).save_word2vec_format(...))"
        ) from None
    return words, np.stack(rows) if rows else np.zeros((0, 1), np.float32)


def _read_lines(path: Path, lines: Iterator[str]) -> tuple[list[str], list[np.ndarray[Any, Any]]]:
    words: list[str] = []
    rows: list[np.ndarray[Any, Any]] = []
    dim = 0
    for number, line in enumerate(lines, 1):
        parts = re.split("[ \t]", line.rstrip(" \t\r\n"))
        if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
            dim = int(parts[1])  # the first line of word2vec's form: how many words, how many numbers
            continue
        dim = dim or len(parts) - 1
        try:
            row = np.array(parts[-dim:], dtype=np.float32)
        except ValueError:
            row = np.zeros(0, np.float32)
        if not dim or len(parts) <= dim or len(row) != dim:
            raise ValueError(f"{path}, line {number}: expected a word and {dim or 'its'} numbers, got {line[:60]!r}")
        words.append(" ".join(parts[:-dim]))  # some words of GloVe have spaces in them
        rows.append(row)
    return words, rows


@dataclass
class Reader:
    """Turns captions into numbers of known words, remembers what it read and counts the words that it does not know.

    Args:
        index: word to number.
        stop_words: words left out.
        stemming: look an unknown word up without its ending, or by the parts between its hyphens and apostrophes.
    """

    index: dict[str, int]
    stop_words: Collection[str] = ()
    stemming: bool = True
    words: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    _read: dict[str, list[int]] = field(default_factory=dict)
    _told: bool = False

    def __call__(self, caption: str) -> list[int]:
        """Numbers of the words of a caption, in order and as often as they occur."""
        if caption not in self._read:
            tokens = [token for token in tokenize(caption) if token not in self.stop_words]
            found = [(token, self._find(token)) for token in tokens]
            self.words += len(tokens)
            self.unknown.update(token for token, numbers in found if not numbers)
            self._read[caption] = [number for _, numbers in found for number in numbers]
        return self._read[caption]

    def _find(self, token: str) -> list[int]:
        """The number of a word as it is, without an ending, or of its parts; empty if none is known."""
        if token in self.index:
            return [self.index[token]]
        if not self.stemming:
            return []
        if (stem := next((s for s in stems(token) if s in self.index), None)) is not None:
            return [self.index[stem]]
        parts = re.split("['-]", token)
        return [number for part in parts for number in self._find(part)] if len(parts) > 1 else []

    def __getstate__(self) -> dict[str, Any]:
        """The options without what was read."""
        return {"index": self.index, "stop_words": self.stop_words, "stemming": self.stemming}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def report(self, shown: int = 10) -> str:
        """How many words so far are unknown, and the most frequent of them."""
        most = ", ".join(f"{word} ({count})" for word, count in self.unknown.most_common(shown))
        share = self.unknown.total() / max(self.words, 1)
        return (
            f"{self.unknown.total()} of {self.words} words ({share:.1%}) in the captions have no vector and are left "
            f"out, {len(self.unknown)} different ones" + (f", most often: {most}" if most else "")
        )

    def warn_once(self) -> None:
        """Report unknown words as a warning, the first time that there are any."""
        if self.unknown and not self._told:
            self._told = True
            warnings.warn(self.report(), stacklevel=3)


def tokenize(caption: str) -> list[str]:
    """Words and numbers of a text in lower case; hyphens and apostrophes stay inside of words."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", caption.lower().replace("’", "'"))


def stems(word: str) -> Iterable[str]:
    """What an unknown word may be without its ending, at least 3 letters: `playhouses` to `playhouse`."""
    for ending, instead in ENDINGS:
        if word.endswith(ending):
            stem = word[: -len(ending)] + instead
            if len(stem) >= 3:
                yield stem
            if len(stem) >= 4 and stem[-1] == stem[-2]:
                yield stem[:-1]
