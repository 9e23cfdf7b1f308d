"""Embedders against timm, open_clip, torchvision and plain formulas, on tiny random networks, offline."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import open_clip.factory
import open_clip.pretrained
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from beyond_binary import storage
from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.preprocess import image_to_tensor, to_rgb

KINDS = {
    "vit": ("timm/test_vit", {"image_size": 64}),
    "vit_gem_mlp": ("timm/test_vit", {"image_size": 64, "pooling": "gem", "head": "mlp"}),
    "resnet_tag": ("timm/test_resnet.r160_in1k", {"image_size": 64, "pooling": "avgmax"}),
    "efficientnet_gem": ("timm/test_efficientnet", {"image_size": (64, 96), "pooling": "gem"}),
    "convnext_none": (
        "timm/test_convnext",
        {"image_size": 64, "head": "none", "dim": None, "pooling": "max"},
    ),
    "mambaout_gem": ("timm/test_mambaout", {"image_size": 64, "pooling": "gem", "normalize": False}),
    "clip": ("open_clip/tiny-clip", {}),
    "clip_none": ("open_clip/tiny-clip", {"head": "none", "dim": None, "image_size": 48}),
}
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def tiny_clip(tmp_path_factory, monkeypatch):
    """Register `tiny-clip` with open_clip for one test; its tables are put back afterwards."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    for table in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(open_clip.factory, table, open_clip.factory.__dict__[table].copy())
    open_clip.add_model_config(folder)


def make(kind: str = "efficientnet_gem", seed: int = 0, **options) -> Embedder:
    torch.manual_seed(seed)
    trunk, defaults = KINDS[kind]
    return create_embedder(trunk, **{"dim": 12, **defaults, **options})


def pixels(embedder: Embedder, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, *embedder.preprocess["size"], generator=torch.Generator().manual_seed(1))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


# ---- the network


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_have_the_promised_shape_and_length(kind):
    embedder = make(kind)
    assert embedder.training
    z = embedder(pixels(embedder))
    assert z.shape == (3, embedder.dim)
    lengths = z.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(3)) == embedder.normalize


@pytest.mark.parametrize("kind", ["vit", "efficientnet_gem", "clip"])
def test_the_same_seed_gives_the_same_embedder(kind):
    first, again, other = make(kind), make(kind), make(kind, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head[0].weight, other.head[0].weight)


def test_width_is_measured_where_timm_names_another():
    embedder = create_embedder("timm/test_mambaout", head="none", dim=None, image_size=64)
    assert embedder.trunk.num_features == 64
    assert embedder.dim == 256
    assert embedder.config["dim"] == 256


def test_head_initialisation_is_kaiming_fan_out():
    weight = make("efficientnet_gem", dim=64).head[0].weight
    assert weight.shape == (64, 256)
    assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


@pytest.mark.parametrize("arch", ["test_efficientnet", "test_mambaout", "test_vit", "test_vit3"])
def test_gem_is_the_generalised_mean_over_positions(arch):
    torch.manual_seed(0)
    embedder = create_embedder(f"timm/{arch}", pooling="gem", head="none", dim=None, normalize=False).eval()
    trunk, x = embedder.trunk, pixels(embedder, 2)
    assert embedder.pool.p.item() == 3
    with torch.no_grad():
        embedder.pool.p.fill_(2.5)
        if arch == "test_efficientnet":
            maps = trunk.forward_features(x)  # [n c h w]
        elif arch == "test_mambaout":
            maps = trunk(x).permute(0, 3, 1, 2)
        else:  # timm itself leaves class and register tokens out and gives [n c h w]
            maps = trunk.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        z = embedder(x).numpy()
    positive = np.maximum(maps.double().numpy(), 1e-6).reshape(*maps.shape[:2], -1)
    np.testing.assert_allclose(z, (positive**2.5).mean(2) ** (1 / 2.5), rtol=1e-4, atol=1e-6)


def test_gem_learns_its_exponent():
    embedder = make("efficientnet_gem")
    embedder(pixels(embedder))[:, 0].sum().backward()
    assert embedder.pool.p.grad.abs() > 0


def test_frozen_batch_norm_keeps_statistics_and_trains_scale():
    for frozen in (True, False):
        embedder = make("resnet_tag", freeze_batch_norm=frozen)
        assert torch.nn.Sequential(embedder).eval().train()[0] is embedder  # as a part of another module
        before = {k: v.clone() for k, v in embedder.state_dict().items() if "running" in k}
        embedder(pixels(embedder)).sum().backward()
        after = embedder.state_dict()
        assert embedder.training
        assert all(torch.equal(before[k], after[k]) for k in before) == frozen
        assert embedder.trunk.bn1.weight.grad.abs().sum() > 0


def test_half_precision_is_normalised_in_float32():
    embedder = make("vit")
    with torch.autocast("cpu", torch.bfloat16):
        z = embedder(pixels(embedder))
    assert z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-6)


def test_param_groups_cover_every_trainable_parameter_once():
    embedder = make("efficientnet_gem")
    embedder.trunk.conv_stem.weight.requires_grad_(False)
    groups = {g["name"]: g for g in embedder.param_groups(1e-3, head_lr=1e-2, weight_decay=0.1)}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "trunk": (1e-3, 0.1),
        "trunk_no_decay": (1e-3, 0.0),
        "head": (1e-2, 0.1),
        "head_no_decay": (1e-2, 0.0),
    }
    given = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(given) == sorted(id(p) for p in embedder.parameters() if p.requires_grad)
    assert [p.ndim for p in groups["head"]["params"]] == [2]
    assert {p.ndim for p in groups["trunk_no_decay"]["params"]} == {1}
    assert any(p is embedder.pool.p for p in groups["head_no_decay"]["params"])
    assert {g["lr"] for g in embedder.param_groups(1e-3)} == {1e-3}
    torch.optim.AdamW(embedder.param_groups(1e-3))


# ---- preprocessing


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (91, 33), (63, 64), (30, 20)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_transform_equals_timms_own_for_the_saved_config(mode, size, tmp_path):
    embedder = make("vit", resize_mode=mode, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    embedder.save_pretrained(tmp_path / "e")
    model = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = picture(*size)
    assert embedder.transform(image).shape == (3, 64, 64)
    torch.testing.assert_close(embedder.transform(image), theirs(image))


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (91, 33)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_transform_equals_open_clips_own_for_the_saved_config(mode, size, tmp_path):
    embedder = make("clip", resize_mode=mode)
    embedder.save_pretrained(tmp_path / "e")
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'e'}")
    torch.testing.assert_close(embedder.transform(picture(*size)), theirs(picture(*size)))


def test_square_images_lose_nothing_in_either_mode():
    image, options = picture(96, 96), {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    squash = image_to_tensor(image, **options, resize_mode="squash")
    assert torch.equal(squash, image_to_tensor(image, **options))
    assert squash.min() >= -1
    assert squash.max() <= 1
    wide = image_to_tensor(picture(200, 50), **{**options, "size": [20, 48]})
    assert wide.shape == (3, 20, 48)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "RGB"])
def test_every_image_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256)
    else:
        image = grey.convert("RGB").convert(mode)
    assert image.mode == mode
    if mode == "P":
        image.info["transparency"] = b"\x00" * 256  # such palettes make Pillow warn on a plain conversion
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    if mode not in ("1", "P"):
        np.testing.assert_allclose(np.asarray(rgb)[..., 1], np.asarray(grey), atol=1)


def test_preprocessing_defaults_come_from_the_weights_and_can_be_overridden():
    assert create_embedder("timm/test_efficientnet").preprocess == {
        "size": [160, 160],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    own = create_embedder("timm/test_efficientnet", image_size=(32, 64), mean=(0.5,) * 3, std=(0.5,) * 3).preprocess
    assert (own["size"], own["mean"], own["std"]) == ([32, 64], [0.5] * 3, [0.5] * 3)
    by_option = create_embedder("timm/test_vit", trunk_options={"img_size": 32})
    assert by_option.preprocess["size"] == [32, 32]
    for vit in (by_option, create_embedder("timm/test_vit", image_size=32)):
        assert vit.trunk.patch_embed.grid_size == (
            2,
            2,
        )  # a network of fixed input size is built for the size
    assert make("clip").preprocess["mean"] == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


# ---- encode


def test_encode_takes_images_paths_tensors_and_streams(tmp_path):
    embedder = make()
    images = [picture(70 + 5 * i, 64, seed=i) for i in range(5)]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
    with torch.no_grad():
        expected = embedder.eval()(torch.stack([embedder.transform(image) for image in images]))
    embedder.train()
    z = embedder.encode(images)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    assert not z.is_inference()
    torch.testing.assert_close(z, expected)
    stacked = torch.stack([embedder.transform(image) for image in images])
    for given in (paths, [str(p) for p in paths], (p for p in paths), stacked, list(stacked), images):
        torch.testing.assert_close(embedder.encode(given, batch_size=2), expected, rtol=1e-4, atol=1e-5)
    for single in (images[3], paths[3], str(paths[3]), stacked[3]):
        torch.testing.assert_close(embedder.encode(single), expected[3:4], rtol=1e-4, atol=1e-5)


def test_encode_nothing():
    embedder = make()
    for nothing in ([], iter(()), torch.zeros(0, 3, 64, 96)):
        assert embedder.encode(nothing).shape == (0, 12)


def test_encode_leaves_the_modes_of_all_parts_alone():
    embedder = make("resnet_tag")
    embedder.trunk.layer1.eval()
    before = [m.training for m in embedder.modules()]
    running = embedder.trunk.bn1.running_mean.clone()
    embedder.encode([picture(64, 64)])
    assert [m.training for m in embedder.modules()] == before
    assert set(before) == {True, False}  # else the line above proves nothing
    assert torch.equal(embedder.trunk.bn1.running_mean, running)
    with pytest.raises(TypeError, match="int"):
        embedder.encode([picture(64, 64), 3])
    assert [m.training for m in embedder.modules()] == before


def test_encode_is_lazy_and_shows_progress(capfd):
    embedder, seen, calls = make(), [], []

    def stream():
        for i in range(4):
            seen.append(i)
            yield picture(64, 64, seed=i)

    embedder.head.register_forward_hook(lambda *_: calls.append(len(seen)))
    embedder.encode(stream(), batch_size=2, progress=True)
    assert calls == [2, 4]
    assert "image" in capfd.readouterr().err


def test_encode_names_what_it_cannot_read(tmp_path):
    embedder = make()
    picture(64, 64).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(ValueError, match=f"cannot read image .*{name}"):
            embedder.encode([tmp_path / "good.jpg", tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        embedder.encode(tmp_path / "gone.png")
    assert embedder.training
    with pytest.raises(TypeError, match="ndarray"):
        embedder.encode([np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match=r"\[n 3 h w\].*\[2, 4, 8, 8\]"):
        embedder.encode(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="batch_size"):
        embedder.encode([], batch_size=0)
    with pytest.raises(ValueError, match=r"one size, got 64x64, 64x96; make them with embedder\.transform"):
        embedder.encode([torch.zeros(3, 64, 96), torch.zeros(3, 64, 64)])
    for wrong in (torch.zeros(1, 3, 64, 96), torch.zeros(64, 96), torch.zeros(4, 64, 96)):
        with pytest.raises(ValueError, match=r"images \[3 h w\], got one of shape"):
            embedder.encode([wrong])
    assert embedder.training


def test_encode_has_the_habits_of_sentence_transformers(capfd):
    long, clip = make(normalize=False), make("clip_none", normalize=False)
    images, texts = [picture(64, 64, seed=i) for i in range(3)], ["a cat", "two red dogs", "a house"]
    for embedder, encode, given in ((long, long.encode, images), (clip, clip.encode_text, texts)):
        z = encode(given)
        assert (z.norm(dim=1) - 1).abs().min() > 1e-3
        torch.testing.assert_close(encode(given, normalize_embeddings=True), torch.nn.functional.normalize(z))
        for options, kind in (
            ({"convert_to_numpy": True}, np.ndarray), ({"convert_to_tensor": False}, np.ndarray),
            ({"convert_to_tensor": True, "convert_to_numpy": True}, torch.Tensor), ({"convert_to_tensor": True}, torch.Tensor),
        ):  # fmt: skip
            found = encode(given, **options)
            assert isinstance(found, kind)
            np.testing.assert_array_equal(np.asarray(found), z.numpy())
        assert "it/s" not in capfd.readouterr().err
        encode(given, show_progress_bar=True)
        assert ("text/s" if embedder is clip else "image/s") in capfd.readouterr().err
        with pytest.raises(ValueError, match="batch_size"):
            encode(given, batch_size=0)
        moved = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(embedder), "to", lambda module, device, moved=moved: moved.append(device))
            assert torch.equal(encode(given, device="cuda:1"), z)
        assert moved == ["cuda:1"]
    unit = make()
    assert torch.equal(unit.encode(images, normalize_embeddings=True), unit.encode(images))


# ---- saving and loading


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_embedder_comes_back_bit_for_bit(kind, tmp_path):
    embedder = make(kind, freeze_batch_norm=True)
    for p in embedder.parameters():  # away from initial values, as if trained
        p.data.add_(0.01 * torch.randn_like(p))
    embedder.save_pretrained(tmp_path / "deep" / "e")
    again = Embedder.from_pretrained(tmp_path / "deep" / "e")
    assert not again.training
    assert again.config == embedder.config
    assert again.state_dict().keys() == embedder.state_dict().keys()
    x = pixels(embedder)
    with torch.no_grad():
        assert torch.equal(again(x), embedder.eval()(x))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["e"]


@pytest.mark.parametrize("kind", ["vit_gem_mlp", "resnet_tag", "clip", "timm/test_vit_relpos"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_saved_embedder_keeps_its_precision(kind, dtype, tmp_path):
    """Also of what is not saved, such as the table of relative positions."""
    embedder = (make(kind) if kind in KINDS else create_embedder(kind, dim=12)).to(dtype).eval()
    embedder.save_pretrained(tmp_path)
    again = Embedder.from_pretrained(tmp_path)
    mine, theirs = embedder.state_dict(), again.state_dict()
    assert all(theirs[name].dtype == mine[name].dtype and torch.equal(theirs[name], mine[name]) for name in mine)
    x = pixels(embedder).to(dtype)
    with torch.no_grad():
        assert torch.equal(again(x), embedder(x))


def test_timm_gets_the_positions_of_a_trunk_of_any_size(tmp_path):
    embedder = make("vit", image_size=96, trunk_options={"dynamic_img_size": True}).eval()
    embedder.save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(pixels(embedder)), embedder.trunk(pixels(embedder)))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("clip")])
def test_timm_loads_the_trunk_from_the_folder(kind, tmp_path):
    embedder = make(kind).eval()
    embedder.save_pretrained(tmp_path / "e")
    model = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True).eval()
    x = pixels(embedder)
    with torch.no_grad():
        assert torch.equal(model(x), embedder.trunk(x))
    data = timm.data.resolve_model_data_config(model)
    assert list(data["input_size"]) == [3, *embedder.preprocess["size"]]
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert config["architecture"] == KINDS[kind][0].removeprefix("timm/").partition(".")[0]
    assert config["num_features"] == embedder.trunk.num_features
    assert load_file(tmp_path / "e" / "model.safetensors").keys() == embedder.trunk.state_dict().keys()
    tuned = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=7)
    assert tuned.num_classes == 7


def test_open_clip_loads_the_trunk_from_the_folder(tmp_path):
    embedder = make("clip_none").eval()
    embedder.save_pretrained(tmp_path / "e")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'e'}")
    x = pixels(embedder)
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(x, normalize=True), embedder(x))
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'e'}")(["a cat", "two red dogs"])
        torch.testing.assert_close(
            model.encode_text(tokens, normalize=True), embedder.encode_text(["a cat", "two red dogs"])
        )


def test_a_clip_embedder_needs_no_registered_config_to_load(tmp_path, monkeypatch):
    embedder = make("clip_none", trunk_options={"force_context_length": 6, "vision_cfg": {"mlp_ratio": 2.0}})
    embedder.save_pretrained(tmp_path / "e")
    z = embedder.encode_text("a cat")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    again = Embedder.from_pretrained(tmp_path / "e")
    assert again.trunk.visual.transformer.resblocks[0].mlp[0].out_features == 64
    assert again.trunk.context_length == 6
    assert torch.equal(again.encode_text(["a cat"]), z)


def changed_config(folder: Path, change) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content["beyond_binary"]["model_args"])
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("asked", ["by the config", "by the tokenizer"])
def test_code_that_comes_with_an_embedder_is_not_run(tmp_path, asked):
    folder = tmp_path / "e"
    make("clip_none").save_pretrained(folder)
    ran = tmp_path / "ran"
    (folder / "mod.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizer as Tok\n")
    told = {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["mod.Tok", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    more = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True} if "config" in asked else {}}
    changed_config(folder, lambda arguments: arguments["text_cfg"].update(more))
    embedder = Embedder.from_pretrained(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        embedder.encode_text(["a"])
    assert not ran.exists()


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_come_from_safetensors_alone(tmp_path, monkeypatch, argument):
    embedder = make("vit")
    embedder.save_pretrained(tmp_path)
    torch.save(embedder.trunk.state_dict(), tmp_path / "tokenizer.model")
    changed_config(tmp_path, lambda arguments: arguments.update({argument: str(tmp_path / "tokenizer.model")}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    again = Embedder.from_pretrained(tmp_path)
    assert argument not in again.config["model_args"]
    assert torch.equal(again(pixels(again)), embedder.eval()(pixels(again)))


def test_towers_of_other_libraries_are_rebuilt_without_their_weights(tmp_path, monkeypatch):
    """open_clip would download those of a text tower by default."""
    vision = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "", "timm_proj": "linear"}
    embedder = make("clip_none", trunk_options={"vision_cfg": vision})
    embedder.save_pretrained(tmp_path)
    changed_config(tmp_path, lambda arguments: arguments["vision_cfg"].update({"timm_model_pretrained": True}))
    asked = []
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or build(*a, **k))
    Embedder.from_pretrained(tmp_path)
    assert asked == [False]


def test_a_crash_leaves_no_folder_and_spoils_none(tmp_path, monkeypatch):
    embedder = make("vit")
    embedder.save_pretrained(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(storage, "write_tensors", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="disk full"):
            make("vit", seed=1).save_pretrained(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before


@pytest.mark.parametrize("moves", range(1, 9))
def test_a_failure_amid_the_exchange_is_undone(tmp_path, monkeypatch, moves):
    make("vit").save_pretrained(tmp_path / "e")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()}
    calls = []

    def failing(move):
        def instead(self, target):
            calls.append(self)
            if len(calls) == moves:
                raise OSError("no more")
            return move(self, target)

        return instead

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(Path, name, failing(getattr(Path, name)))
        if moves < 7:  # three files go, three come
            with pytest.raises(OSError, match="no more"):
                make("vit", seed=1).save_pretrained(tmp_path / "e")
        else:
            make("vit", seed=1).save_pretrained(tmp_path / "e")
    after = {p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()}
    assert (after == before) == (moves < 7)
    assert after.keys() == before.keys()


def test_a_process_killed_amid_the_exchange_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    make("vit").save_pretrained(tmp_path / "e")
    seen = []
    move = Path.rename

    def look(self, target):
        if target.parent == tmp_path / "e":
            seen.append((tmp_path / "e" / "config.json").exists())
        return move(self, target)

    monkeypatch.setattr(Path, "rename", look)
    make("vit", seed=1).save_pretrained(tmp_path / "e")
    assert seen == [False, False, False]


def test_old_files_that_cannot_be_put_back_are_not_removed(tmp_path, monkeypatch):
    make("vit").save_pretrained(tmp_path / "e")
    before = {p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()}
    move, calls = Path.replace, []

    def failing(self, target):
        calls.append(self)
        if len(calls) > 1:  # one file has gone; neither another nor back
            raise KeyboardInterrupt
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(KeyboardInterrupt):
            make("vit", seed=1).save_pretrained(tmp_path / "e")
    left = {p.name: p.read_bytes() for p in (tmp_path / "e").rglob("*") if p.is_file()}
    assert left == before


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for seed in (0, 1):
        make("vit", seed=seed).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "config.json" in {p.name for p in (tmp_path / "disk").iterdir()}
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "link"}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second disk")
def test_saving_to_another_disk(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        (tmp_path / "link").symlink_to(disk)
        make("vit").save_pretrained(tmp_path / "link")
        Embedder.from_pretrained(disk)


def test_what_killed_processes_left_is_in_nobodys_way(tmp_path):
    own, old = tmp_path / f".e.{os.getpid()}.part", tmp_path / ".e.123.part"
    other = tmp_path / ".e.f.123.part"  # of another folder, "e.f"
    for part in (own, old, other):
        part.mkdir()
        (part / "half").write_text("x")
        if part is not own:
            for path in (part / "half", part):
                os.utime(path, (0, 0))
    make("vit").save_pretrained(tmp_path / "e")
    assert {p.name for p in tmp_path.iterdir()} == {"e", own.name, other.name}
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "e").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "e").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a folder to write to, got the file .*e; choose"):
        make("vit").save_pretrained(tmp_path / "e")
    assert (tmp_path / "e").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"beyond_binary": {', r"config\.json is not readable JSON"),
        (b"\xff\xfe", r"config\.json is not readable JSON"),
        ("[]", "holds no embedder"),
        ('{"beyond_binary": 3}', "holds no embedder"),
        ('{"beyond_binary": {"format_version": 1, "dim": 8}}', r"config\.json lacks .*pooling, preprocess, trunk"),
    ],
)
def test_a_broken_config_is_named(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(tmp_path)


def test_saving_again_replaces_an_embedder_and_nothing_else(tmp_path):
    make("clip").save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    second = make("convnext_none")
    second.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    x = pixels(second)
    with torch.no_grad():
        assert torch.equal(Embedder.from_pretrained(tmp_path)(x), second.eval()(x))


def test_from_pretrained_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder or a Hub id"):
        Embedder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no embedder"):
        Embedder.from_pretrained(tmp_path)
    embedder = make("vit")
    embedder.save_pretrained(tmp_path / "e")
    file = tmp_path / "e" / "config.json"
    config = json.loads(file.read_text())
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps({**config, "beyond_binary": None}))
    with pytest.raises(ValueError, match="holds no embedder"):
        Embedder.from_pretrained(tmp_path / "plain")
    config["beyond_binary"]["format_version"] = 99
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="format version 99"):
        Embedder.from_pretrained(tmp_path / "e")
    embedder.save_pretrained(tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Embedder.from_pretrained(tmp_path / "e")
    (tmp_path / "e" / storage.HEAD_FILE).unlink()
    save_file(embedder.trunk.state_dict(), tmp_path / "e" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="head"):
        Embedder.from_pretrained(tmp_path / "e")


def test_a_hub_id_is_downloaded_with_the_given_options(tmp_path, monkeypatch):
    import huggingface_hub

    embedder, asked = make("vit"), {}
    embedder.save_pretrained(tmp_path / "e")

    def download(name, **options):
        asked.update(name=name, **options)
        if name == "user/gone":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not found")
        return str(tmp_path / "e")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = Embedder.from_pretrained("user/na.me-1", revision="v1", token="t", cache_dir=tmp_path / "cache")
    assert torch.equal(again.head[0].weight, embedder.head[0].weight)
    patterns = asked.pop("allow_patterns")
    assert {p.name for p in (tmp_path / "e").iterdir()} < set(patterns)
    assert asked == {"name": "user/na.me-1", "revision": "v1", "token": "t", "cache_dir": tmp_path / "cache"}
    with pytest.raises(FileNotFoundError, match=r"no folder 'user/gone' here, and the Hub"):
        Embedder.from_pretrained("user/gone")


# ---- weights


@pytest.fixture
def trained(tmp_path) -> Path:
    """A classifier's weights without `num_batches_tracked`, as other programs write them."""
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=4).state_dict()
    save_file({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "trained.safetensors")
    return tmp_path / "trained.safetensors"


def test_weights_from_a_file(trained, tmp_path):
    state = load_file(trained)
    for weights in (trained, str(trained)):
        embedder = create_embedder("timm/test_resnet", weights=weights, image_size=64)
        mine = embedder.trunk.state_dict()
        assert "fc.weight" in state
        assert "fc.weight" not in mine
        assert all(torch.equal(mine[k], v) for k, v in state.items() if not k.startswith("fc."))
        assert embedder.config["weights"] == "trained.safetensors"
    embedder.save_pretrained(tmp_path / "e")
    assert str(tmp_path) not in (tmp_path / "e" / "config.json").read_text()


def test_weights_that_do_not_fit_are_refused_by_key(trained, tmp_path):
    state = load_file(trained)
    del state["bn1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(99)
    save_file(state, tmp_path / "bad.safetensors")
    pattern = r"missing: bn1\.weight; unexpected: extra\.weight; of another shape: bn1\.bias \[99\]"
    with pytest.raises(ValueError, match=pattern):
        create_embedder("timm/test_resnet", weights=tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more"):
        create_embedder("timm/test_vit", weights=trained)


def test_pretrained_goes_through_timms_own_loader(trained):
    options = {"pretrained_cfg_overlay": {"file": str(trained), "num_classes": 4}}
    embedder = create_embedder("timm/test_resnet", pretrained=True, image_size=64, trunk_options=options)
    assert torch.equal(embedder.trunk.bn1.weight, load_file(trained)["bn1.weight"])
    assert torch.equal(embedder.trunk.conv1[0].weight, load_file(trained)["conv1.0.weight"])
    assert embedder.config["weights"] == "trained.safetensors"
    assert "pretrained_cfg_overlay" not in embedder.config["model_args"]


def test_a_tag_selects_open_clips_weights_preprocessing_and_activation(tmp_path, monkeypatch):
    torch.manual_seed(3)
    state = open_clip.CLIP(**TINY_CLIP).state_dict()
    save_file(state, tmp_path / "clip.safetensors")
    own = {
        "file": str(tmp_path / "clip.safetensors"),
        "quick_gelu": True,
        "mean": (0.1, 0.2, 0.3),
        "resize_mode": "squash",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"own": own})
    for options in ({"pretrained": True}, {"weights": "own"}):
        embedder = create_embedder("open_clip/tiny-clip", **options)
        assert all(torch.equal(embedder.trunk.state_dict()[k], v) for k, v in state.items())
        assert type(embedder.trunk.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
        assert embedder.preprocess["mean"] == [0.1, 0.2, 0.3]
        assert embedder.preprocess["resize_mode"] == "squash"
        assert embedder.config["weights"] == "own"
    from_file = create_embedder("open_clip/tiny-clip", weights=tmp_path / "clip.safetensors")
    assert torch.equal(from_file.trunk.text_projection, state["text_projection"])
    with pytest.raises(ValueError, match="did you mean 'own'"):
        create_embedder("open_clip/tiny-clip", weights="owm")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"own": own, "other": own})
    with pytest.raises(ValueError, match=r"2 sets of weights.*own, other"):
        create_embedder("open_clip/tiny-clip", pretrained=True)


def test_a_timm_tag_as_weights_becomes_the_trunk(monkeypatch):
    built, create = [], timm.create_model

    def record(name, pretrained, **options):
        built.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", record)
    embedder = create_embedder("timm/test_vit", weights="r160_in1k", image_size=32)
    assert built == [("test_vit.r160_in1k", True)]
    assert embedder.config["trunk"] == "timm/test_vit.r160_in1k"
    assert embedder.config["weights"] == "r160_in1k"
    assert create_embedder("timm/test_vit", pretrained=True, image_size=32).config["weights"] == "r160_in1k"
    assert create_embedder("timm/test_vit", image_size=32).config["weights"] is None


# ---- CLIP


def test_every_parameter_that_trains_gets_a_gradient():
    embedder = make("clip")
    assert not embedder.trunk.token_embedding.weight.requires_grad
    embedder(pixels(embedder))[:, 0].sum().backward()
    trained = [p for p in embedder.parameters() if p.requires_grad]
    assert len(trained) > 10
    assert all(p.grad is not None for p in trained)


def test_encode_text(monkeypatch):
    embedder = make("clip_none")
    texts = ["a cat", "two red dogs", "a house"]
    z = embedder.encode_text(texts, batch_size=2)
    with torch.no_grad():
        tokens = open_clip.SimpleTokenizer(context_length=8)(texts)
        torch.testing.assert_close(z, embedder.trunk.encode_text(tokens, normalize=True))
    assert embedder.training
    assert embedder.encode_text("a cat").shape == (1, 16)
    assert embedder.encode_text([]).shape == (0, 16)
    for other in (make("clip"), make("convnext_none")):
        with pytest.raises(ValueError, match="encode_text needs"):
            other.encode_text("a cat")


# ---- bad input


@pytest.mark.parametrize(
    ("trunk", "options", "message"),
    [
        ("resnet18", {}, "expected a trunk 'timm/<architecture>'.*timm/resnet18"),
        ("timm/resnet19", {}, "timm has no architecture 'resnet19'; did you mean .*resnet1"),
        ("timm/test_vit.r161_in1k", {}, "no weights 'r161_in1k'.*did you mean 'r160_in1k'"),
        ("timm/test_vit", {"weights": "r161_in1k"}, "no weights 'r161_in1k'.*did you mean 'r160_in1k'"),
        ("timm/qqqqqqqqqq", {}, r"timm\.list_models\(\)"),
        ("open_clip/ViT-B-33", {}, "open_clip has no architecture 'ViT-B-33'; did you mean .*ViT-B-32"),
        ("open_clip/tiny-clip", {"pooling": "avg"}, "open_clip trunks pool by themselves"),
        ("open_clip/tiny-clip", {"pretrained": True}, "0 sets of weights"),
        ("open_clip/tiny-clip", {"trunk_options": {"nonsense": 1}}, "open_clip cannot build.*nonsense"),
        ("timm/test_vit", {"pooling": "average"}, "unknown pooling 'average'.*choices: avg"),
        ("timm/test_resnet", {"pooling": "token"}, "timm cannot build 'test_resnet' with .*token"),
        ("timm/test_vit", {"head": "liner"}, "unknown head 'liner'; did you mean 'linear'.*mlp"),
        ("timm/test_vit", {"resize_mode": "crop"}, "unknown resize_mode 'crop'.*squash"),
        ("timm/test_vit", {"dim": 0}, "dim must be an int of at least 1, or None .* got 0"),
        ("timm/test_vit", {"dim": -4}, "dim must be an int of at least 1"),
        ("timm/test_vit", {"dim": 1.5}, "dim must be an int of at least 1"),
        ("timm/test_vit", {"head": "none"}, "head='none' gives the 64 features.*dim=None"),
        ("timm/test_vit", {"mean": [0.5]}, "mean needs 3 values"),
        ("timm/test_vit", {"trunk_options": {"global_pool": "avg"}}, "may not hold global_pool"),
        ("timm/test_vit", {"trunk_options": {"nonsense": 1}}, "timm cannot build 'test_vit' with .*nonsense"),
        ("timm/test_resnet", {"trunk_options": {"in_chans": 1}}, "takes no images of shape"),
    ],
)
def test_bad_arguments_are_named(trunk, options, message):
    with pytest.raises(ValueError, match=message):
        create_embedder(trunk, **options)


def test_bad_weight_files_are_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pt'.*only \.safetensors"):
        create_embedder("timm/test_vit", weights=tmp_path / "model.pt")
    for missing in ("gone.safetensors", "some/folder/gone.pt"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            create_embedder("timm/test_vit", weights=missing)


def test_options_that_cannot_be_saved_are_refused_at_once():
    with pytest.raises(TypeError, match="JSON"):
        create_embedder("timm/test_vit", trunk_options={"norm_layer": torch.nn.LayerNorm})
