"""Fixtures of all tests: every test starts from the same random state, on one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # also in processes that tests start: sums depend on the number of threads

import pytest
import torch
from hub_client import Client
from hub_double import TOKEN, Hub
from hypothesis import HealthCheck, settings

# the same examples in every run, and no verdict on how fast the machine is
settings.register_profile(
    "steady", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["balanced", "large classes", "unequal"])
def batch(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and classes for comparisons with pytorch-metric-learning."""
    from pml import BATCHES, DIM

    labels = BATCHES[request.param]
    return torch.randn(len(labels), DIM, dtype=torch.float64, requires_grad=True), labels


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    """A double of the Hub and a process with its clients, which leaves the token in no file."""
    with Hub() as hub:
        client = Client(hub, tmp_path_factory.mktemp("home"))
        yield hub, client
        client.close()
        kept = [path for path in client.home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        assert kept == []


@pytest.fixture
def hub(running: tuple[Hub, Client]) -> Hub:
    running[0].repos.clear()
    running[0].objects.clear()
    running[0].requests.clear()
    running[0].faults.clear()
    return running[0]


@pytest.fixture
def client(running: tuple[Hub, Client]) -> Client:
    return running[1]
