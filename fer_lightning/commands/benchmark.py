"""Compare the speed with a plain PyTorch script and with the limit of the hardware.

The contenders run in turns (A B C A B C), each in its own process, and ratios are taken within a turn, so that a
slow minute of the machine affects both sides. Each number is a median over the turns, with the lowest and highest.
Settings are those of train.py, applied to experiment=baseline. Linux and macOS only.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from fer_lightning.benchmark.processes import Bench, contender
from fer_lightning.benchmark.sections import N_DRAWN, N_TRAINING, SECTIONS, format_report, measure
from fer_lightning.errors import UserError, check_at_least_one, did_you_mean
from fer_lightning.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning benchmark``."""
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"{', '.join(SECTIONS)} (default: all); SETTING=VALUE changes a setting of train.py",
    )
    parser.add_argument(
        "--data", metavar="PATH", help="zip, tar, CSV or folder (default: $FER2013_PATH, else synthetic faces)"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=5, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", metavar="N", type=int, help="training steps per epoch (default: 50; the whole epoch on a GPU)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads of each contender (default: PyTorch's choice)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also try torch.compile when measuring the limit of the hardware"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("benchmark.json"), help="report (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print the tables and write the report."""
    _check(args)
    source, path = (
        ("--data", args.data) if args.data is not None else ("FER2013_PATH", os.environ.get("FER2013_PATH"))
    )
    path = os.path.expanduser(path) if path else path
    if path is not None and not (path and Path(path).exists()):
        raise UserError(f"{source}={path!r} does not exist. Pass a zip, tar, CSV or folder, or leave it out.")
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
        finally:  # keep the sections measured before a failure
            write_json(args.out, report)
            print(format_report(report))
    print(f"\nresults: {args.out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Separate sections from settings in `args`, and raise UserError for invalid arguments."""
    args.settings = [word for word in args.sections if "=" in word]
    args.sections = [word for word in args.sections if "=" not in word] or list(SECTIONS)
    for name in args.sections:
        if name not in SECTIONS:
            near = did_you_mean(name, SECTIONS)
            raise UserError(f"unknown section {name!r}.{near} Choose from {', '.join(SECTIONS)}.")
    for setting in args.settings:
        key, _, path = setting.partition("=")
        if key in ("data.path", "data.source.path"):
            raise UserError(f"{setting}: the plain script needs the data, too. Use --data {path} instead.")
    for name in ("repeats", "steps", "threads"):
        value = getattr(args, name)
        if value is not None:
            check_at_least_one(f"--{name}", value)
    if not hasattr(os, "wait4"):
        raise UserError("the benchmark measures memory with os.wait4, which is not available on Windows.")
