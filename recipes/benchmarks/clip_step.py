"""Time and memory of one CLIP training step beside open_clip's own, on random images, texts and weights.

python recipes/benchmarks/clip_step.py --batch 256                   # ViT-B-32 on an accelerator in bfloat16
python recipes/benchmarks/clip_step.py --tiny --batch 64             # a tiny model, anywhere

Both train image and text tower with AdamW. Bare: open_clip's model and ClipLoss. Ours: the embedder with both towers and
an objective over images and texts. Rounds of the two take turns, so a slower machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

import beyond_binary as bb
from beyond_binary.clip import beside

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 2, "width": 64, "patch_size": 16, "image_size": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
}


class Bare:
    """open_clip's model and loss."""

    def __init__(self, embedder: bb.Embedder) -> None:
        self.model: Any = embedder.trunk
        self.loss = open_clip.ClipLoss()

    def __call__(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """The loss, and the loss alone once more."""
        features = self.model(images, tokens)[:3]
        return self.loss(*features), lambda: self.loss(*(f.detach().requires_grad_() for f in features))


class Ours:
    """The embedder's towers and an objective over images and texts, each pair a class."""

    def __init__(self, embedder: bb.Embedder, objective: bb.Objective) -> None:
        self.model, self.objective = embedder, objective

    def __call__(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """The loss, and the loss alone once more."""
        z, texts = self.model(images), nn.functional.normalize(self.model.trunk.encode_text(tokens), dim=-1)  # type: ignore[operator]
        number = torch.arange(len(z), device=z.device)

        def loss(z: Tensor, texts: Tensor) -> Tensor:
            both, labels, ids = beside(z, texts, number, number)
            return self.objective(both, labels, ids=ids)

        return loss(z, texts), lambda: loss(z.detach().requires_grad_(), texts.detach().requires_grad_())


def clock(device: torch.device) -> float:
    """Seconds, after all that was asked of the accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--loss", default="nt_xent")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a tiny model in the place of the real one")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = TINY if given.tiny else {}
    embedder = bb.create_embedder(
        f"open_clip/{given.model}", dim=None, head="none", text=True, trunk_options=options
    ).to(device)  # fmt: skip
    size, length = embedder.preprocess["size"], embedder.trunk.context_length
    images = torch.randn(given.batch, 3, *size, device=device)
    tokens = torch.randint(1, 1000, (given.batch, int(length)), device=device)  # type: ignore[arg-type]
    steps: dict[str, Any] = {"bare": Bare(embedder), "ours": Ours(embedder, bb.create_objective(given.loss).to(device))}
    optimizer: Any = torch.optim.AdamW([p for p in embedder.parameters() if p.requires_grad], lr=1e-6)
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "loss": []} for name in steps}
    peak = {}
    for turn in range(given.rounds + 3):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = clock(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss, alone = step(images, tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            middle = clock(device)
            if device.type == "cuda":
                peak[name] = torch.cuda.max_memory_allocated(device) / 2**30
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                again = alone()
            again.backward()
            if turn >= 3:
                found[name]["step"].append(middle - start)
                found[name]["loss"].append(clock(device) - middle)
    result = {"model": "tiny" if given.tiny else given.model, "batch": given.batch, "loss": given.loss}
    for name, times in found.items():
        step_s, loss_s = (statistics.median(times[part]) for part in ("step", "loss"))
        result |= {
            f"{name}_images_per_s": round(given.batch / step_s, 1),
            f"{name}_loss_share": round(loss_s / step_s, 4),
        }
        result |= {f"{name}_peak_gib": round(peak[name], 2)} if name in peak else {}
    print(
        json.dumps(
            result
            | {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__}
        )
    )


if __name__ == "__main__":
    main()
