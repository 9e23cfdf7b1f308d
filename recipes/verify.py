"""Verify pairs of faces with a trained embedder: the accuracy of Labeled Faces in the Wild, and error rates with intervals.

python recipes/verify.py --embedder runs/photos/embedder --data.source lfw:FOLDER           # trained on other people
python recipes/verify.py --embedder runs/lfw/embedder --data.source lfw:FOLDER --fold 1     # trained on the other folds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from beyond_binary.data.originals.faces import face_folder
from beyond_binary.devices import usable_device
from beyond_binary.embedder import Embedder
from beyond_binary.verification import Pairs, read_lfw_pairs, ten_fold, verify


def embedded_scores(embedder: Embedder, pairs: Pairs, folder: Path, batch_size: int = 64) -> np.ndarray:
    """Similarities [n] of the pairs, whose files are in `folder`."""
    names = sorted({name for pair in pairs.files for name in pair})
    z = embedder.encode([folder / name for name in names], batch_size=batch_size, progress=True)
    geometry = "cosine" if embedder.normalize else "euclidean"
    return np.asarray(pairs.scores(dict(zip(names, z, strict=True)), geometry))


def table(scores: np.ndarray, pairs: Pairs, fold: int | None, bootstrap: int) -> dict[str, float]:
    """The accuracy over the folds (each with the threshold of the others), or of one, and what `verify` gives.

    Raises:
        ValueError: no such fold.
    """
    found = ten_fold(scores, pairs.same, pairs.folds)
    if fold is None:
        head, inside = {"accuracy": found.accuracy, "accuracy_error": found.error}, np.ones(len(scores), dtype=bool)
    else:
        if not 1 <= fold <= len(found.accuracies):
            raise ValueError(f"--fold {fold}: expected 1 to {len(found.accuracies)}")
        head, inside = {"accuracy": found.accuracies[fold - 1]}, pairs.folds == fold - 1
    people = pairs.identities[inside]
    return head | verify(scores[inside], pairs.same[inside], identities=people, bootstrap=bootstrap)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and print the table; what does not fit ends with a short message and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", required=True, help="folder of a saved embedder, or a Hub id")
    parser.add_argument("--data.source", dest="source", required=True, help="lfw:FOLDER, with pairs.txt in it")
    parser.add_argument("--pairs", help="another pairs file")
    parser.add_argument("--fold", type=int, help="only the pairs of this fold, counted from 1")
    parser.add_argument("--bootstrap", type=int, default=0, help="replicates over people, for 95 %% intervals")
    parser.add_argument("--device", default="auto", help="where the embedder runs; auto: a GPU where there is one")
    given = parser.parse_args(argv)
    try:
        path = Path(given.source.removeprefix("lfw:")).expanduser()
        pairs = read_lfw_pairs(given.pairs or path / "pairs.txt")
        embedder = Embedder.from_pretrained(given.embedder).to(usable_device(given.device))
        scores = embedded_scores(embedder, pairs, face_folder(path))
        for name, value in table(scores, pairs, given.fold, given.bootstrap).items():
            print(f"{name:<22}{value:.4f}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
