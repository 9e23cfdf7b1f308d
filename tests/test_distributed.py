"""Two gloo processes against one, in double precision, for every registered loss: value and all gradients."""

from __future__ import annotations

import datetime
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import DIM, FIRST, build, facts_of, takes_anchors
from chain import CHAIN, ITEMS, objectives
from oracles import CASES, Case
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import beyond_binary as bb
from beyond_binary import distributed
from beyond_binary.targets.distributions import Estimated

WORLD, IN = 2, 6
Outcome = dict[str, Tensor]


class Whole(nn.Module):
    """What a trainer prepares once: backbone and objective, the same on every process."""

    def __init__(self, case: Case, **options: object) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(IN, DIM), nn.Tanh(), nn.Linear(DIM, DIM)).double()
        self.objective = build(case, **options).double()

    def forward(self, x: Tensor, labels: Tensor, **options: object) -> Tensor:
        loss: Tensor = self.objective(self.backbone(x), labels, **options)
        return loss


@dataclass(frozen=True)
class Scenario:
    """Which rows of the batch each process holds, and under which conditions."""

    parts: tuple[list[int], list[int]] = ([0, 1, 2, 3], [4, 5, 6, 7])
    block: int | None = 2
    lonely: bool = False
    ids: bool = False
    alone: str = ""
    anchors: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """Of the objective."""
        return {} if self.anchors is None else {"anchors": self.anchors}


SCENARIOS = {
    "even": Scenario(),
    "even, dense": Scenario(block=None),
    "uneven": Scenario(([0, 1, 2, 3, 4], [5, 6, 7])),
    "one process without a valid pair": Scenario(([0, 1, 2, 3, 4], [5, 6, 7]), lonely=True),
    "one process empty": Scenario(([0, 1, 2, 3, 4, 5, 6, 7], [])),
    "one process empty, dense": Scenario(([], [0, 1, 2, 3, 4, 5, 6, 7]), block=None),
    "nothing anywhere": Scenario(([], [])),
    "repeated items": Scenario(([0, 1, 2, 3, 0], [4, 5, 6, 7, 0]), ids=True),
    "gather=False": Scenario(alone="gather"),
    "disabled": Scenario(alone="disabled"),
    "anchors on both processes": Scenario(anchors=6),
    "one anchor": Scenario(([0, 1, 2], [3, 4, 5, 6, 7]), anchors=1),
    "one anchor, first process empty, dense": Scenario(([], [0, 1, 2, 3, 4, 5, 6, 7]), block=None, anchors=1),
}


def data(case: Case, lonely: bool) -> tuple[Case, Tensor, Tensor]:
    """Images [8 IN] and labels; `lonely`: rows 5 to 7 have nothing that they could be pulled to."""
    x = torch.randn(8, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    labels = case.labels(8)
    if not lonely:
        return case, x, labels
    if case.target == "classes":
        used = [0, 1, 0, 1, 0, 2, 3, 4]
        return case, x, torch.tensor(used)
    joints = torch.randn(8, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(12))
    joints[5:] = torch.nan  # nothing visible: unknown to all others
    return Case(case.loss, case.options, "pose"), x, joints


def grads(whole: nn.Module) -> Outcome:
    return {name.removeprefix("module."): p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}


def together(case: Case, scenario: Scenario) -> Outcome:
    """This process's value and the gradients that DistributedDataParallel leaves."""
    case, x, labels = data(case, scenario.lonely)
    rows = scenario.parts[dist.get_rank()]
    whole = DistributedDataParallel(
        Whole(case, block=scenario.block, gather=scenario.alone != "gather", **scenario.options)
    )
    options = {"ids": torch.tensor(rows)} if scenario.ids else {}
    if scenario.alone == "disabled":
        with distributed.disabled():
            loss = whole(x[rows], labels[rows], **options)
    else:
        loss = whole(x[rows], labels[rows], **options)
    loss.backward()
    return {"value": loss.detach(), **grads(whole)}


def single(case: Case, scenario: Scenario) -> list[Outcome]:
    """What each of the two processes should have."""
    case, x, labels = data(case, scenario.lonely)
    if not scenario.alone:
        rows = scenario.parts[0] + scenario.parts[1]
        whole = Whole(case, block=None, **scenario.options)
        loss = whole(x[rows], labels[rows], **({"ids": torch.tensor(rows)} if scenario.ids else {}))
        loss.backward()
        return [{"value": loss.detach(), **grads(whole)}] * WORLD
    whole = Whole(case, block=None)
    losses = [whole(x[rows], labels[rows]) for rows in scenario.parts]
    torch.stack(losses).mean().backward()
    return [{"value": loss.detach(), **grads(whole)} for loss in losses]


def accumulated(case: Case) -> Outcome:
    """Two micro-batches, synchronised at the second only."""
    case, x, labels = data(case, False)
    whole = DistributedDataParallel(Whole(case))
    first, second = [0, 1, 2, 3], [4, 5, 6, 7]
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    with whole.no_sync():
        one = whole(x[first[mine]], labels[first[mine]])
        one.backward()
    two = whole(x[second[mine]], labels[second[mine]])
    two.backward()
    return {"value": (one + two).detach(), **grads(whole)}


def accumulated_alone(case: Case) -> Outcome:
    case, x, labels = data(case, False)
    whole = Whole(case, block=None)
    loss = whole(x[:4], labels[:4]) + whole(x[4:], labels[4:])
    loss.backward()
    return {"value": loss.detach(), **grads(whole)}


CLOUD = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
KINDS = torch.tensor([0, 1, 1, 1])


def estimated(z: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Codes of this process's part of a batch and the proxies behind them, after two batches."""
    kinds = KINDS if rank is None else KINDS[:3] if rank == 0 else KINDS[3:]
    target = Estimated(num_classes=3, dim=2)
    target.encode(kinds, z)
    return target.encode(kinds, z + 1), target.proxies


def parts() -> Outcome:
    """The functions of the module by themselves."""
    rank = dist.get_rank()
    x = torch.arange(6.0).reshape(3, 2)[: 3 - 2 * rank].clone().requires_grad_()  # 3 rows, then 1
    counts = distributed.sizes(len(x), x.device)
    points = distributed.gather(
        bb.Points(x, torch.arange(len(x)) + 10 * rank, torch.arange(len(x)) + 20 * rank), counts
    )
    (points.z * torch.arange(1.0, 5.0)[:, None] * (rank + 1)).sum().backward()
    with distributed.disabled():
        switched_off = torch.tensor([distributed.world_size(), distributed.rank(), *distributed.sizes(3, x.device)])
    span = distributed.share(5)
    code, proxies = estimated(CLOUD[:3] if rank == 0 else CLOUD[3:], rank)
    assert x.grad is not None
    return {
        "world": torch.tensor([distributed.world_size(), distributed.rank()]),
        "counts": torch.tensor(counts),
        "z": points.z.detach(), "code": points.code, "id": points.id, "grad": x.grad,
        "sum": distributed.all_sum(torch.tensor([1.0 + rank])),
        "rows": distributed.all_rows(torch.full((2 - rank, 1), float(rank))),
        "off": switched_off,
        "share": torch.tensor([span.start, span.stop]),
        "estimated": code, "proxies": proxies,
    }  # fmt: skip


class Both(nn.Module):
    """A backbone under both objectives of a target, the second with a memory."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Linear(IN, DIM).double()
        self.objectives = nn.ModuleList(objectives(name)).double()

    def forward(self, x: Tensor, labels: Any, ids: Tensor) -> Tensor:
        z = self.backbone(x)
        return torch.stack([objective(z, labels, ids=ids) for objective in self.objectives])


def of_target(name: str, rank: int | None) -> Outcome:
    """Losses of two batches, of which the processes hold 7 and 5 items, and the gradients of the second."""
    x = torch.randn(ITEMS, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    labels, part = CHAIN[name][1], slice(None) if rank is None else (slice(7), slice(7, None))[rank]
    both: nn.Module = Both(name) if rank is None else DistributedDataParallel(Both(name))
    losses = []
    for batch in torch.arange(ITEMS).split(ITEMS // 2):
        both.zero_grad()
        ids = batch[part]
        losses.append(both(x[ids], labels[ids.numpy()], ids))
        losses[-1].sum().backward()
    return {"value": torch.cat(losses).detach(), **grads(both)}


ALL = [
    (case, name)
    for name, scenario in SCENARIOS.items()
    for case in (CASES if name == "uneven" else FIRST)
    if scenario.anchors is None or takes_anchors(case)
]


def keys() -> Iterator[tuple[str, Callable[[], Outcome]]]:
    for case, name in ALL:
        yield f"{case}/{name}", functools.partial(together, case, SCENARIOS[name])
    for case in FIRST:
        yield f"{case}/accumulated", functools.partial(accumulated, case)
    for name in CHAIN:
        yield f"{name}/target", lambda name=name: of_target(name, dist.get_rank())
    yield "parts", parts


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    try:
        found = {f"{key}/{what}": t for key, run in keys() for what, t in run().items()}
        save_file({k: t.contiguous().clone() for k, t in found.items()}, f"{folder}/{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """Everything the two processes found, in one launch (starting processes takes seconds)."""
    folder = tmp_path_factory.mktemp("two_processes")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    running = mp.start_processes(worker, (str(folder),), nprocs=WORLD, join=False, start_method="spawn")
    deadline = time.monotonic() + 300
    try:
        while not running.join(timeout=5):
            assert time.monotonic() < deadline, "the two processes did not finish"
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    return [grouped(folder / f"{rank}.safetensors") for rank in range(WORLD)]


def grouped(path: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for key, tensor in load_file(path).items():
        group, what = key.rsplit("/", 1)
        found.setdefault(group, {})[what] = tensor
    return found


def assert_equal(got: Outcome, expected: Outcome) -> None:
    assert got.keys() == expected.keys()
    for what, tensor in expected.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(got[what], tensor, rtol=1e-10, atol=1e-10, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), ALL, ids=[f"{case}-{name}" for case, name in ALL])
def test_two_processes_equal_one(outcomes: list[dict[str, Outcome]], case: Case, name: str) -> None:
    for rank, expected in enumerate(single(case, SCENARIOS[name])):
        got = outcomes[rank][f"{case}/{name}"]
        assert_equal(got, expected)
        assert {"backbone.0.weight", "backbone.2.weight"} <= got.keys()
        assert ("objective.proxies.weight" in got) == facts_of(case).needs_proxies
        if name == "even":
            assert all(t.abs().max() > 1e-6 for w, t in got.items() if w != "backbone.2.bias")


@pytest.mark.slow
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_accumulation_over_two_processes(outcomes: list[dict[str, Outcome]], case: Case) -> None:
    for rank in range(WORLD):
        assert_equal(outcomes[rank][f"{case}/accumulated"], accumulated_alone(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAIN)
def test_two_processes_equal_one_for_every_target(outcomes: list[dict[str, Outcome]], name: str) -> None:
    expected = of_target(name, None)
    assert expected["value"].all()
    for rank in range(WORLD):
        assert_equal(outcomes[rank][f"{name}/target"], expected)


@pytest.mark.slow
def test_the_parts(outcomes: list[dict[str, Outcome]]) -> None:
    for rank in range(WORLD):
        got = outcomes[rank]["parts"]
        assert got["world"].tolist() == [2, rank]
        assert got["counts"].tolist() == [3, 1]
        assert got["z"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
        assert got["code"].tolist() == [0, 1, 2, 10]
        assert got["id"].tolist() == [0, 1, 2, 20]
        # row r is wanted r + 1 times by process 0 and twice that by process 1
        assert got["grad"].tolist() == ([[3, 3], [6, 6], [9, 9]] if rank == 0 else [[12, 12]])
        assert got["sum"].tolist() == [3]
        assert got["rows"].tolist() == [[0], [0], [1]]
        assert got["off"].tolist() == [1, 0, 3]
        code, proxies = estimated(CLOUD, None)
        torch.testing.assert_close(got["estimated"], code[:3] if rank == 0 else code[3:])
        torch.testing.assert_close(got["proxies"], proxies)
        assert got["share"].tolist() == ([0, 3] if rank == 0 else [3, 5])


def test_alone_everything_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    points = bb.Points(x, torch.arange(3), torch.arange(3))
    assert (distributed.world_size(), distributed.rank(), distributed.sizes(3, x.device)) == (1, 0, [3])
    assert distributed.gather(points, [3]) is points
    assert distributed.all_rows(x) is x
    assert distributed.share(5) == slice(0, 5)
