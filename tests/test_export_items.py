"""Tables of embeddings, labels and neighbours, read back by pyarrow, pandas and numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from beyond_binary.export import write_items

N, D, K = 9, 4, 3


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(N, D)


def nearest(z: torch.Tensor, geometry: str) -> tuple[np.ndarray, np.ndarray]:
    """Places and scores, one item after the other."""
    unit = torch.nn.functional.normalize(z) if geometry == "cosine" else z
    score = torch.cdist(z, z) if geometry == "euclidean" else unit @ unit.T
    worst = torch.inf if geometry == "euclidean" else -torch.inf
    found = score.clone().fill_diagonal_(worst).sort(dim=1, descending=geometry != "euclidean")
    return found.indices[:, :K].numpy(), found.values[:, :K].numpy()


@pytest.mark.parametrize("geometry", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_everything_is_read_back(geometry, suffix, z, tmp_path) -> None:
    path, ids, poses = tmp_path / "new" / f"items{suffix}", np.arange(N) * 7 + 3, np.random.rand(N, 2, 2)
    given = {"labels": poses, "ids": ids, "names": [f"{i}.jpg" for i in range(N)], "columns": {"split": ["test"] * N}}
    write_items(path, z.requires_grad_(), k=K, geometry=geometry, **given)
    if suffix == ".npz":
        read = dict(np.load(path, allow_pickle=False))
        facts = {name: str(read.pop(name)) for name in ("geometry", "k")}
    else:
        table = pq.read_table(path)
        read = {name: np.array(table[name].to_pylist()) for name in table.column_names}
        facts = json.loads(table.schema.metadata[b"beyond_binary"])
        assert np.stack(pd.read_parquet(path)["embedding"]).shape == (N, D)
    places, scores = nearest(z.detach(), geometry)
    assert facts == {"geometry": geometry, "k": str(K)}
    np.testing.assert_array_equal(read.pop("neighbour_ids"), ids[places])
    np.testing.assert_allclose(read.pop("neighbour_scores"), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(read.pop("embedding").astype(np.float32), z.detach().numpy())
    np.testing.assert_array_equal(read.pop("label"), poses)
    assert read.pop("id").tolist() == ids.tolist()
    assert read.pop("name").tolist() == given["names"]
    assert read.pop("split").tolist() == ["test"] * N
    assert read == {}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_types_of_the_parquet_file(z, tmp_path: Path) -> None:
    write_items(tmp_path / "a.parquet", z, labels=torch.arange(N), k=K)
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "id": "int64",
        "name": "string",
        "embedding": "fixed_size_list<element: float>[4]",
        "neighbour_ids": "fixed_size_list<element: int64>[3]",
        "neighbour_scores": "fixed_size_list<element: float>[3]",
        "label": "int64",
    }


def test_copies_of_an_item_are_its_neighbours_and_it_is_not_its_own(tmp_path) -> None:
    z = torch.ones(40, 2)
    write_items(tmp_path / "a.npz", z, k=5)
    found = np.load(tmp_path / "a.npz")["neighbour_ids"]
    assert found.shape == (40, 5)
    assert (found != np.arange(40)[:, None]).all()
    assert all(len(set(row)) == 5 for row in found.tolist())


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_fewer_items_than_neighbours(suffix, tmp_path) -> None:
    for n in (1, 2):
        path = tmp_path / f"{n}{suffix}"
        write_items(path, torch.eye(2)[:n], k=5)
        if suffix == ".npz":
            assert np.load(path)["neighbour_ids"].shape == (n, n - 1)
        else:
            assert [len(row) for row in pd.read_parquet(path)["neighbour_ids"]] == [n - 1] * n


def test_refusals(z, tmp_path) -> None:
    for name, options, told in (
        ("a.csv", {}, r"\.parquet or \.npz"),
        ("a.npz", {"ids": [0] * N}, "different integer ids"),
        ("a.npz", {"ids": np.arange(N) / 2}, "different integer ids"),
        ("a.npz", {"names": ["a"]}, "9 values of 'name'"),
        ("a.parquet", {"labels": [1, 2]}, "9 values of 'label'"),
        ("a.parquet", {"columns": {"id": list(range(N))}}, "columns id: names that"),
        *(
            ("a.npz", {"columns": {c: [1] * N}}, f"columns {c}: names")
            for c in ("geometry", "k", "file", "allow_pickle")
        ),
        ("a.npz", {"labels": np.array([[1]] * N, dtype=object)}, "label: an .npz file"),
    ):
        with pytest.raises(ValueError, match=told):
            write_items(tmp_path / name, z, **options)
    assert list(tmp_path.iterdir()) == []
