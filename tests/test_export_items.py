"""Tables of embeddings, labels and neighbours, read back by pyarrow, pandas and numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from beyond_binary.config import Config, dump_config
from beyond_binary.data import DataConfig, load_splits
from beyond_binary.export import write_items
from beyond_binary.runs import data_facts
from recipes import load

recipe = load("recipes/items.py")

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


# ---- of a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run leaves that the table is made of: nine images in three classes, three of them queries."""
    lines = ["file,kind"]
    for i in range(9):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'abc'[i % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = Config(data=DataConfig(source=str(tmp_path), label="kind", splitting="rows", rows=[2, 3, 4]))
    folder = tmp_path / "run"
    (folder / "embeddings").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "metrics.json").write_text(json.dumps({"data": data_facts(load_splits(config.data))}))
    save_file(
        {"query": torch.randn(3, D), "gallery": torch.randn(4, D)}, str(folder / "embeddings" / "after.safetensors")
    )
    return folder


def test_the_held_out_items_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.main([str(run), "--items", str(tmp_path / "items.parquet"), "--k", "3"])
    assert "items.parquet: 7 items" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "items.parquet")
    stored = load_file(run / "embeddings" / "after.safetensors")
    z = torch.cat([stored["query"], stored["gallery"]])
    np.testing.assert_array_equal(np.stack(table["embedding"]), z.numpy())
    assert table["name"].tolist() == [f"{i}.png" for i in range(2, 9)]
    assert table["id"].tolist() == list(range(2, 9))
    assert table["split"].tolist() == ["query"] * 3 + ["gallery"] * 4
    assert table["class_name"].tolist() == ["abc"[i % 3] for i in range(2, 9)]
    assert table["label"].tolist() == [i % 3 for i in range(2, 9)]
    places, _ = nearest(z, "euclidean")  # log-ratio, the default loss, compares by squared distances
    np.testing.assert_array_equal(np.stack(table["neighbour_ids"]), places + 2)


def test_a_run_whose_data_has_changed_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (tmp_path / "labels.csv").read_text()
    for change, told in (
        (lambda: (tmp_path / "labels.csv").write_text(text.replace("3.png,a", "3.png,b")), "another query split"),
        (lambda: (run / "metrics.json").unlink(), "no finished run: it has no metrics.json"),
    ):
        change()
        with pytest.raises(SystemExit) as ended:
            recipe.main([str(run), "--items", str(tmp_path / "items.npz")])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


def test_lists_of_different_lengths_are_columns_of_parquet(z, tmp_path) -> None:
    lists = [[1] * (1 + i % 3) for i in range(N)]
    write_items(tmp_path / "items.parquet", z, labels=lists, columns={"tags": [["a"] * len(row) for row in lists]}, k=0)
    read = pq.read_table(tmp_path / "items.parquet")
    assert read["label"].to_pylist() == lists
    assert read["tags"][2].as_py() == ["a", "a", "a"]
    with pytest.raises(ValueError, match="of one shape; write"):
        write_items(tmp_path / "items.npz", z, labels=lists)


def test_tensors_of_any_kind_are_written(z, tmp_path) -> None:
    labels, ids = torch.rand(N, 2, requires_grad=True).bfloat16(), torch.arange(N) + 5
    write_items(tmp_path / "items.npz", pd.DataFrame(z.numpy()), labels=labels, ids=ids, names=torch.arange(N))
    read = np.load(tmp_path / "items.npz")
    np.testing.assert_array_equal(read["label"], labels.detach().float().numpy())
    assert read["id"].tolist() == ids.tolist()
    assert read["name"].tolist() == [str(i) for i in range(N)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": -1}, "k of at least 0, got -1"),
        ({"columns": {"run": "x"}}, "one value of 'run' for each embedding, got 'x'"),
        ({"ids": np.arange(N, dtype=np.uint64) + 2**63}, "ids that int64 holds"),
    ],
)
def test_what_cannot_be_a_column_is_named(given, message, z, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        write_items(tmp_path / "items.parquet", z, **given)
