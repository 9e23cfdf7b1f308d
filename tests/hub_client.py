"""A process with the real clients of the Hub, which runs snippets in forks of itself, so that imports are paid once.

The clients read HF_ENDPOINT and HF_HOME when they are imported; this process is started with them set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

from hub_double import TOKEN, Hub

ROOT = Path(__file__).parent.parent


class Client:
    """Starts the process; `run` gives it a snippet."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home = home
        self.environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code: str, status: int = 0) -> str:
        """Output of a snippet that ends with this status; the token must not be in it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        log = self.home / "output.txt"
        print(json.dumps([code, str(log)]), file=self.process.stdin, flush=True)
        found, output = int(self.process.stdout.readline()), log.read_text()
        assert TOKEN not in output
        assert found == status, output
        return output

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def perform(code: str, log: str) -> int:
    """Run a snippet with its output in a file, and return its exit status."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # clients wait up to 8 s before they try again
    status: object = 0
    try:
        exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status) if isinstance(status, int) else 1


def serve() -> None:
    """Answer each line of input, [snippet, file for its output], with an exit status."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import open_clip  # noqa: F401
    import timm  # noqa: F401

    import beyond_binary.hub
    import beyond_binary.objective  # noqa: F401

    warnings.filterwarnings("error", module=r"beyond_binary|__main__")
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os._exit(perform(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
