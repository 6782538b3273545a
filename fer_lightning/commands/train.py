"""Train and test a network, once or in a sweep. The same as python train.py; see fer-lightning train --help."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_lightning.config.schema import Settings

# The first run of a process began with it, imports included, and takes this; the others begin when they begin.
_process_start = [perf_counter()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train for a command line, sys.argv's by default, and return the exit code."""
    from fer_lightning.config import cli

    return cli.main(job, arguments)


def job(cfg: "Settings", run_dir: Path) -> None:
    """Do one run of the command."""
    started = _process_start.pop() if _process_start else perf_counter()
    # Imported here, so that --help and a typo need not wait for torch and lightning.
    from fer_lightning.experiment.job import run

    run(cfg, run_dir, started)
