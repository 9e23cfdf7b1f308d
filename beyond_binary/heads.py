"""From a trunk's features to the embedding: pooling that timm has not, and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEADS = ("linear", "mlp", "none")


class GeneralizedMean(nn.Module):
    """Generalised-mean pooling, (mean_l max(x, eps)^p)^(1/p) per channel; p is learned and starts at 3.

    Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", eq. (3), with one
    p for all channels. Negative activations count as eps.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(p)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Positions [n l c] -> [n c]."""
        return x.clamp(min=self.eps).pow(self.p).mean(1).pow(1 / self.p)


def positions(maps: Tensor, trunk: nn.Module) -> Tensor:
    """Unpooled timm features (tokens, or maps of either channel order) -> [n l c], without prefix tokens."""
    if maps.ndim == 3:
        return maps[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return maps.flatten(1, 2)
    return maps.flatten(2).transpose(1, 2)


def make_head(head: str, width: int, dim: int) -> nn.Module:
    """The layers from the trunk's features to the embedding.

    "linear" is one layer, "mlp" is linear, ReLU, linear with a hidden layer as wide as the trunk. Weights are
    drawn from a normal distribution of variance 2 / outputs (Kaiming, fan out), as is usual in published
    metric-learning code; biases are 0.
    """
    if head == "none":
        return nn.Identity()
    layers = nn.Sequential(nn.Linear(width, dim))
    if head == "mlp":
        layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), *layers)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            nn.init.zeros_(layer.bias)
    return layers
