"""Hydra internals that have no public name. tests/config/test_hydra_compat.py reports what an upgrade breaks."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.utils import JobStatus, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.arguments import first_line
from fer_lightning.errors import UserError

__all__ = [
    "IntervalSweep",
    "Override",
    "Quote",
    "QuotedString",
    "flag_parser",
    "parse_override",
    "run_composed",
    "sweep_values",
]


def flag_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's own flags (-m, --cfg, ...), to check them before Hydra runs."""
    return get_args_parser()


def parse_override(text: str) -> Override:
    """Parse a setting of the command line with Hydra's grammar.

    Raises:
        HydraException: the text is not a valid override.
    """
    return OverridesParser.create().parse_override(text)


def sweep_values(override: Override) -> list[Any]:
    """Return the values of a sweep; ``sweep_iterator`` alone leaves QuotedString objects among them.

    Raises:
        HydraException: the values cannot be listed.
        ValueError: a range with step 0.
    """
    return list(override.sweep_iterator(transformer=Override._convert_value))


def run_composed(cfg: DictConfig, folder: Path, task: Callable[[DictConfig], None]) -> None:
    """Run a task as Hydra's single job, with its logging, callbacks and ``hydra.job`` settings.

    hydra.main would compose the configuration twice more and shorten the traceback of what the task raises.

    Args:
        cfg: the composed configuration, Hydra's node included.
        folder: the job's output folder; created if missing.
        task: called with the configuration without Hydra's node.

    Raises:
        UserError: the folder cannot be created, or one of Hydra's own settings is invalid.
    """
    with read_write(cfg.hydra):
        cfg.hydra.run.dir = str(folder)
        cfg.hydra.mode = RunMode.RUN
    no_loader: Any = None  # only launchers of several jobs use it
    try:
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name="train")
        result = run_job(  # keeps what the task raises in its result
            task_function=task,
            config=cfg,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(config_loader=no_loader, callbacks=callbacks),
        )
        callbacks.on_run_end(config=cfg, config_name="train", job_return=result)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {error.strerror}.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"A setting of hydra.* is invalid: {first_line(error)}") from error
    if result.status is JobStatus.FAILED:
        raise result._return_value  # the property of that name would print a line first
