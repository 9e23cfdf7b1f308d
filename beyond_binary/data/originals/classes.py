"""Sets of classes in the files of their authors: CUB-200-2011, Cars196, Online Products, In-Shop and iNaturalist.

Unless the set says otherwise, classes are divided as in the literature: the first half trains, the second half tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import DataConfig
from ..readers import Rows, StoredImages
from .common import (
    ORIGINALS,
    CroppedImages,
    as_table,
    check_images_exist,
    folder_with,
    load_matlab,
    must_exist,
    number,
    read_words,
    split_columns,
    whole_numbers,
)


def class_rows(
    root: Path,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    config: DataConfig,
    what: str,
    class_names: list[str] | None = None,
    boxes: NDArray[np.float64] | None = None,
) -> Rows:
    """Rows of the images `root / name`, with their columns, cropped to `boxes` [n 4] where these are given."""
    files = [root / name for name in names]
    check_images_exist(files, config, what)
    paths = [str(file) for file in files]
    corners = None if boxes is None else np.rint(boxes).astype(np.int64)
    images = StoredImages(paths, None, config.size) if corners is None else CroppedImages(paths, corners, config.size)
    table = as_table({"file": list(names), **{name: list(values) for name, values in columns.items()}})
    return Rows(images, names, table, {} if class_names is None else {"class": class_names})


def first_half_trains(classes: NDArray[np.int64], count: int) -> dict[str, list[str]]:
    """The columns split and role for classes [n] numbered from 0 to count - 1."""
    return split_columns(np.where(classes < count // 2, "train", "test").tolist(), None)


def from_one(classes: NDArray[np.int64], names: Sequence[str], file: Path) -> NDArray[np.int64]:
    """Classes numbered from 1 in a file, numbered from 0 here; ValueError for one that has no name."""
    if wrong := sorted(set(classes.tolist()) - set(range(1, len(names) + 1))):
        raise ValueError(f"{str(file)!r} has the class {wrong[0]}, but the set names {len(names)} classes, from 1 on")
    return classes - 1


# ---------------------------------------------------------------- CUB-200-2011

CUB_PARTS = (
    "a folder with images.txt, image_class_labels.txt, classes.txt and images/ (and bounding_boxes.txt for crop) of "
    "CUB-200-2011 (www.vision.caltech.edu/datasets/cub_200_2011)"
)


@ORIGINALS.register()
def cub(path: Path, config: DataConfig, *, crop: bool = False) -> Rows:
    """Birds of CUB-200-2011 (Wah et al., 2011): classes 1 to 100 train, 101 to 200 test; train_test_split.txt is not read.

    The text files have an image number and a value in each line: its file below images/, its class from 1 to 200, or the
    box as left, top, width and height in pixels.

    Args:
        crop: cut the images to their boxes.
    """
    root = folder_with(path, "images.txt", "CUB_200_2011", CUB_PARTS)
    listed = read_words(root / "images.txt", 2, CUB_PARTS)
    names = [words[1] for words in read_words(root / "classes.txt", 2, CUB_PARTS)]
    file = root / "image_class_labels.txt"
    labels = whole_numbers([words[0] for words in by_image(listed, file, 1)], file, CUB_PARTS)
    classes = from_one(labels, names, file)
    boxes = None
    if crop:
        sizes = np.array(by_image(listed, root / "bounding_boxes.txt", 4), dtype=np.float64)
        boxes = np.concatenate([sizes[:, :2], sizes[:, :2] + sizes[:, 2:]], axis=1)
    columns = {"class": classes.tolist(), **first_half_trains(classes, len(names))}
    return class_rows(root / "images", [words[1] for words in listed], columns, config, CUB_PARTS, names, boxes)


def by_image(listed: Sequence[Sequence[str]], file: Path, count: int) -> list[list[str]]:
    """The `count` words that a file has for each listed image, found by its number."""
    found = {words[0]: words[1:] for words in read_words(file, count + 1, CUB_PARTS)}
    if missing := [words[0] for words in listed if words[0] not in found]:
        raise ValueError(f"{str(file)!r} lacks {len(missing)} images of images.txt, the first: {missing[0]}")
    return [found[words[0]] for words in listed]


# ---------------------------------------------------------------- Cars196

CARS_PARTS = (
    "a folder of Cars196 (Stanford Cars) in one of three forms: cars_annos.mat with car_ims/; devkit/ (cars_meta.mat, "
    "cars_train_annos.mat) and cars_test_annos_withlabels.mat with cars_train/ and cars_test/; or anno_train.csv, "
    "anno_test.csv and names.csv with car_data/ (ai.stanford.edu/~jkrause/cars, which is down: its copies on Kaggle)"
)
CARS_TRAIN = "cars_train_annos.mat"
Cars = tuple[list[str], list[list[float]], list[str]]
"""Files, for each its class from 1 on with the box as left, top, right, bottom, and the names of the classes."""


@ORIGINALS.register()
def cars(path: Path, config: DataConfig, *, crop: bool = False) -> Rows:
    """Cars of Cars196 (Krause et al., 2013): classes 1 to 98 train, 99 to 196 test; the authors' halves are joined.

    Three forms are read: cars_annos.mat (struct array annotations with relative_im_path, bbox_x1 ... bbox_y2 and class;
    class_names), the devkit (annotations with fname, bbox_* and class), and the CSV files of a copy on Kaggle (no header:
    file, left, top, right, bottom, class; images in car_data/car_data/train/NAME OF THE CLASS, "/" in it written as "-").

    Args:
        crop: cut the images to their boxes.
    """
    joined = next((f for f in (path / "cars_annos.mat", path / "devkit" / "cars_annos.mat") if f.exists()), None)
    apart = [f for f in (path / "anno_train.csv", path / "devkit" / CARS_TRAIN, path / CARS_TRAIN) if f.exists()]
    if joined and ((path / "car_ims").is_dir() or not apart):  # the list also comes with the other two forms
        source, (files, facts, names) = joined, cars_joined(joined)
    elif (path / "anno_train.csv").exists():
        source, (files, facts, names) = path / "anno_train.csv", cars_csv(path)
    else:
        source, (files, facts, names) = path / "devkit", cars_devkit(path)
    table = np.array(facts)
    classes = from_one(whole_numbers(table[:, 0].tolist(), source, CARS_PARTS), names, source)
    columns = {"class": classes.tolist(), **first_half_trains(classes, len(names))}
    what = f"the images that {str(source)!r} lists: {CARS_PARTS}"
    return class_rows(path, files, columns, config, what, names, table[:, 1:] if crop else None)


def cars_joined(file: Path) -> Cars:
    """What cars_annos.mat says of all images."""
    found = load_matlab(file)
    entries = annotated(found, file, "relative_im_path")
    return [str(e.relative_im_path) for e in entries], [class_and_box(e) for e in entries], class_names(found, file)


def cars_devkit(path: Path) -> Cars:
    """What the devkit and the labels of the test images, published later, say; either may lie in devkit/ or beside it."""

    def load(name: str) -> tuple[dict[str, Any], Path]:
        file = next((f for f in (path / "devkit" / name, path / name) if f.exists()), path / "devkit" / name)
        return load_matlab(must_exist(file, CARS_PARTS)), file

    files: list[str] = []
    facts: list[list[float]] = []
    for folder, name in (("cars_train", CARS_TRAIN), ("cars_test", "cars_test_annos_withlabels.mat")):
        entries = annotated(*load(name), "fname")
        files += [f"{folder}/{entry.fname}" for entry in entries]
        facts += [class_and_box(entry) for entry in entries]
    return files, facts, class_names(*load("cars_meta.mat"))


def cars_csv(path: Path) -> Cars:
    """What anno_train.csv, anno_test.csv and names.csv say."""
    names = [line.strip().strip('"') for line in must_exist(path / "names.csv", CARS_PARTS).read_text().splitlines()]
    names = [name for name in names if name]
    top = "car_data/car_data" if (path / "car_data" / "car_data").is_dir() else "car_data"
    files: list[str] = []
    facts: list[list[float]] = []
    for part in ("train", "test"):
        file = path / f"anno_{part}.csv"
        rows = read_words(file, 6, CARS_PARTS, sign=",")
        table = np.stack([whole_numbers(row[1:], file, CARS_PARTS) for row in rows])
        from_one(table[:, 4], names, file)
        files += [
            f"{top}/{part}/{names[row[4] - 1].replace('/', '-')}/{words[0]}"
            for words, row in zip(rows, table, strict=True)
        ]
        facts += table[:, [4, 0, 1, 2, 3]].tolist()
    return files, facts, names


def annotated(found: Mapping[str, Any], file: Path, name: str) -> list[Any]:
    """The elements of the struct array annotations; ValueError where they lack the file name or a class."""
    entries = list(np.atleast_1d(np.asarray(found.get("annotations", ()), dtype=object)).ravel())
    if not entries or not all(hasattr(entry, name) and hasattr(entry, "class") for entry in entries):
        raise ValueError(
            f"{str(file)!r} has no struct array annotations with {name} and class (the labels of the test images are in "
            f"cars_test_annos_withlabels.mat); expected {CARS_PARTS}"
        )
    return entries


def class_and_box(entry: Any) -> list[float]:
    """Class, left, top, right and bottom of an annotation."""
    return [number(entry, name) for name in ("class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]


def class_names(found: Mapping[str, Any], file: Path) -> list[str]:
    """The names of the classes, a cell array of texts."""
    names = [str(name) for name in np.atleast_1d(np.asarray(found.get("class_names", ()), dtype=object)).ravel()]
    if not names:
        raise ValueError(f"{str(file)!r} has no class_names; expected {CARS_PARTS}")
    return names


# ---------------------------------------------------------------- Stanford Online Products

SOP_PARTS = (
    "a folder with Ebay_train.txt, Ebay_test.txt and the folders bicycle_final/ ... toaster_final/ of Stanford Online "
    "Products (cvgl.stanford.edu/projects/lifted_struct)"
)


@ORIGINALS.register()
def sop(path: Path, config: DataConfig) -> Rows:
    """Stanford Online Products (Oh Song et al., CVPR 2016): 11,318 products train, 11,316 others test.

    Below a header the lists have image, class and superclass number (from 1) and the file of each image. The column
    superclass holds the name of its folder, "bicycle" to "toaster".
    """
    root = folder_with(path, "Ebay_train.txt", "Stanford_Online_Products", SOP_PARTS)
    files = {part: root / f"Ebay_{part}.txt" for part in ("train", "test")}
    lists = {part: read_words(file, 4, SOP_PARTS, header=1) for part, file in files.items()}
    rows = [row for part in lists.values() for row in part]
    split = [part for part, listed in lists.items() for _ in listed]
    classes = [whole_numbers([row[1] for row in lists[part]], file, SOP_PARTS) - 1 for part, file in files.items()]
    columns = {
        "class": np.concatenate(classes).tolist(),
        "superclass": [row[3].partition("/")[0].removesuffix("_final") for row in rows],
        **split_columns(split, None),
    }
    return class_rows(root, [row[3] for row in rows], columns, config, SOP_PARTS)


# ---------------------------------------------------------------- In-Shop Clothes Retrieval

INSHOP_PARTS = (
    "a folder with Eval/list_eval_partition.txt and img/ (or Img/img/) of the In-Shop Clothes Retrieval Benchmark of "
    "DeepFashion (mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html)"
)


@ORIGINALS.register()
def inshop(path: Path, config: DataConfig, *, highres: bool = False) -> Rows:
    """In-Shop Clothes Retrieval (Liu et al., CVPR 2016): items by item_id, with the authors' queries and gallery.

    list_eval_partition.txt has the number of images in its first line, a header, and then file, item and train, query or
    gallery. Set data.role=role.

    Args:
        highres: take the images in img_highres/ in place of img/.
    """
    file = next(
        (f for f in (path / "Eval" / INSHOP_LIST, path / INSHOP_LIST) if f.exists()), path / "Eval" / INSHOP_LIST
    )
    rows = read_words(file, 3, INSHOP_PARTS, header=2)
    head = file.read_text(encoding="utf-8").split(maxsplit=1)[0]
    if head != str(len(rows)):
        raise ValueError(
            f"{str(file)!r} says {head} images in its first line, but lists {len(rows)}; it is not complete"
        )
    if unknown := sorted({row[2] for row in rows} - {"train", "query", "gallery"}):
        raise ValueError(f"{str(file)!r}: expected train, query or gallery, got {unknown[0]!r}")
    folder = "img_highres" if highres else "img"
    names = [f"{folder}/{row[0].removeprefix('img/')}" for row in rows]
    role = [row[2] for row in rows]
    columns = {
        "class": [row[1] for row in rows],
        "split": ["train" if part == "train" else "test" for part in role],
        "role": role,
    }
    root = next((r for r in (path, path / "Img") if (r / folder).is_dir()), path)
    return class_rows(root, names, columns, config, INSHOP_PARTS)


INSHOP_LIST = "list_eval_partition.txt"

# ---------------------------------------------------------------- iNaturalist

INAT_PARTS = (
    "a folder with train_val2018/ of iNaturalist 2018 (github.com/visipedia/inat_comp) and Inaturalist_train_set1.txt and "
    "Inaturalist_test_set1.txt (github.com/Andrew-Brown1/Smooth_AP), or train2018.json for data.options.division=halves"
)


@ORIGINALS.register()
def inaturalist(path: Path, config: DataConfig, *, division: Literal["smooth_ap", "halves"] = "smooth_ap") -> Rows:
    """Species of iNaturalist 2018; the class is the number of the category, which is also the name of its folder.

    Args:
        division: "smooth_ap" is that of Brown et al. (ECCV 2020): 5,690 species train, 2,452 others test, by two lists of
            files such as train_val2018/Aves/2761/NAME.jpg, in the folder or in Inat_dataset_splits/. "halves" needs no
            lists: the first half of the categories in train2018.json (and val2018.json, where it is there) trains. This
            is a division of ours; its numbers are not to be compared with those of papers.
    """
    names, split = inat_lists(path) if division == "smooth_ap" else inat_halves(path)
    folders = [Path(name).parts for name in names]
    if short := [name for name, parts in zip(names, folders, strict=True) if len(parts) < 3]:
        raise ValueError(
            f"expected files like train_val2018/Aves/2761/NAME.jpg, got {short[0]!r}; expected {INAT_PARTS}"
        )
    columns = {
        "class": whole_numbers([parts[-2] for parts in folders], path, INAT_PARTS).tolist(),
        "superclass": [parts[-3] for parts in folders],
        **split_columns(split, None),
    }
    return class_rows(path, names, columns, config, INAT_PARTS)


def inat_lists(path: Path) -> tuple[list[str], list[str]]:
    """Files and split by the two lists."""
    root = folder_with(path, "Inaturalist_train_set1.txt", "Inat_dataset_splits", INAT_PARTS)
    lists = {part: read_words(root / f"Inaturalist_{part}_set1.txt", 1, INAT_PARTS) for part in ("train", "test")}
    return [row[0] for rows in lists.values() for row in rows], [part for part, rows in lists.items() for _ in rows]


def inat_halves(path: Path) -> tuple[list[str], list[str]]:
    """Files and split by halves of the categories in the JSON files (images, annotations and categories as in COCO)."""
    first = must_exist(path / "train2018.json", INAT_PARTS)
    names: list[str] = []
    categories: list[int] = []
    known: set[int] = set()
    for file in [first] + [f for f in (path / "val2018.json",) if f.exists()]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            category = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
            names += [entry["file_name"] for entry in content["images"]]
            categories += [category[entry["id"]] for entry in content["images"]]
            known |= {entry["id"] for entry in content["categories"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(file)!r} is not of the form of iNaturalist ({type(error).__name__}: {error}); expected images with "
                f"id and file_name, annotations with image_id and category_id, and categories with id"
            ) from error
    train = set(sorted(known)[: len(known) // 2])
    return names, ["train" if category in train else "test" for category in categories]
