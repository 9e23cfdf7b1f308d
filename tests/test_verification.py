"""Verification and clustering: error rates against scikit-learn and loops, identities' intervals, LFW's protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from originals import write_lfw
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score, roc_curve
from sklearn.metrics.cluster import pair_confusion_matrix

import beyond_binary as bb
from beyond_binary import evaluation
from beyond_binary.metrics import METRICS, clustering, verification
from beyond_binary.metrics.verification import Collector, Separation
from beyond_binary.report.charts import pair_picture
from beyond_binary.verification import best_threshold, pair_scores, read_lfw_pairs, ten_fold, verify
from recipes import load

RATES = ["eer", "tar_at_far_0.5", "tar_at_far_0.1", "tar_at_far_0.03"]
PAIRS = ["d_prime", *RATES]


@pytest.mark.parametrize("curve", [False, True])
def test_genuine_scores_are_kept_for_a_curve_alone(curve: bool) -> None:
    collector, x = Collector(curve), torch.rand(3, 4)
    right = torch.eye(3, 4, dtype=torch.bool)
    collector.add(x, right, torch.ones_like(right))
    assert sum(len(scores) for scores in collector._genuine) == (3 if curve else 0)
    assert collector.result().genuine.number == 3


lists = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: {same for _, same in pairs} == {True, False}
)


def loop_tar(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    """The largest share of genuine pairs over all thresholds that accept few enough impostors."""
    if far * (~same).sum() < 1 - 1e-9:
        return math.nan
    ends = [np.inf, *np.unique(scores)]
    return max((scores[same] >= t).mean() for t in ends if (scores[~same] >= t).mean() <= far + 1e-12)


def sklearn_eer(scores: np.ndarray, same: np.ndarray) -> float:
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    return float(brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1))


@settings(max_examples=150, deadline=None)
@given(lists)
def test_rates_equal_loops_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, same = np.array([s for s, _ in pairs], float), np.array([g for _, g in pairs])
    found = verify(scores, same, metrics=PAIRS)
    for far in (0.5, 0.1, 0.03):
        assert found[f"tar_at_far_{far}"] == pytest.approx(loop_tar(scores, same, far), nan_ok=True)
    gap = scores[same].mean() - scores[~same].mean()
    spread = math.sqrt((scores[same].var() + scores[~same].var()) / 2)
    if min(same.sum(), (~same).sum()) < 2:
        assert math.isnan(found["d_prime"])
    elif spread > 1e-9:
        assert found["d_prime"] == pytest.approx(gap / spread)
    assert (found["genuine"], found["impostors"]) == (same.sum(), (~same).sum())


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_equal_error_rate_equals_scikit_learn(digits: int) -> None:
    rng = np.random.default_rng(digits)
    for size in (30, 400):
        same = rng.random(size) < 0.3
        scores = (rng.normal(size=size) + same).round(digits)
        assert verify(scores, same, metrics=["eer"])["eer"] == pytest.approx(sklearn_eer(scores, same), abs=1e-9)


def test_rates_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(400_000) < 100_000
    found = verify(rng.normal(size=400_000) + 2 * same, same)
    assert found["d_prime"] == pytest.approx(2, abs=0.02)
    assert found["eer"] == pytest.approx(norm.cdf(-1), abs=2e-3)
    assert found["tar_at_far_0.01"] == pytest.approx(norm.sf(norm.isf(0.01) - 2), abs=0.01)


def test_edges() -> None:
    constant = verify([1.0] * 5, [True, True, False, False, False], metrics=["d_prime", "eer", "tar_at_far_0.5"])
    assert (constant["d_prime"], constant["eer"], constant["tar_at_far_0.5"]) == (0, 0.5, 0)
    apart = verify([2.0, 2.0, 1.0, 1.0], [True, True, False, False], metrics=["d_prime", "eer", "tar_at_far_0.5"])
    assert (apart["d_prime"], apart["eer"], apart["tar_at_far_0.5"]) == (math.inf, 0, 1)
    assert verify([0.1] * 10, [True] * 7 + [False] * 3, metrics=["d_prime"])["d_prime"] == 0
    assert verify([0.3] * 11 + [0.1] * 7, [1] * 11 + [0] * 7, metrics=["d_prime"])["d_prime"] == math.inf
    wrong = verify([1.0, 1.0, 2.0, 2.0], [True, True, False, False], metrics=["d_prime", "eer"])
    assert (wrong["d_prime"], wrong["eer"]) == (-math.inf, 1)
    alone = verify([1.0, 2.0], [True, True], metrics=PAIRS)
    assert all(math.isnan(alone[name]) for name in PAIRS)


def test_a_rate_that_cannot_be_resolved_is_nan_and_said(caplog: pytest.LogCaptureFixture) -> None:
    same = np.arange(400) < 100
    with caplog.at_level("WARNING"):
        assert math.isnan(verify(np.linspace(1, 0, 400), same, metrics=["tar_at_far_0.001"])["tar_at_far_0.001"])
    assert "cannot be resolved by 300 impostor pairs; it needs at least 1000" in caplog.text
    assert verify(np.linspace(1, 0, 400), same, metrics=["tar_at_far_0.01"])["tar_at_far_0.01"] == 1


def all_pairs(z: torch.Tensor, labels: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    i, j = np.triu_indices(len(z), 1)
    unit = torch.nn.functional.normalize(z, dim=1)
    return (unit[i] * unit[j]).sum(1), labels[i] == labels[j]


@pytest.mark.parametrize("pairs_per_tile", [1, 150, 1 << 21])
def test_all_pairs_of_embeddings_in_any_tiles(pairs_per_tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.PAIRS_PER_TILE, "cpu", pairs_per_tile)
    z, labels = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double(), np.arange(60) % 7
    found = bb.evaluate(z, labels, geometry="cosine", metrics=[*PAIRS, "recall_at_1"])
    expected = verify(*all_pairs(z, labels), metrics=PAIRS)
    for name in PAIRS:
        assert found[name] == pytest.approx(expected[name], abs=1e-12), name
    assert list(found)[:6] == [*PAIRS, "recall_at_1"]
    refs, ref_labels = torch.randn(40, 5).double(), np.arange(40) % 7
    found = bb.evaluate(z, labels, ref_embeddings=refs, ref_labels=ref_labels, metrics=PAIRS, geometry="dot")
    expected = verify((z @ refs.T).flatten(), (labels[:, None] == ref_labels).flatten(), metrics=PAIRS)
    for name in PAIRS:
        assert found[name] == pytest.approx(expected[name], abs=1e-12), name


def test_chance_and_oracle_of_all_pairs() -> None:
    z, labels = torch.randn(200, 4), np.arange(200) % 20
    chance = bb.evaluate(z, labels, metrics=["d_prime", "eer", "ami"], ranking="random")
    assert abs(chance["d_prime"]) < 0.2
    assert chance["eer"] == pytest.approx(0.5, abs=0.05)
    assert abs(chance["ami"]) < 0.1
    oracle = bb.evaluate(z, labels, metrics=["d_prime", "eer", "ami", "nmi", "pairwise_f1"], ranking="oracle")
    assert [oracle[name] for name in ("d_prime", "eer", "ami", "nmi", "pairwise_f1")] == [math.inf, 0, 1, 1, 1]


def test_pairs_of_no_kind_and_collapsed_embeddings() -> None:
    lonely = bb.evaluate(torch.randn(6, 3), np.arange(6), metrics=PAIRS)
    assert all(math.isnan(lonely[name]) for name in PAIRS)
    collapsed = bb.evaluate(torch.ones(8, 3), np.arange(8) % 2, metrics=["eer", "d_prime"])
    assert (collapsed["eer"], collapsed["d_prime"]) == (0.5, 0)


# ---- intervals


@settings(max_examples=60, deadline=None)
@given(lists, st.data())
def test_a_weight_counts_a_pair_so_often(pairs: list[tuple[int, bool]], data: st.DataObject) -> None:
    scores = torch.tensor([float(s) for s, _ in pairs])
    same = torch.tensor([g for _, g in pairs])
    weight = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs))))
    weighted = Separation.of(scores, same, weight)
    repeated = Separation.of(scores.repeat_interleave(weight), same.repeat_interleave(weight))
    for name in ("d_prime", "eer"):
        function = METRICS[name].build
        assert function(weighted) == pytest.approx(function(repeated), nan_ok=True, abs=1e-9)
    if (same & (weight > 0)).any() and (~same & (weight > 0)).any():
        one, other = (verification.tar_at_far(part, 1.0) for part in (weighted, repeated))
        assert one == other == 1


def test_intervals_over_identities_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    i, j = np.triu_indices(30, 1)
    covered, widths = [], []
    for trial in range(40):
        who = np.arange(30) % 10
        easy = rng.normal(1.5, 0.8, size=10)  # people differ in how alike their pictures are
        same = who[i] == who[j]
        scores = rng.normal(size=len(i)) + np.where(same, easy[who[i]], 0)
        pairs = np.stack([who[i], who[j]], 1)
        found = verify(scores, same, metrics=["d_prime"], identities=pairs, bootstrap=100, seed=trial)
        truth = 1.5 / math.sqrt((1 + 0.8**2 + 1) / 2)
        covered.append(found["d_prime_low"] <= truth <= found["d_prime_high"])
        widths.append(found["d_prime_high"] - found["d_prime_low"])
    assert np.mean(covered) >= 0.75
    assert 0.2 < np.mean(widths) < 2
    again = verify(scores, same, metrics=["d_prime"], identities=pairs, bootstrap=100, seed=39)
    assert again == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [1.0, math.nan]}, "1 of 2 scores are NaN"),
        ({"scores": [1.0]}, r"scores \[n\] and same \[n\], n > 0, got \[1\] and \[2\]"),
        ({"metrics": ["recall_at_1"]}, "over pairs .*not recall_at_1"),
        ({"same": [1, -1]}, "1 for a genuine pair and 0 for another, got int64 such as 1, -1"),
        ({"same": ["True", "False"]}, "expected bools, .* such as 'True', 'False'"),
        ({"same": [1.0, math.nan]}, "expected bools"),
        ({"same": [True, None]}, "expected bools, .* such as True, None"),
        ({"bootstrap": -3}, "bootstrap of at least 0 and a level between 0 and 1, got -3"),
        ({"level": 95}, "got 0 and 95"),
        ({"bootstrap": 3}, r"give identities \[n 2\]"),
        ({"bootstrap": 3, "identities": [[0, 1], [0, 0]]}, "contradict same"),
        ({"bootstrap": 3, "identities": [0, 1]}, r"integers or names as identities \[2 2\], got int64 \[2\]"),
    ],
)
def test_verify_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(**{"scores": [1.0, 0.0], "same": [True, False], **arguments})


# ---- Labeled Faces in the Wild


@settings(max_examples=100, deadline=None)
@given(lists)
def test_the_best_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]]) -> None:
    scores, same = np.array([s for s, _ in pairs], float), np.array([g for _, g in pairs])
    threshold = best_threshold(scores, same)
    ends = [-np.inf, *(np.unique(scores) + 0.5), np.inf]
    right = {end: int(((scores >= end) == same).sum()) for end in ends}
    assert ((scores >= threshold) == same).sum() == max(right.values())
    assert threshold >= max(end for end in ends if right[end] == max(right.values())) - 1


def test_ten_folds_by_hand() -> None:
    with pytest.raises(ValueError, match="expected bools"):
        ten_fold([0.0, 1.0], [-1, 1], [0, 1])
    scores = [0.9, 0.8, 0.1, 0.7, 0.6, 0.65]
    same = [True, True, False, True, True, False]
    found = ten_fold(scores, same, [0, 0, 0, 1, 1, 1])
    assert found.thresholds == pytest.approx([0.675, 0.45])
    assert found.accuracies == pytest.approx([1, 2 / 3])
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.error == pytest.approx(np.std([1, 2 / 3], ddof=1) / math.sqrt(2))
    with pytest.raises(ValueError, match="at least two folds"):
        ten_fold(scores, same, [0] * 6)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ten_fold([math.nan, *scores[1:]], same, [0, 0, 0, 1, 1, 1])


PAIRS_FILE = "2\t2\nAnn\t1\t2\nBob_B\t1\t10\nAnn\t1\tBob_B\t3\nCy\t1\tAnn\t2\nCy\t1\t2\nCy\t1\t3\nCy\t1\tAnn\t1\nAnn\t2\tBob_B\t1\n"


def test_a_pairs_file_is_read_and_scored(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(PAIRS_FILE)
    pairs = read_lfw_pairs(path)
    assert pairs.files[1] == ("Bob_B/Bob_B_0001.jpg", "Bob_B/Bob_B_0010.jpg")
    assert pairs.files[2] == ("Ann/Ann_0001.jpg", "Bob_B/Bob_B_0003.jpg")
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4
    people = {"Ann": torch.tensor([1.0, 0, 0.1]), "Bob": torch.tensor([0, 2.0, 0]), "Cy_": torch.tensor([0, 0, 3.0])}
    embeddings = {name: people[name[:3].replace("/", "_")] for pair in pairs.files for name in pair}
    scores = pairs.scores(embeddings)
    assert scores[2] == 0
    assert scores[3] == pytest.approx(0.1 / math.sqrt(1.01))
    assert ten_fold(scores, pairs.same, pairs.folds).accuracy == 1
    assert verify(scores, pairs.same, metrics=["eer"], identities=pairs.identities, bootstrap=5)["eer"] == 0
    assert pairs.scores(embeddings, geometry="euclidean")[2] == pytest.approx(-math.sqrt(1.01 + 4))
    with pytest.raises(ValueError, match="1 images of the pairs have no embedding, the first 'Ann"):
        pairs.scores({name: z for name, z in embeddings.items() if name != "Ann/Ann_0002.jpg"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line should hold"),
        ("ten\t300\n", "first line should hold"),
        (PAIRS_FILE.replace("2\t2\n", "10\t300\n", 1), "are 6000 lines, got 8"),
        (PAIRS_FILE.replace("Bob_B\t1\t10", "Bob_B\t1\tAnn\t1"), "line 3: expected name number number separated"),
        (PAIRS_FILE.replace("Cy\t1\tAnn\t2", "Cy\t1\t2"), "line 5: expected name number name number"),
        (PAIRS_FILE.replace("Bob_B\t1\t10", "Bob_B\tx\t10"), "line 3"),
    ],
)
def test_a_pairs_file_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lfw_pairs(tmp_path / "pairs.txt")


# ---- clusters


@pytest.mark.parametrize("faiss", [True, False])
def test_clusters_of_the_embeddings_are_judged_as_scikit_learn_does(
    faiss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(clustering, "find_spec", lambda name: None)
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=150)
    z = torch.from_numpy(rng.normal(size=(6, 4))[labels] + 0.5 * rng.normal(size=(150, 4)))
    found = bb.evaluate(z, labels, metrics=["nmi", "ami", "pairwise_f1"], geometry="cosine", seed=4)
    clusters = clustering.kmeans(torch.nn.functional.normalize(z), 6, seed=4)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found["ami"] == pytest.approx(adjusted_mutual_info_score(labels, clusters))
    (_, wrong), (missed, right) = pair_confusion_matrix(labels, clusters)
    assert found["pairwise_f1"] == pytest.approx(2 * right / (2 * right + wrong + missed))
    assert 0.2 < found["ami"] < 1
    assert found == bb.evaluate(z, labels, metrics=["nmi", "ami", "pairwise_f1"], geometry="cosine", seed=4)
    clear = torch.eye(3)[torch.arange(30) % 3] + 0.01 * torch.randn(30, 3)
    assert bb.evaluate(clear, np.arange(30) % 3, metrics=["ami"])["ami"] == pytest.approx(1)


def test_clusters_need_classes() -> None:
    assert math.isnan(bb.evaluate(torch.randn(5, 2), np.zeros(5, int), metrics=["nmi"])["nmi"])
    assert math.isnan(bb.evaluate(torch.randn(5, 2), np.arange(5), metrics=["ami"])["ami"])
    with pytest.raises(ValueError, match="they need the target 'classes'"):
        bb.evaluate(torch.randn(5, 2), np.random.rand(5, 1), target="within('euclidean', radius=0.5)", metrics=["ami"])


# ---- the recipe


class Told:
    """An embedder that is told the person in each image, and errs in one image."""

    normalize = True

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def to(self, device: str) -> Told:
        torch.device(device)
        self.device = device
        return self

    def encode(self, files: list[Path], batch_size: int, progress: bool) -> torch.Tensor:
        assert all(file.exists() for file in files)
        people = sorted({file.parent.name for file in files})
        z = torch.eye(len(people) + 1)
        return torch.stack([z[-1 if f.name == self.wrong else people.index(f.parent.name)] for f in files])


def test_the_recipe_scores_the_pairs_of_all_folds_or_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load("recipes/verify.py")
    made = []
    monkeypatch.setattr(recipe.Embedder, "from_pretrained", lambda name: made.append(Told(name)) or made[-1])
    root = write_lfw(tmp_path, each=2)

    def told(*argv: str) -> dict[str, float]:
        recipe.main(["--data.source", f"lfw:{root}", *argv])
        return {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}

    perfect = told("--embedder", "none.jpg")
    assert (perfect["accuracy"], perfect["genuine"], perfect["impostors"]) == (1, 6, 6)
    wrong = told("--embedder", "Cy_0003.jpg")  # the genuine pairs of fold 2 have similarity 0
    assert wrong["accuracy"] == pytest.approx(5 / 6, abs=1e-4)
    assert told("--embedder", "Cy_0003.jpg", "--fold", "2")["accuracy"] == 0.5
    assert told("--embedder", "Cy_0003.jpg", "--fold", "1")["accuracy"] == 1
    drawn = []
    monkeypatch.setattr(recipe, "pair_picture", lambda *given: drawn.append(given) or pair_picture(*given))
    told("--embedder", "Cy_0003.jpg", "--fold", "2", "--histogram", str(tmp_path / "scores.png"))
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.format == "PNG"
    scores, same, _ = drawn[0]
    assert (len(scores), same.sum(), scores.max()) == (4, 2, 0)  # of fold 2 alone
    with pytest.raises(SystemExit):
        told("--embedder", "x", "--fold", "4")
    assert "--fold 4: expected 1 to 3" in capsys.readouterr().err
    assert {embedder.device for embedder in made} == {recipe.usable_device()}
    told("--embedder", "x", "--device", "meta")
    assert made[-1].device == "meta"
    with pytest.raises(SystemExit):
        told("--embedder", "x", "--device", "abacus")
    assert "error: device 'abacus' cannot be used: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        told("--embedder", "x", "--data.revision", "main")
    assert "are of sets on the Hub" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(recipe, "repository_files", lambda *given: asked.append(given) or (root, {}))
    told("--embedder", "none.jpg", "--data.source", "lfw:hub:user/lfw/files", "--data.revision", "v1")
    assert asked == [("user/lfw/files", "v1")]
    lines = (root / "pairs.txt").read_text().splitlines()
    (root / "one.txt").write_text("\n".join(["2", *lines[1:5]]) + "\n")
    monkeypatch.setattr(Told, "encode", lambda *_: pytest.fail("embedded before the pairs were looked at"))
    with pytest.raises(SystemExit):
        told("--embedder", "x", "--pairs", str(root / "one.txt"))
    assert "has one fold; the threshold of a fold comes from the others" in capsys.readouterr().err
    (root / "pairs.txt").unlink()
    with pytest.raises(SystemExit):
        told("--embedder", "x")
    assert "pairs.txt" in capsys.readouterr().err


def test_replicates_do_not_repeat_that_a_rate_cannot_be_resolved(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    people = rng.integers(0, 8, (40, 2))
    same = people[:, 0] == people[:, 1]
    found = verify(rng.normal(size=40), same, metrics=["tar_at_far_0.001"], identities=people, bootstrap=30)
    assert len([r for r in caplog.records if "cannot be resolved" in r.message]) == 1
    assert np.isnan([found["tar_at_far_0.001"], found["tar_at_far_0.001_low"]]).all()


def test_pairs_of_coarse_embeddings_are_compared_in_single_precision() -> None:
    left, right = torch.randn(2, 9, 16)
    exact = pair_scores(left.bfloat16().float(), right.bfloat16().float())
    torch.testing.assert_close(pair_scores(left.bfloat16(), right.bfloat16()), exact, rtol=0, atol=0)
    assert pair_scores(left, right.double()).dtype == torch.float64
    assert pair_scores(np.eye(3, dtype=int), np.eye(3, dtype=int)).tolist() == [1, 1, 1]
    assert pair_scores(left[:0], right[:0]).shape == (0,)


def test_identities_are_numbers_or_names() -> None:
    people = np.array([["ann", "ann"], ["ann", "bob"], ["bob", "bob"], ["bob", "cat"]])
    numbers = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    scores, same = torch.tensor([0.9, 0.3, 0.4, 0.5], requires_grad=True), [1, 0, 1, 0]
    by_name, by_number = (
        verify(scores, same, identities=who, bootstrap=9) for who in (people.tolist(), torch.from_numpy(numbers))
    )
    assert by_name == by_number
    with pytest.raises(ValueError, match="integers or names as identities"):
        verify(scores, same, identities=numbers / 2, bootstrap=9)
    assert ten_fold(scores, same, torch.tensor([0, 0, 1, 1])) == ten_fold(scores.tolist(), same, [0, 0, 1, 1])


def test_scores_in_a_list_keep_their_digits() -> None:
    """In single precision both pairs would be level."""
    assert verify([1 + 1e-12, 1.0], [1, 0], metrics=["eer"])["eer"] == 0


def test_clusters_do_not_depend_on_scale_place_or_how_many_items_there_are() -> None:
    """faiss would look at 256 items a cluster, in single precision."""
    centre = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.double)
    labels = torch.arange(1800) % 3
    z = centre[labels] + 0.01 * torch.randn(1800, 2, dtype=torch.double)
    for moved in (z, z * 1e-60, z * 1e100, z + 1e7):
        assert bb.evaluate(moved, labels, metrics=["nmi"], geometry="euclidean")["nmi"] == pytest.approx(1)


def test_clusters_are_those_of_all_items() -> None:
    faiss = pytest.importorskip("faiss")
    z = torch.randn(4000, 3)
    found = clustering.kmeans(z, 2)
    z = z - z.mean(0)
    means = torch.stack([z[found == c].mean(0) for c in range(2)])
    assert (torch.cdist(z, means).argmin(1).numpy() == found).mean() > 0.995
    sample = faiss.Kmeans(3, 2, niter=25, nredo=clustering.RESTARTS, seed=0)
    sample.train(z.numpy())
    all_of_them = sum(float((z[found == c] - means[c]).square().sum()) for c in range(2))
    assert all_of_them <= float(sample.index.search(z.numpy(), 1)[0].sum()) * 1.0001
