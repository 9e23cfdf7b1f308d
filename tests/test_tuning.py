"""The hook for Optuna in a loop of one's own."""

from __future__ import annotations

import pytest

from beyond_binary.tuning import TrialWatch

optuna = pytest.importorskip("optuna")


def loop(trial: optuna.Trial, sign: int, metric: str) -> float:
    """Three epochs whose score is the drawn number times the epoch."""
    watch = TrialWatch(trial, metric)
    quality = trial.suggest_float("quality", 0, 1)
    for epoch in (1, 2, 3):
        watch({"other": 7.0, metric: sign * quality * epoch}, epoch)
    return watch.value


@pytest.mark.parametrize(("metric", "sign"), [("map_at_r", 1), ("mean_label_distance_at_10", -1)])
def test_a_study_of_a_loop_of_ones_own(metric: str, sign: int) -> None:
    """With the sign of the metric changed the study is the same: more is better."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for quality in (0.5, 0.25, 1.0):
        study.enqueue_trial({"quality": quality})
    study.optimize(lambda trial: loop(trial, sign, metric), n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 1.0, 3: 1.5}
    assert study.trials[1].intermediate_values == {1: 0.25}
    assert study.best_value == 3.0
    assert study.best_trial.user_attrs == {"metric": metric}


def test_runs_of_a_trial_count_by_their_mean() -> None:
    trial = optuna.create_study(direction="maximize").ask()
    watch = TrialWatch(trial, "recall_at_1")
    for step, score in enumerate((0.2, 0.8, 0.4)):
        watch({"recall_at_1": score}, step)
    assert watch.value == 0.4
    watch.end_run(3)
    watch({"recall_at_1": 0.6}, 0)
    assert watch.value == pytest.approx(0.5)
    watch({"recall_at_1": 0.2}, 1)
    watch.end_run(3, best=True)
    assert watch.runs == [0.4, 0.6]
    assert watch.value == pytest.approx(0.5)
    found = trial.study.trials[0].intermediate_values
    assert found == pytest.approx({0: 0.2, 1: 0.8, 2: 0.4, 3: 0.5, 4: 0.3})


def test_what_the_watch_refuses() -> None:
    watch = TrialWatch(optuna.create_study().ask(), "recall_at_1")
    with pytest.raises(ValueError, match="expected an evaluation before the value, got none"):
        _ = watch.value
    with pytest.raises(ValueError, match="'recall_at_1' is not among the scores: map_at_r"):
        watch({"map_at_r": 1.0}, 0)
    with pytest.raises(ValueError, match="evaluation before end_run"):
        watch.end_run(1)
