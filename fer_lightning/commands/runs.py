"""All runs below a folder, ranked, with what differs between them.

The best on its validation split comes first; the test number stands beside and ranks nothing. A run is running,
finished, failed (with its error below the table), interrupted, which killed ones are too, or pruned by a search.
"""

import argparse
from pathlib import Path

from fer_lightning.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning runs``."""
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="default runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of the table")
    form.add_argument("--csv", action="store_true", help="print a line of CSV for each run instead of the table")
    parser.add_argument(
        "--plots",
        action="store_true",
        help="draw histories, parallel coordinates and the settings' importance into DIR/figures",
    )


def run(args: argparse.Namespace) -> int:
    """Ranks the runs, prints them and draws what was asked for."""
    import csv
    import json
    import sys

    from fer_lightning.runs.ranking import draw_runs, format_runs, rank_runs

    runs = rank_runs(args.folder)
    if not runs:
        raise UserError(f"there is no run below {args.folder}: give the folder of a run or sweep, or one above.")
    if args.json:
        print(json.dumps([run.to_json() for run in runs], indent=2, allow_nan=False))
    elif args.csv:
        rows = [run.to_json() for run in runs]
        rows = [row | row.pop("settings") for row in rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print(format_runs(args.folder, runs))
    if args.plots:
        for path in draw_runs(args.folder, runs):
            print(f"written: {path}", file=sys.stderr)
    return 0
