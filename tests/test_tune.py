"""The search for settings: spaces, trials that are runs, stopping early, going on, and no choosing by the test set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from beyond_binary.config import Config, EvaluationConfig, parse_config
from beyond_binary.judge import Judge
from recipes import TINY, load

optuna = pytest.importorskip("optuna")
tune = load("recipes/tune.py")
SMALL = [*TINY, "--data.rows", "[48, 24]"]


def test_spaces() -> None:
    study = optuna.create_study()
    trial = study.ask()
    for text in ("optimizer.lr=1e-4..1e-2 log", "sampler.batch_size=32..64", "objective.loss=triplet|contrastive"):
        tune.dimension(text)[1](trial)
    found = study.trials[0].distributions
    assert found["optimizer.lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert found["sampler.batch_size"] == optuna.distributions.IntDistribution(32, 64)
    assert found["objective.loss"] == optuna.distributions.CategoricalDistribution(("triplet", "contrastive"))
    config = Config()
    tune.put(config, "optimizer.lr", 0.5)
    tune.put(config, "objective.options.margin", 0.3)
    tune.put(config, "seed", 3)
    assert (config.optimizer.lr, config.objective.options, config.seed) == (0.5, {"margin": 0.3}, 3)


REAL, WHOLE = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution


@pytest.mark.parametrize(("text", "expected"), [
    ("optimizer.lr=1e-4|1e-3", (1e-4, 1e-3)), ("sampler.batch_size=32 | 1e2", (32, 100)),
    ("optimizer.clip=1|null", (1, None)), ("objective.options.margin=1|2.0", (1, 2.0)),
    ("data.source=../x|../y", ("../x", "../y")), ("data.source=a/../x|b/../y", ("a/../x", "b/../y")),
    ("embedder.normalize=true|false", (True, False)), ("optimizer.name=adam|sgd", ("adam", "sgd")),
    ("optimizer.weight_decay=0..1", REAL(0, 1)), ("optimizer.weight_decay=0...5", REAL(0, 0.5)),
    ("optimizer.clip=1..10 log", REAL(1, 10, log=True)), ("optimizer.options.momentum=0..1", REAL(0, 1)),
    ("objective.options.gamma=0..1", REAL(0, 1)), ("objective.options.centers=2..10", WHOLE(2, 10)),
    ("embedder.dim=64..512 log", WHOLE(64, 512, log=True)), ("seed=0..1e2", WHOLE(0, 100)),
    ("embedder.unlocked=0..4", WHOLE(0, 4)),
])  # fmt: skip
def test_numbers_are_of_the_kind_that_the_field_takes(text, expected) -> None:
    study, config = optuna.create_study(), Config()
    config.objective.loss = "soft_triple"
    tune.dimension(text, config)[1](study.ask())
    (found,) = study.trials[0].distributions.values()
    if isinstance(expected, tuple):
        assert [(type(choice), choice) for choice in found.choices] == [(type(e), e) for e in expected]
    else:
        assert found == expected


@pytest.mark.parametrize(("text", "told"), [
    ("optimizer.rl=1..2", "optimizer.lr"), ("optimizer.lr", "expected"), ("optimizer.lr=2..1", "LOW < HIGH"),
    ("optimizer.lr=0..1 log", "LOW > 0"), ("sampler.batch_size=1.5..4", "whole numbers"), ("optimizer.lr=1|", "expected"),
    ("optimizer.lr=a..b", "LOW < HIGH"), ("optimizer.lr=0..inf", "LOW < HIGH"), ("optimizer.lr=nan..1", "LOW < HIGH"),
])  # fmt: skip
def test_spaces_that_are_none(text, told) -> None:
    with pytest.raises(ValueError, match=told):
        tune.dimension(text)


def test_the_test_set_is_not_chosen_by(tmp_path) -> None:
    arguments = [*SMALL, "--search", "optimizer.lr=1e-4..1e-2", "--folder", str(tmp_path)]
    with pytest.raises(ValueError, match="class_folds"):
        tune.search(arguments)
    with pytest.raises(ValueError, match=r"evaluation\.every 1, got 2"):
        tune.search([*arguments, "--held-out-is-validation", "--evaluation.every", "2"])


def play(monkeypatch, folder: Path, metric: str = "mean_label_distance_at_10") -> list[Any]:
    """Runs are played: two epochs each with the learning rate as the metric; what happened."""
    played: list[Any] = []

    class Played(Judge):
        def __init__(self) -> None:
            self.config = EvaluationConfig()

    class Nothing:
        judge = Played()

        def __init__(self) -> None:
            self.folder = folder

        def free_memory(self) -> None:
            played.append("freed")

    def fit(config: Config, setup: Any, run: Any, accelerator: Any) -> None:
        for epoch in range(3):
            played.append((config.seed, round(config.optimizer.lr, 3), epoch))
            run.log(event="evaluation", epoch=epoch, step=9 * epoch, **{metric: config.optimizer.lr})

    monkeypatch.setattr(tune.recipe, "start", lambda config: (Nothing(), Nothing(), Nothing()))
    monkeypatch.setattr(tune.recipe, "fit", fit)
    return played


def test_trials_report_stop_and_go_on(tmp_path, monkeypatch) -> None:
    """Lower is better."""
    played = play(monkeypatch, tmp_path)
    arguments = [
        *SMALL, "--held-out-is-validation", "--search", "optimizer.lr=0.1|0.2|0.3|0.4", "--folder", str(tmp_path),
        "--seeds", "2", "--warm", "1",
    ]  # fmt: skip
    study = tune.search([*arguments, "--trials", "3"])
    assert len(study.trials) == 3
    study = tune.search([*arguments, "--trials", "10"])
    assert len(study.trials) == 10
    states = [trial.state.name for trial in study.trials]
    assert "COMPLETE" in states
    assert "PRUNED" in states
    assert played.count("freed") == len({(p[0], i) for i, p in enumerate(played) if p != "freed" and p[2] == 0})
    best = study.best_params["optimizer.lr"]
    assert best == min(trial.params["optimizer.lr"] for trial in study.trials)
    assert study.best_value == pytest.approx(-best)
    assert study.best_trial.user_attrs == {"metric": "mean_label_distance_at_10"}
    assert parse_config(["--config", str(tmp_path / "best.yaml")]).optimizer.lr == best


@pytest.mark.parametrize("metric", ["recall_at_1", "nmi"])
def test_the_only_metric_is_the_one_that_counts(metric, tmp_path, monkeypatch) -> None:
    play(monkeypatch, tmp_path, metric)
    space = ["--held-out-is-validation", "--search", "optimizer.lr=0.1|0.2", "--folder", str(tmp_path)]
    study = tune.search([*SMALL, *space, "--trials", "2"])
    assert study.best_trial.user_attrs == {"metric": metric}
    assert study.best_value == study.best_params["optimizer.lr"]


def test_a_resumed_search_repeats_no_trial(tmp_path, monkeypatch) -> None:
    play(monkeypatch, tmp_path)
    space = ["--held-out-is-validation", "--search", "optimizer.lr=0.1..0.9", "--folder", str(tmp_path)]
    for trials in range(2, 9, 2):
        study = tune.search([*SMALL, *space, "--trials", str(trials)])
    assert len({trial.params["optimizer.lr"] for trial in study.trials}) == len(study.trials) == 8


def test_trials_of_another_search_are_not_taken(tmp_path, monkeypatch) -> None:
    play(monkeypatch, tmp_path)
    lr, folder = ["--search", "optimizer.lr=0.1..0.9"], ["--held-out-is-validation", "--folder", str(tmp_path)]
    tune.search([*SMALL, *lr, *folder, "--trials", "1"])
    for changed, told in (
        ([*lr, "--embedder.dim", "16"], r"another search \(embedder.dim: 8 there, 16 now\); choose another --folder"),
        ([*lr, "--seeds", "2"], "seeds: 1 there, 2 now"),
        (["--search", "optimizer.lr=0.1..0.8"], r"search of optimizer.lr: 0.1..0.9 there, 0.1..0.8 now"),
        ([*lr, "--search", "optimizer.clip=1..2"], "search of optimizer.clip: none there, 1..2 now"),
    ):
        with pytest.raises(ValueError, match=told):
            tune.search([*SMALL, *changed, *folder, "--trials", "2"])
    assert len(tune.search([*SMALL, *lr, *folder, "--output", "elsewhere", "--trials", "2"]).trials) == 2
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.load_study(study_name="tune", storage=storage)
    study.set_user_attr("made_with", {})  # as earlier versions left it
    with pytest.raises(ValueError, match="not known which"):
        tune.search([*SMALL, *lr, *folder, "--trials", "2"])


@pytest.mark.parametrize("metric", ["mean_label_distance_at_10", "spearman"])
def test_the_best_value_keeps_its_sign(metric, tmp_path, monkeypatch, capsys) -> None:
    play(monkeypatch, tmp_path, metric)
    monkeypatch.setattr(tune, "higher_is_better", lambda name: name == "spearman")
    lr = ["--held-out-is-validation", "--search", "optimizer.lr=-0.25|-0.5", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tune.py", *SMALL, *lr, "--trials", "6"])
    tune.main()
    assert f"{metric} {-0.25 if metric == 'spearman' else -0.5:.4f}," in capsys.readouterr().out


def test_a_trial_that_needs_too_much_memory_fails_alone(tmp_path, monkeypatch) -> None:
    played = play(monkeypatch, tmp_path)
    fit = tune.recipe.fit

    def first_too_large(*given: Any) -> None:
        if not played:
            raise torch.OutOfMemoryError("too large")
        fit(*given)

    monkeypatch.setattr(tune.recipe, "fit", first_too_large)
    lr = ["--held-out-is-validation", "--search", "optimizer.lr=0.1..0.9", "--folder", str(tmp_path)]
    study = tune.search([*SMALL, *lr, "--trials", "2"])
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_search_trains(tmp_path) -> None:
    study = tune.search([
        *SMALL, "--held-out-is-validation", "--search", "optimizer.lr=1e-4..1e-2 log", "--folder", str(tmp_path),
        "--trials", "1",
    ])  # fmt: skip
    (trial,) = study.trials
    assert trial.state.name == "COMPLETE"
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.value == trial.intermediate_values[2]
    assert (tmp_path / "trial0000" / "seed0" / "metrics.json").exists()
