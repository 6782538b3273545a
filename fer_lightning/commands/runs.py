"""Rank the runs below a folder and show the settings in which they differ.

Runs are ranked by their score on the validation split; the test score is shown but not used. The status of a run is
running, finished, failed (with its error below the table), interrupted (or killed), or pruned by a search. Finished
runs that differ only in seed or fold also get their mean and standard deviation.
"""

import argparse
from pathlib import Path

from fer_lightning.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning runs``."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of a run, of a sweep, or above them (default: runs)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--csv", action="store_true", help="print CSV, one row per run, instead of a table")
    parser.add_argument(
        "--plots",
        action="store_true",
        help="plot histories, parallel coordinates and the importance of settings into DIR/figures",
    )


def run(args: argparse.Namespace) -> int:
    """Rank the runs, print them and draw the requested plots."""
    import csv
    import json
    import sys

    from fer_lightning.runs.ranking import draw_runs, format_runs, group_runs, rank_runs

    runs = rank_runs(args.folder)
    if not runs:
        raise UserError(f"no runs below {args.folder}. Pass the folder of a run or sweep, or one above it.")
    group_of = {run.name: group.to_json() for group in group_runs(runs) for run in group.runs}
    rows = [run.to_json() | group_of.get(run.name, {"group": None}) for run in runs]
    if args.json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    elif args.csv:
        rows = [row | row.pop("settings") | {"tags": ", ".join(row["tags"])} for row in rows]
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
