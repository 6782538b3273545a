"""Build the loggers of a run, and finish what they wrote when it ends."""

import csv
import inspect
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fer_lightning.config.compose import build, locate
from fer_lightning.config.schema import Config, Settings, shown
from fer_lightning.errors import UserError, check_at_least_one
from fer_lightning.files import write_atomically, write_json
from fer_lightning.models.checkpoint import Checkpoint
from fer_lightning.runs.folders import LOGGERS, RUNS
from fer_lightning.runs.lock import lock

# What to do when a logger that keeps its data elsewhere cannot start.
_REMEDIES: dict[type, str] = {
    WandbLogger: "Without an account or a network, set logger.wandb.offline=true and run `wandb sync` later.",
    MLFlowLogger: "Check MLFLOW_TRACKING_URI; without it, runs are kept in runs/mlflow.db.",
}


@dataclass(frozen=True)
class Place:
    """Where the loggers of a run write.

    Attributes:
        run_dir: the run's folder.
        resumed: the checkpoint that the run resumes from.
        ids: logger -> number of its run there, for loggers that number their runs themselves.
    """

    run_dir: Path
    resumed: Checkpoint | None
    ids: Mapping[str, str]

    @property
    def root(self) -> Path:
        """The folder of all runs, found from the run's folder, because hydra.job.chdir=true works in that."""
        folder = self.run_dir.absolute()
        return next((path for path in folder.parents if path.name == RUNS), folder)


def build_loggers(cfg: Settings, run_dir: Path, resumed: Checkpoint | None) -> dict[str, Logger]:
    """Build the loggers of a run by name, without connecting them or writing into the run's folder.

    Args:
        cfg: the settings.
        run_dir: the run's folder.
        resumed: the checkpoint that the run resumes from.

    Raises:
        UserError: a logger whose package is missing, whose arguments do not fit, or whose files are damaged.
    """
    if cfg.trainer.get("fast_dev_run") or "logger" in cfg.trainer:
        return {}  # Lightning would not use them
    place = Place(run_dir, resumed, _read_ids(run_dir / LOGGERS) if resumed else {})
    return {name: _build(name, node, cfg, place) for name, node in cfg.logger.items()}


@contextmanager
def connected(loggers: Mapping[str, Logger], run_dir: Path, resumed: Checkpoint | None) -> Iterator[None]:
    """Connect the loggers of a run, and end their runs at the end of the block.

    A resumed run continues what its loggers wrote up to the checkpoint. W&B and MLflow number their runs
    themselves; the numbers are kept in loggers.json.

    Raises:
        UserError: a logger that cannot start.
    """
    started: dict[str, Logger] = {}
    status = "failed"
    try:
        for name, logger in loggers.items():
            if isinstance(logger, CSVLogger) and _is_first_process():
                _continue_table(logger, resumed)
            elif isinstance(logger, WandbLogger | MLFlowLogger):
                with _explained(name, logger):
                    _ = logger.experiment
                started[name] = logger
        if started and _is_first_process():
            write_json(run_dir / LOGGERS, {name: str(logger.version) for name, logger in started.items()})
        yield
        status = "success"
    finally:
        # The others need no end when a run fails before or after Lightning's part of it.
        for logger in started.values():
            if isinstance(logger, MLFlowLogger):
                logger.finalize(status)
            elif isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(status != "success"))


def _is_first_process() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined,no-any-return]


@contextmanager
def _explained(name: str, logger: object) -> Iterator[None]:
    """Turn errors of the account, the network or the server into one line; those of subclasses may be bugs."""
    kind = logger if inspect.isclass(logger) else type(logger)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if kind not in _REMEDIES:
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"logger={name} cannot start: {reason}. {_REMEDIES[kind]}") from error


def _read_ids(path: Path) -> dict[str, str]:
    """Return the number of each logger's run; without the file, the loggers start new runs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(number, str) for number in content.values()):
            raise ValueError("expected the number of each logger's run")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Delete it to resume with new runs of the loggers.") from error
    return content


def _build(name: str, node: Any, cfg: Settings, place: Place) -> Logger:
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(
            f"logger.{name}={shown(node)}: expected a logger, as in logger.mine._target_=my_module.MyLogger, "
            "or logger=[tensorboard,csv]."
        )
    target = locate(node["_target_"])
    kind = target if inspect.isclass(target) and issubclass(target, Logger) else object
    ours = _accepted(kind, _arguments(name, kind, cfg, place))
    # MLflow creates its database in steps, which fail when two runs take them at the same time.
    alone = lock(place.root / ".mlflow.lock") if issubclass(kind, MLFlowLogger) else nullcontext()
    try:
        with alone, _explained(name, kind):
            logger = build(node, **{key: value for key, value in ours.items() if key not in node})
    except UserError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and name in ("wandb", "mlflow"):  # our extras
            raise UserError(f'logger={name} is not installed: pip install -e ".[{name}]".') from error
        raise
    if not isinstance(logger, Logger):
        raise UserError(
            f"logger.{name} is not a logger of Lightning. One of your own inherits from lightning's Logger."
        )
    if isinstance(logger, CSVLogger):
        check_at_least_one(f"logger.{name}.flush_logs_every_n_steps", node.get("flush_logs_every_n_steps", 1))
        _read_table(logger)  # damage is an error before anything else happens
    return logger


def _accepted(kind: type, arguments: Config) -> Config:
    """Return the arguments that a class takes; one of the user's own may have another signature."""
    parameters = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {key: value for key, value in arguments.items() if key in parameters}


def _arguments(name: str, kind: type, cfg: Settings, place: Place) -> Config:
    """Return the arguments that tell a logger of this kind where and under which name to write."""
    if not issubclass(kind, Logger):
        return {}
    *_, folder, run_name = place.run_dir.absolute().parts
    title, number = f"{folder}/{run_name}", place.ids.get(name)
    if issubclass(kind, TensorBoardLogger | CSVLogger):
        arguments: Config = {"save_dir": place.run_dir, "name": "", "version": ""}
        if issubclass(kind, TensorBoardLogger):
            # The steps after the checkpoint are repeated, so what was logged for them before has to be dropped.
            first_step = place.resumed.global_step + 1 if place.resumed else 0 if cfg.resume else None
            arguments |= {"default_hp_metric": False, "purge_step": first_step}
        return arguments
    if issubclass(kind, WandbLogger):
        return {"save_dir": place.run_dir, "name": title, "id": number, "tags": cfg.tags}
    if issubclass(kind, MLFlowLogger):
        database = f"sqlite:///{place.root / 'mlflow.db'}"
        local = {"tracking_uri": database, "artifact_location": str(place.root / "mlflow")}
        server = os.environ.get("MLFLOW_TRACKING_URI")
        where = {"tracking_uri": server} if server else local
        tags = {"tags": ", ".join(cfg.tags)} if cfg.tags else {}
        return where | {"run_name": title, "run_id": number, "tags": tags}
    return {"save_dir": place.run_dir}


def _read_table(logger: CSVLogger) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of metrics.csv, none if it does not exist.

    Raises:
        UserError: the file is damaged.
    """
    path, aside = _table_paths(logger)
    path = aside if aside.exists() else path  # a process was killed while it continued the table
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("a row has another number of cells than the header")
            int(row["step"])
    except FileNotFoundError:
        return [], []
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}. Delete or repair it to resume the run.") from error
    return list(reader.fieldnames or []), rows


def _table_paths(logger: CSVLogger) -> tuple[Path, Path]:
    folder = Path(logger.log_dir)
    return folder / "metrics.csv", folder / ".metrics.csv"


def _continue_table(logger: CSVLogger, resumed: Checkpoint | None) -> None:
    """Start metrics.csv, with its rows up to the checkpoint; Lightning's logger would delete them."""
    columns, rows = _read_table(logger)
    path, aside = _table_paths(logger)
    if path.exists() and not aside.exists():
        path.rename(aside)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")  # the run's folder, which exists
        writer = logger.experiment
    if resumed and rows:
        kept = [row for row in rows if int(row["step"]) <= _last_step(row, resumed)]
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(kept)
        write_atomically(path, text.getvalue().encode())
        writer.metrics_keys = columns
    aside.unlink(missing_ok=True)


def _last_step(row: Mapping[str, str], resumed: Checkpoint) -> int:
    """Return the last step before the checkpoint, or the last epoch in a row of epochs."""
    return resumed.global_step if row.get("step/loss") else resumed.epoch
