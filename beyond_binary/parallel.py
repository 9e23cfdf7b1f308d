"""Independent jobs over all cores, with a progress bar."""

from __future__ import annotations

import functools
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def in_parallel(
    function: Callable[[Any, Any], Any],
    shared: Any,
    jobs: Sequence[Any],
    *,
    workers: int | None = None,
    title: str = "",
    progress: bool = False,
    done: int = 0,
) -> Iterator[Any]:
    """`function(shared, job)` of each job, in any order, as they become ready.

    Args:
        function: of a module, as processes find it by name.
        shared: what all jobs read; it is pickled once.
        jobs: what differs.
        workers: processes; 1: this one; None: one a core, but this one alone for fewer than 8 jobs.
        title: what the progress bar says.
        progress: show a progress bar.
        done: jobs that were done before, for the bar.
    """
    import joblib
    from tqdm import tqdm

    workers = workers or (joblib.cpu_count() if len(jobs) >= 8 else 1)
    with (
        tqdm(total=done + len(jobs), initial=done, desc=title, disable=not progress) as bar,
        tempfile.TemporaryDirectory() as folder,
    ):
        if workers == 1 or len(jobs) < 2:
            results: Any = (function(shared, job) for job in jobs)
        else:
            path = Path(folder, "shared.pickle")
            path.write_bytes(pickle.dumps((function, shared)))
            pool = joblib.Parallel(workers, return_as="generator_unordered")
            results = pool(joblib.delayed(_run)(path, job) for job in jobs)
        for result in results:
            bar.update()
            yield result


def _run(path: Path, job: Any) -> Any:
    function, shared = _load(path)
    return function(shared, job)


@functools.lru_cache(maxsize=1)
def _load(path: Path) -> Any:
    import torch

    torch.set_num_threads(1)
    return pickle.loads(path.read_bytes())
