"""Train, evaluate and keep an embedder: `accelerate launch recipes/train.py [--config FILE] [--section.key value]`.

Without arguments it learns poses of rendered figures (recipes/configs/pose.yaml) in a few minutes on two cores.
"""

from __future__ import annotations

import inspect
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from beyond_binary import clip, distributed, storage
from beyond_binary.centres import proxy_codes
from beyond_binary.config import Config, check_config, parse_config
from beyond_binary.data import Augment, ImageSet, Items, Splits, collate, load_checked, with_mirror
from beyond_binary.distances import KnownDistances
from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.hub import check_hub_id, limit_silence, push_run, require_login
from beyond_binary.judge import Judge, captions_of, class_numbers, encode, encode_as_in_training, named
from beyond_binary.losses import LOSSES, LossFacts
from beyond_binary.metrics import higher_is_better
from beyond_binary.neighbours import shared_neighbours
from beyond_binary.notes import all_alike, notes
from beyond_binary.objective import Objective, create_objective, try_out
from beyond_binary.optimization import learning_rate, make_optimizer
from beyond_binary.report import require_matplotlib, write_report
from beyond_binary.runs import Run, claim, data_facts, format_table, versions
from beyond_binary.sampling import BatchSampler, create_sampler
from beyond_binary.targets import Target, create_target, reads_classes
from beyond_binary.targets.pose import numbers_per_point
from beyond_binary.targets.tables import Listed
from beyond_binary.tracking import track, tracker_installed


class TrainModule(nn.Module):
    """Embedder and objective as the one module that is prepared, so that everything learned is kept in step."""

    def __init__(self, embedder: Embedder, objective: Objective, compiler: str | None = None) -> None:
        super().__init__()
        self.embedder, self.objective = embedder, objective
        self.embed = torch.compile(embedder.forward, backend=compiler) if compiler else embedder.__call__
        self.by_id = isinstance(getattr(objective, "target", None), Listed)

    def forward(self, images: Tensor, labels: Any, ids: Tensor) -> Tensor:
        """The loss of a batch; with a text tower that is trained, of the images and one caption of each."""
        z = self.embed(images.contiguous(memory_format=torch.channels_last))
        read = ids if self.by_id else labels
        if self.embedder.trains_text:
            z, read, ids = clip.beside(z, self.embedder.embed_texts(clip.draw_captions(labels)), read, ids)
        loss: Tensor = self.objective(z, read, ids=ids)
        return loss


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint keeps beside weights, optimizer and random states.

    `levels` are the metrics of the random and the oracle ranking, which no embedding changes.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    epoch_seconds: list[float] = field(default_factory=list)
    log_size: int = 0
    before: dict[str, float] = field(default_factory=dict)
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    frozen: dict[str, float] | None = None
    best: float | None = None
    best_epoch: int | None = None
    without_better: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate's checkpoints; earlier ones hold the seconds of all epochs together."""
        if seconds := state.pop("seconds", None):
            state["epoch_seconds"] = [seconds / max(state["epoch"], 1)] * max(state["epoch"], 1)
        self.__dict__.update(state)


@dataclass
class Setup:
    """Everything a run needs, built and checked before anything is written or trained."""

    splits: Splits
    skipped: list[str]
    embedder: Embedder
    objective: Objective
    judge: Judge
    sampler: BatchSampler
    data: ImageSet
    loader: DataLoader[Any]
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)


def set_up(config: Config, accelerator: Accelerator) -> Setup:
    """Load the data and build model, loss, batches and optimizer. Raises ValueError or OSError for what does not fit."""
    check_config(config)
    bar = config.progress and accelerator.is_main_process
    splits, bad = load_checked(config.data, progress=bar)
    whole = splits.train.labels.dtype.kind in "iu" and splits.train.labels.ndim == 1
    spec = config.objective.target or splits.target or ("classes" if whole else None)
    if spec is None:
        raise ValueError(
            f"these labels ({splits.train.labels.dtype} {list(splits.train.labels.shape[1:])} per item) could mean many "
            "things; say what similar means with --objective.target, for example euclidean, pose or circular(period=360)"
        )
    embedder = create_embedder(**asdict(config.embedder))
    if embedder.trains_text and captions_of(splits.train) is None:
        found = f"{splits.train.labels.dtype} {list(splits.train.labels.shape)}"
        raise ValueError(f"embedder.text trains on captions, texts [n captions], but the labels are {found}")
    moving = config.augment.mirror or config.augment.move_labels
    point = numbers_per_point(create_target(spec)) if moving else 2
    train = with_mirror(splits.train, config.augment.mirror, point) if config.augment.mirror else splits.train
    judged = config.evaluation.target or ("classes" if reads_classes(spec) else spec)
    judge = Judge(config.evaluation, splits, judged, embedder, geometry(config))
    with named(train):
        target = known(config, accelerator, create_target(spec), train.labels) if config.objective.distances else spec
        kept: dict[str, Any] = {"cache": config.sampler.cache, "progress": bar}
        if config.objective.nearest is None:
            objective, train = make_objective(config, target, train, embedder.dim)
            objective.config["target"] = spec  # distances from a file are those of this spec
            search = shared_neighbours(objective.target, objective.target.encode(train.labels), **kept)
        else:
            made = create_target(target)
            if made.gives == "same":
                raise ValueError(f"objective.nearest needs label distances, but {target} says only what is the same")
            search = shared_neighbours(made, made.encode(train.labels), **kept)
            listed = Listed(train.ids, search(config.objective.nearest))
            objective, train = make_objective(config, listed, train, embedder.dim)
    if config.objective.proxy_init == "text":
        if objective.proxies is None:
            raise ValueError(f"{config.objective.loss} has no proxies and takes no objective.proxy_init")
        if not (embedder.has_text and class_numbers(splits, splits.train)):
            raise ValueError(
                "objective.proxy_init text needs classes with names, and a trunk 'open_clip/...' with head none"
            )
        clip.check_prompts(config.evaluation.prompts)
    if (
        judge.target.gives != "same" and getattr(judge.target, "mean", None) is None
    ):  # else metrics want means of labels, which no file holds
        held_out = [items.labels for items in (splits.query, splits.gallery) if items is not None]
        judge.target = known(config, accelerator, judge.target, np.concatenate(held_out))

    sampler = create_sampler(
        config.sampler.name,
        items_count=len(train),
        batch_size=config.sampler.batch_size,
        seed=config.seed,
        classes=train.labels if train.labels.ndim == 1 and train.labels.dtype.kind in "iu" else None,
        neighbours=search,
        labels=train.labels if config.objective.nearest is None else train.ids,
        target=objective.target,
        geometry=objective.geometry,
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    met = len(sampler) * config.sampler.batch_size * config.optimizer.epochs * (2 if embedder.trains_text else 1)
    if config.objective.memory >= met > 0:
        raise ValueError(
            f"objective.memory {config.objective.memory} counts only once it is full, and {config.optimizer.epochs} epochs "
            f"have {met} embeddings; take a smaller one or more epochs"
        )
    for note in notes(config, train, objective):
        accelerator.print(f"note: {note}")
    if not sampler.drop_last and 0 < len(train) % config.sampler.batch_size < accelerator.num_processes:
        raise ValueError(
            "the last batch has fewer items than there are processes; use the sampler random(drop_last=True)"
        )
    augment = {k: v for k, v in asdict(config.augment).items() if k != "mirror"}
    augmented = Augment(embedder.preprocess, **augment, point=point)
    data = ImageSet(train, augmented, seed=config.seed, cache=config.data.cache)
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=config.data.workers,
        persistent_workers=config.data.workers > 0,
        generator=torch.Generator().manual_seed(config.seed),  # else each epoch would draw from the global one
    )
    optimizer = make_optimizer(config.optimizer, embedder, objective)
    return Setup(splits, [b.name for b in bad], embedder, objective, judge, sampler, data, loader, optimizer)


def known(config: Config, accelerator: Accelerator, target: Target, labels: Any) -> Target:
    """The target, with the distances between these labels from a file where `objective.distances` says so."""
    if config.objective.distances is None:
        return target
    with accelerator.local_main_process_first():
        return KnownDistances(target, labels, config.objective.distances, progress=config.progress)


def geometry(config: Config) -> str:
    """How embeddings are compared where they are judged: as told, or as the objective compares them."""
    facts: LossFacts = LOSSES[config.objective.loss].info["facts"]
    return config.evaluation.geometry or (config.objective.geometry or facts.geometry).removeprefix("squared_")


def make_objective(config: Config, target: str | Target, train: Items, dim: int) -> tuple[Objective, Items]:
    """The objective, and the training items with classes numbered from 0 where it has proxies."""
    options: dict[str, Any] = dict(config.objective.options)
    if taken := sorted(options.keys() & inspect.signature(create_objective).parameters.keys()):
        raise ValueError(f"objective.options holds the options of the loss alone, not {', '.join(taken)}")
    numbered = reads_classes(target) and train.labels.dtype.kind in "iu"
    elsewhere = LOSSES[config.objective.loss].info["facts"].any_proxies and not numbered
    if config.objective.num_proxies is not None and not elsewhere:
        raise ValueError(
            "objective.num_proxies is for losses such as pd_loss on labels that are not classes; leave it out"
        )
    if numbered:
        names, number = np.unique(train.labels, return_inverse=True)
        train = Items(train.images, number.astype(np.int64), train.names, train.ids)
        options |= {"num_classes": len(names), "dim": dim}
    elif elsewhere:
        made = create_target(target)
        codes = proxy_codes(made, made.encode(train.labels), config.objective.num_proxies)
        options |= {"proxy_codes": codes, "dim": dim}
    objective = create_objective(
        config.objective.loss,
        target=target,
        geometry=config.objective.geometry,
        mining=config.objective.mining,
        memory=config.objective.memory,
        anchors=config.objective.anchors,
        proxy_init="random" if config.objective.proxy_init == "text" else config.objective.proxy_init,
        block=config.objective.block,
        **options,
    )
    try_out(objective, train.ids if isinstance(target, Listed) else train.labels, train.ids, dim)
    return objective, train


def train(config: Config) -> dict[str, Any]:
    """Run a configuration to its end and return what metrics.json holds."""
    return fit(config, *start(config))


def start(config: Config) -> tuple[Setup, Run, Accelerator]:
    """Check and build everything, then claim the run folder.

    Raises:
        ValueError, OSError: the configuration, data or output folder do not fit; nothing was overwritten.
    """
    if missing := [t for t in config.trackers if not tracker_installed(t)]:
        raise ValueError(f"tracker {', '.join(missing)} is not installed; install it or leave it out of --trackers")
    if config.report:
        require_matplotlib()
    if config.push_to_hub:
        check_hub_id(config.hub_id)
        require_login()
    accelerator = Accelerator(mixed_precision=config.precision, cpu=config.cpu)
    set_seed(config.seed)
    setup = set_up(config, accelerator)
    name = f"{Path(config.data.source.replace(':', '/')).stem}-{config.objective.loss}"
    folder = distributed.from_first(lambda: str(claim(config, name).pin(setup.splits).folder))
    return setup, Run(Path(folder)), accelerator


def fit(config: Config, setup: Setup, run: Run, accelerator: Accelerator) -> dict[str, Any]:
    """Train from the run's last checkpoint, or from the start, to the end."""
    module = TrainModule(setup.embedder, setup.objective, config.compile).to(memory_format=torch.channels_last)
    progress, snapshot = setup.progress, setup.sampler.snapshot
    model, optimizer = accelerator.prepare(module, setup.optimizer)
    accelerator.register_for_checkpointing(progress, *([] if snapshot is None else [snapshot]))
    if run.checkpoint is not None:
        accelerator.load_state(str(run.checkpoint))
        if accelerator.is_main_process:
            run.rewind(progress.log_size)
        accelerator.print(f"continuing {run.folder} at epoch {progress.epoch}, step {progress.step}")
        track(config, run, accelerator, progress.step)
    else:
        track(config, run, accelerator, progress.step)
        begin(config, setup, run, accelerator)

    learn(config, setup, run, accelerator, model, optimizer)

    if config.evaluation.keep == "best" and (run.folder / "best").exists():
        best = Embedder.from_pretrained(run.folder / "best")
        setup.embedder.merge_lora()
        setup.embedder.load_state_dict(best.state_dict())
        setup.objective.load_state_dict(storage.read_objective(run.folder / "best")[1], strict=False)
    after = setup.judge.encode(setup.embedder, accelerator)
    result = finish(config, setup, run, accelerator, after) if accelerator.is_main_process else {}
    del model, optimizer
    accelerator.free_memory()  # threads of a process group that outlives the interpreter abort it (pytorch issue 190489)
    accelerator.end_training()
    return result


def begin(config: Config, setup: Setup, run: Run, accelerator: Accelerator) -> None:
    """What comes before the first step of a fresh run: the embedder as it is, and proxies at class means or class names."""
    before = setup.judge.encode(setup.embedder, accelerator)
    progress = setup.progress
    progress.before = setup.judge(before)
    progress.levels = {ranking: setup.judge(before, ranking) for ranking in ("random", "oracle")}
    progress.frozen = setup.judge.frozen(setup.embedder, accelerator)
    if accelerator.is_main_process:
        (run.folder / "embeddings").mkdir(exist_ok=True)
        save_file(before, str(run.folder / "embeddings" / "before.safetensors"))
        run.rewind(0)
        run.log(event="evaluation", epoch=0, step=0, **progress.before)
    accelerator.log(progress.before, step=0)
    if setup.objective.proxies is not None and setup.objective.proxies.init == "class_mean":
        z = encode_as_in_training(
            setup.embedder, setup.data.items.images, accelerator, config.sampler.batch_size, config.seed
        )
        setup.objective.start_at_means(z, setup.data.labels)
    if setup.objective.proxies is not None and config.objective.proxy_init == "text":
        names, _ = class_numbers(setup.splits, setup.splits.train) or ([], None)
        clip.start_at_names(setup.embedder, setup.objective, names, config.evaluation.prompts)
    set_seed(config.seed, device_specific=True)


def learn(config: Config, setup: Setup, run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
    """The training loop: epochs of batches, an evaluation and a checkpoint after each."""
    settings, sampler, main, progress = config.optimizer, setup.sampler, accelerator.is_main_process, setup.progress
    per_epoch = math.ceil(len(sampler) / settings.accumulate)
    total = settings.epochs * per_epoch
    hidden = None if config.progress and main else True  # None: hidden unless a terminal shows it
    bar = tqdm(total=total, initial=progress.step, disable=hidden, unit="step", mininterval=0.5)
    while progress.epoch < settings.epochs:
        if config.evaluation.patience is not None and progress.without_better >= config.evaluation.patience:
            accelerator.print(f"stopped early: no better evaluation since epoch {progress.best_epoch}")
            break
        if sampler.snapshot is not None and sampler.snapshot.due(progress.epoch):
            z = encode(setup.embedder, setup.data.items.images, accelerator, config.evaluation.batch_size)
            sampler.snapshot.renew(z.to(accelerator.device), progress.epoch)
        model.train()
        if len(progress.epoch_seconds) <= progress.epoch:
            progress.epoch_seconds.append(0.0)
        started = time.perf_counter()
        for loss, last in batches(config, setup, accelerator, model):
            if last:
                factor = learning_rate(settings, (progress.step + 0.5) / total)
                for group in optimizer.param_groups:
                    frozen = group.get("name", "").startswith("trunk") and progress.epoch < settings.freeze_trunk
                    group["lr"] = 0.0 if frozen else group["base_lr"] * factor
                norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip) if settings.clip else None
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                progress.step += 1
            progress.epoch_seconds[-1] += time.perf_counter() - started
            if last:
                if main:
                    facts = {"epoch": progress.epoch, "step": progress.step, "loss": loss, "lr": settings.lr * factor}
                    run.log(**facts, **({} if norm is None else {"grad_norm": float(norm)}))
                accelerator.log({"loss": loss, "lr": settings.lr * factor}, step=progress.step)
                bar.set_postfix_str(f"epoch {progress.epoch + 1}/{settings.epochs} loss {loss:.4f}", refresh=False)
                bar.update()
                if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
                    save(run, accelerator, progress)
            started = time.perf_counter()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if config.evaluation.every and (
            progress.epoch % config.evaluation.every == 0 or progress.epoch == settings.epochs
        ):
            assess(config, setup, run, accelerator)
        save(run, accelerator, progress)
    bar.close()


def batches(config: Config, setup: Setup, accelerator: Accelerator, model: nn.Module) -> Iterator[tuple[float, bool]]:
    """Run the rest of an epoch's batches forward and backward; yields the loss and whether an update is due."""
    accumulate, mean, progress = config.optimizer.accumulate, 0.0, setup.progress
    setup.sampler.load_state_dict({"epoch": progress.epoch, "batch": progress.batch})
    setup.data.set_epoch(progress.epoch)
    for batch in setup.loader:
        first = progress.batch // accumulate * accumulate
        size = min(accumulate, len(setup.sampler) - first)
        last = progress.batch + 1 == first + size
        images, ids = (batch[name].to(accelerator.device) for name in ("images", "ids"))
        labels = batch["labels"]  # text stays where it is; codes go to the device
        if last:
            loss = model(images, labels, ids)
            accelerator.backward(loss / size)
        else:
            with accelerator.no_sync(model):
                loss = model(images, labels, ids)
                accelerator.backward(loss / size)
        mean = loss.item() / size + (mean if progress.batch > first else 0.0)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} in epoch {progress.epoch}, batch {progress.batch}; lower optimizer.lr, set "
                "optimizer.clip or use precision no or bf16 (the last checkpoint is kept)"
            )
        progress.batch += 1
        yield mean, last


def assess(config: Config, setup: Setup, run: Run, accelerator: Accelerator) -> None:
    """Evaluate after an epoch, log it, and keep the embedder if it is the best so far."""
    progress = setup.progress
    z = setup.judge.encode(setup.embedder, accelerator)
    metrics = setup.judge(z)
    name = setup.judge.monitored(metrics)
    value = metrics[name] if higher_is_better(name) else -metrics[name]
    better = not math.isnan(value) and (progress.best is None or value > progress.best)
    if better:
        progress.best, progress.best_epoch = value, progress.epoch
    progress.without_better = 0 if better else progress.without_better + 1
    if accelerator.is_main_process:
        run.log(event="evaluation", epoch=progress.epoch, step=progress.step, **metrics)
        if better and (config.evaluation.keep == "best" or config.evaluation.patience is not None):
            setup.embedder.save_pretrained(run.folder / "best", objective=setup.objective)
    accelerator.log(metrics, step=progress.step)
    shown = next((n for n in ("recall_at_1", name) if n in metrics), name)
    random, oracle = (progress.levels[ranking][shown] for ranking in ("random", "oracle"))
    found = f"{shown} {metrics[shown]:.4f} (random {random:.4f}, best possible {oracle:.4f})"
    accelerator.print(f"epoch {progress.epoch}: {found}")
    if note := all_alike(z["query"]):
        accelerator.print(f"note: {note}")


def save(run: Run, accelerator: Accelerator, progress: Progress) -> None:
    """Write a checkpoint, complete or not at all."""
    if accelerator.is_main_process:
        progress.log_size = run.log_size()
        run.new_draft()
    accelerator.wait_for_everyone()
    accelerator.save_state(str(run.draft()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.keep(progress.step, progress.epoch)
    accelerator.wait_for_everyone()


def finish(
    config: Config, setup: Setup, run: Run, accelerator: Accelerator, after: dict[str, Tensor]
) -> dict[str, Any]:
    """Write the embedder, its embeddings, the metrics and the report; returns what metrics.json holds."""
    progress = setup.progress
    table = {} if progress.frozen is None else {"frozen": progress.frozen}
    table |= {"before": progress.before, "after": setup.judge(after), **progress.levels}
    result = {
        "table": table,
        "epochs": progress.epoch,
        "steps": progress.step,
        "train_seconds": round(sum(progress.epoch_seconds), 1),
        "epoch_seconds": round(statistics.median(progress.epoch_seconds or [0.0]), 3),
        "processes": accelerator.num_processes,
        "best_epoch": progress.best_epoch,
        "train_items": len(setup.splits.train),
        "query_items": len(setup.splits.query),
        "gallery_items": None if setup.splits.gallery is None else len(setup.splits.gallery),
        "skipped_images": setup.skipped,
        "target": config.objective.target or setup.splits.target or "classes",
        "data": data_facts(setup.splits),
        "origin": setup.splits.origin,
        "versions": versions(),
    }
    objective = setup.objective if isinstance(setup.objective, Objective) else None  # studies put functions there
    setup.embedder.save_pretrained(run.folder / "embedder", objective=objective)
    save_file(after, str(run.folder / "embeddings" / "after.safetensors"))
    run.write_json("metrics.json", result)
    print(format_table(table))
    if config.report:
        before = load_file(str(run.folder / "embeddings" / "before.safetensors"))
        write_report(
            run.folder / "report.html",
            title=f"{config.objective.loss} on {config.data.source}",
            config=asdict(config),
            metrics=result,
            history=run.history(),
            splits=setup.splits,
            target=setup.judge.target,
            geometry=setup.judge.geometry,
            before=(before["query"], before.get("gallery")),
            after=(after["query"], after.get("gallery")),
        )
    print(f"{run.folder}: embedder/, metrics.json, log.jsonl" + (", report.html" if config.report else ""))
    return result


def publish(config: Config, run: Run) -> bool:
    """Push the finished run to the Hub; where that fails, say why and how to try again. Returns whether it is there."""
    try:
        more: dict[str, Any] = {"license": config.hub_license, "proxies": config.hub_proxies, "report": config.report}
        print(f"pushed to {push_run(run.folder, str(config.hub_id), private=config.hub_private or None, **more)}")
    except Exception as error:
        again = f"python recipes/push.py {shlex.quote(str(run.folder))} --hub-id {config.hub_id}"
        again += " --private" if config.hub_private else ""
        again += ("" if config.report else " --no-report") + ("" if config.hub_proxies else " --no-proxies")
        again += f" --license {shlex.quote(config.hub_license)}" if config.hub_license else ""
        print(f"error: not pushed to the Hub: {error}", file=sys.stderr)
        print(f"the run is complete in {run.folder}; to push it: {again}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Read the configuration and train; what does not fit ends with a short message and status 2."""
    config = parse_config(default=Path(__file__).parent / "configs" / "pose.yaml")
    limit_silence()
    try:
        ready = start(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finished = fit(config, *ready)  # empty but in the main process
    if finished and config.push_to_hub and not publish(config, ready[1]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
