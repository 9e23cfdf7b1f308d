"""The trainer: from a configuration to a run folder, bad input, resuming after a kill, and several processes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import beyond_binary as bb
from beyond_binary import neighbours
from beyond_binary.config import Config, OptimizerConfig, dump_config, field_names, parse_config
from beyond_binary.embedder import Embedder
from beyond_binary.losses import LOSSES, list_losses
from beyond_binary.notes import all_alike
from beyond_binary.objective import Objective
from beyond_binary.offline import Snapshot, mine_offline
from beyond_binary.runs import Run
from beyond_binary.targets.captions import Captions, embed_captions
from beyond_binary.targets.tables import Listed
from recipes import ROOT, TINY, load

TRAIN = ROOT / "recipes" / "train.py"
recipe = load("recipes/train.py")


def tiny(output: Path, *changes: str) -> Config:
    return parse_config([*TINY, "--output", str(output), *changes])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted((run / "embedder").glob("*.safetensors")) for k, v in load_file(f).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    recipe.train(tiny(run, "--checkpoint_every", "4", "--trackers", "[tensorboard]", "--report", "true"))
    return run


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    result = json.loads((finished / "metrics.json").read_text())
    assert set(result["table"]) == {"frozen", "before", "after", "random", "oracle"}
    assert result["table"]["oracle"]["recall_at_1"] == 1.0
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 13))  # 96 items in batches of 16, two epochs
    assert [line["epoch"] for line in lines if line.get("event") == "evaluation"] == [0, 1, 2]
    assert Embedder.from_pretrained(finished / "embedder").dim == 8
    objective = Objective.from_pretrained(finished / "embedder")
    trained = load_file(next(finished.glob("checkpoints/*/model.safetensors")))
    learned = objective.learned()
    assert same(learned, {name: trained[f"objective.{name}"] for name in learned})
    assert objective.config["target"] == Embedder.from_pretrained(finished / "embedder").target == result["target"]
    assert [p.name for p in (finished / "checkpoints").iterdir()] == ["step00000012_epoch00002.kept"]
    assert "<html" in (finished / "report.html").read_text()
    assert list((finished / "tracking").glob("events*")) or list(finished.rglob("events*"))
    again = parse_config(["--config", str(finished / "config.yaml")])
    assert dump_config(again) == (finished / "config.yaml").read_text()


def test_embedder_of_the_run_reproduces_the_kept_embeddings(finished: Path) -> None:
    config = parse_config(["--config", str(finished / "config.yaml")])
    splits, _ = recipe.load_checked(config.data)
    z = Embedder.from_pretrained(finished / "embedder").encode(splits.query.images)
    torch.testing.assert_close(z, load_file(finished / "embeddings" / "after.safetensors")["query"])


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps precision and device in a global state; a run of the program starts without one."""
    AcceleratorState._reset_state(reset_partial_state=True)


class Killed(Exception):
    pass


def kill_after(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step has been logged, and no further."""
    log = recipe.Run.log

    def log_and_die(self: object, **values: object) -> None:
        log(self, **values)
        if values.get("step") == step and "loss" in values:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recipe.Run, "log", log_and_die)
        with pytest.raises(Killed):
            recipe.train(config)


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_resumed_run_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    config = tiny(tmp_path / "run", "--checkpoint_every", "4", "--resume", "auto")
    kill_after(config, step, monkeypatch)
    torch.rand(step)  # whatever happened in between
    result = recipe.train(config)
    table = result["table"]
    assert table == json.loads((finished / "metrics.json").read_text())["table"]
    assert 0 < result["epoch_seconds"] <= result["train_seconds"] + 0.05
    shown = {row: table[row]["recall_at_1"] for row in ("after", "random", "oracle")}
    assert (
        "epoch 2: recall_at_1 {after:.4f} (random {random:.4f}, best possible {oracle:.4f})".format(**shown)
        in capsys.readouterr().out
    )
    assert same(weights(tmp_path / "run"), weights(finished))
    ours, theirs = ((r / "log.jsonl").read_text() for r in (tmp_path / "run", finished))
    assert ours == theirs


@pytest.mark.slow
def test_resumes_after_sigkill_of_the_process(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(TRAIN), *TINY, "--output", str(run), "--checkpoint_every", "1", "--resume", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = run / "log.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and (not log.exists() or log.read_text().count("loss") < 5):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "embedder").exists()
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert same(weights(run), weights(finished))


def test_mined_lists_are_renewed_when_due_and_resumed_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        "--objective.loss", "multi_similarity", "--optimizer.epochs", "4", "--checkpoint_every", "2", "--resume", "auto",
        "--sampler.name", "offline_hard(refresh=2, negatives=2, hard_positives=True)",
    ]  # fmt: skip
    renewed, renew = [], Snapshot.renew

    def watch(self: Snapshot, embeddings: torch.Tensor, epoch: int) -> None:
        renew(self, embeddings, epoch)
        renewed.append((epoch, embeddings, self["negatives"]))

    monkeypatch.setattr(Snapshot, "renew", watch)
    config = tiny(tmp_path / "whole", *changes)
    setup, run, accelerator = recipe.start(config)
    before = setup.embedder.encode(setup.data.items.images)
    recipe.fit(config, setup, run, accelerator)
    assert [epoch for epoch, *_ in renewed] == [0, 2]
    torch.testing.assert_close(renewed[0][1], before)
    assert not torch.equal(renewed[0][1], renewed[1][1])  # the embedder has learned in between
    items, objective = setup.data.items, setup.objective
    for _, z, found in renewed:
        assert torch.equal(found, mine_offline(z, items.labels, geometry=objective.geometry, count=2))

    kill_after(tiny(tmp_path / "killed", *changes), 17, monkeypatch)
    renewed.clear()
    recipe.train(tiny(tmp_path / "killed", *changes))
    assert not renewed  # in the middle of epoch 2, whose weights are gone: the lists come from the checkpoint
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_gradient_accumulation_clipping_and_early_stopping(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "run", "--optimizer.accumulate", "4", "--optimizer.clip", "0.5", "--optimizer.epochs", "5",
        "--evaluation.patience", "1", "--evaluation.keep", "best", "--embedder.freeze_batch_norm", "true", "--optimizer.lr", "0", "--optimizer.proxy_lr", "0",
    )  # fmt: skip
    result = recipe.train(config)
    assert result["epochs"] == 2  # nothing learns, so the second evaluation is no better
    assert result["steps"] == 4  # six batches make one update of four and one of two
    assert result["best_epoch"] == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all("grad_norm" in line for line in lines if "loss" in line)


def test_the_best_embedder_is_kept_with_its_proxies(tmp_path: Path) -> None:
    """Only the proxies learn, so the first evaluation stays the best, and proxies move on after it."""
    frozen = ["--optimizer.lr", "0", "--optimizer.proxy_lr", "0.1", "--embedder.freeze_batch_norm", "true"]
    assert recipe.train(tiny(tmp_path / "run", *frozen, "--evaluation.keep", "best"))["best_epoch"] == 1
    best, kept = (Objective.from_pretrained(tmp_path / "run" / name).learned() for name in ("best", "embedder"))
    assert same(best, kept)
    last = load_file(next(tmp_path.glob("run/checkpoints/*/model.safetensors")))
    assert not torch.equal(kept["proxies.weight"], last["objective.proxies.weight"])


def test_accumulated_gradient_is_the_mean_over_batches(tmp_path: Path) -> None:
    """One update of two batches with plain SGD moves the weights by lr times the mean of the two gradients."""
    changes = [
        "--optimizer.name", "sgd", "--optimizer.options", "{momentum: 0.0, nesterov: false}", "--optimizer.epochs", "1", "--optimizer.warmup", "0", "--optimizer.weight_decay", "0",
        "--optimizer.schedule", "constant", "--embedder.freeze_batch_norm", "true", "--data.rows", "[32, 40]",
        "--evaluation.every", "0", "--optimizer.lr", "0.01", "--optimizer.proxy_lr", "0", "--objective.proxy_init", "random",
    ]  # fmt: skip
    config = tiny(tmp_path / "run", *changes, "--optimizer.accumulate", "2")
    setup, run, accelerator = recipe.start(config)
    start = {k: v.clone() for k, v in setup.embedder.state_dict().items()}
    grads = {k: torch.zeros_like(p) for k, p in setup.embedder.named_parameters()}
    for batch in setup.loader:
        z = setup.embedder(batch["images"])
        loss = setup.objective(z, batch["labels"], ids=batch["ids"])
        for (name, _), g in zip(
            setup.embedder.named_parameters(), torch.autograd.grad(loss, list(setup.embedder.parameters())), strict=True
        ):
            grads[name] += g / 2
    recipe.fit(config, setup, run, accelerator)
    moved = dict(setup.embedder.named_parameters())
    for name, grad in grads.items():
        torch.testing.assert_close(moved[name].detach(), start[name] - 0.01 * grad, rtol=1e-3, atol=1e-6)


def test_a_compiled_embedder_learns_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compiler = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, backend: compiled.append((f, backend)) or compiler(f, backend=backend)
    )
    recipe.train(tiny(tmp_path / "compiled", "--compile", "aot_eager"))
    assert [(f.__func__, backend) for f, backend in compiled] == [(Embedder.forward, "aot_eager")]
    assert Embedder.from_pretrained(str(tmp_path / "compiled" / "embedder")).dim == 8
    for name, value in weights(finished).items():
        torch.testing.assert_close(weights(tmp_path / "compiled")[name], value, atol=1e-4, rtol=1e-3)


def test_bf16_trains(tmp_path: Path) -> None:
    result = recipe.train(tiny(tmp_path / "run", "--precision", "bf16", "--optimizer.epochs", "1"))
    assert np.isfinite(result["table"]["after"]["map_at_r"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", list_losses())
def test_every_loss_trains_two_steps(loss: str, tmp_path: Path) -> None:
    target = "euclidean" if LOSSES[loss].info["facts"].reads == "magnitude" else "classes"
    changes = ["--objective.loss", loss, "--objective.target", target, "--data.rows", "[32, 20]"]
    setup, run, accelerator = recipe.start(tiny(tmp_path / "run", *changes, "--optimizer.epochs", "1"))
    before = {name: p.detach().clone() for name, p in setup.objective.named_parameters()}
    result = recipe.fit(tiny(tmp_path / "run", *changes, "--optimizer.epochs", "1"), setup, run, accelerator)
    assert result["steps"] == 2
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert all(not torch.equal(p, before[name]) for name, p in setup.objective.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("log_ratio", "estimated(weight=0.5)"),
        ("soft_contrastive", "scaled('estimated', factor=2.0)"),
        ("supcon", "within('estimated', radius=0.5)"),
    ],
)
def test_estimated_distributions_train(loss: str, target: str, tmp_path: Path) -> None:
    changes = ["--objective.loss", loss, "--objective.target", target, "--optimizer.epochs", "1"]
    result = recipe.train(tiny(tmp_path / "run", *changes))
    assert np.isfinite(result["table"]["after"]["map_at_r"])


def test_a_memory_of_earlier_batches_trains(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", "--objective.loss", "supcon", "--objective.memory", "24", "--optimizer.epochs", "1")
    setup, run, accelerator = recipe.start(config)
    assert int(setup.objective.memory.seen) == 0  # trying the loss out leaves nothing there
    result = recipe.fit(config, setup, run, accelerator)
    assert int(setup.objective.memory.seen) == result["steps"] * config.sampler.batch_size
    with pytest.raises(ValueError, match="memory 5000 counts only once it is full, and 1 epochs have 96"):
        recipe.start(
            tiny(
                tmp_path / "other",
                "--objective.loss",
                "supcon",
                "--objective.memory",
                "5000",
                "--optimizer.epochs",
                "1",
            )
        )


def test_neighbours_are_kept_from_run_to_run(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dense = ["--sampler.name", "dense_triplet(anchors=2, k=3)", "--sampler.cache", str(cache)]
    setups = [recipe.start(tiny(tmp_path / name, *dense))[0] for name in ("one", "two")]
    assert len(list(cache.iterdir())) == 1
    assert [list(setup.sampler) for setup in setups[:1]] == [list(setup.sampler) for setup in setups[1:]]


FIGURES = ["--data.source", "embedded:figures", "--data.rows", "[60,20]", "--objective.loss", "triplet"]


def test_binary_mining_of_the_paper_from_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One anchor, 3 of its 7 nearest of the whole set, random others; labels move with the pictures."""
    batch = ["--sampler.name", "dense_triplet(anchors=1, k=3, pool=7, batches_per_epoch=4)", "--optimizer.epochs", "1"]
    form = ["--objective.nearest", "7", "--objective.anchors", "1"]
    moved = ["--augment.mirror", str([*range(14)]), "--augment.move_labels", "true", "--augment.rotate", "30"]
    seen = []
    whole = Listed.distance

    def distance(target, code_q, code_k, valid=None):  # type: ignore[no-untyped-def]
        different = whole(target, code_q, code_k, valid)
        seen.append((code_q[:, 0].tolist(), different.tolist()))
        return different

    searches = []
    found = neighbours.label_neighbours
    monkeypatch.setattr(neighbours, "label_neighbours", lambda *a, **o: searches.append(a[2]) or found(*a, **o))
    monkeypatch.setattr(Listed, "distance", distance)
    config = tiny(tmp_path / "run", *FIGURES, *batch, *form, *moved)
    setup, run, accelerator = recipe.start(config)
    seen.clear()  # what was tried out
    items = setup.data.items
    batches = list(setup.sampler)
    recipe.fit(config, setup, run, accelerator)
    target = bb.create_target(setup.splits.target)
    near = found(target, target.encode(items.labels), 7)[0]
    assert searches == [7]
    assert len(items) == 120
    assert [rows for rows, _ in seen] == [[int(items.ids[batch[0]])] for batch in batches]
    for batch, (_, [different]) in zip(batches, seen, strict=True):
        same = set(near[batch[0]].tolist()) | {batch[0]}
        assert different == [item not in same for item in batch]
        assert different.count(False) == 4
    assert "mean_label_distance_at_10" in json.loads((run.folder / "metrics.json").read_text())["table"]["after"]


CAPTIONS = ["--data.source", "embedded:scenes", "--objective.loss", "log_ratio", "--sampler.name", "random"]


def test_label_distances_of_a_run_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["--objective.distances", str(tmp_path / "kept")]
    plain, found = (
        recipe.train(tiny(tmp_path / name, *CAPTIONS, *change)) for name, change in [("plain", []), ("found", kept)]
    )
    assert found["table"]["after"] == pytest.approx(plain["table"]["after"], rel=1e-4, nan_ok=True)
    for name, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "found")[name], value)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert sorted(np.load(path, mmap_mode="r").shape for path in files) == [(40, 40), (96, 96)]

    def never(*arguments: object) -> None:
        raise AssertionError("a distance was computed again")

    monkeypatch.setattr(Captions, "distance", never)
    again = recipe.train(tiny(tmp_path / "again", *CAPTIONS, *kept))
    assert again["table"] == found["table"]
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}


def test_a_run_with_known_distances_is_judged_by_what_the_target_itself_offers(tmp_path: Path) -> None:
    rooms = [
        "--data.source", "embedded:rooms", "--objective.loss", "log_ratio", "--objective.target", "layout",
        "--sampler.name", "random", "--objective.distances", str(tmp_path / "kept"), "--optimizer.epochs", "1",
        "--evaluation.monitor", "mean_iou_at_10",
    ]  # fmt: skip
    result = recipe.train(tiny(tmp_path / "one", *rooms, "--evaluation.metrics", "[mean_iou_at_10]"))
    assert 0 < result["table"]["after"]["mean_iou_at_10"] < result["table"]["oracle"]["mean_iou_at_10"] <= 1
    every = recipe.start(tiny(tmp_path / "every", *rooms))[0].judge
    assert "mean_iou_at_10" in every({"query": torch.randn(40, 8)})


def test_a_table_says_which_joints_are_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.random((20, 4, 2)).round(3), rng.random((20, 4, 1)) < 0.7], 2)
    names = ",".join(f"j{j}_{part}" for j in range(4) for part in "xyv")
    rows = [f"{i}.png," + ",".join(f"{v:g}" for v in row) for i, row in enumerate(joints.reshape(20, -1))]
    (tmp_path / "labels.csv").write_text("\n".join([f"file,{names}", *rows]))
    for i in range(20):
        Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    changes = [
        "--data.source", str(tmp_path), "--data.label", "['*_[xyv]']", "--data.splitting", "rows", "--data.rows", "[12, 8]",
        "--objective.loss", "log_ratio", "--objective.target", "pose(visibility=True)", "--sampler.name", "random",
        "--sampler.batch_size", "12", "--augment.mirror", "[1, 0, 2, 3]", "--augment.move_labels", "true",
        "--augment.rotate", "20",
    ]  # fmt: skip
    setup, _, _ = recipe.start(tiny(tmp_path / "run", *changes))
    items, target = setup.data.items, setup.objective.target
    code = target.encode(items.labels)
    assert code.shape == (24, 4, 3)
    np.testing.assert_array_equal(code[:12, :, 2], joints[:12, :, 2])
    np.testing.assert_array_equal(code[12:, :, 2], joints[:12, [1, 0, 2, 3], 2])
    batch = next(iter(setup.loader))
    seen = batch["labels"].reshape(12, 4, 3)
    np.testing.assert_array_equal(seen[..., 2], code[batch["ids"]][..., 2])
    assert not np.allclose(seen[..., :2], items.labels[batch["ids"]].reshape(12, 4, 3)[..., :2])
    assert torch.isfinite(setup.objective(torch.randn(12, 8), batch["labels"]))


def test_pairs_of_images_are_scored_by_file_name(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(
        "file,split\n" + "\n".join(f"{n},{'train' if i < 8 else 'test'}" for i, n in enumerate(names))
    )
    pairs = [f"{names[i]},{names[j]},{abs(i - j)}" for i in range(12) for j in range(i) if i - j < 4]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "scores.csv").write_text("\n".join(pairs))
    changes = [
        "--data.source", str(tmp_path), "--data.splitting", "given", "--data.label", "[file]", "--sampler.name", "random",
        "--sampler.batch_size", "8", "--objective.loss", "log_ratio", "--optimizer.epochs", "1",
        "--objective.target", f"pair_scores({str(tmp_path / 'pairs' / 'scores.csv')!r})", "--evaluation.ks", "[1]",
    ]  # fmt: skip
    config = tiny(tmp_path / "run", *changes)
    config.data.rows = None
    result = recipe.train(config)
    assert np.isfinite(result["table"]["after"]["mean_label_distance_at_1"])
    assert result["table"]["oracle"]["mean_label_distance_at_1"] == 1  # the next number's image


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        ("tree", "log_ratio"),
        ("multi_label(names=('red', 'round', 'old'))", "log_ratio"),
        ("within(\"multi_label(names=('red', 'round', 'old'))\", radius=0.999)", "mean_field_contrastive"),
    ],
)
def test_a_table_may_hold_paths_and_sets_by_name(target: str, loss: str, tmp_path: Path) -> None:
    cells = (
        ["red;round", "red", "old", "round;old"]
        if "multi" in target
        else ["pet/cat/siamese", "pet/cat", "pet/dog", "wild"]
    )
    lines = ["file,what", *(f"{i}.png,{cells[i % 4]}" for i in range(20))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    for i in range(20):
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    changes = [
        "--data.source", str(tmp_path), "--data.splitting", "rows", "--data.rows", "[12, 8]", "--data.label", "[what]",
        "--objective.loss", loss, "--objective.target", target, "--sampler.name", "random", "--sampler.batch_size", "12",
    ]  # fmt: skip
    setup, _, _ = recipe.start(tiny(tmp_path / "run", *changes))
    batch = next(iter(setup.loader))
    assert batch["labels"].shape == (12, 1)
    assert torch.isfinite(setup.objective(torch.randn(12, 8), batch["labels"], ids=batch["ids"]))
    assert all(np.isfinite(v) for v in setup.judge({"query": torch.randn(8, 8)}, "oracle").values())


class Lengths(torch.nn.Module):
    """A text tower whose embedding of a text is how often each of four letters is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.scale * tokens


def test_embedded_captions_are_labels_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rng, names, texts = np.random.default_rng(0), [], []
    for i in range(40):
        names.append(f"{i}.png")
        texts.append(["".join(rng.choice(list("abcd"), 5)), "" if i % 2 else "".join(rng.choice(list("abcd"), 3))])
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "set" / names[-1])
    (tmp_path / "set" / "labels.csv").write_text("file\n" + "\n".join(names))
    tokenizer = lambda some: torch.tensor([[text.count(c) for c in "abcd"] for text in some])  # noqa: E731
    z = embed_captions(texts, Lengths(), tokenizer)
    np.savez(tmp_path / "sentences", names=names[::-1], labels=z.numpy()[::-1])
    changes = ["--data.source", str(tmp_path / "set"), "--data.label_file", str(tmp_path / "sentences.npz")]
    changes += ["--data.splitting", "rows", "--data.rows", "[24, 16]", "--objective.target", "sentences"]
    changes += ["--objective.loss", "log_ratio", "--sampler.name", "dense_triplet(anchors=2, k=3)"]
    setup, run, accelerator = recipe.start(tiny(tmp_path / "run", *changes))
    assert setup.splits.query.labels.shape == (16, 2, 4)
    np.testing.assert_array_equal(setup.splits.query.labels, z[24:])
    result = recipe.fit(tiny(tmp_path / "run", *changes), setup, run, accelerator)
    assert np.isfinite(result["table"]["after"]["mean_label_distance_at_10"])


POSES = ["--data.source", "embedded:figures", "--data.rows", "[60,20]", "--objective.loss", "soft_contrastive"]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            ["--objective.loss", "triplet", "--sampler.name", "random", "--sampler.batch_size", "8"],
            "random batches of 8 have 2.",
        ),
        (["--objective.loss", "triplet", "--sampler.name", "classes(samples_per_class=4)"], None),
        (["--objective.loss", "triplet", "--sampler.name", "random", "--sampler.batch_size", "60"], None),
        (["--objective.loss", "pd_loss", "--sampler.name", "random"], None),
        ([*POSES, "--objective.target", "scaled('pose', factor=1000)"], "sigma 1 is far from the squared label"),
        (["--objective.loss", "soft_contrastive", "--objective.target", "estimated(weight=0.5)"], None),
        (
            [
                "--objective.loss",
                "d_loss",
                "--sampler.name",
                "random",
                "--sampler.batch_size",
                "8",
                "--objective.memory",
                "64",
            ],
            None,
        ),
        (POSES, "sigma 1 is far from the squared label"),
        ([*POSES, "--objective.options", "{sigma: 0.001}"], None),
        (["--objective.loss", "sphereface"], "sphereface reads the length of embeddings"),
        (["--objective.loss", "sphereface", "--embedder.normalize", "false"], None),
        (
            [*POSES, "--objective.options", "{sigma: 0.001}", "--optimizer.proxy_lr", "1"],
            "optimizer.proxy_lr is for nothing",
        ),
        (["--objective.loss", "pd_loss", "--optimizer.proxy_lr", "1", "--optimizer.head_lr", "1"], None),
        (
            ["--embedder.head", "none", "--embedder.dim", "null", "--optimizer.head_lr", "1"],
            "optimizer.head_lr is for nothing",
        ),
    ],
)
def test_what_was_hardly_meant_is_said(
    changes: list[str], note: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.start(tiny(tmp_path / "run", *changes))
    said = capsys.readouterr().out
    assert f"note: {note}" in said if note else "note:" not in said


def test_all_alike_looks_at_the_share_of_the_length_that_varies() -> None:
    one, noise = torch.ones(100, 8), torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert all_alike(noise) is all_alike(1e-9 * noise) is all_alike(one + 0.02 * noise) is None
    assert all_alike(one)
    assert all_alike(1e9 * (one + 0.005 * noise))
    assert all_alike(one[:1]) is all_alike(0 * one[:1]) is None  # nothing to tell from
    assert all_alike(0 * one)


def test_embeddings_that_have_become_one_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "run", "--optimizer.lr", "0", "--optimizer.proxy_lr", "0", "--optimizer.epochs", "1")
    setup, run, accelerator = recipe.start(config)
    with torch.no_grad():
        for values in setup.embedder.head.parameters():
            values.fill_(1e-6 if values.ndim > 1 else 1)  # a shadow of the features stays
    recipe.fit(config, setup, run, accelerator)
    assert capsys.readouterr().out.count("note: all embeddings have become (nearly) the same") == 1


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log(step=1, loss=math.nan, of={"a": [math.inf, 1.5, "NaN"]})
    run.write_json("metrics.json", {"table": {"oracle": {"d_prime": math.inf, "queries": 3}}})

    def refuse(word: str) -> float:
        raise AssertionError(word)

    for file in ("log.jsonl", "metrics.json"):
        json.loads((tmp_path / file).read_text(), parse_constant=refuse)
    assert json.loads(run.log_path.read_text()) == {"step": 1, "loss": None, "of": {"a": [None, 1.5, "NaN"]}}
    assert json.loads((tmp_path / "metrics.json").read_text())["table"]["oracle"] == {"d_prime": None, "queries": 3}
    assert math.isnan(run.history()[0]["loss"])


def test_class_mean_proxies_start_at_the_means(tmp_path: Path) -> None:
    frozen = ["--embedder.freeze_batch_norm", "true", "--optimizer.epochs", "0"]
    config = tiny(tmp_path / "run", "--objective.proxy_init", "class_mean", *frozen)
    setup, run, accelerator = recipe.start(config)
    recipe.fit(config, setup, run, accelerator)
    items = setup.loader.dataset.items
    z = torch.nn.functional.normalize(setup.embedder.encode(items.images), dim=1)
    for number, proxy in enumerate(setup.objective.proxies.weight.detach()):
        mean = torch.nn.functional.normalize(z[items.labels == number].mean(0), dim=0)
        torch.testing.assert_close(proxy, 8**0.5 * mean, rtol=1e-4, atol=1e-5)  # as long as random ones


@pytest.mark.filterwarnings("error:the proxies of")
def test_the_trainer_starts_proxies_before_the_first_step(tmp_path: Path) -> None:
    again = ["--objective.loss", "pd_loss", "--optimizer.epochs", "2", "--resume", "auto"]
    recipe.train(tiny(tmp_path / "run", *again))
    assert (tmp_path / "run" / "metrics.json").exists()


def test_class_mean_proxies_start_where_training_puts_the_items(tmp_path: Path) -> None:
    """BatchNorm layers that are not frozen read batches in training, whatever their running statistics say."""
    batches = ["--sampler.batch_size", "64", "--data.rows", "[500,40]", "--embedder.dim", "64"]
    config = tiny(tmp_path / "run", "--objective.loss", "pd_loss", "--optimizer.epochs", "0", *batches)
    setup, run, accelerator = recipe.start(config)
    statistics = {name: buffer.clone() for name, buffer in setup.embedder.named_buffers()}
    recipe.fit(config, setup, run, accelerator)
    for name, buffer in setup.embedder.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=0)
    proxies = torch.nn.functional.normalize(setup.objective.proxies.weight.detach(), dim=1)
    right, number = 0, 0
    setup.embedder.train()
    for batch in setup.loader:
        with torch.no_grad():
            nearest = (setup.embedder(batch["images"]) @ proxies.T).argmax(1)
        right, number = right + int((nearest == batch["labels"]).sum()), number + len(nearest)
    assert right / number > 0.5  # with the running statistics 0.2, by chance 0.1


def test_proxies_at_centres_of_continuous_labels_start_at_means_and_train(tmp_path: Path) -> None:
    figures = ["--data.source", "embedded:figures", "--data.rows", "[80,20]", "--objective.loss", "pd_loss"]
    proxies = [
        "--objective.proxy_init",
        "class_mean",
        "--objective.options",
        "{bandwidth: 0.2}",
        "--sampler.name",
        "random",
    ]
    with pytest.raises(ValueError, match=r"set objective\.num_proxies"):
        recipe.start(tiny(tmp_path / "none", *figures, *proxies))
    config = tiny(tmp_path / "run", *figures, *proxies, "--objective.num_proxies", "7", "--optimizer.epochs", "1")
    setup, run, accelerator = recipe.start(config)
    assert len(setup.objective.proxies.code) == 7
    random = setup.objective.proxies.weight.detach().clone()
    result = recipe.fit(config, setup, run, accelerator)
    moved = setup.objective.proxies.weight.detach()
    assert not torch.allclose(moved, random)
    torch.testing.assert_close(moved.norm(dim=1), torch.full((7,), 8**0.5), rtol=0.1, atol=0)
    assert np.isfinite(result["table"]["after"]["spearman"])


@pytest.mark.parametrize(("rows", "name"), [([90, 10], "95.png"), ([97, 3], "95.png")])
def test_a_caption_that_cannot_be_read_is_named(tmp_path: Path, rows: list[int], name: str) -> None:
    lines = ["file,cap0,cap1"]
    for i in range(100):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,a red square,{'zzzz' if i == 95 else 'a blue circle'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    changes = ["--data.source", str(tmp_path), "--data.label", "[cap0,cap1]", "--data.splitting", "rows"]
    target = "captions(vectors='embedded:scenes')"
    with pytest.raises(ValueError, match=rf"^{name}: .*caption 1 of item . ?\d* ?has no known word: 'zzzz'"):
        recipe.start(tiny(tmp_path / "run", *changes, "--data.rows", str(rows), "--objective.loss", "log_ratio",
                          "--objective.target", target, "--sampler.name", "random"))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "geometry"),
    [
        (["--objective.loss", "triplet"], "euclidean(normalize=True)"),
        (["--objective.loss", "multi_similarity"], "cosine"),
        (["--objective.loss", "contrastive", "--objective.geometry", "squared_euclidean"], "euclidean"),
        (["--objective.loss", "triplet", "--evaluation.geometry", "dot"], "dot"),
    ],
)
def test_embeddings_are_judged_as_the_objective_compares_them(
    tmp_path: Path, changes: list[str], geometry: str
) -> None:
    setup, *_ = recipe.start(tiny(tmp_path / "run", *changes, "--embedder.normalize", "false"))
    assert setup.judge.geometry == geometry
    z = 5 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    expected = bb.evaluate(z, setup.splits.query.labels, geometry=geometry)
    assert setup.judge({"query": z}) == expected
    assert expected != bb.evaluate(z, setup.splits.query.labels, geometry="euclidean") or geometry == "euclidean"


@pytest.mark.parametrize(("loss", "times"), [("proxy_anchor", 100), ("margin", 1), ("mean_field_contrastive", 2000)])
def test_what_a_loss_learns_has_a_multiple_of_the_learning_rate(tmp_path: Path, loss: str, times: int) -> None:
    config = tiny(tmp_path / "run", "--objective.loss", loss, "--optimizer.lr", "0.001")
    setup, *_ = recipe.start(config)
    for given, expected in ((None, 0.001 * times), (0.3, 0.3)):
        groups = recipe.make_optimizer(
            replace(config.optimizer, proxy_lr=given), setup.embedder, setup.objective
        ).param_groups
        assert [g["lr"] for g in groups if g["name"] == "proxies"] == [pytest.approx(expected)]
        assert {g["lr"] for g in groups if g["name"] != "proxies"} == {0.001}


def test_a_push_and_the_command_that_repeats_it_hold_back_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[dict[str, Any]] = []

    def fail(folder: Path, hub_id: str, **more: Any) -> str:
        sent.append(more)
        raise ConnectionError("gone")

    monkeypatch.setattr(recipe, "push_run", fail)
    held = ["--report", "false", "--hub_private", "true", "--hub_proxies", "false", "--hub_license", "mit"]
    for changes, told in ((held, " --private --no-report --no-proxies --license mit\n"), (["--report", "true"], "\n")):
        config = tiny(tmp_path / "run", "--hub_id", "a/b", *changes)
        assert not recipe.publish(config, recipe.Run(tmp_path / "run"))
        assert f"push.py {tmp_path / 'run'} --hub-id a/b{told}" in capsys.readouterr().err
    assert sent == [
        {"private": True, "license": "mit", "proxies": False, "report": False},
        {"private": None, "license": None, "proxies": True, "report": True},
    ]


def test_a_checkpoint_that_holds_all_seconds_together_keeps_them() -> None:
    progress = recipe.Progress()
    progress.load_state_dict({"epoch": 4, "batch": 0, "seconds": 8.0})
    assert progress.epoch_seconds == [2.0] * 4


def test_learning_rate_rises_then_falls() -> None:
    settings = OptimizerConfig(warmup=0.25)
    factors = [recipe.learning_rate(settings, p) for p in np.linspace(0, 1, 9)]
    assert factors[0] == 0
    assert factors[2] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0)
    assert factors[5] == pytest.approx(0.5)
    assert recipe.learning_rate(OptimizerConfig(warmup=0, schedule="linear"), 0.25) == 0.75
    assert recipe.learning_rate(OptimizerConfig(warmup=0, schedule="constant"), 1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--objective.loss", "pd_los"], "did you mean 'pd_loss'"),
        (["--objective.loss", "log_ratio"], "take a target with distances"),
        (["--objective.options", "{temperature: 1}"], "has no option temperature"),
        (["--objective.target", "euclidean"], "set objective.num_proxies"),
        (["--objective.num_proxies", "5"], "num_proxies is for losses such as pd_loss on labels that are not classes"),
        (["--objective.nearest", "5"], "objective.nearest needs label distances"),
        (["--objective.nearest", "0"], "objective.nearest of at least 1, got 0"),
        (["--objective.anchors", "3"], "pd_loss is no mean over items"),
        (["--objective.distances", "kept"], "says only which labels are the same"),
        (
            ["--objective.distances", "kept", "--objective.target", "within('estimated', radius=0.5)"],
            "change as the embedder",
        ),
        (["--augment.move_labels", "true", "--objective.target", "sum(('circular', 'classes'))"], "those of a sum"),
        (["--sampler.name", "classes(samples_per_class=5)"], "not a multiple"),
        (["--sampler.name", "classes", "--sampler.batch_size", "400"], "classes"),
        (["--sampler.name", "clases"], "did you mean 'classes'"),
        (["--sampler.name", "offline_hard(negatives=20)"], "places of batch_size=16"),
        (["--embedder.trunk", "timm/test_byobnett"], "test_byobnet"),
        (["--optimizer.name", "adamv"], "did you mean"),
        (["--data.source", "embedded:digit"], "digits"),
        (["--data.source", "nowhere/at/all"], "nowhere"),
        (["--trackers", "[tensorbord]"], "tensorboard"),
        (["--evaluation.metrics", "[recall_at_one]"], "recall_at"),
        (["--evaluation.metrics", "[recall_at_1]", "--evaluation.monitor", "mrr"], "monitor"),
        (["--augment.move_labels", "true", "--augment.flip", "0.5"], "mirror"),
        (["--augment.crop_scale", "[0.5, 2]"], "crop_scale"),
        (["--evaluation.geometry", "euclidian"], "did you mean 'euclidean'"),
        (["--evaluation.batch_size", "0"], "evaluation.batch_size of at least 1"),
        (["--optimizer.accumulate", "0"], "optimizer.accumulate of at least 1"),
        (["--compile", "inductr"], "no backend 'inductr'; did you mean 'inductor'"),
        (["--checkpoint_every", "-1"], "checkpoint_every of at least 1"),
        (["--evaluation.keep", "best", "--evaluation.every", "0"], "evaluation.every"),
        (["--evaluation.metrics", "[]"], "metric"),
        (["--optimizer.options", "{bad: 1}"], "optimizer 'adamw'"),
        (["--objective.options", "{target: euclidean}"], "not target"),
        (["--objective.loss", "supcon", "--objective.options", "{temperature: 1.0e-42}"], "random embeddings is"),
        (["--objective.loss", "supcon", "--objective.options", "{temperature: hot}"], "temperature"),
        (["--objective.loss", "triplet", "--objective.options", "{triplets: foo}"], "triplets"),
        (
            ["--data.source", "embedded:figures", "--objective.loss", "log_ratio", "--objective.mining", "batch_hard"],
            "mining 'batch_hard' reads same/different",
        ),
    ],
)
def test_bad_input_is_a_short_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--output", str(tmp_path / "run"), *change])
    with pytest.raises(SystemExit) as stop:
        recipe.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert __import__("re").search(message, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.sorce", "x"], "did you mean data.source"),
        (["--optimizer.epochs", "many"], "optimizer.epochs"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--optimizer.schedule", "cosin"], "schedule"),
    ],
)
def test_bad_fields_are_named(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for name in field_names():
        rows = [i for i, line in enumerate(lines) if line.strip().startswith(f"--{name} ")]
        assert rows, name
        described = lines[rows[0]].split("  ")[-1] if "  " in lines[rows[0]].strip() else lines[rows[0] + 1]
        assert len(described.strip()) > 8, f"{name}: {described!r}"


@pytest.mark.parametrize("survives", range(4))
def test_a_kill_while_a_checkpoint_is_kept_leaves_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """Die at one file operation after another: there is always a whole checkpoint, the old one or the new one."""
    run = recipe.Run(tmp_path)

    def keep(step: int) -> None:
        run.new_draft()
        (run.draft() / "weights").write_text(str(step))
        run.log(step=step)
        run.keep(step, epoch=0)

    keep(1)
    done = []
    remove = shutil.rmtree

    def dying(work: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object) -> object:
            if len(done) == survives:
                raise Killed
            done.append(work)
            return work(*args)

        return operation

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(shutil, "rmtree", lambda path, **_: dying(lambda p: remove(p, ignore_errors=True))(path))
        with pytest.raises(Killed):
            keep(2)
    newest = recipe.Run(tmp_path).checkpoint
    assert (newest / "weights").read_text() == ("2" if len(done) > 1 else "1")
    keep(3)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step00000003_epoch00000.kept"]


def test_folder_with_another_run_is_left_alone(finished: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(FileExistsError, match="already holds a run"):
        recipe.start(tiny(finished))
    assert (
        json.loads((finished / "data.json").read_text())["data"]
        == json.loads((finished / "metrics.json").read_text())["data"]
    )
    with pytest.raises(ValueError, match=r"other settings \(.*sampler.batch_size"):
        recipe.start(tiny(finished, "--resume", "auto", "--sampler.batch_size", "32"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".config.yaml").write_text("killed while wri")
    assert recipe.claim(tiny(tmp_path / "half"), "x").folder == tmp_path / "half"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other files"):
        recipe.start(tiny(tmp_path))
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


def test_a_run_is_continued_on_the_data_that_it_was_begun_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set on the Hub whose branch has moved on: refused, but for the commit that the run was begun on."""
    commits, labels, load_checked = {None: "a1", "a1": "a1", "b2": "b2"}, {"a1": 0, "b2": 1}, recipe.load_checked

    def load(data: Any, **options: Any) -> Any:
        splits, bad = load_checked(replace(data, revision=None), **options)
        commit = commits[data.revision]
        train = replace(splits.train, labels=(splits.train.labels + labels[commit]) % 10)
        return replace(splits, train=train, origin={"set": "user/digits", "commit": commit}), bad

    monkeypatch.setattr(recipe, "load_checked", load)
    config = tiny(tmp_path / "run", "--checkpoint_every", "1", "--resume", "auto")
    kill_after(config, 3, monkeypatch)
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["origin"] == {"set": "user/digits", "commit": "a1"}
    assert record["data"].keys() == {"train", "query"}
    commits[None] = "b2"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    pattern = (
        r"begun on other data \(commit a1 of the set then, b2 now; other ids, names or labels in train\); .*revision a1"
    )
    with pytest.raises(ValueError, match=pattern):
        recipe.start(config)
    labels["b2"] = 0
    with pytest.raises(ValueError, match=r"\(commit a1 of the set then, b2 now\)"):
        recipe.start(config)
    with pytest.raises(ValueError, match=r"other settings \(data.revision\)"):
        recipe.start(tiny(tmp_path / "run", "--resume", "auto", "--checkpoint_every", "1", "--data.revision", "b2"))
    commits[None], labels["a1"] = "a1", 2
    with pytest.raises(
        ValueError, match=r"\(other ids, names or labels in train\); start a run of its own with another --o\w+$"
    ):
        recipe.start(config)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    commits[None], labels["a1"] = "b2", 0
    same_data = tiny(tmp_path / "run", "--resume", "auto", "--checkpoint_every", "1", "--data.revision", "a1")
    assert recipe.start(same_data)[1].checkpoint is not None
    assert recipe.start(tiny(tmp_path / "fresh"))[1].checkpoint is None


def test_unset_output_takes_a_new_name_and_resume_finds_the_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config(TINY)
    assert recipe.claim(config, "digits").folder == Path("runs/digits")
    assert recipe.claim(config, "digits").folder == Path("runs/digits-2")
    resumed = parse_config([*TINY, "--resume", "auto"])
    assert recipe.claim(resumed, "digits").folder == Path("runs/digits-2")
    (tmp_path / "runs/digits-2/metrics.json").write_text("{}")
    assert recipe.claim(resumed, "digits").folder == Path("runs/digits")


def test_unreadable_images_are_named_skipped_only_if_asked_and_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(
                tmp_path / "set" / name / f"{i}.png"
            )
    broken = tmp_path / "set" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    changes = [
        "--data.source", str(tmp_path / "set"), "--data.rows", "null", "--data.splitting", "class_disjoint",
        "--sampler.batch_size", "4", "--optimizer.epochs", "1", "--objective.loss", "supcon",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"3\.png"):
        recipe.start(tiny(tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()
    result = recipe.train(tiny(tmp_path / "run", *changes, "--data.bad_images", "skip"))
    assert len(result["skipped_images"]) == 1
    assert "3.png" in result["skipped_images"][0]


def launch_two(output: Path, *changes: str) -> None:
    """Run the trainer in two processes, as the README says, and make sure that it really did."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(TRAIN), *TINY, *changes, "--output", str(output)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((output / "metrics.json").read_text())["processes"] == 2


HARD = ["--objective.loss", "multi_similarity", "--sampler.name", "offline_hard(negatives=2)"]


@pytest.mark.slow
@pytest.mark.parametrize("batches", [["--objective.loss", "proxy_anchor"], HARD], ids=["random", "mined"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, batches: list[str]) -> None:
    changes = [
        "--embedder.freeze_batch_norm", "true", "--optimizer.name", "sgd", "--optimizer.lr", "0.01",
        "--augment.shift", "0", "--augment.zoom", "0", *batches,
    ]  # fmt: skip
    launch_two(tmp_path / "two", *changes)
    recipe.train(tiny(tmp_path / "one", *changes))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_judge_the_embedder_that_is_kept(tmp_path: Path) -> None:
    """Each process has running statistics of its own; what is evaluated must be what is saved."""
    launch_two(tmp_path / "run", "--optimizer.epochs", "1", "--optimizer.lr", "0.01")
    splits, _ = recipe.load_checked(parse_config(["--config", str(tmp_path / "run" / "config.yaml")]).data)
    z = Embedder.from_pretrained(tmp_path / "run" / "embedder").encode(splits.query.images)
    kept = load_file(tmp_path / "run" / "embeddings" / "after.safetensors")["query"]
    torch.testing.assert_close(z, kept, rtol=1e-4, atol=1e-5)


def test_the_frozen_row_is_the_trunks_own(finished: Path) -> None:
    start, _, accelerator = recipe.start(tiny(finished.parent / "again"))
    embedder, splits = start.embedder, start.splits
    pixels = torch.stack([embedder.transform(image) for image in splits.query.images])
    embedder.eval()
    with torch.no_grad():
        features = torch.nn.functional.normalize(embedder.trunk(pixels), dim=-1)
    distance = torch.cdist(features, features).fill_diagonal_(torch.inf)
    labels = torch.as_tensor(splits.query.labels)
    right = (labels[distance.argmin(1)] == labels).double().mean()
    frozen = json.loads((finished / "metrics.json").read_text())["table"]["frozen"]
    assert frozen["recall_at_1"] == pytest.approx(float(right), abs=1e-9)
    assert start.judge.frozen(embedder, accelerator) == frozen
    assert isinstance(embedder.head, torch.nn.Module)
    embedder.config["head"] = "none"
    assert start.judge.frozen(embedder, accelerator) is None
