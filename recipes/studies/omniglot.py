"""Decidability, proxy-decidability and mean-field losses on Omniglot, characters never seen in training.

python recipes/studies/omniglot.py --data omniglot_105.zip --weights mobilenetv2_035_imagenet.safetensors
"""

from __future__ import annotations

import study
from distributions import FIELDS, PAIRS, cell, fields
from study import ROOT, Study

CELLS = {
    "pd_loss": cell("pd_loss"),
    "pd_loss, random proxies": cell("pd_loss", "--objective.proxy_init", "random"),
    **{f"pd_loss, hardness {h}": cell("pd_loss", options=f"{{hardness: {h}}}") for h in (10, 20)},
    "d_loss": cell("d_loss", *PAIRS),
    "d_loss, hardness 20": cell("d_loss", *PAIRS, options="{hardness: 20}"),
    "d_loss with a memory": cell("d_loss", *PAIRS, "--objective.memory", "8192"),
    "triplet": cell("triplet", *PAIRS),
    FIELDS: fields(FIELDS, rate=1e-3),
    "proxy_anchor": cell("proxy_anchor"),
    "normalized_softmax": cell("normalized_softmax"),
}

STUDY = Study(
    base=(
        "--config", str(ROOT / "recipes/configs/omniglot.yaml"), "--compile", "inductor",
        "--evaluation.metrics", "[map_at_r,recall_at_1,d_prime,eer]",
    ),
    cells=CELLS,
    shown=("map_at_r", "recall_at_1", "d_prime", "eer"),
    results="omniglot.md",
    epochs=5,
    questions={"losses": [*CELLS]},
)  # fmt: skip

if __name__ == "__main__":
    study.main(STUDY, __doc__)
