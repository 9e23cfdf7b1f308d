"""Embedders: a trunk, pooling, a head and an L2 norm as one module, saved together with its preprocessing."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from beyond_binary import storage, towers, trunks
from beyond_binary.encoding import encoded
from beyond_binary.heads import HEADS, GeneralizedMean, make_head, positions
from beyond_binary.preprocess import RESIZE_MODES, image_to_tensor, open_image, stack
from beyond_binary.registry import check_choice
from beyond_binary.towers import evaluating

if TYPE_CHECKING:
    from beyond_binary.objective import Objective

ImageLike = Image.Image | str | os.PathLike[str] | Tensor


class Embedder(nn.Module):
    """Images to embeddings; made by `create_embedder` or `Embedder.from_pretrained`.

    With `freeze_batch_norm`, BatchNorm layers of the trunk keep their running statistics and use them in
    training too, also after `.train()`; their scale and shift are trained like other weights (the convention
    of Musgrave, Belongie and Lim, "A Metric Learning Reality Check"). A BatchNorm whose scale is locked (takes no
    gradient) keeps its statistics in any case.

    Attributes:
        config: everything needed to rebuild the module, JSON-able.
        trunk: the timm model, or the whole open_clip model (the image tower embeds images, the text tower texts; it
            takes no gradient unless `create_embedder` was told to train it).
        trains_text: whether the text tower is trained.
        folder: where it was loaded from; None for a new one.
    """

    trains_text: bool = False
    folder: Path | None = None

    def __init__(self, trunk: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.trunk = config, trunk
        self.pool = GeneralizedMean() if config["pooling"] == "gem" else None
        width, dim = self._measure_width(), config["dim"]
        if config["head"] == "none" and dim not in (None, width):
            raise ValueError(
                f"head='none' gives the {width} features of the trunk, got dim={dim}; pass dim=None, or head='linear'"
            )
        config["dim"] = width if dim is None else dim
        self.head = make_head(config["head"], width, self.dim)
        self.train()

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.config["dim"]

    @property
    def normalize(self) -> bool:
        """Whether embeddings have length 1."""
        return self.config["normalize"]

    @property
    def preprocess(self) -> dict[str, Any]:
        """Evaluation preprocessing: size [h, w], mean, std, interpolation, resize_mode."""
        return self.config["preprocess"]

    @property
    def target(self) -> str | None:
        """What similar meant in training, as a spec for `create_target`; None where it was not saved."""
        return self.config.get("objective", {}).get("target")

    def _measure_width(self) -> int:
        """Number of features of the trunk, by one black image (timm's `num_features` differs for some)."""
        name, shape = self.config["trunk"], (1, 3, *self.preprocess["size"])
        with evaluating(self):
            try:
                features = self._features(torch.zeros(shape))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(f"{name} takes no images of shape {list(shape)}: {error}") from error
        if features.ndim != 2:
            raise ValueError(f"{name} gives features {list(features.shape)}, expected [n width]")
        return features.shape[1]

    def _features(self, images: Tensor) -> Tensor:
        if self.config["trunk"].startswith("open_clip/"):
            return self.trunk.encode_image(images, normalize=False)  # type: ignore[operator]
        features = self.trunk(images)
        return features if self.pool is None else self.pool(positions(features, self.trunk))

    def _normalized(self, z: Tensor) -> Tensor:
        if not self.normalize:
            return z
        return F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=-1)

    def embed_black(self) -> None:
        """Embed a black image, and a text where the text tower is trained: all that is trained runs once."""
        self(torch.zeros(1, 3, *self.preprocess["size"]))
        if self.trains_text:
            self.embed_texts(["a"])

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images [n 3 h w] -> embeddings [n dim], of length 1 if `normalize`."""
        return self._normalized(self.head(self._features(images)))

    def train(self, mode: bool = True) -> Embedder:
        """As `nn.Module.train`, but BatchNorm stays in evaluation mode if it is locked, or with `freeze_batch_norm`."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, _BatchNorm):
                locked = module.weight is not None and not module.weight.requires_grad
                if locked or self.config["freeze_batch_norm"]:
                    module.eval()
        return self

    def transform(self, image: Image.Image) -> Tensor:
        """Evaluation preprocessing of one PIL image of any mode and size -> float32 [3 h w]."""
        return image_to_tensor(image, **self.preprocess)

    @overload
    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = 64,
        progress: bool = False,
        *,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: Literal[True] | None = None,
        normalize_embeddings: bool = False,
        device: str | torch.device | None = None,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = 64,
        progress: bool = False,
        *,
        show_progress_bar: bool | None = None,
        convert_to_numpy: Literal[True],
        convert_to_tensor: Literal[False] | None = None,
        normalize_embeddings: bool = False,
        device: str | torch.device | None = None,
    ) -> np.ndarray[Any, Any]: ...

    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = 64,
        progress: bool = False,
        *,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool | None = None,
        normalize_embeddings: bool = False,
        device: str | torch.device | None = None,
    ) -> Tensor | np.ndarray[Any, Any]:
        """Embed images in evaluation mode without gradients -> float32 [n dim] on the CPU, in their order.

        Args:
            images: PIL images, paths or preprocessed tensors [3 h w] (any iterable, read batch by batch), one
                of these alone (n = 1), or one preprocessed tensor [n 3 h w].
            batch_size: images per forward pass on the module's device; it changes results by rounding only.
            progress: show a progress bar.
            show_progress_bar: `progress` under the name that sentence-transformers gives it.
            convert_to_numpy: return a numpy array instead of a tensor.
            convert_to_tensor: unset: as `convert_to_numpy` says; else this says it.
            normalize_embeddings: L2-normalise them, also those of an embedder that does not.
            device: move the embedder there first (it stays there); unset: where it is.

        Raises:
            ValueError: an image file cannot be read (named), or tensors are not [n 3 h w] or of unlike sizes.
            FileNotFoundError: a path does not exist.
            TypeError: an item is neither image, path nor tensor.
        """
        if isinstance(images, Tensor):
            images = images[None] if images.ndim == 3 else images
            if images.ndim != 4 or images.shape[1] != 3:
                raise ValueError(f"expected preprocessed images [n 3 h w], got {list(images.shape)}")
        elif isinstance(images, Image.Image | str | os.PathLike):
            images = [images]

        def embed(batch: list[ImageLike]) -> Tensor:
            weight = next(self.parameters())
            return self(stack([self._pixels(image) for image in batch]).to(weight.device, weight.dtype))

        z = encoded(self, embed, images, batch_size, progress, show_progress_bar, normalize_embeddings, device)
        return z.numpy() if (convert_to_numpy if convert_to_tensor is None else not convert_to_tensor) else z

    def _pixels(self, image: ImageLike) -> Tensor:
        if isinstance(image, Tensor):
            return image
        if isinstance(image, str | os.PathLike):
            image = open_image(image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"encode takes PIL images, paths or tensors, got {type(image).__name__}")
        return self.transform(image)

    def encode_text(
        self,
        texts: str | Iterable[str],
        batch_size: int = 256,
        progress: bool = False,
        *,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool | None = None,
        normalize_embeddings: bool = False,
        device: str | torch.device | None = None,
    ) -> Any:
        """Embed texts with the text tower of an open_clip trunk -> float32 [n dim] on the CPU; arguments as for `encode`.

        Texts and images share the space that CLIP made, not that of a head, so the head must be "none".

        Raises:
            ValueError: the trunk is not from open_clip, or a head lies on top of it.
        """
        self.check_text()
        texts = [texts] if isinstance(texts, str) else texts
        z = encoded(
            self, self.embed_texts, texts, batch_size, progress, show_progress_bar, normalize_embeddings, device, "text"
        )
        return z.numpy() if (convert_to_numpy if convert_to_tensor is None else not convert_to_tensor) else z

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> embeddings [n dim] with gradient, on the module's device; `encode_text` is the one for inference.

        Raises:
            ValueError: as `encode_text`.
        """
        self.check_text()
        return self.embed_tokens(self.tokenizer(list(texts)).to(next(self.parameters()).device))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [n length] of the module's tokenizer -> embeddings [n dim]."""
        return self._normalized(self.trunk.encode_text(tokens, normalize=False))  # type: ignore[operator]

    @functools.cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts -> token ids [n length] for the text tower."""
        return trunks.tokenizer(self.config, self.folder)

    @property
    def has_text(self) -> bool:
        """Whether texts can be embedded beside images: an open_clip trunk without a head."""
        return self.config["trunk"].startswith("open_clip/") and self.config["head"] == "none"

    def check_text(self) -> None:
        """Raise ValueError where no text can be embedded."""
        if not self.has_text:
            raise ValueError(
                "encode_text needs a trunk 'open_clip/...' and head='none'; "
                f"this embedder has {self.config['trunk']!r} and head={self.config['head']!r}"
            )

    def param_groups(
        self, lr: float, *, head_lr: float | None = None, weight_decay: float = 0.0, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Trainable parameters as optimizer groups, see `towers.param_groups`."""
        library = self.config["trunk"].split("/")[0]
        return towers.param_groups(
            self, library, lr, head_lr=head_lr, weight_decay=weight_decay, layer_decay=layer_decay
        )

    def save_pretrained(self, folder: str | os.PathLike[str], *, objective: Objective | None = None) -> None:
        """Write the embedder to `folder`; `Embedder.from_pretrained` restores it bit for bit.

        The trunk is written as its own library writes it, so that timm or open_clip load the folder without this package:
        `config.json` and `model.safetensors`, or `open_clip_config.json` and `open_clip_model.safetensors`; LoRA's adapters
        are added to the weights. `beyond_binary_head.safetensors` holds learned pooling and head. A new folder appears
        complete or not at all; in one that exists, an embedder's files are replaced and others are kept.

        Args:
            folder: where to.
            objective: what the embedder was trained with: `config.json` tells its target and settings, and
                `beyond_binary_objective.safetensors` holds what it learned, for `Objective.from_pretrained`.
        """
        library = self.config["trunk"].split("/")[0]
        trunk = towers.merged(self.trunk).state_dict()
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("trunk.")}
        with storage.replacing(Path(folder)) as part:
            own = self.config
            if objective is not None:
                learned = objective.learned()
                own = {**own, "objective": {**objective.config, "has_tensors": bool(learned)}}
                if learned:
                    storage.write_tensors(part / storage.OBJECTIVE_FILE, learned)
            config = {"beyond_binary": own}
            if library == "timm":
                config = trunks.timm_config(self.trunk, self.config) | config
            else:
                storage.write_json(part / storage.OPEN_CLIP_CONFIG_FILE, trunks.open_clip_config(self.config))
                if self.has_text:
                    trunks.save_tokenizer(lambda: self.tokenizer, self.config, part)
            storage.write_json(part / storage.CONFIG_FILE, config)
            storage.write_tensors(part / storage.TRUNK_FILES[library], trunk)
            if state:
                storage.write_tensors(part / storage.HEAD_FILE, state)

    def push_to_hub(
        self,
        hub_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        card: str | bool = True,
        objective: Objective | None = None,
        license: str | None = None,
    ) -> str:
        """Publish the embedder on the Hugging Face Hub in one commit and return the commit's address.

        What is sent is what `save_pretrained` writes, and a model card. Files of an embedder that was there
        before are replaced or removed; others stay.

        Args:
            hub_id: "user/name"; made if it is not there.
            private: make a new repository private; None leaves that to the account's settings.
            token: access token with write rights; None takes that of `HF_TOKEN` or `hf auth login`.
            revision: branch, made if it is not there; None for main.
            commit_message: the commit's title.
            card: True writes README.md anew, False leaves the one on the Hub, a text is written as it is.
            objective: as in `save_pretrained`.
            license: for the card, for example "mit" or "apache-2.0".

        Raises:
            PermissionError: no token, a wrong one, or one without write rights.
            ConnectionError: the Hub cannot be reached or keeps failing.
            ValueError: a name that cannot be, `private` for a repository that is public, or a refusal of the Hub.
        """
        from beyond_binary import hub

        hub.check_hub_id(hub_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, objective=objective)
            return hub.push(
                hub.embedder_files(Path(folder), hub_id, card, license),
                hub_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )

    def export_onnx(self, path: str | os.PathLike[str], tower: Literal["image", "text"] = "image") -> None:
        """Write one tower as ONNX: `pixels` [n 3 h w] or `tokens` [n length] -> `embeddings` [n dim], see `beyond_binary.export`.

        Raises:
            ValueError: `path` does not end in .onnx, or there is no such tower.
            ImportError: onnx or onnxscript is not installed (extra `onnx`).
        """
        from beyond_binary import export

        export.write_onnx(self, path, tower)

    def export_torch(self, path: str | os.PathLike[str], tower: Literal["image", "text"] = "image") -> None:
        """Write one tower as a program of `torch.export`, see `beyond_binary.export`.

        Raises:
            ValueError: `path` does not end in .pt2, or there is no such tower.
        """
        from beyond_binary import export

        export.write_program(self, path, tower)

    def merge_lora(self) -> None:
        """Add LoRA's adapters to the weights, in place: the trunk is then as its library made it."""
        self.trunk = towers.merged(self.trunk)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Embedder:
        """Load an embedder, in evaluation mode, from a folder or from the Hugging Face Hub.

        Args:
            id_or_path: a folder that `save_pretrained` wrote; if there is none, a Hub id "user/name".
            revision: branch, tag or commit on the Hub.
            token: access token for the Hub.
            cache_dir: where files from the Hub are kept.

        Raises:
            FileNotFoundError: neither a folder nor to be had from the Hub.
            PermissionError: the Hub does not take the token, or does not let its account read this.
            ValueError: not an embedder's folder, of a newer format, with a broken config, or with weights that do
                not fit.
        """
        folder = storage.find_folder(id_or_path, revision=revision, token=token, cache_dir=cache_dir)
        config = storage.read_config(folder)
        config["model_args"] = trunks.without_loading(config["model_args"])
        embedder = cls(trunks.build_trunk(config["trunk"], config["model_args"]), config)
        embedder.folder = folder
        storage.load_weights(embedder.trunk, folder / storage.TRUNK_FILES[config["trunk"].split("/")[0]], as_saved=True)
        rest = nn.ModuleDict({name: m for name, m in embedder.named_children() if name != "trunk"})
        if rest.state_dict():
            storage.load_weights(rest, folder / storage.HEAD_FILE, as_saved=True)
        return embedder.eval()


def create_embedder(
    trunk: str,
    *,
    dim: int | None = 128,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    head: str = "linear",
    normalize: bool = True,
    freeze_batch_norm: bool = False,
    image_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize_mode: str | None = None,
    trunk_options: dict[str, Any] | None = None,
    text: bool = False,
    unlocked: int | None = None,
    grad_checkpointing: bool = False,
    lora: dict[str, Any] | None = None,
) -> Embedder:
    """Make an embedder from a timm or open_clip network, in training mode, on the CPU.

    Args:
        trunk: "timm/<architecture>", "timm/<architecture>.<tag>" or "open_clip/<architecture>"; or, with the weights that lie
            there as safetensors, a repository on the Hub: "timm/hf-hub:user/name" or "open_clip/hf-hub:user/name".
        dim: length of an embedding; None keeps the trunk's width (the only choice with head "none").
        pretrained: let timm or open_clip download their weights.
        weights: a pretrained tag (implies `pretrained`), or the path of a safetensors file in the library's
            names; a classifier in it is left out. For open_clip the file may hold the image tower alone, or the
            timm network in it; the rest then stays random.
        pooling: None for the trunk's own; timm's "avg", "max", "avgmax", "catavgmax", "token", "map" where
            the architecture has it; "gem" (see `GeneralizedMean`). open_clip towers pool by themselves.
        head: "linear", "mlp" (one hidden layer) or "none".
        normalize: L2-normalise embeddings.
        freeze_batch_norm: keep BatchNorm's running statistics fixed, see `Embedder`.
        image_size: pixels, one side of a square or [h, w]; default: as the weights were trained.
        mean: per channel, for images scaled to [0, 1]; default: as the weights were trained.
        std: as `mean`.
        resize_mode: "shortest" scales an image to cover the size and crops the centre, "squash" ignores its
            aspect ratio (both are equal for square images); default: as the weights were trained.
        trunk_options: keywords for `timm.create_model`, or entries of open_clip's model config and `force_*`
            options of `open_clip.create_model`; saved with the embedder.
        text: let the text tower of an open_clip trunk be trained too (head "none" only).
        unlocked: how many of the image tower's last layers are trained (see `towers.layers`; the projection to the
            embedding is one); 0: none, None: all. A head of this package is always trained.
        grad_checkpointing: compute activations again for the gradient instead of keeping them.
        lora: train low-rank adapters in the place of the trunk's own weights; {} or options, see `towers.add_lora`.

    Raises:
        ValueError: an unknown trunk, tag, pooling, head or resize mode (near names are given), a dim below 1,
            options that the library refuses, weights that do not fit, a text tower that is not there, or more
            unlocked layers than there are.
        FileNotFoundError: `weights` is a path that does not exist.
        ImportError: `lora` without peft.
    """
    check_choice("pooling", pooling, trunks.POOLINGS)
    check_choice("head", head, HEADS)
    check_choice("resize_mode", resize_mode, RESIZE_MODES)
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or dim < 1):
        raise ValueError(f"dim must be an int of at least 1, or None for the trunk's width, got {dim!r}")
    for what, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) != 3:
            raise ValueError(f"{what} needs 3 values (red, green, blue), got {list(value)}")
    module, config = trunks.create_trunk(
        trunk,
        pretrained=pretrained,
        weights=weights,
        pooling=pooling,
        image_size=image_size,
        options=trunk_options,
    )
    own = {"mean": mean and list(mean), "std": std and list(std), "resize_mode": resize_mode}
    config["preprocess"].update({key: value for key, value in own.items() if value is not None})
    config |= {
        "format_version": storage.FORMAT_VERSION,
        "dim": dim,
        "pooling": pooling,
        "head": head,
        "normalize": normalize,
        "freeze_batch_norm": freeze_batch_norm,
    }
    embedder = Embedder(module, json.loads(json.dumps(config)))  # fails now, not when it is saved
    library = trunk.split("/")[0]
    if text:
        embedder.check_text()
        towers.train_text(embedder.trunk)
        embedder.trains_text = True
    if unlocked is not None:
        towers.lock(embedder.trunk, library, unlocked)
    if grad_checkpointing:
        towers.checkpoint(embedder.trunk, text)
    if lora is not None:
        towers.add_lora(embedder.trunk, lora, embedder.embed_black)
    return embedder.train()
