"""Exported embedders against torch: onnxruntime and torch.export, at batch sizes that the export did not see."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import open_clip.factory
import pytest
import torch

from beyond_binary import export
from beyond_binary.embedder import Embedder, create_embedder

KINDS = {
    "vit": ("timm/test_vit", {"image_size": (32, 48), "pooling": "gem", "head": "mlp"}),
    "clip": ("open_clip/tiny-clip", {}),
    "resnet, not normalised": ("timm/test_resnet", {"image_size": 32, "normalize": False}),
    "lora": ("timm/test_vit", {"image_size": 32, "lora": {}}),
    "checkpoints": ("timm/test_vit", {"image_size": 32, "grad_checkpointing": True}),
}
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
kinds = ["clip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "clip")]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for table in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(open_clip.factory, table, open_clip.factory.__dict__[table].copy())
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "configs")

    def build(kind: str) -> Embedder:
        trunk, options = KINDS[kind]
        embedder = create_embedder(trunk, dim=12, **options)
        for name, parameter in embedder.named_parameters():
            if ".lora_B." in name:  # they start at 0
                torch.nn.init.normal_(parameter, std=0.1)
        return embedder

    return build


def batches(embedder: Embedder) -> list[torch.Tensor]:
    return [torch.randn(n, 3, *embedder.preprocess["size"]) for n in (1, 2, 5)]


@pytest.mark.parametrize("kind", kinds)
def test_onnxruntime_gives_what_torch_gives(kind, make, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    embedder = make(kind)
    embedder.export_onnx(tmp_path / "new" / "embedder.onnx")
    assert embedder.training
    session = onnxruntime.InferenceSession(tmp_path / "new" / "embedder.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("pixels", ["n", 3, *embedder.preprocess["size"]])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("embeddings", ["n", 12])]
    for x in batches(embedder):
        (z,) = session.run(None, {"pixels": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(z), embedder.encode(x), atol=1e-5, rtol=1e-5)
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told == export.facts(embedder)
    assert told["preprocess"] == embedder.preprocess
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["embedder.onnx"]


@pytest.mark.parametrize("kind", kinds)
def test_a_program_read_back_gives_what_torch_gives(kind, make, tmp_path) -> None:
    embedder = make(kind)
    embedder.export_torch(tmp_path / "embedder.pt2")
    facts = {export.FACTS: ""}
    read = torch.export.load(tmp_path / "embedder.pt2", extra_files=facts)
    assert json.loads(facts[export.FACTS]) == export.facts(embedder)
    for x in batches(embedder):
        with torch.no_grad():
            z = read.module()(x)
        torch.testing.assert_close(z, embedder.encode(x), atol=1e-5, rtol=1e-5)
    if kind == "clip":
        text = [name for name in read.state_dict if not name.startswith(("trunk.visual.", "head."))]
        assert sum(read.state_dict[name].numel() for name in text) < 100
        assert embedder.trunk.token_embedding.weight.numel() > 100


def test_the_text_tower_alone(make, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="head='none'"):
        make("clip").export_onnx(tmp_path / "a.onnx", "text")
    embedder = create_embedder("open_clip/tiny-clip", dim=None, head="none")
    embedder.export_onnx(tmp_path / "text.onnx", "text")
    embedder.export_torch(tmp_path / "text.pt2", "text")
    session = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("tokens", ["n", 8], "tensor(int64)")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("embeddings", ["n", 16])]
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told == export.facts(embedder, "text")
    assert (told["input"], told["context_length"]) == ("tokens", 8)
    read = torch.export.load(tmp_path / "text.pt2")
    assert not [name for name, value in read.state_dict.items() if ".visual." in name and value.numel() > 1]
    for texts in (["a dog"], ["a dog", "two cats on a mat, asleep in the afternoon sun", ""]):
        tokens = embedder.tokenizer(texts)
        expected = embedder.encode_text(texts)
        assert expected.norm(dim=1).allclose(torch.ones(len(texts)))
        (z,) = session.run(None, {"tokens": tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(z), expected, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(read.module()(tokens), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="'image' or 'text', got 'sound'"):
        embedder.export_onnx(tmp_path / "a.onnx", "sound")


@pytest.mark.slow
def test_weights_beyond_a_file_lie_beside_it(make, tmp_path, monkeypatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    embedder = make("clip").half()
    monkeypatch.setattr(export, "LARGEST", 1000)
    embedder.export_onnx(tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx.data").stat().st_size > 4 * 16 * 32
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (x, *_) = batches(embedder)
    (z,) = session.run(None, {"pixels": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(z), embedder.float().encode(x), atol=1e-5, rtol=1e-5)
    monkeypatch.undo()
    embedder.export_onnx(tmp_path / "a.onnx")
    assert [p.name for p in tmp_path.glob("a*")] == ["a.onnx"]


def test_refusals(make, tmp_path, monkeypatch) -> None:
    embedder = make("vit")
    with pytest.raises(ValueError, match=r"ends in \.onnx, got 'a\.pt'"):
        embedder.export_onnx(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"ends in \.pt2, got 'a\.onnx'"):
        embedder.export_torch(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"beyond_binary\[onnx\]"):
        embedder.export_onnx(tmp_path / "a.onnx")
