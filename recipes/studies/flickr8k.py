"""Captions of photographs: log-ratio loss on the relaxed word mover's distance of Flickr8k's captions.

    python recipes/studies/flickr8k.py --data flickr8k_112.zip --weights mobilenetv2_035_imagenet.safetensors \\
        --change --objective.target "captions(vectors='glove_twitter_25d.npz')"
"""

from __future__ import annotations

import study
from study import ROOT, Cell, Study

DENSE = ("--sampler.name", "dense_triplet(anchors=8, k=5, batches_per_epoch=62)")

STUDY = Study(
    base=(
        "--config", str(ROOT / "recipes/configs/captions.yaml"), "--data.label", "[cap0,cap1,cap2,cap3,cap4]",
        "--data.splitting", "rows", "--data.rows", "[6000,500,1591]", "--embedder.trunk", "timm/mobilenetv2_035",
        "--embedder.trunk_options", "{pad_type: same, bn_eps: 0.001}", "--embedder.dim", "128",
        "--embedder.image_size", "112", "--optimizer.lr", "0.001", "--optimizer.clip", "10.0", "--sampler.batch_size", "96",
    ),
    cells={
        "log_ratio": Cell(DENSE),
        "log_ratio normalised": Cell((*DENSE, "--embedder.normalize", "true")),
        "log_ratio, random batches": Cell(("--sampler.name", "random(drop_last=True)")),
    },
    shown=("mean_label_distance_at_10", "ndcg_at_100", "spearman"),
    results="flickr8k.md",
    epochs=4,
    questions={
        "dense or random batches": ("log_ratio", "log_ratio, random batches"),
        "normalised or not": ("log_ratio", "log_ratio normalised"),
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main(STUDY, __doc__)
