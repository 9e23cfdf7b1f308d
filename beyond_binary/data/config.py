"""The fields that describe a data set, for config files and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    """Where the images and labels are, which columns mean what, and how the rows are split.

    Args:
        source: "embedded:NAME" (drawn or shipped sets), "hub:USER/NAME" (a `datasets` set on the Hub), or a
            path: a folder or zip of images (one folder per class, or with a table), a table file, or a folder
            written or read by `datasets`. Sets in the files of their authors: classes in "cub:FOLDER" (CUB-200-2011),
            "cars:FOLDER" (Cars196), "sop:FOLDER" (Stanford Online Products), "inshop:FOLDER" (In-Shop Clothes
            Retrieval), "inaturalist:FOLDER" (iNaturalist 2018) and "lfw:FOLDER" (Labeled Faces in the Wild);
            labels of their own in "mpii:FOLDER" (MPII Human Pose; joints), "lsun_rooms:FOLDER" (LSUN room
            layout; label maps) and "karpathy:FILE.json" (MS-COCO or Flickr captions in Karpathy's splits).
            Their columns are split (train, val, test) and role; `label` chooses a column instead of their own
            labels. FOLDER may be a repository on the Hub, "mpii:hub:USER/NAME", or a path in it.
        options: Options of a set in the files of its authors. cub: crop; cars: crop; sop: none; inshop: highres;
            inaturalist: division; lfw: fold; mpii: train, missing, occluded, margin; lsun_rooms: layout_type,
            side; karpathy: images, captions, restval. The last three also have queries (the first so many test
            rows are queries, the others the gallery, with role: role). See beyond_binary.data.originals.
        table: CSV, TSV, JSONL or parquet file with one row per image: its name inside the folder or zip, or a
            path of its own. Unset: the only table called labels or metadata, or parquet, else the only table in
            the root of the source; without one, folders are classes.
        image: Column with the image or its file name. Unset: the image column of the set, or the first of
            image, file_name, file, filename, path, img.
        label: Column with the label, or several numeric columns (or patterns such as "*_[xy]", in table
            order) that are stacked to one float64 vector. Text is captions, or names for the targets that read
            names, where it comes as a list: several columns, [one column], or a column of lists. Integers and
            text in one column are classes, floats stay floats.
            Unset: class_columns, else label or class.
        label_file: Array file with the labels [n ...], in place of `label`: an .npy file with one entry per row, in the
            order of the rows, or an .npz file with the arrays `names` (of the images, or ids where `id` is set) and
            `labels`, in any order. A path of its own, or a file inside the folder or zip.
        class_columns: Column or columns that together make the class: the label if `label` is unset, and what
            the class_disjoint and class_folds splits go by (unset: the label).
        split: Column that says which split a row belongs to. Unset: "split" if there is one.
        train_split: Value of the split column for training rows.
        query_split: Value of the split column for queries (searched among themselves if there is no gallery).
        gallery_split: Value of the split column for the gallery. Unset: no gallery.
        role: Column with the values "train", "query" and "gallery"; divides the rows that are not for
            training.
        id: Column with a unique number or text per row: checked, and the name of images that have none. Items
            are numbered by row in any case.
        splitting: "given" (split or role column), "class_disjoint" (first half of the sorted classes trains,
            second half tests), "class_folds" (folds of the training classes) or "rows" (counts in file
            order). Sorted means as numbers where the classes are integers or all their names are, else as
            text; classes that a `datasets` set declares keep its order.
        fold: For class_folds: which fold is held out, counted from 0.
        folds: For class_folds: number of folds of the training classes: those of train_split if `split` is set, or if
            there is a column "split" whose training rows share no class with the others; else the first half of the
            sorted classes. A role counts only where it divides training rows.
        rows: Numbers of train, query and (optional) gallery rows, in file order; for embedded sets: of train
            and test items.
        shuffle: For rows: divide them in an order drawn with the seed, not in file order.
        config_name: Configuration of a Hub set that has several.
        revision: Branch, tag or commit on the Hub, for example refs/convert/parquet. The run's record has the
            commit that it was.
        streaming: Read a Hub set row after row, without downloading its files; images are kept in memory, no
            larger than `size`.
        limit: Keep at most this many items of each split, drawn with the seed.
        seed: Seed of embedded sets and of `limit`.
        size: Side in pixels of drawn embedded sets; images of other sources are shrunk to this shorter side
            when they are read.
        bad_images: "error" stops before training if an image cannot be read or a file that the table names is
            missing; "skip" leaves such images out and counts them.
        workers: Number of loader processes; 0 loads in the training process.
        cache: Keep decoded images in memory. Unset: only if they take less than 1 GiB.
    """

    source: str = "embedded:figures"
    options: dict[str, Any] = field(default_factory=dict)
    table: str | None = None
    image: str | None = None
    label: list[str] | str | None = None
    label_file: str | None = None
    class_columns: list[str] | str | None = None
    split: str | None = None
    train_split: str = "train"
    query_split: str = "test"
    gallery_split: str | None = None
    role: str | None = None
    id: str | None = None
    splitting: Literal["given", "class_disjoint", "class_folds", "rows"] = "given"
    fold: int = 0
    folds: int = 4
    rows: list[int] | None = None
    shuffle: bool = False
    config_name: str | None = None
    revision: str | None = None
    streaming: bool = False
    limit: int | None = None
    seed: int = 0
    size: int | None = None
    bad_images: Literal["error", "skip"] = "error"
    workers: int = 0
    cache: bool | None = None
