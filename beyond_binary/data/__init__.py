"""Data sets: any data a user has, and sets that come with the package, as labelled items in splits."""

from .augment import Augment, with_mirror
from .config import DataConfig
from .embedded import embedded, list_embedded
from .items import Items, Splits
from .loading import BadImage, ImageSet, check_images, collate, load_checked, without_bad
from .readers import read_rows
from .splits import load_splits

__all__ = [
    "Augment",
    "BadImage",
    "DataConfig",
    "ImageSet",
    "Items",
    "Splits",
    "check_images",
    "collate",
    "embedded",
    "list_embedded",
    "load_checked",
    "load_splits",
    "read_rows",
    "with_mirror",
    "without_bad",
]
