"""The index: exact and approximate search, what travels with it, and the recipe that builds and asks it."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beyond_binary import index as module
from beyond_binary.data import DataConfig, load_splits
from beyond_binary.data.splits import all_rows
from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.index import Index
from recipes import load

recipe = load("recipes/search.py")

KINDS = ["exact", "flat", "ivf", "hnsw"]
SPACES = ["cosine", "dot", "euclidean"]


def draw(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def needs(kind: str) -> None:
    if kind != "exact":
        pytest.importorskip("faiss")


def scores(z: torch.Tensor, q: torch.Tensor, geometry: str) -> torch.Tensor:
    if geometry == "euclidean":
        return torch.cdist(q.double(), z.double())
    if geometry == "cosine":
        z, q = (torch.nn.functional.normalize(a, dim=1) for a in (z, q))
    return q.double() @ z.double().T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", SPACES)
def test_search_finds_the_nearest(kind: str, geometry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(kind)
    monkeypatch.setattr(module, "CHUNK", 700)
    z, q = draw(200), draw(9, seed=1)
    found = Index(z, geometry=geometry, kind=kind).search(q, 5)
    all_scores = scores(z, q, geometry)
    best = all_scores.topk(5, largest=geometry != "euclidean")
    torch.testing.assert_close(found.scores.double(), all_scores.gather(1, found.places), rtol=1e-4, atol=1e-4)
    hits = (found.places[:, :, None] == best.indices[:, None]).any(2).double().mean()
    assert hits == 1 if kind in ("exact", "flat") else hits > 0.4
    one = Index(z, geometry=geometry, kind=kind).search(q[0], 1)
    assert one.places.shape == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_that_of_the_search(kind: str) -> None:
    needs(kind)
    index = Index(draw(400), geometry="euclidean", kind=kind)
    recall = index.recall(10, sample=400)
    true = torch.cdist(index.embeddings, index.embeddings).topk(10, largest=False).values[:, -1:]
    assert recall == pytest.approx(
        float((index.search(index.embeddings, 10).scores <= true + 1e-4).double().mean()), abs=1e-3
    )
    assert recall == 1 if kind in ("exact", "flat") else 0.3 < recall <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", SPACES)
def test_what_is_loaded_is_what_was_saved(kind: str, geometry: str, tmp_path: Path) -> None:
    needs(kind)
    columns = {"age": [0.5 * i for i in range(60)], "who": [f"p{i % 7}" for i in range(60)], "name": list(range(60))}
    index = Index(draw(60), [f"{i}.png" for i in range(60)], columns, geometry=geometry, kind=kind)
    index.save(tmp_path / "a" / "index")
    again = Index.load(tmp_path / "a" / "index")
    before, after = (one.search(draw(4, seed=2), 6) for one in (index, again))
    assert torch.equal(before.places, after.places)
    assert torch.equal(before.scores, after.scores)
    assert again.items([3, -1, 0]) == [
        {"name": "3.png", "age": 1.5, "who": "p3", "columns.name": 3},
        {"name": "0.png", "age": 0.0, "who": "p0", "columns.name": 0},
    ]
    assert (again.names, again.kind, again.geometry) == (index.names, kind, geometry)
    index.save(tmp_path / "a" / "index")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["index"]
    assert not [p for p in (tmp_path / "a" / "index").iterdir() if "pickle" in p.name or p.suffix in (".pkl", ".pt")]


def test_nothing_is_lost_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(draw(5), kind="exact")
    index.save(tmp_path / "index")
    monkeypatch.setattr(module.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Index(draw(9), kind="exact").save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ValueError, match="exists and is no index"):
        index.save(tmp_path / "thesis")


def test_more_than_there_is_and_ties() -> None:
    index = Index(torch.ones(3, 2), kind="exact")
    assert sorted(index.search(torch.ones(2), 10).places[0].tolist()) == [0, 1, 2]
    assert index.recall(2) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.zeros(0, 3)}, r"embeddings \[n d\] with at least one row, got \[0, 3\]"),
        (
            {"embeddings": torch.tensor([[1.0], [float("nan")]])},
            "1 of 2 embeddings are not finite, .* the first in row 1",
        ),
        ({"geometry": "cosin"}, "did you mean 'cosine'"),
        ({"kind": "hsnw"}, "did you mean 'hnsw'"),
        ({"names": ["a"]}, "expected 4 names, one for each embedding, got 1"),
        ({"columns": {"a": [1]}}, "expected 4 rows of columns.*got 1"),
    ],
)
def test_what_makes_no_index(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Index(**{"embeddings": draw(4), "kind": "exact", **arguments})


def test_what_cannot_be_searched_or_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(draw(4), kind="exact")
    with pytest.raises(ValueError, match=r"queries \[q 8\], as the items are, got \[1, 3\]"):
        index.search(torch.zeros(3))
    with pytest.raises(ValueError, match="1 of 1 queries are not finite"):
        index.search(torch.full((8,), torch.inf))
    with pytest.raises(ValueError, match="k of at least 1"):
        index.search(draw(1), 0)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Index.load(tmp_path)
    index.save(tmp_path / "index")
    config = json.loads((tmp_path / "index" / "index.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format version 99"),
        ({"items": 5}, "expected 5; build it again"),
        ({}, "lacks format_version, kind; build the index again"),
    ):
        left = config | change if change else {k: v for k, v in config.items() if k not in ("kind", "format_version")}
        (tmp_path / "index" / "index.json").write_text(json.dumps(left))
        with pytest.raises(ValueError, match=message):
            Index.load(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps(config))
    whole = (tmp_path / "index" / "embeddings.safetensors").read_bytes()
    (tmp_path / "index" / "embeddings.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Index.load(tmp_path / "index")
    (tmp_path / "index" / "embeddings.safetensors").write_bytes(whole)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install beyond_binary\[faiss\]; or take 'exact'"):
        Index(draw(4), kind="hnsw").search(draw(1))


# ---- on a GPU: played, for there is none


class Transfers:
    """Functions that a faiss for GPUs has; indices stay where they are, and are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        faiss = pytest.importorskip("faiss")
        self.sent: list[Any] = []
        self.trained = 0
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", self.to_gpu, raising=False)
        monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3, raising=False)
        built = module.faiss_index

        def counted(*given: Any, **options: Any) -> Any:
            self.trained += 1
            return built(*given, **options)

        monkeypatch.setattr(module, "faiss_index", counted)

    def to_gpu(self, resources: Any, device: int, index: Any) -> Any:
        self.sent.append(device)
        return self.Limited(index)

    class Limited:
        """An index that refuses long lists, as those on a GPU do."""

        def __init__(self, index: Any) -> None:
            self.index = index

        def search(self, queries: Any, k: int) -> Any:
            assert 0 < k <= 2048, f"GPU index only supports min/max-K selection up to 2048 (requested {k})"
            return self.index.search(queries, k)


def test_without_a_faiss_for_gpus_the_search_there_is_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pytest.importorskip("faiss"), "index_cpu_to_gpu", raising=False)
    z = draw(30)
    index = Index(z, device="cuda")
    assert index.kind == "exact"
    with pytest.raises(ImportError, match=r"needs a faiss that is built for GPUs .*take 'exact', or device 'cpu'"):
        Index(z, kind="flat", device="cuda:1")
    Index(z, kind="flat").save(tmp_path / "flat")
    Index(z, kind="ivf").save(tmp_path / "ivf")
    assert Index.load(tmp_path / "flat", device="cuda").kind == "exact"
    with pytest.raises(ImportError, match="kind 'ivf' on device 'cuda' needs a faiss that is built for GPUs"):
        Index.load(tmp_path / "ivf", device="cuda")


@pytest.mark.parametrize(("kind", "device"), [("hnsw", "cuda"), ("flat", "mps")])
def test_kinds_that_faiss_has_for_no_such_device(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Transfers(monkeypatch)
    with pytest.raises(ValueError, match=f"no index of kind '{kind}' for device '{device}'; take 'exact'"):
        Index(draw(30), kind=kind, device=device)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Transfers(monkeypatch)
    Index(draw(30), kind="flat", device="cuda:2")
    with pytest.raises(ValueError, match="faiss sees 3 GPUs, and device 'cuda:3' is none of them; take device 'cpu'"):
        Index(draw(30), kind="flat", device="cuda:3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_real_gpu_finds_what_the_cpu_finds(kind: str, tmp_path: Path) -> None:
    if not hasattr(pytest.importorskip("faiss"), "index_cpu_to_gpu"):
        pytest.skip("needs a faiss that is built for GPUs")
    z, q = draw(3000), draw(20, seed=1)
    for geometry in ("cosine", "euclidean"):
        Index(z, kind=kind, geometry=geometry).save(tmp_path / geometry)
        here, there = (Index.load(tmp_path / geometry, device=device) for device in ("cpu", "cuda"))
        for k in (10, 2048, 2049):
            torch.testing.assert_close(there.search(q, k).scores, here.search(q, k).scores, equal_nan=True)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_on_a_gpu_an_index_is_built_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = Transfers(monkeypatch)
    index = Index(draw(200), kind=kind, device="cuda:2")
    found = index.search(draw(3, seed=1), 5)
    index.save(tmp_path / "index")
    index.search(draw(3, seed=1), 5)
    assert (transfers.trained, transfers.sent) == (1, [2])
    again = Index.load(tmp_path / "index", device="cuda")
    assert torch.equal(again.search(draw(3, seed=1), 5).places, found.places)
    again.save(tmp_path / "index")
    assert transfers.trained == (1 if kind == "ivf" else 2)  # "flat" keeps no file: it is the vectors
    assert transfers.sent == [2, 0]


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_longer_lists_than_a_gpu_can_make_are_made_on_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transfers, z = Transfers(monkeypatch), draw(2060)
    index = Index(z, kind=kind, device="cuda")
    assert index.search(z[:2], 2048).places.shape == (2, 2048)
    assert transfers.sent == [0]
    assert torch.equal(index.search(z[:2], 2049).places, Index(z, kind=kind).search(z[:2], 2049).places)


def test_cells_that_are_searched_are_as_many_as_a_gpu_can_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    assert module.faiss_index(draw(400).numpy(), "ivf").nprobe == 1
    monkeypatch.setattr("beyond_binary.faiss_index.GPU_MOST", 2)
    built = module.faiss_index(draw(2000).numpy(), "ivf")
    assert (built.nlist, built.nprobe) == (51, 2)


def test_vectors_are_sent_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index, sent = Index(draw(30), kind="exact"), []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda z, *given: (z is index.embeddings and sent.append(1)) or to(z, *given)
    )
    for _ in range(3):
        index.search(draw(2))
    assert sent == [1]


# ---- from folders and data sets


def write_photos(folder: Path, each: int = 3) -> None:
    rng = np.random.default_rng(0)
    for colour in ("red", "blue"):
        (folder / colour).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(60, size=(40, 40, 3), dtype=np.uint8)
            pixels[..., 0 if colour == "red" else 2] += 150
            Image.fromarray(pixels).save(folder / colour / f"{i}.png")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    return create_embedder("timm/test_byobnet", head="none", dim=None, image_size=32).eval()


def test_an_index_of_a_folder_has_its_files_and_columns(embedder: Embedder, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    index = Index.build(embedder, str(tmp_path / "photos"), thumbnails=16, kind="exact")
    names = [f"{colour}/{i}.png" for colour in ("blue", "red") for i in range(3)]
    assert index.names == names
    torch.testing.assert_close(index.embeddings, embedder.encode([tmp_path / "photos" / name for name in names]))
    (item,) = index.items([4])
    with Image.open(io.BytesIO(item.pop("thumbnail"))) as small:
        assert small.size == (16, 16)
    assert item == {"name": "red/1.png", "class": "red"}
    assert index.geometry == "cosine"


def test_images_that_cannot_be_read_are_named_or_left_out(embedder: Embedder, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "blue" / "1.png").write_bytes(b"no image")
    config = DataConfig(source=str(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"image 'blue/1.png' cannot be read .*bad_images=skip"):
        Index.build(embedder, config)
    index = Index.build(embedder, replace(config, bad_images="skip"), thumbnails=8)
    assert len(index) == 5
    (item,) = index.items([1])
    assert (item["name"], item["class"]) == ("blue/2.png", "blue")


def test_an_index_of_an_embedded_set_and_of_one_split(embedder: Embedder) -> None:
    config = DataConfig(source="embedded:digits", rows=[20, 12])
    index, test = (Index.build(embedder, config, split=split) for split in (None, "test"))
    assert (len(index), len(test)) == (32, 12)
    splits = load_splits(config)
    assert [item["label"] for item in test.items(range(12))] == [str(label) for label in splits.query.labels]
    assert index.names == [*splits.train.names, *splits.query.names]
    torch.testing.assert_close(index.embeddings[20:], test.embeddings)
    with pytest.raises(ValueError, match=r"no rows of split 'val'; column 'split' has 'test', 'train'"):
        Index.build(embedder, config, split="val")


def test_all_splits_of_a_table_are_read_whatever_training_takes(tmp_path: Path) -> None:
    write_photos(tmp_path)
    names = [f"{colour}/{i}.png" for colour in ("blue", "red") for i in range(3)]
    lines = [f"{name},{part}" for name, part in zip(names, ["train", "test", "extra"] * 2, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,part", *lines]))
    config = DataConfig(source=str(tmp_path), split="part")
    assert len(all_rows(config).names) == 6
    assert list(all_rows(config, "extra").names) == ["blue/2.png", "red/2.png"]


# ---- the recipe


def test_the_recipe_builds_and_asks(embedder: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos")
    embedder.save_pretrained(tmp_path / "embedder")
    index = ["--index", str(tmp_path / "index"), "--device", "cpu"]
    both = ["--embedder", str(tmp_path / "embedder"), *index]

    def run(*words: str) -> str:
        recipe.main([*words])
        return capsys.readouterr().out

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            recipe.main([*words])
        assert ended.value.code == 2
        return capsys.readouterr().err

    said = run("build", *both, "--data.source", str(tmp_path / "photos"), "--kind", "exact")
    assert "6 images" in said
    assert "exact, cosine" in said
    page = tmp_path / "hits.html"
    asked = tmp_path / "photos" / "blue" / "1.png"
    lines = run("query", *both, "--image", str(asked), "--k", "4", "--gallery", str(page)).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("1.0000  ")
    assert lines[0].endswith("blue/1.png")
    text = page.read_text()
    assert text.count("<figure>") == 4
    assert text.count("data:image/jpeg;base64,") == 5
    assert "http" not in text
    np.save(tmp_path / "query.npy", embedder.encode(asked)[0].numpy())
    assert run("query", *index, "--vector", str(tmp_path / "query.npy"), "--k", "4").splitlines() == lines[:4]
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    np.save(tmp_path / "texts.npy", np.array(["a", "b"]))
    np.save(tmp_path / "two.npy", np.zeros((2, 3)))
    for words, told in (
        (["query", *both, "--text", "something blue"], "error: encode_text needs a trunk"),
        (["query", *index, "--text", "something blue"], "--text need --embedder"),
        (["query", *index, "--vector", str(tmp_path / "two.npy")], r"one vector [d] or [1 d], got [2, 3]"),
        (["query", *index, "--vector", str(tmp_path / "no.npy")], "error: "),
        (["query", *index, "--vector", str(tmp_path / "several.npz")], "expected an .npy file of numbers"),
        (["query", *index, "--vector", str(tmp_path / "texts.npy")], "expected an .npy file of numbers"),
        (["build", *both, "--data.source", str(tmp_path / "nowhere")], "error: no file or folder"),
        (["build", *both], "expected --data.source"),
        (["build", *both, "--data.sorce", "x"], "did you mean data.source"),
        (["build", *both, "--data.source", "x", "--knd", "flat"], "unknown argument --knd"),
        (["build", *both, "--data.source", "embedded:digits", "--device", "abacus"], "device 'abacus' cannot be used"),
    ):
        assert told in refused(*words)


def test_a_text_finds_images_by_a_clip_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The search is by the text tower's embedding; the image that lies nearest to it comes first."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "layers": 1, "width": 32, "heads": 2},
    }
    clip = create_embedder("open_clip/ViT-B-32", head="none", dim=None, trunk_options=config)
    clip.save_pretrained(tmp_path / "clip")
    common = ["--embedder", str(tmp_path / "clip"), "--index", str(tmp_path / "index")]
    data = ["--data.source", "embedded:scenes", "--data.rows", "[8, 4]", "--split", "test"]
    recipe.main(["build", *common, *data])
    assert "4 images, 16 dimensions" in capsys.readouterr().out
    recipe.main(["query", *common, "--text", "a red circle", "--gallery", str(tmp_path / "hits.html")])
    lines = capsys.readouterr().out.splitlines()[:-1]
    items = load_splits(DataConfig(source="embedded:scenes", rows=[8, 4])).query
    similar = (clip.encode(items.images) @ clip.encode_text("a red circle").T)[:, 0]
    order = similar.argsort(descending=True).tolist()
    assert lines == [f"{similar[i]:.4f}  {items.names[i]}" for i in order]
    assert "<p>a red circle</p>" in (tmp_path / "hits.html").read_text()


def test_a_folder_of_images_without_labels_is_searched(tmp_path: Path) -> None:
    for place in range(3):
        Image.new("RGB", (40, 30), (80 * place, 0, 0)).save(tmp_path / f"{place}.png")
    embedder = create_embedder("timm/test_vit", dim=8, image_size=32)
    index = Index.build(embedder, str(tmp_path))
    assert index.names == ["0.png", "1.png", "2.png"]
    assert index.columns is None
    assert index.items([1]) == [{"name": "1.png"}]


def test_a_column_called_thumbnail_of_the_set_is_kept(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,thumbnail\na.png,small\n")
    embedder = create_embedder("timm/test_vit", dim=8, image_size=32)
    plain, pictured = (Index.build(embedder, str(tmp_path), thumbnails=size) for size in (0, 20))
    for index in (plain, pictured):
        index.save(tmp_path / "index")
        (item,) = Index.load(tmp_path / "index").items([0])
        assert item["columns.thumbnail"] == "small"
        assert ("thumbnail" in item) == (index is pictured)
    assert item["thumbnail"][:2] == b"\xff\xd8"


def test_no_item_is_no_item() -> None:
    index = Index(draw(3), columns={"age": [1, 2, 3]})
    assert index.items([]) == index.items([-1]) == []


def test_a_file_that_is_called_as_ours_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / module.CONFIG).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="exists and is no index"):
        Index(draw(3)).save(tmp_path)
    assert (tmp_path / module.CONFIG).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_embeddings_too_large_to_be_compared_are_refused(kind: str) -> None:
    needs(kind)
    with pytest.raises(ValueError, match="too large to be compared in float32, the first in row 1"):
        Index(torch.tensor([[1.0, 0.0], [1e25, 0.0]]), kind=kind)
    with pytest.raises(ValueError, match="1 of 1 queries are not finite, or too large"):
        Index(draw(3), kind=kind).search(torch.full((8,), 1e25))


def test_names_and_columns_of_tensors_arrays_and_tables() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1, 2, 3, 4]}, index=[9, 7, 5, 3])[1:]
    index = Index(draw(3).numpy()[::-1], torch.arange(3), frame)
    assert index.names == ["0", "1", "2"]
    assert index.items([0]) == [{"name": "0", "age": 2}]
    assert Index(frame.assign(width=1.0), geometry="euclidean").search(frame.assign(width=1.0), 1).places[
        :, 0
    ].tolist() == [0, 1, 2]
    index = Index(draw(3), columns={"label": torch.arange(3), "box": np.arange(6).reshape(3, 2)})
    assert index.items([2]) == [{"name": "2", "label": 2, "box": [4, 5]}]
    assert Index(draw(3), columns={}).columns is None
    with pytest.raises(ValueError, match="expected 3 rows of columns"):
        Index(draw(3), columns={"age": [1]})
