"""Train and test a network, once or in a sweep, like python train.py; see fer-lightning train --help."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_lightning.config.schema import Settings

# The start of the process. The first run takes it as its own start, so that its duration includes the imports.
_process_start = [perf_counter()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says (sys.argv's by default) and return the exit code."""
    from fer_lightning.config import cli

    return cli.main(job, arguments)


def job(cfg: "Settings", run_dir: Path) -> None:
    """Run one job of the command: a single run, or one of a sweep."""
    started = _process_start.pop() if _process_start else perf_counter()
    # Imported here so that --help and error messages need not wait for torch and lightning.
    from fer_lightning.experiment.job import run

    run(cfg, run_dir, started)
