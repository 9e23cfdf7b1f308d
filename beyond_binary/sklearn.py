"""An embedder as a step of scikit-learn: images in, arrays of embeddings out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .embedder import Embedder


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Images to embeddings, for pipelines such as `make_pipeline(EmbeddingTransformer(folder), KNeighborsClassifier())`.

    `fit` learns nothing: it loads the embedder. `clone` (and with it a grid search) copies an embedder that is given as
    a module; a folder or a Hub id is a text and costs nothing to copy.

    Args:
        embedder: an `Embedder`, or what `Embedder.from_pretrained` takes.
        batch_size: images per forward pass.
        device: where the embedder runs, to which `fit` moves it (an `Embedder` that was given too: it is not copied);
            None leaves it where it is.
        progress: show a progress bar.
    """

    embedder_: Embedder

    def __init__(
        self,
        embedder: Embedder | str | os.PathLike[str],
        *,
        batch_size: int = 64,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        self.embedder = embedder
        self.batch_size = batch_size
        self.device = device
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> EmbeddingTransformer:
        """Load the embedder; images and labels are not looked at.

        Raises:
            FileNotFoundError: no such folder or Hub id.
        """
        given = self.embedder
        made = given if isinstance(given, Embedder) else Embedder.from_pretrained(given)
        self.embedder_ = made if self.device is None else made.to(self.device)
        return self

    def transform(self, X: Any) -> np.ndarray[Any, Any]:
        """Embeddings float32 [n dim] of n images: PIL images, paths, preprocessed tensors, or an array uint8 [n h w 3].

        Raises:
            ValueError: a text instead of a list of paths, or what `Embedder.encode` raises.
        """
        check_is_fitted(self)
        return self.embedder_.encode(
            _images(X), batch_size=self.batch_size, progress=self.progress, convert_to_numpy=True
        )

    @property
    def _n_features_out(self) -> int:
        return self.embedder_.dim

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "embedder_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.no_validation, tags.input_tags.two_d_array = True, False
        return tags


def _images(X: Any) -> Iterable[Any]:
    if isinstance(X, str | os.PathLike | Image.Image):
        raise ValueError(f"expected a list of images or paths, got one {type(X).__name__}; put it into a list")
    if hasattr(X, "columns"):
        raise ValueError(
            f"expected a list of images or paths, got a table; give its column of paths, such as X[{X.columns[0]!r}]"
        )
    if isinstance(X, np.ndarray) and (X.dtype.kind not in "OU" or X.ndim > 1):
        if X.ndim != 4 or X.shape[3] != 3 or X.dtype != np.uint8:
            raise ValueError(f"expected images as an array uint8 [n h w 3], got {X.dtype} {list(X.shape)}")
        return [Image.fromarray(image) for image in X]
    return X
