"""Sets of faces in the files of their authors: Labeled Faces in the Wild."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..readers import Rows
from .classes import class_rows
from .common import ORIGINALS, must_exist, split_columns

LFW_PARTS = (
    "a folder with people.txt and lfw/ (or lfw_funneled/, lfw-deepfunneled/) of Labeled Faces in the Wild "
    "(vis-www.cs.umass.edu/lfw)"
)
LFW_FOLDERS = ("lfw", "lfw_funneled", "lfw-deepfunneled", "lfw-funneled", ".")


@ORIGINALS.register()
def lfw(path: Path, config: DataConfig, *, fold: int = 1) -> Rows:
    """People of Labeled Faces in the Wild (Huang et al., 2007): nine folds of people.txt train, one tests.

    People of the ten folds are different, and the pairs of fold i in pairs.txt are of people of fold i: a model trained
    on the other nine may be judged on them ("unrestricted, no outside data"). For a model trained on another set all ten
    count: recipes/verify.py gives the accuracy on the pairs either way.

    people.txt has the number of folds in its first line; each fold begins with the number of its people, and each of
    these has a line with name and number of images: NAME/NAME_0001.jpg and so on.

    Args:
        fold: which of the folds tests, counted from 1.
    """
    people = read_people(path / "people.txt")
    count = max(number for _, _, number in people)
    if not 1 <= fold <= count:
        raise ValueError(f"data.options.fold={fold}: expected 1 to {count}")
    listed = [(name, number, f"{name}/{name}_{i:04d}.jpg") for name, n, number in people for i in range(1, n + 1)]
    columns: dict[str, list[Any]] = {
        "class": [name for name, _, _ in listed],
        "fold": [number for _, number, _ in listed],
        **split_columns(["test" if number == fold else "train" for _, number, _ in listed], None),
    }
    return class_rows(face_folder(path), [file for _, _, file in listed], columns, config, LFW_PARTS)


def face_folder(path: Path) -> Path:
    """The folder of the people's folders."""
    found = next((path / name for name in LFW_FOLDERS if any((path / name).glob("*/*_0001.jpg"))), None)
    return must_exist(path / LFW_FOLDERS[0], LFW_PARTS) if found is None else found


def read_people(file: Path) -> list[tuple[str, int, int]]:
    """Name, number of images and fold (from 1) of each person of people.txt, in its order."""
    lines = must_exist(file, LFW_PARTS).read_text(encoding="utf-8").splitlines()
    people: list[tuple[str, int, int]] = []
    try:
        place = 1
        for fold in range(1, int(lines[0]) + 1):
            size = int(lines[place])
            for line in lines[place + 1 : place + 1 + size]:
                name, count = line.split()
                people.append((name, int(count), fold))
            place += 1 + size
        if place > len(lines) or not people or any(line.strip() for line in lines[place:]):
            raise ValueError(f"{len(lines)} lines, but its numbers say {place}")
    except (ValueError, IndexError) as error:
        raise ValueError(f"{str(file)!r} is not of the form of people.txt ({error}); expected {LFW_PARTS}") from error
    return people
