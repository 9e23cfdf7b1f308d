"""Send a table of images and labels, or any other source that training reads, to the Hub as a parquet set.

python recipes/push_dataset.py --data.source shots.zip --data.label "[pan, tilt]" --hub-id user/shots --dry-run
python recipes/push_dataset.py --data.source sop:FOLDER --hub-id user/online-products --label-name class_id --private

It takes any --data.FIELD of recipes/train.py, and --config FILE.yaml for its section data. Images go as their files are, WITH
their EXIF (place, time, camera), unless --pixels-only; images that are cropped, drawn or shrunk (data.size) go as PNG. Columns
go along where they hold numbers, texts or lists of either without gaps. Rows keep their split, by the column data.split. A push
replaces the whole set.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from push import show

from beyond_binary.config import parse_data
from beyond_binary.data.splits import all_rows
from beyond_binary.hub import check_hub_id, limit_silence, push, require_login
from beyond_binary.hub_data import dataset_files, from_rows


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is about the data."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --data.source SOURCE [--data.FIELD VALUE ...] --hub-id USER/NAME [...]",
        allow_abbrev=False,
    )
    parser.add_argument("--hub-id", required=True, help='"user/name"')
    parser.add_argument("--label-name", default=None, help="what the column of the labels is called in the set")
    parser.add_argument("--split", default="train", help="the split of all rows, where no column says it")
    parser.add_argument("--pixels-only", action="store_true", help="send images as PNG, upright and without EXIF")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch; made if it is not there")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--license", help="for the card, for example cc-by-4.0")
    parser.add_argument("--dry-run", action="store_true", help="send nothing, show the files and the card")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and push; what does not fit ends with a short message and status 2."""
    given, rest = parse(argv)
    limit_silence()
    try:
        hub_id, data = check_hub_id(given.hub_id), parse_data(rest)
        if not given.dry_run:
            require_login()
        chosen = from_rows(all_rows(data), data, label_name=given.label_name, pixels_only=given.pixels_only)
        for name, why in chosen.left_out.items():
            print(f"left out: {name} ({why})")
        split = given.split if chosen.split is None else chosen.split
        with tempfile.TemporaryDirectory() as folder:
            files = dataset_files(
                chosen.images, chosen.columns, hub_id, Path(folder), split, chosen.class_names, given.license
            )
            if given.dry_run:
                return show(files, hub_id)
            url = push(
                files, hub_id, private=given.private or None, revision=given.revision, commit_message=given.message,
                repo_type="dataset",
            )  # fmt: skip
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"pushed to {url}")


if __name__ == "__main__":
    main()
