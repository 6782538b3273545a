"""What a run leaves: results.json, config.yaml and command.txt, and what TensorBoard shows of it."""

import errno
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer

import fer_lightning
from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.config.schema import Config, Settings
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import Pruned, Stopped, UserError
from fer_lightning.experiment.plan import selected_on
from fer_lightning.experiment.processes import own_processes
from fer_lightning.files import Json, write_atomically, write_json
from fer_lightning.models.checkpoint import Checkpoint
from fer_lightning.runs.folders import error_line, read_results
from fer_lightning.training.module import EmotionClassifier

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(kw_only=True)
class RunRecord:
    """What results.json says of a run. Accuracies are fractions; what is not known yet is None.

    The scores of a split are {"n", "accuracy", "macro_f1", "loss", "accuracy_leak_free", "n_leak_free"}.
    """

    status: str = "interrupted"  # finished, interrupted, failed or pruned
    error: str | None = None  # of a failed run: the exception's type and first line
    stages: list[str]
    experiment: str
    command: str
    dataset: str
    data_fingerprint: str
    split: str  # the headline test split, whose scores stand at the top
    val_split: str | None  # selected the tested weights
    n: int | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    accuracy_leak_free: float | None = None
    n_leak_free: int | None = None
    tta: str
    per_class: dict[str, Json] | None = None  # emotion -> precision, recall, f1, n
    splits: dict[str, Json] | None = None  # split -> scores
    without_tta: dict[str, Json] | None = None  # the same for tta=none, if tta is another
    members: list[Json] | None = None  # of an ensemble: ckpt, val_split, splits of each
    last_epoch: dict[str, Json] | None = None  # as splits, for the last weights instead of the best
    history: list[dict[str, float]] = field(default_factory=list)  # a record for each epoch
    best_epoch: int | None = None
    best_value: float | None = None  # of the monitor
    monitor: str
    seed: int
    parameters: int  # of all networks together
    versions: dict[str, str]
    git_commit: str | None
    processes: int = 1
    hardware: str
    train_seconds: float = 0.0  # of the fit, without validation
    total_seconds: float = 0.0  # from the start of the process, or of the run in a sweep
    images_per_second: float | None = None  # of training: median over the epochs after the first

    def set_scores(self, split: str, splits: dict[str, Json], per_class: dict[str, Json]) -> None:
        """Take the scores of the tested weights; those of `split` become the headline."""
        self.split, self.splits, self.per_class = split, splits, per_class
        headline = splits[split]
        self.n, self.accuracy, self.macro_f1 = headline["n"], headline["accuracy"], headline["macro_f1"]
        self.loss = headline["loss"]
        self.accuracy_leak_free, self.n_leak_free = headline["accuracy_leak_free"], headline["n_leak_free"]

    def to_json(self) -> Json:
        """Return what results.json holds, in the order of the fields."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def new_record(
    cfg: Settings,
    data: FaceDataModule,
    modules: Sequence[EmotionClassifier],
    checkpoints: Sequence[Checkpoint],
    machine: str,
) -> RunRecord:
    """Return the record of a run that has not done anything yet.

    Args:
        cfg: the settings.
        data: the faces.
        modules: the network, or the members of an ensemble.
        checkpoints: the weights of each network that is only tested; none where there is a fit.
        machine: what `for_this_machine` says of it.
    """
    members: list[Json] = [
        {"ckpt": str(checkpoint.path), "val_split": checkpoint.val_split, "splits": None}
        for checkpoint in checkpoints
    ]
    layout = "channels_last" if cfg.channels_last else "contiguous"
    return RunRecord(
        stages=list(cfg.stages),
        experiment=cfg.experiment,
        command=shlex.join(["python", "train.py", *cfg.overrides]),
        dataset=data.faces.dataset,
        data_fingerprint=data.faces.fingerprint,
        split=data.test_split,
        val_split=selected_on(checkpoints) if checkpoints else data.val_split,
        tta=modules[0].tta,
        members=members if len(checkpoints) > 1 else None,
        monitor=cfg.monitor,
        seed=cfg.seed,
        parameters=sum(map(n_parameters, modules)),
        versions=versions(),
        git_commit=git_commit(),
        hardware=f"{machine}, {layout}, {'compiled' if cfg.compile else 'not compiled'}",
    )


def n_parameters(module: EmotionClassifier) -> int:
    return sum(parameter.numel() for parameter in module.net.parameters())


def announce(data: FaceDataModule, modules: Sequence[EmotionClassifier], record: RunRecord, run_dir: Path) -> None:
    """Says in a few lines what is about to run."""
    faces = data.faces
    counts = ", ".join(
        f"{count} {name}"
        for name, count in zip(faces.split_names, np.bincount(faces.usage, minlength=3), strict=True)
    )
    print(f"run:      {run_dir}")
    print(f"data:     {faces.dataset} from {faces.source}")
    print(f"          {counts}")
    selected_on = record.val_split
    members = record.members or []
    own_runs = "checkpoints' own runs" if members else "checkpoint's own run"
    by = "" if "fit" in record.stages else f" (by the {own_runs})"
    print(f"          {f'selected on {selected_on}{by}, ' if selected_on else ''}tested on {data.test_split}")
    for note in faces.notes:
        print(f"          note: {note}")
    if len(splits := dict.fromkeys(member["val_split"] or "not known" for member in members)) > 1:
        print(f"          note: the members' runs selected on different splits: {', '.join(splits)}")
    if both := [name for name in data.test_split.split("+") if name in (selected_on or "").split("+")]:
        print(f"          note: weights selected on {'+'.join(both)} score too well on it")
    for module in modules:
        options = " ".join(f"{key}={value}" for key, value in module.model.items() if key != "name")
        size = module.inputs.image_size
        print(f"network:  {module.model['name']} {options}, {n_parameters(module):,} parameters, {size}x{size} px")
    machine, _, precision = record.hardware.partition("; ")
    print(f"machine:  {machine}\n          {precision}")
    if (n := record.processes) > 1:
        print(f"          {n} processes share each batch: data.batch_size={data.batch_size} in all")
    sys.stdout.flush()


@contextmanager
def recorded(
    trainer: Trainer, run_dir: Path, settings: str, record: RunRecord, started: float, begun_at: int | None = None
) -> Iterator[None]:
    """Keeps a run's config.yaml and command.txt, and writes its results.json however it ends.

    Of a run in several processes the first one writes, and none outlives it.

    Args:
        trainer: the run's.
        run_dir: the run's folder.
        settings: the configuration as YAML.
        record: of the run; its status, error and total_seconds are filled in here.
        started: ``time.perf_counter()`` at the beginning.
        begun_at: the step that a stopped run goes on from. If it fails before another, its files stay as they were.

    Raises:
        UserError: memory or disk are full, or the folder cannot be written.
    """
    paths = [run_dir / name for name in ("config.yaml", "command.txt", "results.json")]
    before = {path: path.read_bytes() for path in paths if begun_at is not None and path.exists()}

    def save() -> None:
        if record.status == "failed" and paths[-1] in before and trainer.global_step in (0, begun_at):
            if trainer.is_global_zero:
                for path, content in before.items():
                    write_atomically(path, content)
            return
        record.total_seconds = time.perf_counter() - started
        if trainer.is_global_zero:
            write_json(run_dir / "results.json", record.to_json())

    with own_processes(trainer):
        try:
            try:
                if trainer.is_global_zero:
                    write_atomically(run_dir / "config.yaml", settings)
                    write_atomically(run_dir / "command.txt", record.command + "\n")
                    if earlier := read_results(run_dir):  # a kill must not leave an earlier end standing
                        write_json(run_dir / "results.json", earlier | {"status": "interrupted", "error": None})
                yield
                record.status = "finished"
            except Pruned:
                record.status = "pruned"
            except Exception as error:
                record.status, record.error = "failed", error_line(error)
                raise
            finally:
                save()
        # By a signal to this command or to a launcher's job; also where it came in the lines above, which may have
        # cut the writing short.
        except (Stopped, SystemExit, KeyboardInterrupt):
            record.status = "interrupted"
            save()
            raise
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise UserError(
                f"{run_dir} cannot be written: {error.strerror}. What was saved before is whole: make room or "
                f"allow writing, then go on by resume={run_dir}."
            ) from error
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            raise UserError(
                f"Out of memory: {first_line(error)} Lower data.batch_size, data.eval_batch_size, "
                "data.image_size or model.channels, or set trainer.precision=bf16-mixed."
            ) from error


# Disk or quota full, read-only, no permission.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def texts(settings: str, record: RunRecord) -> dict[str, str]:
    """What TensorBoard shows of a run as text."""
    return {
        "config": settings,
        "command": record.command,
        "commit": str(record.git_commit),
        "data": f"{record.dataset} {record.data_fingerprint}",
        "hardware": record.hardware,
    }


def hparams(cfg: Config) -> dict[str, bool | int | float | str]:
    """The settings that runs are compared by, as flat columns: "optim.lr", "model.channels", ..."""
    data = dict(cfg["data"])
    data |= data.pop("source")
    groups = {"data": data} | {name: cfg[name] for name in ("augment", "model", "optim", "trainer")}
    columns = {"experiment": cfg["experiment"], "seed": cfg["seed"]}
    for group, settings in groups.items():
        for key, value in settings.items():
            if key == "_target_":
                columns[group] = value.rpartition(".")[2]
            else:
                columns[f"{group}.{key}"] = value
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in columns.items()
    }


def summary(record: RunRecord) -> dict[str, float]:
    """A run in the few numbers of TensorBoard's HParams table."""
    best = next((epoch for epoch in record.history if epoch["epoch"] == record.best_epoch), {})
    numbers = {
        "best_val_accuracy": best.get("val_accuracy"),
        "test_accuracy": record.accuracy,
        "test_macro_f1": record.macro_f1,
        "best_epoch": record.best_epoch,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
    own = {"fer-lightning": fer_lightning.__version__}
    return {"python": platform.python_version()} | {name: version(name) for name in packages} | own


def git_commit() -> str | None:
    """Return the clone's commit, with "-dirty" where files differ from it; None outside a clone or without git."""
    if not (REPOSITORY / "train.py").exists():  # installed from a wheel, perhaps within somebody's repository
        return None
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
