"""Verify pairs of faces with a trained embedder: the accuracy of Labeled Faces in the Wild, and error rates with intervals.

python recipes/verify.py --embedder runs/photos/embedder --data.source lfw:FOLDER           # trained on other people
python recipes/verify.py --embedder runs/lfw/embedder --data.source lfw:FOLDER --fold 1     # trained on the other folds
python recipes/verify.py --embedder USER/NAME --data.source hub:logasja/lfw --data.config_name pairs            # View 1
... --histogram scores.png          # what genuine and impostor pairs score

A set on the Hub has a pair in each row: two images and whether they are the same. The threshold is the most accurate one on
the pairs of split train, the figures are those of split test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from beyond_binary.data import DataConfig
from beyond_binary.data.from_datasets import load_hub
from beyond_binary.data.originals import repository_files
from beyond_binary.data.originals.faces import face_folder
from beyond_binary.devices import usable_device
from beyond_binary.embedder import Embedder
from beyond_binary.hub import limit_silence
from beyond_binary.report.charts import pair_picture, require_matplotlib
from beyond_binary.verification import Pairs, as_same, best_threshold, pair_scores, read_lfw_pairs, ten_fold, verify

COLUMNS = ("img_0", "img_1", "pair")


def embedded_scores(embedder: Embedder, pairs: Pairs, folder: Path, batch_size: int = 64) -> np.ndarray:
    """Similarities [n] of the pairs, whose files are in `folder`."""
    names = sorted({name for pair in pairs.files for name in pair})
    z = embedder.encode([folder / name for name in names], batch_size=batch_size, progress=True)
    return np.asarray(pairs.scores(dict(zip(names, z, strict=True)), geometry_of(embedder)))


def geometry_of(embedder: Embedder) -> str:
    """What similarity means between its embeddings."""
    return "cosine" if embedder.normalize else "euclidean"


def hub_scores(
    embedder: Embedder, config: DataConfig, columns: Sequence[str], batch_size: int = 64
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Similarities, and whether the two are the same, of the pairs of split train and of split test.

    Args:
        embedder: what embeds the images.
        config: which set on the Hub, with `train_split` and `query_split` for other names of the two splits.
        columns: of the two images and of "the same" (1 or True).

    Raises:
        ValueError: a split or a column that is not there.
    """
    splits, _ = load_hub(config)
    found = []
    for split in (config.train_split or "train", config.query_split or "test"):
        if split not in splits or not set(columns) <= set(splits[split].column_names):
            there = {name: part.column_names for name, part in splits.items()}
            raise ValueError(
                f"{config.source} has no split {split!r} with columns {', '.join(columns)}; it has {there}"
            )
        part = splits[split]
        same = as_same(part[columns[2]])  # before the images are embedded
        left, right = (embedder.encode(part[name], batch_size=batch_size, progress=True) for name in columns[:2])
        scores = np.asarray(pair_scores(left, right, geometry_of(embedder)))
        found.append((scores, same))
    return found


def inside(pairs: Pairs, fold: int | None) -> np.ndarray:
    """Which pairs are of this fold, counted from 1; None: all.

    Raises:
        ValueError: no such fold.
    """
    if fold is None:
        return np.ones(len(pairs.same), dtype=bool)
    if fold - 1 not in pairs.folds:
        raise ValueError(f"--fold {fold}: expected 1 to {pairs.folds.max() + 1}")
    return pairs.folds == fold - 1


def main(argv: list[str] | None = None) -> None:
    """Read the command line and print the table; what does not fit ends with a short message and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", required=True, help="folder of a saved embedder, or a Hub id")
    parser.add_argument(
        "--data.source", dest="source", required=True, help="lfw:FOLDER, with pairs.txt in it, or hub:USER/NAME"
    )
    parser.add_argument("--pairs", help="another pairs file")
    parser.add_argument("--data.config_name", dest="config_name", help="of a set on the Hub: its configuration")
    parser.add_argument("--data.revision", dest="revision", help="of a set on the Hub: branch, tag or commit")
    parser.add_argument(
        "--columns",
        nargs=3,
        default=COLUMNS,
        help="of a set on the Hub: two images, and whether they are the same",
    )
    parser.add_argument("--fold", type=int, help="only the pairs of this fold, counted from 1")
    parser.add_argument("--bootstrap", type=int, default=0, help="replicates over people, for 95 %% intervals")
    parser.add_argument("--histogram", help="write the histograms of genuine and impostor scores here, as a PNG")
    parser.add_argument("--device", default="auto", help="where the embedder runs; auto: a GPU where there is one")
    given = parser.parse_args(argv)
    limit_silence()
    try:
        if given.histogram:
            require_matplotlib()
        embedder = Embedder.from_pretrained(given.embedder).to(usable_device(given.device))
        if given.source.startswith("hub:"):
            if given.pairs or given.fold or given.bootstrap:
                raise ValueError(
                    "--pairs, --fold and --bootstrap need lfw:FOLDER: pairs on the Hub have no folds and no names"
                )
            config = DataConfig(source=given.source, config_name=given.config_name, revision=given.revision)
            train, (scores, same) = hub_scores(embedder, config, given.columns)
            found = {"accuracy": float(((scores >= best_threshold(*train)) == same).mean())} | verify(scores, same)
        else:
            folder = given.source.removeprefix("lfw:")
            if given.config_name or given.columns != COLUMNS or (given.revision and not folder.startswith("hub:")):
                raise ValueError(
                    "--data.config_name, --data.revision and --columns are of sets on the Hub (hub:USER/NAME)"
                )
            path = Path(folder).expanduser()
            if folder.startswith("hub:"):  # the files of LFW in a repository
                path, _ = repository_files(folder.removeprefix("hub:"), given.revision)
            pairs = read_lfw_pairs(given.pairs or path / "pairs.txt")
            chosen = inside(pairs, given.fold)
            if not pairs.folds.any():
                raise ValueError(
                    f"{given.pairs or path / 'pairs.txt'} has one fold; the threshold of a fold comes from the others, as in pairs.txt"
                )
            scores = embedded_scores(embedder, pairs, face_folder(path))
            folds = ten_fold(scores, pairs.same, pairs.folds)
            if given.fold is None:
                found = {"accuracy": folds.accuracy, "accuracy_error": folds.error}
            else:
                found = {"accuracy": folds.accuracies[given.fold - 1]}
            scores, same, people = scores[chosen], pairs.same[chosen], pairs.identities[chosen]
            found |= verify(scores, same, identities=people, bootstrap=given.bootstrap)
        for name, value in found.items():
            print(f"{name:<22}{value:.4f}")
        if given.histogram:
            Path(given.histogram).write_bytes(pair_picture(scores, same, "similarity"))
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
