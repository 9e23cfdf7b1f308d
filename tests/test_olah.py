"""Sets and embedders that we write, read through olah, a mirror of the Hub that others wrote: a check of the read side beside our double."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_client import Client
from PIL import Image

from beyond_binary.embedder import create_embedder
from beyond_binary.hub_data import dataset_files

OLAH = Path(sys.executable).with_name("olah-cli")
pytestmark = pytest.mark.slow
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
READ = """
import numpy as np
from beyond_binary.data import DataConfig, load_splits
pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
for streaming in (False, True):
    for revision in ("main", COMMIT):
        config = DataConfig(source="hub:tester/set", label="label", streaming=streaming, revision=revision)
        splits = load_splits(config)
        assert splits.train.labels.tolist() == [0, 1, 0, 1] and splits.class_names == ["x", "y", "z"]
        assert all(np.array_equal(np.asarray(splits.query.images[i]), pixels[4 + i]) for i in range(2))
        assert splits.origin["commit"] == COMMIT, splits.origin
"""


EMBEDDER = """
import beyond_binary as bb, timm, torch
z = torch.load(EXPECTED, weights_only=True)
x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
model = bb.Embedder.from_pretrained("tester/model", revision=COMMIT)
assert torch.equal(model(x), z["ours"])
assert torch.equal(timm.create_model("hf-hub:tester/model", pretrained=True).eval()(x), z["trunk"])
"""


def git(folder: Path, *words: str) -> str:
    person = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    return subprocess.run(
        ["git", "-C", str(folder), *person, *words], check=True, capture_output=True, text=True
    ).stdout


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of olah, and the folder of what it serves."""
    port, served = free_port(), tmp_path / "mirrors"
    (tmp_path / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{tmp_path}/repos"\n'
        f'mirrors-path = ["{tmp_path}/mirrors"]\n[accessibility]\noffline = true\n'
    )
    served.mkdir()
    with (tmp_path / "olah.txt").open("w") as log:
        command = [str(OLAH), "-c", "olah.toml"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": ""})
        try:
            for _ in range(600):
                if "Uvicorn running" in (tmp_path / "olah.txt").read_text():
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", served
        finally:
            process.terminate()
            process.wait()


def committed(folder: Path) -> str:
    """Make the folder a repository of git; its commit."""
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "everything")
    return git(folder, "rev-parse", "HEAD").strip()


def ask(url: str, home: Path, code: str) -> None:
    """Run code with the clients of the Hub in a process of its own."""
    client = Client(SimpleNamespace(url=url), home)  # type: ignore[arg-type]
    home.mkdir()
    try:
        client.run(code)
    finally:
        client.close()


def test_an_embedder_is_read_through_a_mirror_that_others_wrote(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    model = create_embedder("timm/test_efficientnet", dim=8, image_size=64).eval()
    model.save_pretrained(served / "models" / "tester" / "model")
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    torch.save({"ours": model(x).detach(), "trunk": model.trunk(x).detach()}, tmp_path / "expected")
    commit = committed(served / "models" / "tester" / "model")
    ask(url, tmp_path / "home", f"COMMIT, EXPECTED = {commit!r}, {str(tmp_path / 'expected')!r}\n{EMBEDDER}")


def test_a_set_is_read_through_a_mirror_that_others_wrote(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    parts = tmp_path / "parts"
    parts.mkdir()
    files = dataset_files(
        [Image.fromarray(p) for p in PIXELS], [0, 1, 0, 1, 2, 2], "tester/set", parts, ["train"] * 4 + ["test"] * 2,
        ["x", "y", "z"],
    )  # fmt: skip
    for name, file in files.items():
        place = served / "datasets" / "tester" / "set" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    commit = committed(served / "datasets" / "tester" / "set")
    ask(url, tmp_path / "home", f"COMMIT = {commit!r}\n{READ}")
