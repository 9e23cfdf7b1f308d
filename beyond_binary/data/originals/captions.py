"""Sets of captioned images in Karpathy's splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..readers import Rows, StoredImages
from .common import ORIGINALS, as_table, check_images_exist, must_exist, split_columns

KARPATHY_PARTS = (
    "dataset_coco.json (or _flickr8k, _flickr30k) of Karpathy's splits (cs.stanford.edu/people/karpathy/deepimagesent), "
    "beside the images: train2014/ and val2014/ of MS-COCO (cocodataset.org), flickr30k-images/ of Flickr30k, or name their "
    "folder in data.options.images"
)
KARPATHY_FOLDERS = (".", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "images")


@ORIGINALS.register()
def karpathy(
    path: Path,
    config: DataConfig,
    *,
    images: str | None = None,
    captions: int = 5,
    restval: bool = True,
    queries: int | None = None,
) -> Rows:
    """Images with captions in the splits of Karpathy and Fei-Fei (CVPR 2015); labels texts [n captions].

    Args:
        images: folder of the images; unset: that of the JSON file, or one in it that the authors' archives unpack to.
        captions: the first so many captions of an image; where there are fewer, the rest is "".
        restval: images of the split restval train (113,287 training images in MS-COCO); else they are left out.
        queries: the first so many test images are queries, the others the gallery (with data.role=role).
    """
    if captions < 1:
        raise ValueError(f"data.options.captions={captions}: expected at least 1")
    must_exist(path, KARPATHY_PARTS)
    root = must_exist(Path(images).expanduser() if images else path.parent, KARPATHY_PARTS)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        read = [
            (e["split"], Path(e.get("filepath", ""), e["filename"]), [s["raw"] for s in e["sentences"]])
            for e in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(
            f"{str(path)!r} is not of the form of Karpathy's splits ({type(error).__name__}: {error}); expected images "
            f"with split, filename and sentences with raw, as in {KARPATHY_PARTS}"
        ) from error
    read = [entry for entry in read if entry[0] in ("train", "val", "test") or (entry[0] == "restval" and restval)]
    if not read:
        raise ValueError(f"{str(path)!r} has no images in the splits train, restval, val and test")
    if images is None:
        folders = [root / folder for folder in KARPATHY_FOLDERS]
        some = [file for _, file, _ in read[:50]]  # of which a few may be missing
        root = max(folders, key=lambda folder: sum((folder / file).exists() for file in some))
    files = [root / file for _, file, _ in read]
    check_images_exist(files, config, KARPATHY_PARTS)
    split = ["train" if name == "restval" else name for name, _, _ in read]
    texts = [[" ".join(text.split()) for text in raw[:captions]] for _, _, raw in read]
    columns = {"file": [str(file) for _, file, _ in read], **split_columns(split, queries)}
    labels = np.array([[*lines, *[""] * (captions - len(lines))] for lines in texts], dtype=np.str_)
    return Rows(
        StoredImages([str(f) for f in files], None, config.size), columns["file"], as_table(columns), labels=labels
    )
