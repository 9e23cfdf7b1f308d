"""The benchmark of the index on a few vectors: what it draws, what it counts as recall, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes import load

bench = load("recipes/benchmarks/index.py")

SMALL = ["--items", "600", "--queries", "20", "--alone", "2", "--dim", "8", "--clusters", "30", "--threads", "1"]


def test_vectors_are_unit_clustered_and_the_same_each_time() -> None:
    z = bench.clustered(500, 20, 8, 5, 0.3)
    assert z.shape == (520, 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(520))
    assert torch.equal(z, bench.clustered(500, 20, 8, 5, 0.3))
    nearest = (z @ z.T).fill_diagonal_(-1).amax(1)
    wide = bench.clustered(500, 20, 8, 5, 5.0)
    assert nearest.mean() > (wide @ wide.T).fill_diagonal_(-1).amax(1).mean()


def test_recall() -> None:
    assert bench.recall([[1, 2], [3, 9]], [[2, 1], [3, 4]]) == pytest.approx(0.75)
    assert bench.recall([[1, -1]], [[1, 2]]) == pytest.approx(0.5)


def test_measures_of_each_kind() -> None:
    rows = [bench.measure(kind, bench.parse(SMALL)) for kind in bench.KINDS]
    for row in rows:
        assert len(row["places"]) == 20
        assert row["build_s"] > 0
        assert row["together_ms"] > 0
        assert row["alone_ms"] > 0
        assert row["memory_mb"] >= 0
        row["spread"] = 0.8
        row["recall"] = bench.recall(row["places"], rows[0]["places"])
    assert rows[1]["recall"] == 1
    assert rows[3]["recall"] > 0.9
    text = bench.page(rows, bench.parse(SMALL), "python ...")
    shown = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| 0.8")]
    assert shown == [["| 0.8", kind] for kind in bench.KINDS]
    assert "600 vectors of 8 dimensions" in text


@pytest.mark.slow
def test_the_page_is_written(tmp_path: Path) -> None:
    rows = bench.main([
        *SMALL, "--kinds", "flat", "--spread", "0.5", "2", "--page", str(tmp_path / "new" / "index.md"),
    ])  # fmt: skip
    assert [(row["spread"], row["kind"]) for row in rows] == [(s, k) for s in (0.5, 2) for k in ("exact", "flat")]
    assert rows[0]["recall"] == rows[1]["recall"] == rows[2]["recall"] == rows[3]["recall"] == 1
    assert "--kinds flat" in (tmp_path / "new" / "index.md").read_text()
