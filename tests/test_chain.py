"""Every registered target goes through losses, a memory, samplers, evaluation and pictures unchanged.

Processes together: `test_distributed.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import CHAIN, DIM, ITEMS, KINDS, objectives
from PIL import Image

import beyond_binary as bb
from beyond_binary.data import Items, Splits
from beyond_binary.metrics import COUNTS, higher_is_better
from beyond_binary.neighbours import label_neighbours
from beyond_binary.report import write_report
from beyond_binary.sampling import create_sampler

every_target = pytest.mark.parametrize("name", CHAIN)


def test_every_registered_target_is_here() -> None:
    assert set(CHAIN) == set(bb.list_targets())


@every_target
def test_losses_with_and_without_a_memory_learn_from_batches_that_labels_choose(name: str) -> None:
    labels = CHAIN[name][1]
    for objective in objectives(name):
        target = objective.target
        found, _ = label_neighbours(target, target.encode(labels), 5)
        sampler = create_sampler(
            "dense_triplet(anchors=2, k=3, batches_per_epoch=3)", items_count=ITEMS, batch_size=12, seed=0, neighbours=found.numpy()
        )  # fmt: skip
        z = torch.randn(ITEMS, DIM, requires_grad=True)
        optimizer = torch.optim.SGD([z], lr=0.1)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for batch in sampler:
                loss = objective(z[batch], labels[batch], ids=torch.tensor(batch))
                optimizer.zero_grad()
                loss.backward()
                assert loss.isfinite()
                assert z.grad is not None
                assert z.grad.isfinite().all()
                assert z.grad[batch].any()
                assert not np.delete(z.grad.numpy(), batch, 0).any()
                optimizer.step()
        if objective.memory is not None:
            assert objective.memory.seen == 6 * 12
            assert len(objective.memory.points() or ()) == 12


@every_target
@pytest.mark.parametrize("spec", ["random", "classes(samples_per_class=3)", "offline_hard(positives=2, negatives=2)"])
def test_other_samplers_take_it(name: str, spec: str) -> None:
    make, labels = CHAIN[name]
    options = {"classes": KINDS} if spec.startswith("classes") else {"labels": labels, "target": make()}
    sampler = create_sampler(spec, items_count=ITEMS, batch_size=12, seed=0, **options)
    if sampler.snapshot is not None:
        sampler.snapshot.renew(torch.randn(ITEMS, DIM), 0)
    batches = list(sampler)
    assert all(len(set(batch)) == len(batch) == 12 for batch in batches)


@every_target
def test_metrics_and_pictures_take_it(name: str, tmp_path: Path) -> None:
    make, labels = CHAIN[name]
    target = bb.create_target(make())
    images = [Image.new("RGB", (24, 24), (10 * i, 90, 60)) for i in range(ITEMS)]
    query = Items(images, labels, [f"{i}.png" for i in range(ITEMS)], np.arange(ITEMS))
    z = {word: torch.randn(ITEMS, DIM) for word in ("before", "after")}
    table = {word: bb.evaluate(z[word], labels, target=target) for word in z}
    table |= {
        ranking: bb.evaluate(z["after"], labels, target=target, ranking=ranking) for ranking in ("random", "oracle")
    }
    for metric in set(table["after"]) - set(COUNTS):
        random, oracle = table["random"][metric], table["oracle"][metric]
        assert all(math.isfinite(row[metric]) for row in table.values()), metric
        if not metric.startswith("log_"):
            assert oracle > random if higher_is_better(metric) else oracle < random, metric
    write_report(
        tmp_path / "report.html", title=name, config={}, metrics={"table": table}, history=[],
        splits=Splits(query, query, target=name), target=target, geometry="euclidean",
        before=(z["before"], None), after=(z["after"], None),
    )  # fmt: skip
    assert "Nearest neighbours" in (tmp_path / "report.html").read_text()
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.width > 500
