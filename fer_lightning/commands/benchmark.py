"""The speed, side by side with what one would write instead and with what the hardware allows.

Contenders take turns (A B C A B C), each in a process of its own, and a ratio is taken within one turn, so that a
slow minute of the machine hits both sides. Every number is a median over the turns, with the lowest and highest.
Settings are those of train.py, on top of experiment=baseline. Linux and macOS only.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from fer_lightning.benchmark.processes import Bench, contender
from fer_lightning.benchmark.sections import N_DRAWN, N_TRAINING, SECTIONS, format_report, measure
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning benchmark``."""
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"{', '.join(SECTIONS)}; all by default. SETTING=VALUE here is one of train.py's",
    )
    parser.add_argument("--data", metavar="PATH", help="zip, folder or CSV; else $FER2013_PATH, else drawn faces")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="turns of every contender")
    parser.add_argument("--steps", metavar="N", type=int, help="training steps an epoch: 50, on a GPU all")
    parser.add_argument("--threads", metavar="N", type=int, help="of every contender; as torch chooses by default")
    parser.add_argument("--compile", action="store_true", help="the floor tries torch.compile too")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("benchmark.json"))


def run(args: argparse.Namespace) -> int:
    """Measures, prints the tables and writes the file."""
    _check(args)
    path = args.data if args.data is not None else os.environ.get("FER2013_PATH")
    if path is not None and not (path and Path(path).exists()):
        raise UserError(f"the data {path!r} do not exist. Give a zip, a folder or a CSV, or leave it out.")
    with tempfile.TemporaryDirectory(prefix="fer-benchmark-") as work:
        bench = Bench(
            work=Path(work),
            data=os.path.abspath(path) if path else str(Path(work) / "images"),
            settings=tuple(args.settings),
            repeats=args.repeats,
            threads=args.threads,
            compile=args.compile,
        )
        machine = contender(bench, "describe")()
        steps = args.steps or (N_TRAINING // machine["batch_size"] if machine["device"] == "cuda" else 50)
        bench = replace(bench, machine=machine, steps=steps)
        faces = contender(bench, "write_images", folder=str(bench.images), n_drawn=None if path else N_DRAWN)()
        report = machine | faces | {"settings": args.settings, "repeats": args.repeats, "steps": steps}
        report["sections"] = {}
        try:
            for name in args.sections:
                print(name, file=sys.stderr, flush=True)
                report["sections"][name] = measure(name, bench)
        finally:  # what was measured before something failed is kept
            write_json(args.out, report)
            print(format_report(report))
    print(f"\nresults: {args.out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Tells sections from settings; UserError for what cannot be."""
    args.settings = [word for word in args.sections if "=" in word]
    args.sections = [word for word in args.sections if "=" not in word] or list(SECTIONS)
    for name in args.sections:
        if name not in SECTIONS:
            near = did_you_mean(name, SECTIONS)
            raise UserError(f"there is no section {name!r}.{near} There are: {', '.join(SECTIONS)}.")
    for setting in args.settings:
        key, _, path = setting.partition("=")
        if key in ("data.path", "data.source.path"):
            raise UserError(f"{setting}: the plain script needs the data too; give --data {path} instead.")
    for name in ("repeats", "steps", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1.")
    if not hasattr(os, "wait4"):
        raise UserError("the benchmark asks the system for the memory of processes, which Windows does not tell.")
