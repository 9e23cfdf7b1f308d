"""Folders of saved embedders: written whole or not at all, found on disk or on the Hub, checked when read."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
HEAD_FILE = "beyond_binary_head.safetensors"
OBJECTIVE_FILE = "beyond_binary_objective.safetensors"
OPEN_CLIP_CONFIG_FILE = "open_clip_config.json"
TRUNK_FILES = {"timm": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
CONFIG_KEYS = {"dim", "freeze_batch_norm", "head", "model_args", "normalize", "pooling", "preprocess", "trunk"}
TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
EMBEDDER_FILES = (CONFIG_FILE, HEAD_FILE, OPEN_CLIP_CONFIG_FILE, *TRUNK_FILES.values(), *TOKENIZER_FILES)
FILES = (*EMBEDDER_FILES, OBJECTIVE_FILE)


@contextmanager
def replacing(folder: Path, owned: Sequence[str] = FILES) -> Iterator[Path]:
    """A new folder to write to, on the disk of `folder`; in the end it becomes `folder`.

    A folder that exists keeps its other files: the written files replace theirs, and `owned` files (those of an
    embedder) that were not written again are removed. After an error `folder` is as it was. The first of `owned`, without
    which nothing reads the folder, is taken away first and put there last: what a killed process leaves is not taken for whole.

    Raises:
        ValueError: `folder` is a file.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder to write to, got the file {folder}; choose another name or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts(folder)
    beside = folder if folder.exists() else folder.parent  # another disk may be mounted at `folder`
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=beside))
    new = part / "new"  # unlike `part`, which is private, it has the permissions of other new folders
    try:
        new.mkdir()
        yield new
        if folder.exists():
            _exchange(folder, new, part / "old", owned)
        else:
            new.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):  # old files that could not be put back stay
            (part / "old").rmdir()
        with suppress(OSError):
            part.rmdir()
        raise


def _exchange(folder: Path, new: Path, old: Path, owned: Sequence[str]) -> None:
    """Move `owned` files of `folder`, and those that are in `new`, to `old`, and those of `new` to it; all or none."""
    written = {file.name for file in new.iterdir()}
    names = sorted({*owned, *written}, key=lambda name: name != owned[0])
    old.mkdir()
    try:
        for name in names:
            if (folder / name).is_file():
                (folder / name).replace(old / name)
        for name in reversed(names):
            if name in written:
                (new / name).rename(folder / name)
    except BaseException:
        for name in reversed(names):
            if name in written and not (new / name).exists():
                (folder / name).unlink()
            if (old / name).exists():
                (old / name).replace(folder / name)
        raise


def _remove_stale_parts(folder: Path, age: float = 3600.0) -> None:
    """Remove what killed processes left of their writing to `folder`: parts untouched for `age` seconds."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[^.]+\.part")
    for part in (*folder.parent.iterdir(), *(folder.iterdir() if folder.exists() else ())):
        if pattern.fullmatch(part.name):
            newest = max((p.stat().st_mtime for p in (part, *part.rglob("*")) if p.exists()), default=0.0)
            if time.time() - newest > age:
                shutil.rmtree(part, ignore_errors=True)


def find_folder(id_or_path: str | os.PathLike[str], files: Iterable[str] = EMBEDDER_FILES, **hub_options: Any) -> Path:
    """The folder `id_or_path`, or else the local copy of these files of the Hub repository of that name ("user/name").

    Raises:
        FileNotFoundError: it is neither, or the Hub cannot be reached.
        PermissionError, ValueError: as `hub_copy`.
    """
    if Path(id_or_path).is_dir():
        return Path(id_or_path)
    return hub_copy(os.fspath(id_or_path), allow_patterns=list(files), **hub_options)


def hub_copy(name: str, **hub_options: Any) -> Path:
    """The local copy of the Hub repository "user/name", a folder that is called as its commit.

    Raises:
        FileNotFoundError: no such repository or revision, or the Hub cannot be reached and there is no copy.
        PermissionError: the Hub does not take the token, or does not let its account read this.
        ValueError: the token cannot be one.
    """
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(f"expected a folder or a Hub id 'user/name', got {name!r}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    from .hub import check_token, http_status, patiently

    check_token(hub_options.get("token"))
    try:
        return Path(patiently(lambda: snapshot_download(name, **hub_options)))
    except Exception as error:
        status = http_status(error)
        if not isinstance(error, OSError) and status is None:
            raise
        told = f"no folder {name!r} here, and the Hub did not give it: {error}"
        if status in (401, 403) and type(error) is not RepositoryNotFoundError:
            raise PermissionError(
                f"{told}; log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
            ) from error
        raise FileNotFoundError(told) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the embedder saved in `folder`.

    Raises:
        ValueError: the folder holds no embedder of this package, one of a newer format, or a broken config.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); save or download the embedder again") from error
    config = content.get("beyond_binary") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ValueError(
            f"{folder} holds no embedder of beyond_binary ({CONFIG_FILE} with an entry 'beyond_binary'); "
            "plain weights of timm or open_clip are read by create_embedder(..., weights=...)"
        )
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {version}, but this beyond_binary reads only "
            f"up to {FORMAT_VERSION}: install a newer version"
        )
    if missing := sorted(CONFIG_KEYS - config.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)} under 'beyond_binary'; save or download it again")
    return config


def read_objective(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of the objective saved in `folder`.

    Raises:
        ValueError: no embedder's folder, one without an objective, or one whose objective's tensors are not there.
    """
    from safetensors.torch import load_file

    found = read_config(folder).get("objective")
    if found is None:
        raise ValueError(f"{folder} holds an embedder alone; save it with save_pretrained(..., objective=objective)")
    config, path = dict(found), folder / OBJECTIVE_FILE
    if config.pop("has_tensors") and not path.is_file():
        raise ValueError(
            f"{folder} has no {OBJECTIVE_FILE}: what the objective learned was left out; make a new one with "
            f"create_objective({config['loss']!r}, target={config['target']!r}, ...)"
        )
    with readable(path):
        return config, load_file(path) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write `tensors` as safetensors; tied weights are written once per name."""
    import torch
    from safetensors.torch import save_file

    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what safetensors raises on a damaged file into a ValueError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file; raises ValueError if it is none."""
    from safetensors import safe_open

    with readable(path), safe_open(path, "pt") as file:
        return set(file.keys())


def load_weights(module: nn.Module, path: Path, ignore: tuple[str, ...] = (), as_saved: bool = False) -> None:
    """Load a safetensors file strictly into `module`, in the module's precision or, `as_saved`, in the file's if it has one.

    Only BatchNorm's `num_batches_tracked` may be missing or left over, and only entries under the module
    names in `ignore` (a classifier) are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no safetensors file, or keys that are missing, left over or of another shape.
    """
    from safetensors.torch import load_file

    with readable(path):
        state = load_file(path)
    known = module.state_dict()
    optional = (*(f"{name}." for name in ignore),)
    problems = {
        "missing": [k for k in known.keys() - state.keys() if not k.endswith("num_batches_tracked")],
        "unexpected": [
            k
            for k in state.keys() - known.keys()
            if not k.endswith("num_batches_tracked") and not k.startswith(optional)
        ],
        "of another shape": [
            f"{k} {list(state[k].shape)} for {list(known[k].shape)}"
            for k in state.keys() & known.keys()
            if state[k].shape != known[k].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_few(sorted(keys))}" for what, keys in problems.items() if keys)
        raise ValueError(f"the weights in {path} do not fit the network; {told}")
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if as_saved and len(kinds) == 1:
        module.to(kinds.pop())
    module.load_state_dict({k: v for k, v in state.items() if k in known}, strict=False)


def _few(keys: list[str], shown: int = 5) -> str:
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")
