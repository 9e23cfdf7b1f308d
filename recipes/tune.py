"""Search for good settings of `recipes/train.py` with Optuna: each trial is a run, and hopeless ones are stopped early.

python recipes/tune.py --config recipes/configs/classes.yaml --data.source photos/ --data.splitting class_folds \\
    --search "optimizer.lr=1e-4..1e-2 log" --search "objective.options.margin=0.05..0.5" \\
    --search "sampler.batch_size=32|64|128" --trials 30 --seeds 2 --folder runs/tune

It goes on where it was interrupted, in the file study.db of the folder, and refuses the folder of a search with other
settings, spaces or seeds. A trial that needs too much memory, or whose loss is not finite, fails, and the next one starts.
best.yaml there has the settings of the best trial, its splitting included; judge it on the test classes:

python recipes/train.py --config runs/tune/best.yaml --data.splitting class_disjoint --seed 100

(`--data.splitting given` where a column has the split.)
Trials are compared by the monitored metric on held-out items, so these must not be the test set: with classes, take
`--data.splitting class_folds`, which holds out classes of the training half.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import train as recipe

from beyond_binary.config import Config, dump_config, field_names, parse_config
from beyond_binary.losses import LOSSES
from beyond_binary.metrics import higher_is_better
from beyond_binary.registry import suggest
from beyond_binary.runs import Run
from beyond_binary.tuning import TrialWatch

ABOUT = ("event", "epoch", "step")
"""What a line of the log holds beside metrics."""
RANGE = re.compile(r"(\S+?)\.\.(\S+?)( log)?")
Draw = Callable[[optuna.Trial], Any]


class Watched(Run):
    """A run that gives each evaluation to a function, which may end it by an exception."""

    def __init__(self, folder: Path, watch: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(folder)
        self.watch = watch

    def log(self, **values: Any) -> None:
        """As `Run.log`."""
        super().log(**values)
        if values.get("event") == "evaluation" and values["epoch"] > 0:
            self.watch(values)


def dimension(text: str, base: Config | None = None) -> tuple[str, Draw]:
    """A field and how its value is drawn: "FIELD=LOW..HIGH", "FIELD=LOW..HIGH log" or "FIELD=A|B|C".

    A range is of whole numbers where the field, or the option of the loss that `base` has, takes these alone. Choices
    are read as numbers where they are numbers, else as YAML.

    Raises:
        ValueError: no such field, or a range that is none.
    """
    name, equals, values = text.partition("=")
    section = name.rpartition(".")[0]
    if name not in (known := field_names()) and section not in ("objective.options", "optimizer.options"):
        raise ValueError(f"--search: no field {name!r}{suggest(name, known)}")
    whole = _takes_whole(name, base or Config())
    words = [word.strip() for word in values.split("|")]
    found = RANGE.fullmatch(words[0])
    if not equals or not all(words):
        raise ValueError(f'--search: expected "FIELD=LOW..HIGH" or "FIELD=A|B", got {text!r}')
    if found is None or len(words) > 1:
        choices = [_choice(word, whole) for word in words]
        return name, lambda trial: trial.suggest_categorical(name, choices)
    low, high = (_number(word) for word in found.groups()[:2])
    log = found[3] is not None
    if low is None or high is None or not low < high < math.inf or (log and low <= 0):
        raise ValueError(f"--search: expected LOW < HIGH{', and LOW > 0' if log else ''}, got {text!r}")
    if not whole:
        return name, lambda trial: trial.suggest_float(name, low, high, log=log)
    if not (low.is_integer() and high.is_integer()):
        raise ValueError(f"--search: {name} takes whole numbers, got {text!r}")
    return name, lambda trial: trial.suggest_int(name, int(low), int(high), log=log)


def _takes_whole(name: str, base: Config) -> bool:
    """Whether a field, or an option of the loss, is annotated as int (or None) and not as float."""
    *sections, last = name.split(".")
    if sections == ["objective", "options"]:
        entry = LOSSES[base.objective.loss]
        hints = {
            n: p.annotation for f in (entry.build, *entry.parts) for n, p in inspect.signature(f).parameters.items()
        }
    else:
        place = operator.attrgetter(".".join(sections))(base) if sections else base
        hints = {f.name: f.type for f in fields(place)} if is_dataclass(place) else {}
    hint = hints.get(last)
    kinds = {kind.strip() for kind in (hint.__name__ if isinstance(hint, type) else str(hint)).split("|")}
    return "int" in kinds and kinds <= {"int", "None"}


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _choice(word: str, whole: bool) -> Any:
    number = _number(word)
    if number is None:
        return yaml.safe_load(word)
    return int(number) if number.is_integer() and (whole or word.lstrip("+-").isdigit()) else number


def put(config: Config, name: str, value: Any) -> None:
    """Set a field by its dotted name."""
    *sections, last = name.split(".")
    place: Any = config
    for section in sections:
        place = getattr(place, section)
    if is_dataclass(place):
        setattr(place, last, value)
    else:
        place[last] = value


def attempt(base: Config, space: dict[str, Draw], seeds: int, folder: Path, trial: optuna.Trial) -> float:
    """One trial: the mean over seeds of the monitored metric, its sign changed where lower is better."""
    watch: TrialWatch | None = None
    for number in range(seeds):
        config = copy.deepcopy(base)
        for name, draw in space.items():
            put(config, name, draw(trial))
        config.seed, config.output, config.resume = base.seed + number, str(folder / f"seed{number}"), "never"
        setup, run, accelerator = recipe.start(config)

        def report(values: dict[str, Any], setup: recipe.Setup = setup) -> None:
            nonlocal watch
            watch = watch or TrialWatch(trial, setup.judge.monitored([name for name in values if name not in ABOUT]))
            watch(values, values["epoch"])

        try:
            recipe.fit(config, setup, Watched(run.folder, report), accelerator)
        finally:
            accelerator.free_memory()
        if watch is None:
            raise ValueError("the run was not evaluated; expected optimizer.epochs of at least 1")
        watch.end_run(config.optimizer.epochs, best=config.evaluation.keep == "best")
    return 0.0 if watch is None else watch.value


def best_config(base: Config, study: optuna.Study) -> Config:
    """The settings of the best trial."""
    config = copy.deepcopy(base)
    for name, value in study.best_params.items():
        put(config, name, value)
    return config


def made_with(base: Config, texts: list[str], seeds: int) -> dict[str, str]:
    """What decides the results of a search, as texts: settings (not where runs lie), spaces and the number of seeds."""
    fixed = copy.deepcopy(base)
    fixed.output, fixed.resume = None, "never"  # each trial has its own
    settings = {name: repr(operator.attrgetter(name)(fixed)) for name in field_names()}
    spaces = {f"search of {name}": values for name, _, values in (text.partition("=") for text in texts)}
    return settings | spaces | {"seeds": str(seeds)}


def check_same_search(study: optuna.Study, wanted: dict[str, str], folder: Path) -> None:
    """Note in a new study what it is made with; raise a ValueError if an older one was made with something else."""
    if not study.trials:
        study.set_user_attr("made_with", wanted)
    found = study.user_attrs.get("made_with", {})
    if odd := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        changes = "; ".join(f"{n}: {found.get(n, 'none')} there, {wanted.get(n, 'none')} now" for n in odd[:3])
        raise ValueError(
            f"{folder} holds the trials of another search ({changes if found else 'it is not known which'}); "
            "choose another --folder"
        )


def search(argv: list[str]) -> optuna.Study:
    """Read the command line and run what is missing of the trials. Raises ValueError for what does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--search", action="append", required=True, help='"FIELD=LOW..HIGH[ log]" or "FIELD=A|B|C"')
    parser.add_argument("--trials", type=int, default=20, help="trials in all, those of earlier calls included")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each trial, which count by their mean")
    parser.add_argument("--folder", type=Path, default=Path("runs/tune"), help="where trials and results are kept")
    parser.add_argument("--warm", type=int, default=5, help="trials that are finished before any is stopped early")
    parser.add_argument(
        "--held-out-is-validation", action="store_true", help="what is held out is no test set, however it was split"
    )
    given, rest = parser.parse_known_args(argv)
    base = parse_config(rest, default=Path(__file__).parent / "configs" / "pose.yaml")
    if base.data.splitting != "class_folds" and not given.held_out_is_validation:
        raise ValueError(
            f"data.splitting {base.data.splitting} may hold out the test set, and choosing settings by it flatters them; "
            "take --data.splitting class_folds, or a split of your own and --held-out-is-validation"
        )
    if base.evaluation.every != 1:
        raise ValueError(
            f"trials are compared epoch by epoch; expected evaluation.every 1, got {base.evaluation.every}"
        )
    space = dict(dimension(text, base) for text in given.search)
    given.folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{given.folder.absolute() / 'study.db'}",
        study_name="tune",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=given.warm),
    )
    check_same_search(study, made_with(base, given.search, given.seeds), given.folder)
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))  # else it draws the first ones again
    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)
    missing = given.trials - sum(trial.state in over for trial in study.trials)

    def objective(trial: optuna.Trial) -> float:
        return attempt(base, space, given.seeds, given.folder / f"trial{trial.number:04d}", trial)

    if missing > 0:
        study.optimize(objective, n_trials=missing, catch=(FloatingPointError, torch.OutOfMemoryError))
    if any(trial.state == over[0] for trial in study.trials):
        (given.folder / "best.yaml").write_text(dump_config(best_config(base, study)))
    return study


def main() -> None:
    """Search, and print the best trial."""
    try:
        study = search(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finished = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    print(f"{len(study.trials)} trials, {len(finished)} run to their end")
    if finished:
        best, name = study.best_trial, study.best_trial.user_attrs["metric"]
        value = study.best_value if higher_is_better(name) else -study.best_value
        print(f"best: trial {best.number}, {name} {value:.4f}, {best.params}")


if __name__ == "__main__":
    main()
