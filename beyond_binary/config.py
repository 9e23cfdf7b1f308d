"""The trainer's configuration: typed sections, read from YAML files and the command line, written back resolved."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from .data.config import DataConfig
from .registry import suggest
from .targets import estimates


@dataclass
class EmbedderConfig:
    """The model that turns images into embeddings.

    Args:
        trunk: Backbone: "timm/ARCH" or "open_clip/ARCH", or with published weights "timm/hf-hub:USER/NAME" or
            "open_clip/hf-hub:USER/NAME".
        dim: Width of the embedding; unset with head "none": the trunk's own width.
        pretrained: Download the library's default weights.
        weights: Pretrained tag, or path of a safetensors file with the trunk's weights (for open_clip: all of them,
            those of the image tower, or those of the timm network in it).
        pooling: Pooling of the trunk's feature map: avg, max, avgmax, gem, token; unset: the trunk's own.
        head: "linear", "mlp" or "none".
        normalize: L2-normalise the embeddings.
        freeze_batch_norm: Keep BatchNorm statistics fixed while training.
        image_size: Side of the input images in pixels; unset: the trunk's own.
        mean: Channel means the images are normalised with; unset: the trunk's own.
        std: Channel standard deviations; unset: the trunk's own.
        resize_mode: "shortest" (cover the size, then crop the centre) or "squash"; unset: the trunk's own.
        trunk_options: Further options for timm or open_clip.
        text: Train the text tower of an open_clip trunk too, on the captions that the labels are: each image is joined
            by one of its captions, drawn anew in each epoch.
        unlocked: How many of the image tower's last layers are trained; 0: none; unset: all.
        grad_checkpointing: Compute activations again for the gradient instead of keeping them.
        lora: Train low-rank adapters in place of the trunk's weights, for example {r: 8, alpha: 16, dropout: 0.1,
            targets: [qkv]}; {}: the defaults. Needs peft (pip install "beyond_binary[lora]").
    """

    trunk: str = "timm/resnet18"
    dim: int | None = 128
    pretrained: bool = False
    weights: str | None = None
    pooling: str | None = None
    head: str = "linear"
    normalize: bool = True
    freeze_batch_norm: bool = False
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    resize_mode: str | None = None
    trunk_options: dict[str, Any] = field(default_factory=dict)
    text: bool = False
    unlocked: int | None = None
    grad_checkpointing: bool = False
    lora: dict[str, Any] | None = None


@dataclass
class ObjectiveConfig:
    """What is optimised.

    Args:
        loss: A registered loss, for example log_ratio, proxy_anchor, supcon.
        target: What similar means, for example classes, euclidean, "pose(root=(2, 3))"; unset: the data set's own.
        nearest: The same are an item and its so many label-nearest of the whole training set (30: M(Binary) of the
            log-ratio paper), for losses that read same or different. Unset: what the target says; the target `nearest`
            looks among the batch alone.
        anchors: How many of the first items of a batch (of all processes together) are rows of the loss, all being keys:
            1, with the sampler dense_triplet(anchors=1), is the log-ratio paper's batch. Unset: all.
        geometry: How embeddings are compared; unset: the one of the loss's paper.
        mining: Miner, for example "multi_similarity(epsilon=0.1)"; unset: all pairs.
        memory: How many embeddings of earlier batches join the batch as keys, once there are so many; 0: none.
        proxy_init: "random", "class_mean" (one pass over the training set before the first step), or "text" (the text
            tower's embeddings of the class names); unset: the loss's default, class_mean for pd_loss, random for others.
        num_proxies: On labels that are not classes, for losses such as pd_loss: proxies sit at that many k-means centres
            of the training labels. Unset: one for each label of a set (target within('multi_label', radius=0.999)).
        distances: Folder for files of all label distances, among the training and among the held-out items: computed once
            in parallel, found again by their content, looked up in each batch. For targets whose distances are slow
            (captions, layout). Unset: computed for each batch.
        block: Most rows in a tile of the block engine; unset: the plain dense form.
        options: The loss's own options, for example {temperature: 0.05}.
    """

    loss: str = "log_ratio"
    target: str | None = None
    nearest: int | None = None
    anchors: int | None = None
    geometry: str | None = None
    mining: str | None = None
    memory: int = 0
    proxy_init: Literal["random", "class_mean", "text"] | None = None
    num_proxies: int | None = None
    distances: str | None = None
    block: int | None = 1024
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SamplerConfig:
    """How batches are made.

    Args:
        name: "random", "classes(samples_per_class=4)", "dense_triplet(anchors=8, k=5)" or
            "offline_hard(negatives=4, refresh=1)" (hard negatives of the whole set), with options in it.
        batch_size: Items in a batch of all processes together.
        cache: Folder that keeps label-space neighbours (dense_triplet, objective.nearest) from run to run; unset: computed each time.
    """

    name: str = "random"
    batch_size: int = 64
    cache: str | None = None


@dataclass
class AugmentConfig:
    """Random changes to training images, a pure function of seed, epoch and item.

    Args:
        crop_scale: Smallest and largest share of the image's area that a random crop keeps; [1, 1]: no cropping.
        flip: Probability of a horizontal flip; leave at 0 where left and right matter.
        jitter: Strength of random brightness, contrast and saturation, 0 to 1.
        shift: Largest random shift, as a share of the side (keeps the scale, unlike a crop).
        zoom: Largest random zoom in or out, as a share (0.05: from 1/1.05 to 1.05).
        rotate: Largest random turn either way, in degrees.
        move_labels: Labels are points in shares of the image's width and height (joints), and move with the image.
        mirror: For labels that are points: which joint each becomes in a mirror; adds a mirrored copy of every
            training item.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    jitter: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    rotate: float = 0.0
    move_labels: bool = False
    mirror: list[int] | None = None


@dataclass
class OptimizerConfig:
    """How weights are updated.

    Args:
        name: An optimizer known to timm, for example adamw, adam, sgd, rmsprop.
        lr: Learning rate of the trunk (of its last layer, and of the text tower's).
        layer_decay: Factor on the learning rate from each layer of a tower to the one below it; 1: all alike.
        head_lr: Learning rate of the head; unset: that of the trunk.
        proxy_lr: Learning rate of what the loss learns (proxies); unset: 100 times that of the trunk, 2000 times for mean
            fields, as in their paper, and the trunk's own for the boundary of the margin loss.
        weight_decay: Weight decay of matrices in trunk and head (not of biases, norms or proxies).
        epochs: Passes over the training set.
        warmup: Share of all steps over which the learning rate rises from 0.
        schedule: What follows: "cosine" or "linear" down to 0, or "constant".
        freeze_trunk: Number of first epochs in which the trunk's (image tower's) learning rate is 0, so that only the
            head, proxies and text tower learn (BatchNorm statistics still move unless embedder.freeze_batch_norm).
        accumulate: Batches per update, gradients averaged.
        clip: Largest gradient norm; unset: no clipping.
        options: Further options of the optimizer, for example {momentum: 0.9}.
    """

    name: str = "adamw"
    lr: float = 1e-3
    layer_decay: float = 1.0
    head_lr: float | None = None
    proxy_lr: float | None = None
    weight_decay: float = 1e-4
    epochs: int = 10
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    freeze_trunk: int = 0
    accumulate: int = 1
    clip: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationConfig:
    """How the embedder is judged on the held-out items.

    Args:
        target: What similar means in evaluation; unset: the objective's target.
        ks: Ranks for the metrics that have one; unset: the defaults of the metrics.
        metrics: Names of metrics; unset: all that fit the target, and with the text tower of an open_clip trunk
            text_to_image_recall_at_k, image_to_text_recall_at_k (labels that are captions) or zero_shot_accuracy
            (classes with names).
        prompts: What zero_shot_accuracy and proxy_init text make of a class name, in the place of {}; several are
            averaged.
        geometry: How embeddings are compared; unset: as the objective compares them.
        every: Evaluate every so many epochs (and at the end); 0: only before and after training.
        monitor: Metric that picks the best epoch; unset: map_at_r for classes,
            text_to_image_recall_at_10 for captions beside a text tower, mean_label_distance_at_10 for distances.
        patience: Stop after this many evaluations without a better monitor; unset: never.
        keep: Which epoch's weights the run ends with: "last", or "best" by the monitor. Choosing by test data
            flatters the result: use "best" with held-out validation classes (data.splitting class_folds).
        batch_size: Images encoded at once.
    """

    target: str | None = None
    ks: list[int] | None = None
    metrics: list[str] | None = None
    prompts: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    geometry: str | None = None
    every: int = 1
    monitor: str | None = None
    patience: int | None = None
    keep: Literal["last", "best"] = "last"
    batch_size: int = 128


@dataclass
class Config:
    """Train, evaluate and keep an embedder.

    Args:
        output: Run folder; unset: a new one, runs/SOURCE-LOSS (with a number if that is taken).
        resume: "auto" continues the run in the output folder after its last checkpoint, or starts it if there is
            none; "never" refuses a folder that already holds a run.
        seed: Decides weights, batches and augmentation.
        precision: "no" (float32), "bf16" or "fp16" for the embedder; losses always compute in float32 or better.
        compile: Backend of torch.compile that the embedder is compiled by for training, for example inductor; unset: none.
        cpu: Stay on the CPU even where there is a GPU.
        checkpoint_every: Steps between checkpoints; unset: one at the end of each epoch.
        trackers: Experiment trackers of Accelerate: tensorboard, wandb, trackio, mlflow, ...
        progress: Show a progress bar.
        report: Write report.html with pictures at the end.
        push_to_hub: Publish the finished run on the Hugging Face Hub as hub_id, with its report if there is one (it
            shows small copies of the held-out images). The token comes from HF_TOKEN or `hf auth login`.
        hub_id: "user/name" on the Hub.
        hub_private: Make a new repository on the Hub private.
        hub_license: Licence for the card, for example mit or apache-2.0; unset: the card says that there is none.
        hub_proxies: Publish what the loss learned too, such as proxies (near the mean embedding of each class).
        data: The data set.
        embedder: The model.
        objective: The loss.
        sampler: The batches.
        augment: Random changes to training images.
        optimizer: The updates.
        evaluation: The judgement.
    """

    output: str | None = None
    resume: Literal["never", "auto"] = "never"
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: str | None = None
    cpu: bool = False
    checkpoint_every: int | None = None
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    progress: bool = True
    report: bool = True
    push_to_hub: bool = False
    hub_id: str | None = None
    hub_private: bool = False
    hub_license: str | None = None
    hub_proxies: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def parse_config(argv: Sequence[str] | None = None, default: Path | None = None) -> Config:
    """Read `--config FILE.yaml` and `--section.key value` into a Config; command-line values win.

    Args:
        argv: arguments, by default the program's.
        default: configuration file taken when no `--config` is given.

    Raises:
        SystemExit: status 2 with a short message for a field or value that does not fit; 0 after `--help`.
    """
    from jsonargparse import ArgumentParser

    argv = list(sys.argv[1:] if argv is None else argv)
    if default is not None and not any(a == "--config" or a.startswith("--config=") for a in argv):
        argv = ["--config", str(default), *argv]
    parser = ArgumentParser(
        prog="train.py",
        usage="train.py [--config FILE.yaml] [--output FOLDER] [--SECTION.FIELD VALUE ...]",
        description="Train, evaluate and keep an embedder. Without --config: "
        + (default.name if default else "defaults"),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_class_arguments(Config, nested_key=None)
    try:
        parsed = parser.parse_args(argv)
    except Exception as error:
        print(f"error: {_explain(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    made = parser.instantiate(parsed)
    return Config(**{f.name: made[f.name] for f in fields(Config)})


def parse_data(argv: Sequence[str]) -> DataConfig:
    """Read `--data.FIELD VALUE` and `--config FILE.yaml`, of which the section data counts, for recipes that only read data.

    Raises:
        SystemExit: as `parse_config`.
        ValueError: other arguments, or neither `--data.source` nor `--config`.
    """
    options = [word for word in argv if word.startswith("--")]
    if odd := [word for word in options if not re.match(r"--(data\.|config\b)", word)]:
        raise ValueError(f"unknown argument {odd[0]}; see --help")
    data = parse_config(argv).data
    if not any(re.match(r"--(data\.source|config)\b", word) for word in options):
        raise ValueError("expected --data.source: a folder, zip, table, hub:USER/NAME or embedded:NAME")
    return data


def check_config(config: Config) -> None:
    """Raise a ValueError for numbers out of range and for settings that contradict each other."""
    optimizer, evaluation = config.optimizer, config.evaluation
    least = {
        "sampler.batch_size": (config.sampler.batch_size, 1),
        "objective.num_proxies": (config.objective.num_proxies, 2),
        "objective.nearest": (config.objective.nearest, 1),
        "objective.anchors": (config.objective.anchors, 1),
        "optimizer.epochs": (optimizer.epochs, 0),
        "optimizer.accumulate": (optimizer.accumulate, 1),
        "optimizer.freeze_trunk": (optimizer.freeze_trunk, 0),
        "optimizer.lr": (optimizer.lr, 0),
        "optimizer.head_lr": (optimizer.head_lr, 0),
        "optimizer.proxy_lr": (optimizer.proxy_lr, 0),
        "optimizer.weight_decay": (optimizer.weight_decay, 0),
        "evaluation.batch_size": (evaluation.batch_size, 1),
        "evaluation.every": (evaluation.every, 0),
        "evaluation.patience": (evaluation.patience, 1),
        "checkpoint_every": (config.checkpoint_every, 1),
        "seed": (config.seed, 0),
    }
    for name, (value, smallest) in least.items():
        if value is not None and not value >= smallest:
            raise ValueError(f"expected {name} of at least {smallest}, got {value}")
    if config.compile is not None and config.compile not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise ValueError(f"compile: torch has no backend {config.compile!r}{suggest(config.compile, known)}")
    if not 0 < optimizer.layer_decay <= 1:
        raise ValueError(f"expected optimizer.layer_decay above 0 and at most 1, got {optimizer.layer_decay}")
    if not 0 <= optimizer.warmup < 1:
        raise ValueError(f"expected optimizer.warmup in [0, 1), got {optimizer.warmup}")
    if optimizer.clip is not None and not optimizer.clip > 0:
        raise ValueError(f"expected optimizer.clip above 0, got {optimizer.clip}")
    if config.objective.distances is not None and estimates(config.objective.target):
        raise ValueError(
            "objective.distances keeps distances in files, but those of 'estimated' change as the embedder learns; leave it out"
        )
    if evaluation.every == 0 and (evaluation.keep == "best" or evaluation.patience is not None):
        raise ValueError(
            "evaluation.keep best and evaluation.patience need evaluations: set evaluation.every to 1 or more"
        )


def field_names(section: Any = Config, prefix: str = "") -> list[str]:
    """All configuration fields with their dotted names."""
    names: list[str] = []
    default = section() if isinstance(section, type) else section
    for f in fields(default):
        value = getattr(default, f.name)
        names += field_names(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return names


def _explain(message: str) -> str:
    """The parser's message in one line, with near field names where a field is unknown."""
    unknown = re.search(r"(?:unrecognized arguments: --|option ')([\w.]+)", message, flags=re.IGNORECASE)
    group = re.search(r"Group '([\w.]+)'", message)
    line = " ".join(message.split())
    if unknown:
        name = f"{group[1]}.{unknown[1]}" if group else unknown[1]
        near = difflib.get_close_matches(name, field_names(), n=3, cutoff=0.5)
        if near:
            line += "; did you mean " + " or ".join(near) + "?"
    return line


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    plain = asdict(config)
    plain["augment"]["crop_scale"] = list(plain["augment"]["crop_scale"])
    text: str = yaml.safe_dump(plain, sort_keys=False)
    return text
