"""The embedder as a step of scikit-learn: its conventions, and a pipeline that classifies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.sklearn import EmbeddingTransformer


@pytest.fixture
def embedder() -> Embedder:
    return create_embedder("timm/test_vit", dim=6, image_size=32)


@pytest.fixture
def pictures() -> tuple[list[Image.Image], list[str]]:
    """Twelve pictures of two colours, each a little different."""
    shade = np.random.default_rng(0).integers(0, 60, (12, 20, 20, 3), dtype=np.uint8)
    shade[::2, ..., 0] += 190
    return [Image.fromarray(image) for image in shade], ["red", "dark"] * 6


def test_numpy_and_names_of_sentence_transformers(embedder, pictures, capsys) -> None:
    images, _ = pictures
    z = embedder.encode(images, batch_size=5)
    assert isinstance(z, torch.Tensor)
    assert capsys.readouterr().err == ""
    array = embedder.encode(images, batch_size=5, show_progress_bar=True, convert_to_numpy=True)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, z.numpy())
    assert "12/12" in capsys.readouterr().err
    embedder.encode(images, progress=True, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    assert embedder.encode([], convert_to_numpy=True).shape == (0, 6)


def test_a_pipeline_classifies_and_is_searched(embedder, pictures, tmp_path) -> None:
    images, names = pictures
    embedder.save_pretrained(tmp_path / "embedder")
    pipeline = make_pipeline(EmbeddingTransformer(str(tmp_path / "embedder")), KNeighborsClassifier(1))
    assert pipeline.fit(images[:6], names[:6]).predict(images[6:]).tolist() == names[6:]
    search = GridSearchCV(
        pipeline, {"kneighborsclassifier__n_neighbors": [3], "embeddingtransformer__batch_size": [2]}, cv=2
    )
    assert search.fit(images, names).best_score_ == 1
    assert pipeline[:-1].get_feature_names_out().tolist() == [f"embeddingtransformer{i}" for i in range(6)]
    frame = pipeline[:-1].set_output(transform="pandas").transform(images)
    assert frame.shape == (12, 6)
    np.testing.assert_array_equal(frame.to_numpy(), embedder.encode(images).numpy())


def test_every_form_of_images_gives_the_same(embedder, pictures, tmp_path) -> None:
    images, _ = pictures
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    step = EmbeddingTransformer(embedder, batch_size=5).fit(images)
    expected = embedder.encode(images, batch_size=5).numpy()
    for given in (images, paths, np.array([str(p) for p in paths]), np.stack([np.asarray(i) for i in images])):
        np.testing.assert_array_equal(step.transform(given), expected)


def test_conventions(embedder, tmp_path) -> None:
    step = EmbeddingTransformer(embedder, batch_size=3)
    assert step.get_params() == {"embedder": embedder, "batch_size": 3, "device": None, "progress": False}
    assert step.set_params(batch_size=7).batch_size == 7
    with pytest.raises(NotFittedError):
        step.transform([])
    twin = clone(step.fit([]))
    assert twin.batch_size == 7
    with pytest.raises(NotFittedError):
        twin.transform([])
    assert torch.equal(twin.embedder.head[0].weight, embedder.head[0].weight)
    folder = Path(tmp_path / "embedder")
    assert clone(EmbeddingTransformer(folder)).embedder == folder
    with pytest.raises(FileNotFoundError):
        EmbeddingTransformer(str(folder)).fit([])


def test_refusals(embedder) -> None:
    step = EmbeddingTransformer(embedder).fit([])
    with pytest.raises(ValueError, match="put it into a list"):
        step.transform("a.png")
    with pytest.raises(ValueError, match=r"uint8 \[n h w 3\], got float64 \[4, 3\]"):
        step.transform(np.zeros((4, 3)))


def test_a_table_is_told_to_give_its_column(embedder) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"its column of paths, such as X\['path'\]"):
        EmbeddingTransformer(embedder).fit_transform(pandas.DataFrame({"path": ["a.png"]}))
