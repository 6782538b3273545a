"""The settings and run folders that train.py makes of a command line, without running anything."""

from pathlib import Path

from fer_lightning.config.cli import main
from fer_lightning.config.schema import Settings


def never(cfg: Settings, run_dir: Path) -> None:
    """Be a job that must not run."""
    raise AssertionError("the job ran")


def composed(*arguments: str) -> list[tuple[Settings, Path]]:
    """Return the settings and run folders that a job gets for a command line."""
    got = []

    def job(cfg: Settings, run_dir: Path) -> None:
        got.append((cfg, run_dir))
        if "-m" in arguments:  # without results.json a run of a sweep counts as unfinished
            (run_dir / "results.json").write_text('{"status": "finished", "history": []}')

    assert main(job, arguments) == 0
    return got
