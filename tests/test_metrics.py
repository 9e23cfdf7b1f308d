"""Metrics of single rankings against plain loops, enumeration of ties, scikit-learn and SciPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, linregress, spearmanr
from sklearn.metrics import ndcg_score
from torch import Tensor

from beyond_binary.metrics import METRICS, create_metrics, higher_is_better, list_metrics
from beyond_binary.metrics.continuous import inversions
from beyond_binary.metrics.ranking import Ranking
from beyond_binary.targets import create_target

# ---- oracles: label distances in ranked order (floats) -> value ----------------------


def oracle_recall(y: Sequence[float], k: int) -> float:
    return float(any(v == 0 for v in y[:k]))


def oracle_r_precision(y: Sequence[float]) -> float:
    R = sum(v == 0 for v in y)
    return sum(v == 0 for v in y[:R]) / R


def oracle_map_at_r(y: Sequence[float]) -> float:
    R = sum(v == 0 for v in y)
    return sum(sum(v == 0 for v in y[: i + 1]) / (i + 1) for i in range(R) if y[i] == 0) / R


def oracle_mrr(y: Sequence[float]) -> float:
    return 1 / (1 + next(i for i, v in enumerate(y) if v == 0))


def oracle_mean_label_distance(y: Sequence[float], k: int) -> float:
    return sum(y[:k]) / len(y[:k])


def oracle_ndcg(y: Sequence[float], k: int, label_scale: float = 1.0) -> float:
    def dcg(ranked: Sequence[float]) -> float:
        return sum(1 / (1 + v / label_scale) / math.log2(i + 2) for i, v in enumerate(ranked[:k]))

    return dcg(y) / dcg(sorted(y))


SAME: dict[str, Callable[[Sequence[float]], float]] = {
    "precision_at_1": lambda y: oracle_recall(y, 1),
    "recall_at_2": lambda y: oracle_recall(y, 2),
    "recall_at_4": lambda y: oracle_recall(y, 4),
    "recall_at_99": lambda y: oracle_recall(y, 99),
    "r_precision": oracle_r_precision,
    "map_at_r": oracle_map_at_r,
    "mrr": oracle_mrr,
}
MAGNITUDE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean_label_distance_at_1": lambda y: oracle_mean_label_distance(y, 1),
    "mean_label_distance_at_3": lambda y: oracle_mean_label_distance(y, 3),
    "mean_label_distance_at_99": lambda y: oracle_mean_label_distance(y, 99),
    "ndcg_at_3": lambda y: oracle_ndcg(y, 3),
    "ndcg_at_99(label_scale=0.2)": lambda y: oracle_ndcg(y, 99, 0.2),
}


def scores(x: Tensor, y: Tensor, names: Sequence[str], gives: str, valid: Tensor | None = None) -> dict[str, Tensor]:
    """Values of each query, NaN where the query is left out."""
    metrics = create_metrics(names, gives)
    valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
    depth = max((m.k for m in metrics if m.reads != "same"), default=1)
    ranking = Ranking.of(x.clone(), y, valid, gives, depth)
    rows = {m.name: m.function(ranking) for m in metrics}
    assert all(value.dtype == torch.double for value, _ in rows.values())
    return {name: torch.where(count > 0, value, torch.nan) for name, (value, count) in rows.items()}


def orders(x: Sequence[float]) -> list[tuple[int, ...]]:
    """All orders, nearest first, that the ties of similarities `x` allow."""
    every = itertools.permutations(range(len(x)))
    return [p for p in every if all(x[a] >= x[b] for a, b in itertools.pairwise(p))]


# ---- same / different ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "r_precision", "map_at_r"),
    [([1], 0.10, 0.10), ([1, 10], 0.20, 0.12), ([1, 2], 0.20, 0.20), (range(1, 11), 1.0, 1.0)],
)
def test_table_of_the_reality_check(correct: Sequence[int], r_precision: float, map_at_r: float) -> None:
    """Musgrave et al. (ECCV 2020), table of four rankings of ten results; R = 10, the rest found last."""
    different = torch.ones(1, 40, dtype=torch.bool)
    different[0, [c - 1 for c in correct]] = False
    different[0, 40 - (10 - len(correct)) :] = False
    names = ["r_precision", "map_at_r", "precision_at_1", "mrr"]
    found = scores(-torch.arange(40.0)[None], different, names, "same")
    assert found["r_precision"].item() == pytest.approx(r_precision, abs=1e-12)
    assert found["map_at_r"].item() == pytest.approx(map_at_r, abs=1e-12)
    assert found["precision_at_1"].item() == found["mrr"].item() == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_same_metrics_are_expectations_over_ties(row: list[tuple[int, bool]]) -> None:
    similarity, same = zip(*row, strict=True)
    found = scores(torch.tensor([similarity]).float(), ~torch.tensor([same]), list(SAME), "same")
    for name, oracle in SAME.items():
        value = found[name].item()
        if not any(same):
            assert math.isnan(value), name
        else:
            values = [oracle([float(not same[i]) for i in order]) for order in orders(similarity)]
            assert value == pytest.approx(np.mean(values), abs=1e-9), name


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.3, 0.3, 2.0])), min_size=1, max_size=6))
def test_magnitude_metrics_are_expectations_over_ties(row: list[tuple[int, float]]) -> None:
    similarity, distance = zip(*row, strict=True)
    y = torch.tensor([distance], dtype=torch.double)
    found = scores(torch.tensor([similarity]).float(), y, list(MAGNITUDE), "magnitude")
    for name, oracle in MAGNITUDE.items():
        values = [oracle([distance[i] for i in order]) for order in orders(similarity)]
        assert found[name].item() == pytest.approx(np.mean(values), abs=1e-9), name


def test_ties_across_the_last_position_by_monte_carlo() -> None:
    torch.manual_seed(1)
    x, different = torch.randint(0, 4, (1, 60)).double(), torch.rand(1, 60) < 0.8
    y, draws = torch.rand(1, 60).double(), 20_000
    shuffled = x + 0.5 * torch.rand(draws, 60).double()
    for values, names, gives in ((different, list(SAME), "same"), (y, list(MAGNITUDE), "magnitude")):
        expected = scores(x, values, names, gives)
        drawn = scores(shuffled, values.expand(draws, -1), names, gives)
        for name in names:
            error = drawn[name].std().item() / draws**0.5
            mean = drawn[name].mean().item()
            assert mean == pytest.approx(expected[name].item(), abs=5 * error + 1e-9), name


def test_same_metrics_of_many_references_with_excluded_pairs() -> None:
    x, valid = torch.randn(30, 200), torch.rand(30, 200) < 0.9
    different = torch.rand(30, 200) < torch.rand(30, 1)
    found = scores(x, different, list(SAME), "same", valid)
    for i in range(30):
        order = [j for j in x[i].argsort(descending=True).tolist() if valid[i, j]]
        ranked = [float(different[i, j]) for j in order]
        for name, oracle in SAME.items():
            expected = oracle(ranked) if 0 in ranked else math.nan
            assert found[name][i].item() == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_first_right_reference_is_found_at_any_depth() -> None:
    different = torch.ones(4, 1000, dtype=torch.bool)
    for row, place in enumerate((0, 9, 500, 999)):
        different[row, place] = False
    names = ["mrr", "recall_at_10", "recall_at_501"]
    found = scores(-torch.arange(1000.0).expand(4, -1), different, names, "same")
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 10, 1 / 501, 1 / 1000])
    assert found["recall_at_10"].tolist() == [1, 1, 0, 0]
    assert found["recall_at_501"].tolist() == [1, 1, 1, 0]


def test_floating_same_targets_leave_unknown_pairs_out() -> None:
    y = torch.tensor([[torch.nan, 1.0, 0.0, 0.0]])
    found = scores(-torch.arange(4.0)[None], y, ["map_at_r", "mrr"], "same")
    assert found["mrr"].item() == pytest.approx(1 / 2)
    assert found["map_at_r"].item() == pytest.approx(1 / 4)


# ---- label distances -----------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 40, 100])
@pytest.mark.parametrize("label_scale", [0.05, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_equals_scikit_learn(k: int, label_scale: float, tied: bool) -> None:
    y, x = torch.rand(20, 40).double(), torch.randn(20, 40)
    x = (2 * x).round() if tied else x
    found = scores(x, y, [f"ndcg_at_{k}(label_scale={label_scale})"], "magnitude")
    for i, value in enumerate(next(iter(found.values()))):
        relevance = 1 / (1 + y[i : i + 1].numpy() / label_scale)
        assert value.item() == pytest.approx(ndcg_score(relevance, x[i : i + 1].numpy(), k=k), abs=1e-12)


@pytest.mark.parametrize("digits", [6, 0])
def test_spearman_equals_scipy(digits: int) -> None:
    x, y, valid = torch.randn(15, 50).double(), torch.rand(15, 50).double(), torch.rand(15, 50) < 0.8
    x, y = x.round(decimals=digits), (4 * y).round(decimals=digits)
    found = scores(x, y, ["spearman"], "magnitude", valid)["spearman"]
    expected = [spearmanr(-x[i, valid[i]], y[i, valid[i]]).statistic for i in range(15)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_spearman_at_its_edges() -> None:
    y = torch.arange(5.0).expand(4, -1)
    x = torch.stack([-y[0], y[0], torch.zeros(5), -y[0]])
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[3, 1:] = False
    found = scores(x, y, ["spearman"], "magnitude", valid)["spearman"].tolist()
    assert found[:3] == pytest.approx([1, -1, 0], abs=1e-12)
    assert math.isnan(found[3])  # one reference has no order
    assert scores(x[:1], torch.full((1, 5), 0.3), ["spearman"], "magnitude")["spearman"].item() == 0


@pytest.mark.parametrize("digits", [6, 1, 0])
@pytest.mark.parametrize("k", [2, 3, 50, 190])
def test_kendall_equals_scipy(k: int, digits: int) -> None:
    x, y, valid = torch.randn(15, k).double(), torch.rand(15, k).double(), torch.rand(15, k) < 0.8
    x, y = x.round(decimals=digits), (4 * y).round(decimals=digits)
    valid[:, :2] = True
    found = scores(x, y, ["kendall"], "magnitude", valid)["kendall"]
    with np.errstate(invalid="ignore"):
        expected = [kendalltau(-x[i, valid[i]], y[i, valid[i]]).statistic for i in range(15)]
    assert found.tolist() == pytest.approx(np.nan_to_num(expected).tolist(), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([True, True, False])), max_size=9))
def test_kendall_equals_a_loop_over_pairs(row: list[tuple[int, int, bool]]) -> None:
    row = [*row, (0, 0, False)]
    x, y, valid = (torch.tensor([column]) for column in zip(*row, strict=True))
    found = scores(x.float(), y.double(), ["kendall"], "magnitude", valid)["kendall"].item()
    kept = [(a, b) for a, b, ok in row if ok]
    pairs = list(itertools.combinations(kept, 2))
    agree = sum(np.sign(c - a) * np.sign(b - d) for (a, b), (c, d) in pairs)
    scale = math.sqrt(sum(a != c for (a, _), (c, _) in pairs) * sum(b != d for (_, b), (_, d) in pairs))
    if len(kept) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(agree / scale if scale else 0, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 36, 37, 500])
def test_inversions_equal_a_loop(n: int) -> None:
    place = torch.stack([torch.randperm(n) for _ in range(4)] + [torch.arange(n), torch.arange(n).flip(0)])
    expected = [sum(a > b for a, b in itertools.combinations(row.tolist(), 2)) for row in place]
    assert inversions(place).tolist() == expected


def test_inversions_of_more_than_16_bits() -> None:
    n = 40_000
    assert inversions(torch.arange(n).flip(0)[None]).tolist() == [n * (n - 1) / 2]
    assert inversions(torch.arange(n).roll(1)[None]).tolist() == [n - 1]


def test_log_line_equals_scipy() -> None:
    gap, y, valid = torch.rand(15, 40).double(), torch.rand(15, 40).double(), torch.rand(15, 40) < 0.8
    gap[:, 3], y[:, 5] = 0, 0  # no logarithm
    y[2, 7], valid[:, :3] = torch.nan, True
    found = scores(-gap, y, ["log_slope", "log_r2"], "magnitude", valid)
    for i in range(15):
        ok = valid[i] & (gap[i] > 0) & (y[i] > 0)
        line = linregress(y[i, ok].log(), gap[i, ok].log())
        assert found["log_slope"][i].item() == pytest.approx(line.slope, abs=1e-12)
        assert found["log_r2"][i].item() == pytest.approx(line.rvalue**2, abs=1e-12)


def test_log_line_at_its_edges() -> None:
    y = torch.tensor([[1.0, 2.0, 4.0]]).expand(5, -1).clone()
    gap = torch.tensor([[3.0, 6.0, 12.0], [1.0, 4.0, 16.0], [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    y[3] = 0.7
    found = scores(-gap, y, ["log_slope", "log_r2"], "magnitude")
    assert found["log_slope"].tolist() == pytest.approx([1, 2, 0, math.nan, math.nan], nan_ok=True)
    assert found["log_r2"].tolist() == pytest.approx([1, 1, 0, math.nan, math.nan], nan_ok=True)
    dot = Ranking.of(-gap, y, torch.ones(5, 3, dtype=torch.bool), "magnitude", gap=None)
    assert METRICS["log_slope"].build(dot)[1].tolist() == [0] * 5


def test_mean_label_distance_is_in_the_labels_unit() -> None:
    y = torch.tensor([[3.0, 50.0, 1.0, 2.0]])
    x = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    names = ["mean_label_distance_at_1", "mean_label_distance_at_2", "mean_label_distance_at_9"]
    assert [v.item() for v in scores(x, y, names, "magnitude").values()] == [3, 2, 14]


# ---- names ---------------------------------------------------------------------------


MAGNITUDE_NAMES = ("mean_label_distance_at_k", "ndcg_at_k", "spearman", "kendall", "log_slope", "log_r2")


def test_every_metric_says_what_it_reads_and_is_documented() -> None:
    known = {"precision_at_1", "recall_at_k", "r_precision", "map_at_r", "mrr", *MAGNITUDE_NAMES}
    assert known <= set(list_metrics())
    for name in list_metrics():
        assert METRICS[name].info["reads"] in ("same", "order", "magnitude")
        assert METRICS[name].build.__doc__
        assert ("ks" in METRICS[name].info) == name.endswith("_at_k")


def test_names_and_numbers_of_neighbours() -> None:
    def names(*args: object) -> list[str]:
        return [m.name for m in create_metrics(*args)]  # type: ignore[arg-type]

    three = ["recall_at_3", "recall_at_1", "recall_at_5"]
    assert names(["recall_at_3", "recall_at_k"], "same", [1, 5]) == three
    assert names(["ndcg_at_k(label_scale=2)"], "magnitude") == [
        "ndcg_at_10(label_scale=2)",
        "ndcg_at_100(label_scale=2)",
    ]
    assert names(None, "order") == ["kendall", "spearman"]
    usual = {"mean_label_distance_at_7", "ndcg_at_7", "spearman", "kendall", "log_slope", "log_r2"}
    usual |= {"ndcg_at_7(label_scale='nearest')"}
    assert set(names(None, "magnitude", [7])) == usual
    for spec, more in (("euclidean", set()), ("layout", {"mean_iou_at_7"}), ("multi_label", set())):
        assert set(names(None, "magnitude", [7], create_target(spec))) == usual | more | {"knn_label_error_at_7"}
    found = names(None, "magnitude", [7], create_target("sum(('circular', \"scaled('classes', factor=2.0)\"))"))
    parts = {f"part_label_distance_at_7(part={i})" for i in (0, 1)}
    assert set(found) == usual | parts | {"knn_label_error_at_7"}
    assert names(None, "same", None, create_target("classes")) == names(None, "same")
    assert set(names(None, "same")) == {f"recall_at_{k}" for k in (1, 2, 4, 8)} | {
        "precision_at_1",
        "r_precision",
        "map_at_r",
        "mrr",
    }


def test_which_way_is_better() -> None:
    assert higher_is_better("recall_at_4")
    assert higher_is_better("ndcg_at_10(label_scale=0.1)")
    assert higher_is_better("tar_at_far_1e-3")
    assert not higher_is_better("eer")
    assert not higher_is_better("mean_label_distance_at_10")


def test_metrics_that_need_more_of_a_target_say_so() -> None:
    layout, scaled = create_target("layout"), create_target("scaled('layout', factor=2.0)")
    with pytest.raises(ValueError, match="'mean_iou_at_1' needs the target 'layout', not"):
        create_metrics(["mean_iou_at_1"], "magnitude", None, scaled)
    with pytest.raises(ValueError, match=r"'part_label_distance_at_3' needs the target 'sum', not Layout"):
        create_metrics(["part_label_distance_at_3"], "magnitude", None, layout)


@pytest.mark.parametrize(
    ("names", "gives", "message"),
    [
        (["recal_at_4"], "same", "did you mean 'recall_at_4'"),
        (["spearmann"], "magnitude", "did you mean 'spearman'"),
        (["precision_at_5"], "same", "did you mean 'precision_at_1'"),
        (["recall_at_1"], "magnitude", r"reads same/different.*within\('<target>', radius.*nearest"),
        (["ndcg_at_10"], "same", "reads label distances.*choose a target"),
        (["mean_label_distance_at_1"], "order", "the order of label distances only"),
        (["recall_at_0"], "same", "at least 1"),
        (["tar_at_far_2"], "same", "a rate above 0 and at most 1, such as tar_at_far_0.001"),
        (["tar_at_far_0"], "same", "a rate above 0"),
        (["tar_at_far_x"], "same", "write the rate in place of x"),
        (["eer"], "magnitude", r"reads same/different.*within"),
        (["ndcg_at_5(scale=2)"], "magnitude", "label_scale"),
        (["ndcg_at_5(2)"], "magnitude", "key=value"),
        ("mrr", "same", r"write \['mrr'\]"),
    ],
)
def test_metrics_that_cannot_be_used_say_why(names: list[str], gives: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_metrics(names, gives)


def test_ndcg_at_the_scale_of_the_nearest_has_no_unit() -> None:
    x, y = torch.randn(6, 12), torch.rand(6, 12).double()
    y[0, :5], y[1, 3], y[2] = 0, torch.nan, 0
    valid = torch.ones(6, 12, dtype=torch.bool)
    valid[3, 2:] = False
    for k in (4, 30):
        name = f"ndcg_at_{k}(label_scale='nearest')"
        found = scores(x, y, [name], "magnitude", valid)[name]
        for factor in (0.01, 1000):
            again = scores(x, factor * y, [name], "magnitude", valid)[name]
            torch.testing.assert_close(again, found)
        for i in range(6):
            known = valid[i] & ~y[i].isnan()
            own, order = y[i, known], x[i, known].argsort(descending=True)
            scale = own.sort().values[:k].max().item()
            if scale > 0:
                plain = f"ndcg_at_{k}(label_scale={scale})"
                expected = scores(x[i : i + 1], y[i : i + 1], [plain], "magnitude", valid[i : i + 1])[plain]
            else:  # only what is the same counts
                gain = (own == 0)[order][:k].double() / torch.arange(2, min(k, len(own)) + 2).double().log2()
                best = (own == 0).sort(descending=True).values[:k] / torch.arange(
                    2, min(k, len(own)) + 2
                ).double().log2()
                expected = (gain.sum() / best.sum())[None]
            torch.testing.assert_close(found[i : i + 1], expected)


def test_ndcg_refuses_a_scale_of_zero() -> None:
    with pytest.raises(ValueError, match="positive label_scale"):
        scores(torch.zeros(1, 2), torch.zeros(1, 2), ["ndcg_at_1(label_scale=0)"], "magnitude")
