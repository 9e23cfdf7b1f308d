"""`evaluate` as users call it: against loops and pytorch-metric-learning, at its edges, and its baselines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from chain import CHAIN
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from beyond_binary import evaluation
from beyond_binary.evaluation import evaluate
from beyond_binary.targets import Gives, create_target
from beyond_binary.targets.tables import Precomputed


def clustered(n: int, classes: int, dim: int = 8, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings around class centres, and their classes."""
    labels = torch.randint(classes, (n,))
    return torch.randn(classes, dim)[labels] + noise * torch.randn(n, dim), labels


def close(a: dict[str, float], b: dict[str, float], abs: float = 1e-9) -> None:
    """Assert that two results hold the same numbers."""
    assert a.keys() == b.keys()
    assert list(a.values()) == pytest.approx(list(b.values()), abs=abs, nan_ok=True)


# ---- outside oracles -----------------------------------------------------------------

PML_NAMES = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
}


@pytest.mark.parametrize("separate", [False, True])
def test_equals_pytorch_metric_learning(separate: bool) -> None:
    z, labels = clustered(300, 12)
    labels[-2:] = torch.tensor([100, 101])  # singletons
    others = dict(zip(("reference", "reference_labels"), clustered(200, 12), strict=True)) if separate else {}
    calculator = AccuracyCalculator(
        include=tuple(PML_NAMES.values()),
        k=200 if separate else 299,
        device=torch.device("cpu"),
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
    )
    expected = calculator.get_accuracy(z, labels, **others)
    found = evaluate(z, labels, ref_embeddings=others.get("reference"), ref_labels=others.get("reference_labels"))
    assert found["queries_without_match"] == 2
    for ours, theirs in PML_NAMES.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6), ours


def test_pose_like_labels_equal_a_loop() -> None:
    z, labels = np.random.default_rng(0).normal(size=(40, 6)), np.random.default_rng(1).normal(size=(40, 2))
    near, nearest = [], []
    for i in range(40):
        others = [j for j in range(40) if j != i]
        distance = [math.dist(labels[i], labels[j]) for j in others]
        order = sorted(range(39), key=lambda a: math.dist(z[i], z[others[a]]))
        near.append(sum(distance[a] for a in order[:5]) / 5)
        nearest.append(sum(sorted(distance)[:5]) / 5)
    options: dict[str, Any] = {"target": "euclidean", "metrics": ["mean_label_distance_at_5"]}
    found = evaluate(z, labels, **options)
    assert found["mean_label_distance_at_5"] == pytest.approx(np.mean(near), abs=1e-12)
    oracle = evaluate(z, labels, ranking="oracle", **options)
    assert oracle["mean_label_distance_at_5"] == pytest.approx(np.mean(nearest), abs=1e-6)


def test_label_error_equals_nearest_neighbour_regression() -> None:
    z, labels = np.random.default_rng(2).normal(size=(300, 5)), np.random.default_rng(3).normal(size=(300, 3))
    fitted = KNeighborsRegressor(4).fit(z[100:], labels[100:])
    error = np.linalg.norm(fitted.predict(z[:100]) - labels[:100], axis=1).mean()
    given: dict[str, Any] = {"ref_embeddings": z[100:], "ref_labels": labels[100:]}
    for target, factor in (("euclidean", 1), ("scaled('euclidean', factor=3.0)", 3)):
        found = evaluate(z[:100], labels[:100], target=target, metrics=["knn_label_error_at_4"], **given)
        assert found["knn_label_error_at_4"] == pytest.approx(factor * error, abs=1e-9)
    few = evaluate(z[:100], labels[:100], target="euclidean", ks=500, **given)
    mean = np.linalg.norm(labels[100:].mean(0) - labels[:100], axis=1).mean()
    assert few["knn_label_error_at_500"] == pytest.approx(mean, abs=1e-9)


def test_label_error_takes_the_mean_of_the_target() -> None:
    def error(target: str, query: Any, refs: Any, z: Any = None) -> float:
        z = torch.arange(len(refs))[:, None].double() if z is None else torch.tensor(z)[:, None].double()
        name = f"knn_label_error_at_{2 if len(refs) > 2 else len(refs)}"
        found = evaluate(
            torch.zeros(1, 1), query, target=target, ref_embeddings=z, ref_labels=refs, metrics=[name], ks=None
        )
        return found[name]

    assert error("circular", [0.0], [350.0, 20.0]) == pytest.approx(5, abs=1e-4)
    assert error("manhattan", [[0.0, 0.0]], [[1.0, 3.0], [2.0, 1.0]]) == pytest.approx(3.5, abs=1e-4)
    assert error("cosine", [[1.0, 0.0]], [[0.0, 2.0], [1.0, 0.0]]) == pytest.approx(1 - math.sqrt(0.5), abs=1e-4)
    assert math.isnan(error("cosine", [[1.0, 0.0]], [[0.0, 2.0], [0.0, -1.0]]))  # no direction
    assert error("histogram", [[1, 0, 0]], [[0, 1, 0], [0, 0, 1]]) == pytest.approx(1.5, abs=1e-4)
    assert error("gaussian", [[0.0, 1.0]], [[1.0, 2.0], [3.0, 2.0]]) == pytest.approx(math.sqrt(5), abs=1e-4)
    assert error("gaussian(covariance='full')", [[[0.0, 1.0]]], [[[1.0, 4.0]], [[3.0, 4.0]]]) == pytest.approx(
        5**0.5, abs=1e-4
    )
    assert error("euclidean", [0.0], [2.0, 4.0, 8.0], z=[1, 2, 2]) == pytest.approx(
        0.5 * 2 + 0.5 * 6, abs=1e-4
    )  # ties share
    poses = torch.tensor([[[-1.0, 0], [1, 0]], [[-3, 0], [3, 0]]])
    assert error("pose", [[[-1.0, 0], [1, 0]]], poses) == pytest.approx(1, abs=1e-4)
    unseen = torch.cat([poses, torch.tensor([[[1.0], [1.0]], [[1.0], [0.0]]])], 2)  # alone, a joint is its own centre
    assert error("pose", [[[-1.0, 0], [1, 0]]], unseen) == pytest.approx((0.5 + 0) / 2, abs=1e-4)


def test_layouts_are_scored_by_their_overlap() -> None:
    maps = torch.randint(0, 3, (30, 4, 4))
    z = torch.randn(30, 3)
    found = evaluate(z, maps, target="layout(regions=3)", ks=4)
    assert found["mean_iou_at_4"] == pytest.approx(1 - found["mean_label_distance_at_4"], abs=1e-9)


def by_medoid(z: np.ndarray, y: np.ndarray, k: int) -> float:
    """Mean label distance [n n] of each item from the medoid of its nearest k, in loops; nan is unknown."""
    errors = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and not np.isnan(y[i, j])]
        near = sorted(others, key=lambda j: math.dist(z[i], z[j]))[:k]

        def spread(j: int, near: list[int] = near) -> float:
            known = [y[j, other] for other in near if other != j and not np.isnan(y[j, other])]
            return float(np.mean(known)) if known else math.inf

        errors.append(y[i, min(near, key=spread)])
    return float(np.mean(errors))


MEDOIDS = ["captions", "layout", "multi_label", "pair_scores", "precomputed", "sentences", "sum", "tree"]


@pytest.mark.parametrize("name", MEDOIDS)
def test_label_error_without_a_mean_is_that_of_the_medoid(name: str) -> None:
    target, labels = create_target(CHAIN[name][0]()), CHAIN[name][1]
    z = np.random.default_rng(5).normal(size=(len(labels), 3))
    y = target.distance(target.encode(labels), target.encode(labels)).double().numpy()
    found = evaluate(z, labels, target=target, ks=(1, 2, 5, 99))
    for k in (1, 2, 5, 99):
        assert found[f"knn_label_error_at_{k}"] == pytest.approx(by_medoid(z, y, k), abs=1e-6)
    assert found["knn_label_error_at_1"] == pytest.approx(found["mean_label_distance_at_1"])


def test_references_equally_near_a_query_are_drawn_by_lot() -> None:
    """A collapsed embedding is as good as chance, whatever the order in which references are stored."""
    line = np.linspace(0, 1, 1000)
    target = Precomputed(np.abs(line[:, None] - line))
    found, chance = (
        evaluate(
            torch.zeros(1000, 2), np.arange(1000), target=target, metrics=["knn_label_error_at_10"], ranking=ranking
        )
        for ranking in ("embedding", "random")
    )
    assert chance["knn_label_error_at_10"] == pytest.approx(0.27, abs=0.03)
    assert found["knn_label_error_at_10"] == pytest.approx(
        chance["knn_label_error_at_10"], abs=0.1
    )  # of the first: 0.5


def test_parts_of_a_sum_add_up_to_it() -> None:
    _, labels = CHAIN["sum"]
    z = np.random.default_rng(6).normal(size=(len(labels), 3))
    spec = "sum(('circular', \"scaled('classes', factor=90.0)\"))"
    found = evaluate(z, labels, target=spec, ks=5)
    parts = [found[f"part_label_distance_at_5(part={i})"] for i in (0, 1)]
    assert sum(parts) == pytest.approx(found["mean_label_distance_at_5"])
    alone = evaluate(z, labels[:, 0], target="circular", ks=5)
    assert parts[0] == pytest.approx(alone["mean_label_distance_at_5"])
    with pytest.raises(ValueError, match=r"a part of the sum, 0\.\.1, got 2"):
        evaluate(z, labels, target=spec, metrics=["part_label_distance_at_5(part=2)"])


def test_log_line_of_each_geometry() -> None:
    labels = torch.rand(40, 3).double()
    perfect = {
        g: evaluate(4 * labels, labels, target="euclidean", geometry=g) for g in ("euclidean", "squared_euclidean")
    }
    assert [p["log_slope"] for p in perfect.values()] == pytest.approx([1, 2], abs=1e-6)
    assert [p["log_r2"] for p in perfect.values()] == pytest.approx([1, 1], abs=1e-6)
    unit = torch.nn.functional.normalize(labels)
    assert evaluate(unit, unit, target="euclidean", geometry="cosine")["log_slope"] == pytest.approx(1, abs=1e-4)
    assert math.isnan(evaluate(labels, labels, target="euclidean", geometry="dot")["log_r2"])
    assert evaluate(labels, labels, target="euclidean", ranking="oracle")["log_slope"] == pytest.approx(1, abs=1e-4)
    random = evaluate(labels, labels, target="euclidean", ranking="random")
    assert abs(random["log_slope"]) < 0.2
    assert random["log_r2"] < 0.1


# ---- tiles, sides and identities -----------------------------------------------------


@pytest.mark.parametrize("ranking", ["embedding", "random", "oracle"])
@pytest.mark.parametrize("target", ["classes", "circular(period=30)"])
def test_tiles_change_nothing(ranking: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = clustered(97, 9)
    z = (4 * z).round()  # exact products, and ties
    results = []
    for pairs in (1, 97 * 10, 97 * 97):
        monkeypatch.setitem(evaluation.PAIRS_PER_TILE, "cpu", pairs)
        results.append(evaluate(z, labels, target=target, ranking=ranking))
    close(results[0], results[1])
    close(results[0], results[2])


def test_tiles_bound_the_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counted(Table):
        def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
            seen.append(len(code_q) * len(code_k))
            return super().distance(code_q, code_k, valid)

    monkeypatch.setitem(evaluation.PAIRS_PER_TILE, "cpu", 1000)
    evaluate(
        torch.randn(50, 3), torch.arange(50), target=Counted(torch.rand(50, 50)), metrics=["spearman", "ndcg_at_10"]
    )
    assert max(seen) == 1000
    assert sum(seen) == 2500


def test_a_query_is_left_out_by_identity_not_by_position() -> None:
    z, labels = clustered(60, 6)
    alone = evaluate(z, labels)
    order = torch.randperm(60)
    shuffled = evaluate(
        z, labels, ids=torch.arange(60), ref_embeddings=z[order], ref_labels=labels[order], ref_ids=order
    )
    close(alone, shuffled, abs=1e-6)
    both = evaluate(z, labels, ref_embeddings=z, ref_labels=labels)  # without ids, the copy counts
    assert both["recall_at_1"] == 1
    assert alone["recall_at_1"] < 1


def test_views_of_one_thing_never_count() -> None:
    z = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    labels, ids = torch.tensor([0, 0, 0, 0]), torch.tensor([7, 7, 8, 8])
    assert evaluate(z, labels, ids=ids, metrics=["recall_at_1"])["queries"] == 4
    assert evaluate(z, torch.tensor([0, 0, 1, 1]), ids=ids)["queries"] == 0


def test_more_neighbours_than_references() -> None:
    z, labels = torch.randn(6, 3), torch.rand(6).double()
    found = evaluate(z, labels, target="euclidean", ks=(5, 50))
    assert found["mean_label_distance_at_50"] == pytest.approx(found["mean_label_distance_at_5"], abs=1e-12)
    assert found["ndcg_at_50"] == pytest.approx(found["ndcg_at_5"], abs=1e-12)
    assert evaluate(z, torch.zeros(6).long(), ks=(50,))["recall_at_50"] == 1


def test_unit_vectors_rank_alike_by_cosine_and_by_distance() -> None:
    z, labels = clustered(80, 8)
    z = torch.nn.functional.normalize(z.double())
    close(evaluate(z, labels, geometry="cosine"), evaluate(z, labels, geometry="euclidean"))
    unlike = evaluate(z * torch.rand(80, 1) * 10, labels, geometry="euclidean")
    assert unlike["map_at_r"] != evaluate(z, labels, geometry="euclidean")["map_at_r"]
    close(evaluate(z, labels), evaluate(z * torch.rand(80, 1) * 10, labels, geometry="cosine"))


def test_far_from_the_origin() -> None:
    z, labels = clustered(80, 8)
    close(evaluate(z.double(), labels), evaluate(z.double() + 1e6, labels))


# ---- edges ---------------------------------------------------------------------------


def test_singletons_are_left_out_and_counted() -> None:
    z = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    found = evaluate(z, torch.tensor([0, 0, 1, 2]))
    assert (found["queries"], found["queries_without_match"]) == (2, 2)
    assert found["recall_at_1"] == pytest.approx((1 + 0.5) / 2)  # the second is as near to the third


def test_nothing_to_find() -> None:
    found = evaluate(torch.randn(3, 2), torch.arange(3))
    assert math.isnan(evaluate(torch.randn(3, 2), torch.arange(3), metrics=["spearman", "mrr"])["mrr"])
    assert (found.pop("queries"), found.pop("queries_without_match")) == (0, 3)
    assert all(math.isnan(value) for value in found.values())


def test_one_class_is_always_right() -> None:
    found = evaluate(torch.randn(7, 2), torch.zeros(7).long())
    assert {found[name] for name in found if not name.startswith("queries")} == {1.0}


def test_duplicates_count_like_others() -> None:
    z, labels = torch.tensor([[0.0], [0.0], [0.0], [9.0]]), torch.tensor([0, 0, 1, 1])
    found = evaluate(z, labels, metrics=["precision_at_1", "mrr"])
    assert found["precision_at_1"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 1 / 3) / 4)
    assert found["mrr"] == pytest.approx((3 / 4 + 3 / 4 + 1 / 3 + (1 + 1 / 2 + 1 / 3) / 3) / 4)


@pytest.mark.parametrize("geometry", ["euclidean", "cosine", "dot", "squared_euclidean"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_collapsed_model_scores_like_chance(geometry: str, shuffled: bool) -> None:
    labels = torch.arange(100) // 10
    labels = labels[torch.randperm(100)] if shuffled else labels
    found = evaluate(torch.randn(1, 16).expand(100, -1), labels, geometry=geometry)
    assert found["precision_at_1"] == pytest.approx(9 / 99)
    assert found["r_precision"] == pytest.approx(9 / 99)
    age = evaluate(torch.ones(100, 4), labels.double(), target="euclidean")
    assert age["spearman"] == 0
    assert age["mean_label_distance_at_1"] == pytest.approx(age["mean_label_distance_at_10"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_type(dtype: torch.dtype) -> None:
    z, labels = clustered(40, 4)
    z = z.to(dtype)
    close(evaluate(z, labels), evaluate(z.double(), labels), abs=1e-6)
    mixed = evaluate(z, labels, ids=range(40), ref_embeddings=z.double(), ref_labels=labels, ref_ids=range(40))
    close(mixed, evaluate(z.double(), labels), abs=1e-6)


class Table:
    """A target whose label distances stand in a table; NaN is unknown."""

    gives: Gives = "magnitude"

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        return torch.as_tensor(labels)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.table[code_q][:, code_k]


def test_unknown_pairs_do_not_count() -> None:
    z, table = torch.randn(30, 4), torch.rand(30, 30)
    table[5] = torch.nan
    table[:, 20:] = torch.nan
    known = evaluate(z, torch.arange(30), target=Table(table))
    rows = torch.arange(30) != 5
    smaller = evaluate(
        z[rows],
        torch.arange(30)[rows],
        target=Table(table),
        ids=torch.arange(30)[rows],
        ref_embeddings=z[:20],
        ref_labels=torch.arange(20),
        ref_ids=torch.arange(20),
    )
    assert (known.pop("queries_without_match"), smaller.pop("queries_without_match")) == (1, 0)
    close(known, smaller, abs=1e-6)


def test_classes_made_of_distances() -> None:
    labels = torch.rand(50).double()
    z = labels[:, None].float()  # a perfect embedding
    for target in ("nearest('euclidean', k=5)", "within('euclidean', radius=0.05)"):
        found = evaluate(z, labels, target=target)
        assert found["map_at_r"] == pytest.approx(1, abs=1e-9)
        assert evaluate(torch.randn(50, 3), labels, target=target)["map_at_r"] < 0.7


# ---- baselines -----------------------------------------------------------------------


def test_random_ranking_is_chance_whatever_the_embedding() -> None:
    labels = torch.arange(400) // 20
    found = evaluate(torch.zeros(400, 2), labels, ranking="random", seed=3)
    close(found, evaluate(torch.randn(400, 2), labels, ranking="random", seed=3))
    assert found != evaluate(torch.zeros(400, 2), labels, ranking="random", seed=4)
    chance, n = 19 / 399, 400
    assert found["r_precision"] == pytest.approx(chance, abs=5 * (chance / (n * 19)) ** 0.5)
    assert found["recall_at_8"] == pytest.approx(1 - (1 - chance) ** 8, abs=5 * (0.25 / n) ** 0.5)
    age = evaluate(torch.zeros(400, 2), labels.double(), target="euclidean", ranking="random")
    assert abs(age["spearman"]) < 5 / 400
    mean = (labels[:, None] - labels).abs().sum().item() / (400 * 399)
    assert age["mean_label_distance_at_10"] == pytest.approx(mean, rel=0.05)


def test_oracle_ranking_is_the_best_possible() -> None:
    z, labels = clustered(120, 10)
    oracle = evaluate(z, labels, ranking="oracle")
    assert {oracle[name] for name in oracle if not name.startswith("queries")} == {1.0}
    ages = torch.rand(120).double()
    best = evaluate(z, ages, target="euclidean", ranking="oracle")
    assert [best["ndcg_at_10"], best["ndcg_at_100"], best["spearman"]] == pytest.approx([1, 1, 1], abs=1e-6)
    for ranking in ("embedding", "random"):
        other = evaluate(z, ages, target="euclidean", ranking=ranking)
        assert best["mean_label_distance_at_10"] < other["mean_label_distance_at_10"]


def test_one_number_of_neighbours_needs_no_list() -> None:
    z, labels = clustered(20, 4)
    expected = evaluate(z, labels, ks=(3,))
    assert "recall_at_3" in expected
    close(evaluate(z, labels, ks=3), expected)
    close(evaluate(z, labels, ks=np.array([3])), expected)  # type: ignore[arg-type]


# ---- mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ref_embeddings": torch.randn(3, 2)}, "without ref_labels"),
        ({"ref_labels": torch.arange(3)}, "give ref_embeddings"),
        ({"ref_embeddings": torch.randn(3, 5), "ref_labels": torch.arange(3)}, "2 dimensions, references 5"),
        (
            {"ref_embeddings": torch.randn(3, 2), "ref_labels": torch.arange(3), "ids": torch.arange(4)},
            "one side has none",
        ),
        ({"ids": torch.arange(3)}, "one label and one id"),
        ({"labels": torch.arange(5)}, "one label and one id"),
        ({"embeddings": torch.randn(4)}, r"\[n d\]"),
        ({"embeddings": torch.randn(0, 4), "labels": torch.arange(0)}, "at least one row"),
        ({"embeddings": torch.tensor([[0, 1], [1, 1], [torch.nan, 0], [0, torch.inf]])}, "row 2 .2 of 4"),
        ({"embeddings": torch.full((4, 2), 1e30)}, "too large"),
        ({"ranking": "orakle"}, "did you mean 'oracle'"),
        ({"geometry": "cosin"}, "did you mean 'cosine'"),
        ({"target": "clases"}, "did you mean 'classes'"),
        ({"labels": torch.rand(4)}, "integer labels"),
        ({"target": "euclidean", "metrics": ["map_at_r"]}, "within"),
        ({"metrics": ["mapr"]}, "did you mean"),
        ({"metrics": []}, "at least one metric"),
        ({"ks": (1.0,)}, r"ks must be integers of at least 1 .* got \(1.0,\)"),
        ({"ks": 1.5}, "ks must be integers"),
        ({"ks": (0,)}, "ks must be integers of at least 1"),
        ({"ks": (True,)}, "ks must be integers"),
        ({"ks": ()}, "ks must be integers"),
        ({"ks": "12"}, "ks must be integers"),
        ({"ids": [0.2, 0.9, 1.0, 2.0]}, "^ids must be integers .* got torch.float32"),
        ({"ids": ["a", "b", "c", "d"]}, "^ids must be integers .*; map names to numbers"),
        (
            {
                "ids": torch.arange(4),
                "ref_embeddings": torch.randn(4, 2),
                "ref_labels": torch.arange(4),
                "ref_ids": torch.rand(4),
            },
            "^ref_ids must be integers",
        ),
        ({"labels": ["cat", "cat", "dog", "dog"]}, "map class names to numbers, for example np.unique"),
        (
            {"target": "euclidean", "metrics": ["ndcg_at_5(label_scale='x')"]},
            "metric 'ndcg_at_k': label_scale must be a float or one of 'nearest', got 'x'",
        ),
    ],
)
def test_mistakes_are_explained(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"embeddings": torch.randn(4, 2), "labels": torch.tensor([0, 0, 1, 1])}
    with pytest.raises(ValueError, match=message):
        evaluate(**given | options)
