"""A search for settings with Optuna: evaluations of a training loop become what a trial reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .metrics import higher_is_better

if TYPE_CHECKING:
    import optuna


class TrialWatch:
    """Reports the evaluations of a training loop to a trial, and ends a loop that the trial's study would prune.

    Call it after each evaluation, and return `value` from the function that the study optimises:

        watch = TrialWatch(trial, "map_at_r")
        for epoch in range(epochs):
            ...
            watch(bb.evaluate(z, labels), epoch)
        return watch.value

    Values are such that more is better (a metric where less is better has its sign changed), so the study needs
    direction="maximize". Several runs of one trial, say with other seeds, count by their mean: `end_run` ends each.

    Args:
        trial: of Optuna.
        metric: a name among the scores.

    Attributes:
        metric: as given.
        runs: value of each run that has ended.
        scores: values in the present run.
    """

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.runs: list[float] = []
        self.scores: list[float] = []
        self._first = 0
        trial.set_user_attr("metric", metric)

    def __call__(self, scores: Mapping[str, float], step: int) -> None:
        """Report an evaluation.

        Args:
            scores: what `evaluate` gives.
            step: in the present run, for example the epoch; each at most once.

        Raises:
            optuna.TrialPruned: the trial is to end here.
            ValueError: the metric is not among the scores.
        """
        import optuna

        if self.metric not in scores:
            raise ValueError(f"metric {self.metric!r} is not among the scores: {', '.join(scores)}")
        value = float(scores[self.metric])
        self.scores.append(value if higher_is_better(self.metric) else -value)
        self.trial.report(self.value, self._first + step)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def end_run(self, steps: int, best: bool = False) -> None:
        """Close the present run, whose last value counts, or with `best` its best one; the next begins `steps` later.

        Raises:
            ValueError: nothing was reported in this run.
        """
        if not self.scores:
            raise ValueError("expected an evaluation before end_run, got none; call the watch after each evaluation")
        self.runs.append(max(self.scores) if best else self.scores[-1])
        self.scores, self._first = [], self._first + steps

    @property
    def value(self) -> float:
        """The mean over runs, in the present one the last value; raises ValueError before the first evaluation."""
        values = [*self.runs, *self.scores[-1:]]
        if not values:
            raise ValueError("expected an evaluation before the value, got none; call the watch after each evaluation")
        return sum(values) / len(values)
