"""Fine-tuning CLIP: towers, locks, layer decay, adapters, captions in the batch, retrieval and zero-shot scores."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from accelerate import PartialState, debug_launcher
from safetensors.torch import load_file, save_file
from test_train import fresh_accelerator, kill_after, recipe, same, weights  # noqa: F401 (a fixture)
from timm.optim import param_groups_layer_decay
from torch.nn.parallel import DistributedDataParallel

from beyond_binary import clip, towers
from beyond_binary.config import EvaluationConfig, dump_config, parse_config
from beyond_binary.data import Items, Splits
from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.judge import Judge
from beyond_binary.objective import create_objective
from beyond_binary.trunks import build_trunk

ROOT = Path(__file__).parent.parent
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 2},
}
RESNET = {
    "embed_dim": 32,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None},
    "text_cfg": {"context_length": 8, "layers": 1, "width": 64, "heads": 1},
}
TIMM = {**VIT, "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 64}}


def make(config: dict = VIT, **options) -> Embedder:
    torch.manual_seed(0)
    return create_embedder("open_clip/ViT-B-32", head="none", dim=None, trunk_options=config, **options)


def pixels(embedder: Embedder, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, *embedder.preprocess["size"], generator=torch.Generator().manual_seed(1))


def trained(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


# ---- towers and locks


@pytest.mark.parametrize("unlocked", range(5))
def test_unlocked_layers_are_those_of_open_clip(unlocked):
    theirs = make().trunk
    theirs.lock_image_tower(unlocked_groups=unlocked)
    assert trained(make(unlocked=unlocked).trunk) == trained(theirs)


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [
        ("ViT-B-32", 14, 14),
        ("RN50", 18, 14),
        ("coca_ViT-B-32", 14, 14),
        ("ViT-B-16-SigLIP", 14, 14),
        ("convnext_base", 39, 14),
    ],
)
def test_every_parameter_has_a_layer_in_its_tower(name, image, text):
    with torch.device("meta"):
        model = build_trunk(f"open_clip/{name}", open_clip.get_model_config(name))
    found = towers.layers(model, "open_clip")
    for tower, count in (("image", image), ("text", text)):
        assert {layer for own, layer in found.values() if own == tower} == set(range(count))
    left = {key.split(".")[0] for key, _ in model.named_parameters() if key not in found}
    assert left <= {"logit_scale", "logit_bias", "text_decoder"}
    assert all(key.startswith("visual.") == (tower == "image") for key, (tower, _) in found.items())


def test_unlocked_layers_of_a_timm_tower():
    every = trained(make(TIMM).trunk.visual)
    assert trained(make(TIMM, unlocked=0).trunk.visual) == set()
    assert trained(make(TIMM, unlocked=1).trunk.visual) == {"head.proj.weight"}
    two = trained(make(TIMM, unlocked=2).trunk.visual)
    assert {name.split(".")[1] for name in two - {"head.proj.weight"}} == {"layer4"}
    assert two < every
    assert trained(make(TIMM, unlocked=6).trunk.visual) == every
    with pytest.raises(ValueError, match=r"unlocked from 0 .* to 6 .*, got 7"):
        make(TIMM, unlocked=7)


def test_a_locked_batch_norm_keeps_its_statistics_and_another_does_not():
    embedder = make(TIMM, unlocked=2)
    before = {k: v.clone() for k, v in embedder.state_dict().items() if "running" in k}
    embedder.train()(pixels(embedder))
    changed = {k.split(".")[3] for k, v in embedder.state_dict().items() if k in before and not v.equal(before[k])}
    assert changed == {"layer4"}


def test_a_plain_timm_trunk_is_locked_too_and_its_head_is_not():
    embedder = create_embedder("timm/test_vit", dim=8, image_size=32, unlocked=0)
    assert trained(embedder) == {"head.0.weight", "head.0.bias"}
    last = trained(create_embedder("timm/test_vit", dim=8, image_size=32, unlocked=1).trunk)
    depth = len(timm.create_model("test_vit").blocks)
    assert {name.rpartition(".")[0].split(".")[0] for name in last} == {"blocks", "norm"}
    assert {name.split(".")[1] for name in last if name.startswith("blocks")} == {str(depth - 1)}


def test_the_text_tower_is_trained_on_request_and_nothing_else_beside_it():
    for config in (VIT, TIMM, {**VIT, "custom_text": True}):
        embedder = make(config, text=True, unlocked=0)
        names = trained(embedder)
        assert embedder.trains_text
        assert names
        assert not any("visual" in name or "logit" in name for name in names)
        embedder.embed_texts(["a cat", "a dog"])[:, 0].sum().backward()
        assert {n for n, p in embedder.named_parameters() if p.grad is not None} == names
    assert not make().trains_text
    with pytest.raises(ValueError, match="needs a trunk 'open_clip"):
        create_embedder("timm/test_vit", text=True)


def test_layer_decay_is_timms():
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    embedder = create_embedder("timm/test_vit", head="none", dim=None, image_size=32)
    theirs = {}
    for group in param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.7):
        for p in group["params"]:
            theirs[next(n for n, q in model.named_parameters() if q is p)] = group["lr_scale"], group["weight_decay"]
    ours = {}
    for group in embedder.param_groups(2.0, weight_decay=0.1, layer_decay=0.7):
        for p in group["params"]:
            name = next(n for n, q in embedder.trunk.named_parameters() if q is p)
            ours[name] = pytest.approx(group["lr"] / 2), group["weight_decay"]
    assert theirs == ours


def test_layer_decay_of_both_towers_starts_at_their_outputs():
    embedder = make(text=True)
    groups = {g["name"]: g["lr"] for g in embedder.param_groups(1.0, layer_decay=0.5)}
    assert groups["trunk_layer4"] == groups["text_layer3"] == 1
    assert groups["trunk_layer3"] == groups["text_layer2_no_decay"] == 0.5
    assert groups["trunk_layer0"] == 0.5**4
    assert groups["text_layer0"] == 0.5**3
    given = [id(p) for g in embedder.param_groups(1.0, layer_decay=0.5) for p in g["params"]]
    assert sorted(given) == sorted(id(p) for p in embedder.parameters() if p.requires_grad)
    assert {g["name"] for g in embedder.param_groups(1.0)} == {"trunk", "trunk_no_decay", "text", "text_no_decay"}


@pytest.mark.parametrize("config", [VIT, {**VIT, "custom_text": True}, "timm"])
def test_gradient_checkpointing_changes_no_gradient(config):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        if config == "timm":
            embedder = create_embedder("timm/test_vit", image_size=32, grad_checkpointing=checkpointing)
            loss = embedder(pixels(embedder))[:, 0].sum()
        else:
            embedder = make(config, text=True, grad_checkpointing=checkpointing)
            kept = embedder.trunk.visual.transformer.grad_checkpointing
            assert kept == checkpointing
            loss = (embedder(pixels(embedder))[:2] * embedder.embed_texts(["a cat", "a dog"])).sum()
        loss.backward()
        grads.append({n: p.grad for n, p in embedder.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_no_gradient_checkpointing_is_said(monkeypatch):
    def refuse(self, enable=True):
        assert not enable, "not here"

    monkeypatch.setattr(timm.models.VisionTransformer, "set_grad_checkpointing", refuse)
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        create_embedder("timm/test_vit", image_size=32, grad_checkpointing=True)


def test_towers_that_cannot_checkpoint_are_refused():
    with pytest.raises(ValueError, match="ModifiedResNet has no gradient checkpointing"):
        make(RESNET, grad_checkpointing=True)
    make(RESNET, grad_checkpointing=True, text=True, unlocked=0)
    with pytest.warns(UserWarning, match="ModifiedResNet has no .* the image tower keeps its activations"):
        make(RESNET, grad_checkpointing=True, text=True)
    never = {**VIT, "vision_cfg": {"timm_model_name": "dla34", "timm_pool": "avg", "image_size": 64}}
    with torch.device("meta"), pytest.raises(ValueError, match="DLA has no gradient checkpointing"):
        make(never, grad_checkpointing=True)


# ---- weights


def test_weights_of_the_image_tower_alone(tmp_path):
    torch.manual_seed(5)
    net = timm.create_model("test_resnet", num_classes=7)
    save_file({k: v for k, v in net.state_dict().items() if "num_batches" not in k}, tmp_path / "net.safetensors")
    embedder = make(TIMM, weights=tmp_path / "net.safetensors")
    state = embedder.trunk.visual.trunk.state_dict()
    assert torch.equal(state["conv1.0.weight"], net.state_dict()["conv1.0.weight"])
    assert torch.equal(embedder.trunk.text_projection, make(TIMM).trunk.text_projection)
    for config in (VIT, TIMM):
        torch.manual_seed(6)
        other = create_embedder("open_clip/ViT-B-32", head="none", dim=None, trunk_options=config).trunk
        save_file({k: v.contiguous() for k, v in other.visual.state_dict().items()}, tmp_path / "tower.safetensors")
        assert same(
            make(config, weights=tmp_path / "tower.safetensors").trunk.visual.state_dict(), other.visual.state_dict()
        )
        save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "all.safetensors")
        assert same(make(config, weights=tmp_path / "all.safetensors").trunk.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match=r"do not fit the network; missing: "):
        make(VIT, weights=tmp_path / "net.safetensors")


# ---- adapters


def test_without_peft_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"beyond_binary\[lora\]"):
        make(lora={})
    with pytest.raises(ValueError, match="no option rank; it has r, alpha, dropout, targets"):
        make(lora={"rank": 3})


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="LoRA is an extra: pip install 'beyond_binary[lora]'")


@pytest.mark.parametrize("kind", ["vit", "timm tower", "timm"])
def test_adapters_start_at_nothing_learn_and_are_merged_when_saved(peft, kind, tmp_path):
    def build(**options):
        torch.manual_seed(0)
        if kind == "timm":
            return create_embedder("timm/test_vit", dim=8, image_size=32, **options)
        targets = {"targets": ["conv1.0", "downsample.1"]} if kind == "timm tower" else {}
        if options:
            options["lora"] |= targets
        return make(VIT if kind == "vit" else TIMM, **options)

    plain, embedder = build().eval(), build(lora={"r": 2, "alpha": 4})
    x = pixels(embedder)
    with torch.no_grad():
        torch.testing.assert_close(embedder.eval()(x), plain(x))
    names = trained(embedder)
    assert all("lora_" in name or name.startswith("head.") for name in names)
    before = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    optimizer = torch.optim.SGD([p for p in embedder.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        embedder.train()(x)[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in embedder.named_parameters() if not torch.allclose(p, before[n], rtol=1e-5, atol=1e-6)}
    assert moved == names
    embedder.eval().save_pretrained(tmp_path / "e")
    assert towers.has_lora(embedder.trunk)
    again = Embedder.from_pretrained(tmp_path / "e")
    assert again.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(again(x), embedder(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(again(x), plain(x), atol=1e-3)
    if kind != "timm":
        theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'e'}")
        with torch.no_grad():
            assert torch.equal(theirs.eval().encode_image(x, normalize=True), again(x))
    embedder.merge_lora()
    embedder.load_state_dict(again.state_dict())


def test_adapters_go_where_something_is_trained(peft):
    embedder = make(unlocked=2, lora={})
    assert {name.split("resblocks.")[1][0] for name in trained(embedder)} == {"2"}
    assert not any(name.startswith("trunk.transformer") for name in trained(embedder))
    both = trained(make(text=True, lora={"targets": ["c_fc"]}))
    assert trained(make(text=True, lora={"targets": "c_fc"})) == both
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in both} == {"c_fc"}
    assert any(name.startswith("trunk.transformer") for name in both)
    for wrong, message in (
        ({"targets": ["nothing"]}, "no layer that is trained has the name"),
        ({"r": 0}, "peft refuses"),
    ):
        with pytest.raises(ValueError, match=message):
            make(lora=wrong)


def test_adapters_that_would_do_nothing_are_left_out(peft):
    options = {"depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2)}
    with pytest.warns(UserWarning, match=r"2 of 13 layers have no adapter, for the network reads .*attn\.qkv"):
        embedder = create_embedder(
            "timm/swinv2_tiny_window8_256", dim=8, image_size=64, trunk_options=options, lora={"r": 2}
        )
    (embedder(pixels(embedder)) * torch.randn(4, 8)).sum().backward()
    adapters = {n: p for n, p in embedder.trunk.named_parameters() if p.requires_grad}
    assert len(adapters) == 22
    assert all(p.grad is not None for p in adapters.values())
    with pytest.raises(ValueError, match=r"adapters would do nothing, for the network reads .*visual\.attnpool"):
        make(RESNET, lora={})


def test_attentions_to_other_widths_get_no_adapters(peft):
    options = {
        "embed_dim": 16,
        "multimodal_cfg": {
            "context_length": 8,
            "vocab_size": 64,
            "width": 16,
            "heads": 1,
            "layers": 1,
        },
        "vision_cfg": VIT["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": VIT["text_cfg"] | {"embed_cls": True, "output_tokens": True, "vocab_size": 64},
    }
    names = trained(create_embedder("open_clip/coca_ViT-B-32", head="none", dim=None, trunk_options=options, lora={}))
    assert any(".resblocks.0.attn." in name for name in names)
    assert not any("attn_pool" in name for name in names)


# ---- captions in the batch


def test_captions_are_drawn_evenly_and_never_empty():
    labels = np.array([["a", "b", ""], ["c", " ", ""]])
    drawn = [clip.draw_captions(labels) for _ in range(200)]
    assert {second for _, second in drawn} == {"c"}
    first = [text for text, _ in drawn]
    assert set(first) == {"a", "b"}
    assert 70 < first.count("a") < 130
    torch.manual_seed(7)
    once = clip.draw_captions(np.array([list("abcdefgh")] * 9))
    torch.manual_seed(7)
    assert clip.draw_captions(np.array([list("abcdefgh")] * 9)) == once
    with pytest.raises(ValueError, match="item 1 has no caption"):
        clip.draw_captions(np.array([["a", "b"], ["", " "]]))
    with pytest.raises(ValueError, match="texts"):
        clip.draw_captions(np.zeros((2, 3)))


def test_images_beside_texts_are_the_symmetric_loss_of_clip():
    """With a class per item, NT-Xent of the joint batch is the mean of both cross-entropies over all other items."""
    images, texts = torch.nn.functional.normalize(torch.randn(2, 5, 8, dtype=torch.float64), dim=2)
    z, labels, ids = clip.beside(images, texts, torch.arange(5), torch.arange(5) + 100)
    loss = create_objective("nt_xent", temperature=0.1)(z, labels, ids=ids)
    logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
    own = torch.arange(10).roll(5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, own))
    assert len(set(ids.tolist())) == 10


@pytest.mark.parametrize("loss", ["soft_contrastive", "log_ratio", "rank_n_contrast"])
def test_an_item_and_its_captions_are_at_label_distance_0(loss):
    words = ["a red circle.", "two blue stars on sand.", "a green heart on snow."]
    labels = np.array([[w, w.upper()] for w in words])
    objective = create_objective(loss, target="captions(vectors='embedded:scenes')")
    z = torch.randn(6, 4, requires_grad=True)
    z, labels, ids = clip.beside(z[:3], z[3:], labels, torch.arange(3))
    code = objective.target.encode(labels)
    y = objective.target.distance(code, code)
    assert y.diagonal(3).tolist() == [0, 0, 0]
    value = objective(z, labels, ids=ids)
    value.backward()
    assert value.isfinite()


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = recipe.TrainModule(
            make(text=True), create_objective("soft_contrastive", target="captions(vectors='embedded:scenes')")
        )

    def forward(self, *batch):
        return self.inner(*batch)


WORDS = np.array([["a red circle."], ["two blue stars."], ["a green heart."], ["the large cross."], ["a disc."]])


def _gradients(module, part):
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    loss = module(images[part], WORDS[part], torch.arange(5)[part])
    loss.backward()
    inner = module.module.inner if isinstance(module, DistributedDataParallel) else module.inner
    return {n: p.grad for n, p in inner.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


def _share(folder):
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    save_file(_gradients(DistributedDataParallel(Both()), part), f"{folder}/{rank}.safetensors")


@pytest.mark.slow
def test_two_processes_give_both_towers_the_gradients_of_one(tmp_path):
    debug_launcher(_share, (str(tmp_path),), num_processes=2)
    whole = _gradients(Both(), slice(0, 5))
    for rank in range(2):
        part = load_file(tmp_path / f"{rank}.safetensors")
        assert part.keys() == whole.keys()
        assert any("text_projection" in name for name in part)
        for name in whole:
            torch.testing.assert_close(part[name], whole[name], rtol=1e-3, atol=1e-5)


class Criterion(torch.nn.Module):
    """Two linear towers below open_clip's place for a loss."""

    def __init__(self, gather):
        super().__init__()
        torch.manual_seed(4)
        self.towers = torch.nn.ModuleList(torch.nn.Linear(6, 4) for _ in range(2))
        self.loss = clip.ClipCriterion(create_objective("nt_xent", gather=gather), across=True)

    def forward(self, images, texts):
        return self.loss(self.towers[0](images), self.towers[1](texts))


PAIRED = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(5))


def _of_towers(module, part):
    loss = module(*PAIRED[:, part])
    loss.backward()
    return {n.removeprefix("module."): p.grad for n, p in module.named_parameters()} | {"loss": loss.detach()}


def _share_towers(folder):
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    for gather in (True, False):
        module = DistributedDataParallel(Criterion(gather))
        save_file(_of_towers(module, part), f"{folder}/{gather}-{rank}.safetensors")


@pytest.mark.slow
def test_two_processes_compare_all_images_with_all_texts(tmp_path):
    debug_launcher(_share_towers, (str(tmp_path),), num_processes=2)
    whole = _of_towers(Criterion(True), slice(0, 5))
    own = [_of_towers(Criterion(True), part) for part in (slice(0, 3), slice(3, 5))]
    for rank in range(2):
        part = load_file(tmp_path / f"True-{rank}.safetensors")
        alone = load_file(tmp_path / f"False-{rank}.safetensors")
        torch.testing.assert_close(alone["loss"], own[rank]["loss"])
        for name in whole:
            torch.testing.assert_close(part[name], whole[name])
            if name != "loss":
                torch.testing.assert_close(alone[name], (own[0][name] + own[1][name]) / 2)


# ---- scores


def test_retrieval_between_images_and_texts_by_hand():
    rng = np.random.default_rng(0)
    images, texts = (torch.from_numpy(rng.standard_normal((n, 4))) for n in (12, 30))
    owner = np.concatenate([np.arange(12), rng.integers(0, 12, 18)])
    scores = clip.image_text_recall(images, texts, owner, ks=(1, 3))
    d = torch.cdist(texts, images).numpy()
    near = np.argsort(d, axis=1)
    back = np.argsort(d.T, axis=1)
    for k in (1, 3):
        hits = [owner[t] in near[t, :k] for t in range(30)]
        found = [bool(set(owner[back[i, :k]]) & {i}) for i in range(12)]
        assert scores[f"text_to_image_recall_at_{k}"] == pytest.approx(np.mean(hits))
        assert scores[f"image_to_text_recall_at_{k}"] == pytest.approx(np.mean(found))
    assert set(clip.image_text_recall(images, texts, owner, ks=(1,), ranking="oracle").values()) == {1.0}
    alike = clip.image_text_recall(torch.ones(10, 2), torch.ones(10, 2), np.arange(10), ks=(1, 5))
    assert list(alike.values()) == pytest.approx([0.1, 0.5, 0.1, 0.5])


def test_numbers_of_nothing_are_refused():
    z = torch.eye(3)
    with pytest.raises(ValueError, match="image_of_text from 0 to 2, got 2 others from -1 to 3"):
        clip.image_text_recall(z, z, [-1, 0, 3])
    with pytest.raises(ValueError, match="labels from 0 to 1, got 1 others from 0 to 2"):
        clip.zero_shot_accuracy(z, np.arange(3), z[:2])


def test_zero_shot_accuracy_is_the_share_of_nearest_names():
    images, classes = torch.randn(40, 6), torch.randn(5, 6)
    labels = np.arange(40) % 5
    nearest = torch.cdist(images, classes).argmin(1).numpy()
    assert clip.zero_shot_accuracy(images, labels, classes) == pytest.approx((nearest == labels).mean())
    assert clip.zero_shot_accuracy(images, labels, classes, ranking="oracle") == 1
    assert clip.zero_shot_accuracy(torch.zeros(4, 2), np.arange(4), torch.zeros(4, 2)) == pytest.approx(0.25)


@pytest.mark.parametrize("names", ["cat", []])
def test_class_names_are_a_list(names):
    with pytest.raises(ValueError, match="expected a list of class names"):
        clip.embed_classes(make(), names, ["a {}"])


def test_numbers_are_integers_of_any_kind():
    z = torch.eye(3)
    assert clip.zero_shot_accuracy(z, torch.arange(3), z) == 1
    assert clip.image_text_recall(z, z, torch.arange(3), ks=1)["text_to_image_recall_at_1"] == 1
    with pytest.raises(ValueError, match=r"labels as integers from 0 to 2, got <U1"):
        clip.zero_shot_accuracy(z, ["a", "b", "c"], z)


def test_class_names_are_averaged_over_prompts():
    embedder = make()
    z = clip.embed_classes(embedder, ["cat", "dog"], ["a {}.", "one {}"])
    texts = embedder.encode_text(["a cat.", "one cat", "a dog.", "one dog"])
    mean = torch.stack([texts[:2].mean(0), texts[2:].mean(0)])
    torch.testing.assert_close(z, mean / mean.norm(dim=1, keepdim=True))
    for wrong in ([], ["a photo"]):
        with pytest.raises(ValueError, match="prompts"):
            clip.embed_classes(embedder, ["cat"], wrong)


def named_splits() -> Splits:
    images = [None] * 6
    items = Items(images, np.array([2, 0, 2, 0, 2, 0]), ["x"] * 6, np.arange(6))
    return Splits(items, items, target="classes", class_names=["zero", "one", "two"])


def test_the_judge_scores_what_the_labels_allow():
    judge = Judge(EvaluationConfig(), named_splits(), "classes", make())
    assert judge.between == ["zero_shot_accuracy"]
    assert judge.classes[0] == ["zero", "two"]
    assert judge.classes[1].tolist() == [1, 0, 1, 0, 1, 0]
    z = torch.randn(6, 4)
    scores = judge({"query": z, "classes": torch.stack([z[1], z[0]])})
    assert scores["zero_shot_accuracy"] == clip.zero_shot_accuracy(z, judge.classes[1], torch.stack([z[1], z[0]]))
    assert "map_at_r" in scores
    only = Judge(EvaluationConfig(metrics=["zero_shot_accuracy"]), named_splits(), "classes", make())
    assert list(only({"query": z, "classes": z[:2]})) == ["zero_shot_accuracy"]
    headless = create_embedder("timm/test_vit", image_size=32)
    assert Judge(EvaluationConfig(), named_splits(), "classes", headless).between == []
    for metric, embedder in (("zero_shot_accuracy", headless), ("text_to_image_recall_at_3", make())):
        with pytest.raises(ValueError, match=f"{metric}' needs a trunk"):
            Judge(EvaluationConfig(metrics=["recall_at_1", metric]), named_splits(), "classes", embedder)


# ---- the trainer


SMALL = ["--progress", "false", "--report", "false", "--trackers", "[]", "--cpu", "true", "--sampler.batch_size", "8"]
TINY = ["--embedder.trunk_options", json.dumps(VIT), "--optimizer.epochs", "2", *SMALL]


def small(name: str, output: Path, *changes: str, rows: str = "[24, 12]"):
    file = ROOT / "recipes" / "configs" / f"{name}.yaml"
    return parse_config(["--config", str(file), *TINY, "--data.rows", rows, "--output", str(output), *changes])


def test_captions_train_both_towers_and_are_judged_both_ways(tmp_path):
    config = small("clip_captions", tmp_path / "run", "--report", "true", "--optimizer.layer_decay", "0.9")
    setup, run, accelerator = recipe.start(config)
    start = copy.deepcopy(setup.embedder.state_dict())
    result = recipe.fit(config, setup, run, accelerator)
    moved = {k for k, v in setup.embedder.state_dict().items() if not v.equal(start[k])}
    assert {"trunk.visual.proj", "trunk.text_projection", "trunk.token_embedding.weight"} <= moved
    assert "trunk.logit_scale" not in moved
    names = [f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    for row in ("before", "after", "random", "oracle"):
        assert set(names) <= result["table"][row].keys()
    assert result["table"]["oracle"]["text_to_image_recall_at_1"] == 1
    assert "text_to_image_recall_at_10".replace("_", "_<wbr>") in (tmp_path / "run" / "report.html").read_text()
    assert setup.judge.monitored(result["table"]["after"]) == "text_to_image_recall_at_10"
    z = Embedder.from_pretrained(tmp_path / "run" / "embedder").encode_text(setup.judge.captions[0])
    torch.testing.assert_close(z, load_file(tmp_path / "run" / "embeddings" / "after.safetensors")["captions"])


def test_a_run_on_captions_resumes_with_the_same_bits(tmp_path, monkeypatch):
    recipe.train(small("clip_captions", tmp_path / "whole", "--checkpoint_every", "2"))
    config = small("clip_captions", tmp_path / "killed", "--checkpoint_every", "2", "--resume", "auto")
    kill_after(config, 3, monkeypatch)
    torch.rand(5)
    recipe.train(config)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_classes_train_the_image_tower_and_keep_the_names(tmp_path):
    config = small("clip_pd_loss", tmp_path / "run", "--embedder.unlocked", "2", rows="[40, 20]")
    setup, run, accelerator = recipe.start(config)
    start = copy.deepcopy(setup.embedder.state_dict())
    result = recipe.fit(config, setup, run, accelerator)
    moved = {k for k, v in setup.embedder.state_dict().items() if not v.equal(start[k])}
    assert moved
    assert all(k.startswith("trunk.visual.") and "resblocks.0" not in k for k in moved)
    assert 0 <= result["table"]["before"]["zero_shot_accuracy"] <= 1
    assert result["table"]["oracle"]["zero_shot_accuracy"] == 1


def test_proxies_start_at_the_names_of_the_classes(tmp_path):
    changes = ["--objective.proxy_init", "text", "--optimizer.epochs", "0", "--evaluation.prompts", "['digit {}']"]
    config = small("clip_pd_loss", tmp_path / "run", *changes, rows="[40, 20]")
    setup, run, accelerator = recipe.start(config)
    recipe.fit(config, setup, run, accelerator)
    z = setup.embedder.encode_text([f"digit {n}" for n in range(10)])
    torch.testing.assert_close(setup.objective.proxies.weight.detach(), z.shape[1] ** 0.5 * z, rtol=1e-4, atol=1e-4)


def test_adapters_are_kept_apart_in_checkpoints_and_the_best_is_plain(peft, tmp_path, monkeypatch):
    changes = ["--embedder.lora", "{r: 2}", "--checkpoint_every", "3", "--evaluation.keep", "best", "--resume", "auto"]
    config = small("clip_pd_loss", tmp_path / "run", *changes, rows="[40, 20]")
    kill_after(config, 4, monkeypatch)
    kept = load_file(next((tmp_path / "run" / "checkpoints").glob("*.kept")) / "model.safetensors")
    assert any("lora_A" in name for name in kept)
    recipe.train(config)
    recipe.train(small("clip_pd_loss", tmp_path / "whole", *changes, rows="[40, 20]"))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not any("lora" in name for name in weights(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("clip_pd_loss", ["--embedder.text", "true"], r"texts \[n captions\], but the labels are int64"),
        ("clip_pd_loss", ["--optimizer.layer_decay", "0"], "layer_decay above 0"),
        ("clip_pd_loss", ["--embedder.unlocked", "9"], "unlocked from 0"),
        ("clip_captions", ["--embedder.head", "linear", "--embedder.dim", "8"], "head='none'"),
        ("clip_captions", ["--embedder.text", "false", "--embedder.unlocked", "0"], "nothing is trained"),
        ("clip_captions", ["--objective.proxy_init", "text"], "no proxies and takes no objective.proxy_init"),
        ("clip_pd_loss", ["--evaluation.prompts", "[photo]"], r"prompts with {} in the place .* got \['photo'\]"),
        ("clip_pd_loss", ["--optimizer.proxy_lr", "-1"], "optimizer.proxy_lr of at least 0, got -1"),
        ("clip_pd_loss", ["--optimizer.head_lr", "-1"], "optimizer.head_lr of at least 0, got -1"),
        ("clip_captions", ["--evaluation.metrics", "[zero_shot_accuracy]"], "classes with names"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(name, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe.start(small(name, tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()


def test_settings_survive_the_file(tmp_path):
    config = small("clip_captions", tmp_path / "run", "--embedder.lora", "{r: 2}", "--optimizer.layer_decay", "0.8")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = parse_config(["--config", str(tmp_path / "config.yaml")])
    assert again.embedder.lora == {"r": 2}
    assert dump_config(again) == dump_config(config)


def test_a_tokenizer_of_transformers_is_saved_with_the_embedder(tmp_path):
    """As SigLIP has one: the folder is all that texts need, also for open_clip."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "cat", "red", "dog"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    published = tmp_path / "published"
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        str(published)
    )
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 6, "vocab_size": 6, "layers": 1, "width": 32, "heads": 2},
    }
    config["text_cfg"] |= {"hf_tokenizer_name": str(published), "pad_id": 0}
    embedder = create_embedder("open_clip/ViT-B-32", head="none", dim=None, trunk_options=config)
    assert embedder.tokenizer(["a red cat"]).tolist() == [[2, 4, 3, 0, 0, 0]]
    z = embedder.encode_text(["a red cat", "a dog"])
    embedder.save_pretrained(tmp_path / "first")
    shutil.rmtree(published)
    Embedder.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in ("first", "second"):
        assert torch.equal(Embedder.from_pretrained(tmp_path / folder).encode_text(["a red cat", "a dog"]), z)
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'first'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'first'}")(["a red cat", "a dog"])
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().encode_text(tokens, normalize=True), z)
    lost = create_embedder("open_clip/ViT-B-32", head="none", dim=None, trunk_options=config)
    with pytest.warns(UserWarning, match="tokenizer is not saved with the embedder, texts will need the Hub"):
        lost.save_pretrained(tmp_path / "lost")
