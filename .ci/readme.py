"""The README's code, for CI: print one of its two commands, or run its Python blocks one after the other."""

from __future__ import annotations

import argparse
import re
import tempfile
from contextlib import chdir
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """Contents of the README's fenced code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def main() -> None:
    """Print a command, or run the Python blocks in one namespace inside a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", choices=["train", "tests"], help="print this command of the README")
    parser.add_argument("--run", action="store_true", help="run the README's Python blocks")
    options = parser.parse_args()
    if options.command:
        first, second = blocks("bash")[:2]
        print(first if options.command == "train" else second)
    if options.run:
        namespace: dict[str, object] = {"__name__": "readme"}
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            for number, block in enumerate(blocks("python"), 1):
                print(f"-- README block {number}", flush=True)
                exec(compile(block, f"README.md block {number}", "exec"), namespace)


if __name__ == "__main__":
    main()
