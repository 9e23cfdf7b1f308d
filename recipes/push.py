"""Publish a finished run on the Hugging Face Hub.

python recipes/push.py runs/pose --hub-id user/name --dry-run     # shows what would be sent
python recipes/push.py runs/pose --hub-id user/name --private
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from beyond_binary.hub import CARD, Files, check_hub_id, limit_silence, push, run_files


def show(files: Files, hub_id: str) -> None:
    """Print the files with their sizes, and the card."""
    sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in files.items()}
    print(f"would be sent to {hub_id}:")
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")
    print(f"{sum(sizes.values()):>13,} bytes in all")
    if isinstance(card := files.get(CARD), bytes):
        print(f"\n{CARD}:\n\n{card.decode()}")


def settings_of(run: Path) -> dict[str, Any]:
    """The settings that the run was made with; empty if there are none."""
    path = run / "config.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def main() -> None:
    """Read the command line and push; what does not fit ends with a short message and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--hub-id", help='"user/name"; unset: hub_id of the run\'s settings')
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch; made if it is not there")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--license", help="for the card, for example mit; unset: hub_license of the run's settings")
    parser.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="leave out report.html and gallery.png, which show images of the data",
    )
    parser.add_argument(
        "--no-proxies",
        dest="proxies",
        action="store_false",
        help="leave out what the objective learned, such as a proxy for each training class",
    )
    parser.add_argument("--dry-run", action="store_true", help="send nothing, show the files and the card")
    given = parser.parse_args()
    limit_silence()
    try:
        settings = settings_of(given.run)
        hub_id = check_hub_id(given.hub_id or str(settings.get("hub_id") or ""))
        license = given.license or settings.get("hub_license")
        proxies = given.proxies and bool(settings.get("hub_proxies", True))
        files = run_files(given.run, hub_id, report=given.report, proxies=proxies, license=license)
        if given.dry_run:
            return show(files, hub_id)
        private = given.private or bool(settings.get("hub_private")) or None
        url = push(files, hub_id, private=private, revision=given.revision, commit_message=given.message)
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"pushed to {url}")


if __name__ == "__main__":
    main()
