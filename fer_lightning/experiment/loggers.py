"""Build the loggers of a run, and finish what they wrote when it ends."""

import csv
import inspect
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fer_lightning.arguments import first_line
from fer_lightning.config.compose import build, locate
from fer_lightning.config.schema import Config, Settings, shown
from fer_lightning.errors import UserError
from fer_lightning.files import write_json
from fer_lightning.models.checkpoint import Checkpoint
from fer_lightning.runs.folders import LOGGERS, RUNS
from fer_lightning.runs.lock import lock

# What to do when a logger that keeps its data elsewhere cannot start.
_REMEDIES: dict[type[WandbLogger | MLFlowLogger], str] = {
    WandbLogger: "Log in with `wandb login`, or set logger.wandb.offline=true and run `wandb sync` later.",
    MLFlowLogger: "Check MLFLOW_TRACKING_URI; without it, runs are kept in runs/mlflow.db.",
}


@contextmanager
def open_loggers(cfg: Settings, run_dir: Path, resumed: Checkpoint | None) -> Iterator[list[Logger]]:
    """Build the loggers of a run, and close them at the end of the block.

    A resumed run continues what its loggers wrote up to the checkpoint. W&B and MLflow number their runs
    themselves; the numbers are kept in loggers.json.

    Args:
        cfg: the settings.
        run_dir: the run's folder.
        resumed: the checkpoint that the run resumes from.

    Yields:
        The loggers; an empty list if the configuration has none.

    Raises:
        UserError: a logger whose package is missing, whose arguments do not fit, or that cannot start.
    """
    path = run_dir / LOGGERS
    ids = _read_ids(path) if resumed else {}
    loggers: dict[str, Logger] = {}
    status = "failed"
    try:
        for name, node in cfg.logger.items():
            loggers[name] = _build(name, node, cfg, run_dir, resumed, ids.get(name))
        new = {
            name: str(logger.version)
            for name, logger in loggers.items()
            if isinstance(logger, WandbLogger | MLFlowLogger)
        }
        if new and _is_first_process():
            write_json(path, new)
        yield list(loggers.values())
        status = "success"
    finally:
        # The others need no end when a run fails before or after Lightning's part of it.
        for logger in loggers.values():
            if isinstance(logger, MLFlowLogger):
                logger.finalize(status)
            elif isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(status != "success"))


def _is_first_process() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined,no-any-return]


def _read_ids(path: Path) -> dict[str, str]:
    """Return the number of each logger's run; without the file, the loggers start new runs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Delete it to resume with new runs of the loggers.") from error
    return dict(content)


def _build(
    name: str, node: Any, cfg: Settings, run_dir: Path, resumed: Checkpoint | None, run_id: str | None
) -> Logger:
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(
            f"logger.{name}={shown(node)}: expected a logger, as in logger.mine._target_=my_module.MyLogger, "
            "or logger=[tensorboard,csv]."
        )
    target = locate(node["_target_"])
    kind = target if inspect.isclass(target) else object
    ours = {key: value for key, value in _arguments(kind, cfg, run_dir, resumed, run_id).items() if key not in node}
    # MLflow creates its database in steps, which fail when two runs take them at the same time.
    alone = lock(_root(run_dir) / ".mlflow.lock") if issubclass(kind, MLFlowLogger) else nullcontext()
    with alone:
        logger = _start(name, node, ours)
    if isinstance(logger, CSVLogger) and _is_first_process():
        _continue_table(logger, resumed)
    return logger


def _start(name: str, node: Config, arguments: Config) -> Logger:
    """Build a logger, and connect it if it keeps its data elsewhere."""
    try:
        logger = build(node, **arguments)
    except UserError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and name in ("wandb", "mlflow"):  # our extras
            raise UserError(f'logger={name} is not installed: pip install -e ".[{name}]".') from error
        raise
    if not isinstance(logger, Logger):
        raise UserError(
            f"logger.{name} is not a logger of Lightning. One of your own inherits from lightning's Logger."
        )
    for kind, remedy in _REMEDIES.items():
        if isinstance(logger, kind):
            try:
                _ = logger.experiment  # connects
            except Exception as error:  # of the account, the network or the server
                raise UserError(f"logger={name} cannot start: {first_line(error)} {remedy}") from error
    return logger


def _root(run_dir: Path) -> Path:
    """Return the folder of all runs, from a run's folder, because hydra.job.chdir=true works in that."""
    return next((path for path in run_dir.absolute().parents if path.name == RUNS), run_dir.absolute())


def _arguments(kind: type, cfg: Settings, run_dir: Path, resumed: Checkpoint | None, run_id: str | None) -> Config:
    """Return the arguments that tell a logger of this kind where and under which name to write."""
    *_, folder, name = run_dir.absolute().parts
    title = f"{folder}/{name}"
    if issubclass(kind, TensorBoardLogger | CSVLogger):
        arguments: Config = {"save_dir": run_dir.parent, "name": run_dir.name, "version": ""}
        if issubclass(kind, TensorBoardLogger):
            # The steps after the checkpoint are repeated, so what was logged for them before has to be dropped.
            first_step = resumed.global_step + 1 if resumed else 0 if cfg.resume else None
            arguments |= {"default_hp_metric": False, "purge_step": first_step}
        return arguments
    if issubclass(kind, WandbLogger):
        return {"save_dir": run_dir, "name": title, "id": run_id, "tags": cfg.tags}
    if issubclass(kind, MLFlowLogger):
        root = _root(run_dir)
        local = {"tracking_uri": f"sqlite:///{root / 'mlflow.db'}", "artifact_location": str(root / "mlflow")}
        server = os.environ.get("MLFLOW_TRACKING_URI")
        where = {"tracking_uri": server} if server else local
        tags = {"tags": ", ".join(cfg.tags)} if cfg.tags else {}
        return where | {"run_name": title, "run_id": run_id, "tags": tags}
    takes_folder = issubclass(kind, Logger) and "save_dir" in inspect.signature(kind).parameters
    return {"save_dir": run_dir} if takes_folder else {}


def _continue_table(logger: CSVLogger, resumed: Checkpoint | None) -> None:
    """Start metrics.csv, with its rows up to the checkpoint; Lightning's logger would delete them."""
    path = Path(logger.log_dir) / "metrics.csv"
    rows = []
    if resumed and path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")  # the run's folder, which exists
        writer = logger.experiment
    for row in rows:
        assert resumed is not None
        if int(row["step"]) <= (resumed.global_step if "step/loss" in row else resumed.epoch):
            writer.metrics.append(row)
    writer.save()
