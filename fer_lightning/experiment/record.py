"""Record a run in results.json, config.yaml, command.txt and its loggers."""

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
from fer_lightning.data.faces import TRAIN
from fer_lightning.errors import Pruned, Stopped, UserError
from fer_lightning.experiment.plan import checkpoint_names, selection_splits
from fer_lightning.experiment.processes import managed_processes
from fer_lightning.files import Json, write_atomically, write_json
from fer_lightning.models.checkpoint import Checkpoint
from fer_lightning.models.pretrained import weights_of
from fer_lightning.runs.folders import error_line, read_results
from fer_lightning.training.module import EmotionClassifier

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(kw_only=True)
class RunRecord:
    """The content of a run's results.json.

    Accuracies are fractions; values that are not known yet are None. The scores of a split are {"n", "accuracy",
    "macro_f1", "loss", "accuracy_leak_free", "n_leak_free", "accuracy_strict", "n_strict"}.
    """

    status: str = "interrupted"  # finished, interrupted, failed or pruned
    error: str | None = None  # type and first line of the exception that made the run fail
    stages: list[str]
    experiment: str
    tags: list[str] = field(default_factory=list)
    command: str
    dataset: str
    data_fingerprint: str
    labels: str  # fer2013 or ferplus, see data.labels
    classes: list[str]
    split: str  # the headline test split, whose scores are the fields below
    val_split: str | None  # the split that selected the tested weights
    n: int | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    accuracy_leak_free: float | None = None
    n_leak_free: int | None = None
    accuracy_strict: float | None = None
    n_strict: int | None = None
    ckpt: list[str] = field(default_factory=list)  # the weights that a fit starts from, or that are tested
    start: str | None = None  # what a fit starts from, in words; None for random weights
    tta: str
    per_class: dict[str, Json] | None = None  # class -> precision, recall, f1, n
    splits: dict[str, Json] | None = None  # split -> scores
    without_tta: dict[str, Json] | None = None  # `splits` with tta=none, if tta is not none
    members: list[Json] | None = None  # ckpt, val_split and splits of each ensemble member
    last_epoch: dict[str, Json] | None = None  # `splits` of the last weights instead of the best
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per epoch
    best_epoch: int | None = None
    best_value: float | None = None  # value of the monitor in the best epoch
    monitor: str
    seed: int
    parameters: int  # total over all networks
    versions: dict[str, str]
    git_commit: str | None
    processes: int = 1
    hardware: str
    train_seconds: float = 0.0  # fit without validation
    total_seconds: float = 0.0  # since the start of the process, or of the run within a sweep
    images_per_second: float | None = None  # in training: median over the epochs after the first

    def set_scores(self, split: str, splits: dict[str, Json], per_class: dict[str, Json]) -> None:
        """Store the scores of the tested weights, with those of `split` as the headline."""
        self.split, self.splits, self.per_class = split, splits, per_class
        headline = splits[split]
        self.n, self.accuracy, self.macro_f1 = headline["n"], headline["accuracy"], headline["macro_f1"]
        self.loss = headline["loss"]
        self.accuracy_leak_free, self.n_leak_free = headline["accuracy_leak_free"], headline["n_leak_free"]
        self.accuracy_strict, self.n_strict = headline["accuracy_strict"], headline["n_strict"]

    def to_json(self) -> Json:
        """Return the content of results.json, in the order of the fields."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def new_record(
    cfg: Settings,
    data: FaceDataModule,
    modules: Sequence[EmotionClassifier],
    checkpoints: Sequence[Checkpoint],
    machine: str,
) -> RunRecord:
    """Return the record of a run that has not started yet.

    Args:
        cfg: the settings.
        data: the faces.
        modules: the network, or the members of an ensemble.
        checkpoints: the checkpoint of each network in a test-only run; empty if there is a fit.
        machine: the line that `resolve_trainer_arguments` returns.
    """
    members: list[Json] = [
        {"ckpt": str(checkpoint.path), "val_split": checkpoint.val_split, "splits": None}
        for checkpoint in checkpoints
    ]
    layout = "channels_last" if cfg.channels_last else "contiguous"
    return RunRecord(
        stages=list(cfg.stages),
        experiment=cfg.experiment,
        tags=list(cfg.tags),
        command=shlex.join(["python", "train.py", *cfg.overrides]),
        dataset=data.faces.dataset,
        data_fingerprint=data.faces.fingerprint,
        labels=cfg.data.source.get("labels", "fer2013"),
        classes=list(data.faces.classes),
        split=data.test_split,
        val_split=selection_splits(checkpoints) if checkpoints else data.val_split,
        ckpt=checkpoint_names(cfg.ckpt),
        tta=modules[0].tta,
        members=members if len(checkpoints) > 1 else None,
        monitor=cfg.monitor,
        seed=cfg.seed,
        parameters=sum(map(count_parameters, modules)),
        versions=versions(),
        git_commit=git_commit(),
        hardware=f"{machine}, {layout}, {'compiled' if cfg.compile else 'not compiled'}",
    )


def count_parameters(module: EmotionClassifier) -> int:
    """Return the number of parameters of the module's network."""
    return sum(parameter.numel() for parameter in module.net.parameters())


def announce(
    data: FaceDataModule,
    modules: Sequence[EmotionClassifier],
    record: RunRecord,
    run_dir: Path,
    notes: Sequence[str] = (),
) -> None:
    """Print the folder, data, networks with `notes` on their weights, and machine of the run that is to start."""
    faces = data.faces
    counts = ", ".join(
        f"{count} {name}"
        for name, count in zip(faces.split_names, np.bincount(faces.usage, minlength=3), strict=True)
    )
    print(f"run:      {run_dir}")
    print(f"data:     {faces.dataset} from {faces.source}")
    print(f"          {counts}")
    if data.fold is not None:
        n_train, n_val = len(data.rows(data.train_usages)), len(data.rows(data.val_usages))
        print(f"          {n_train} of {faces.split_names[TRAIN]} outside fold {data.fold}, {n_val} inside")
    val_split = record.val_split
    members = record.members or []
    selecting_runs = "checkpoints' own runs" if members else "checkpoint's own run"
    by = "" if "fit" in record.stages else f" (by the {selecting_runs})"
    print(f"          {f'selected on {val_split}{by}, ' if val_split else ''}tested on {data.test_split}")
    for note in faces.notes:
        print(f"          note: {note}")
    if len(splits := dict.fromkeys(member["val_split"] or "unknown" for member in members)) > 1:
        print(f"          note: the members were selected on different splits: {', '.join(splits)}")
    if both := [name for name in data.test_split.split("+") if name in (val_split or "").split("+")]:
        print(f"          note: weights selected on {'+'.join(both)} have optimistic scores on it")
    _announce_networks(modules, record, notes)
    machine, _, precision = record.hardware.partition("; ")
    print(f"machine:  {machine}\n          {precision}")
    if (n := record.processes) > 1:
        print(f"          {n} processes share each batch: data.batch_size={data.batch_size} in total")
    sys.stdout.flush()


def _announce_networks(modules: Sequence[EmotionClassifier], record: RunRecord, notes: Sequence[str]) -> None:
    if record.start:
        print(f"weights:  start from {record.start}")
    for name in record.ckpt if "fit" not in record.stages else []:
        print(f"weights:  {name}")
    for note in notes:
        print(f"          note: {note}")
    for module in modules:
        options = " ".join(f"{key}={value}" for key, value in module.model.items() if key != "name")
        size = module.inputs.image_size
        print(
            f"network:  {module.model['name']} {options}, {count_parameters(module):,} parameters, {size}x{size} px"
        )


@contextmanager
def record_outcome(
    trainer: Trainer,
    run_dir: Path,
    settings: str,
    record: RunRecord,
    started: float,
    resumed_step: int | None = None,
) -> Iterator[None]:
    """Write config.yaml and command.txt, and results.json at the end of the block, however it ends.

    In a run on several processes, only the first one writes, and it ends the others.

    Args:
        trainer: the run's trainer.
        run_dir: the run's folder.
        settings: the configuration as YAML.
        record: the run's record, whose status, error and total_seconds are set here.
        started: ``time.perf_counter()`` at the start of the run.
        resumed_step: the global step that a stopped run resumes from. If the run fails before the next step, its
            three files are restored.

    Raises:
        UserError: memory or disk are full, or the folder cannot be written.
    """
    paths = [run_dir / name for name in ("config.yaml", "command.txt", "results.json")]
    before = {path: path.read_bytes() for path in paths if resumed_step is not None and path.exists()}

    def save() -> None:
        if record.status == "failed" and paths[-1] in before and trainer.global_step in (0, resumed_step):
            if trainer.is_global_zero:
                for path, content in before.items():
                    write_atomically(path, content)
            return
        record.total_seconds = time.perf_counter() - started
        if trainer.is_global_zero:
            write_json(run_dir / "results.json", record.to_json())

    with managed_processes(trainer):
        try:
            try:
                if trainer.is_global_zero:
                    write_atomically(run_dir / "config.yaml", settings)
                    write_atomically(run_dir / "command.txt", record.command + "\n")
                    # If this run is killed, its earlier status must not remain.
                    if earlier := read_results(run_dir):
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
        # A signal to this command or to a launcher's job. It may have arrived during save() above, so save again.
        except (Stopped, SystemExit, KeyboardInterrupt):
            record.status = "interrupted"
            save()
            raise
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise UserError(
                f"{run_dir} cannot be written: {error.strerror}. Earlier files are intact: free space or allow "
                f"writing, then continue with resume={run_dir}."
            ) from error
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            raise UserError(
                f"Out of memory: {first_line(error)} Lower data.batch_size, data.eval_batch_size, "
                "data.image_size or model.channels, or set trainer.precision=bf16-mixed."
            ) from error


# Disk full, quota exceeded, read-only file system, no permission.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def run_texts(settings: str, record: RunRecord) -> dict[str, str]:
    """Return the texts of the run for TensorBoard and other loggers, by heading."""
    texts = {
        "config": settings,
        "command": record.command,
        "tags": ", ".join(record.tags),
        "commit": str(record.git_commit),
        "data": f"{record.dataset} {record.data_fingerprint}",
        "hardware": record.hardware,
    }
    return {heading: text for heading, text in texts.items() if text}


def hparams(cfg: Config) -> dict[str, bool | int | float | str]:
    """Return the settings to compare runs by in TensorBoard, with flat keys such as "optim.lr"."""
    data = dict(cfg["data"])
    data |= data.pop("source")
    groups = {"data": data} | {name: cfg[name] for name in ("augment", "model", "optim", "trainer")}
    columns = {name: cfg[name] for name in ("experiment", "seed", "ckpt", "label_smoothing", "tta")}
    groups |= {"distill": cfg["distill"]} if cfg["distill"]["ckpt"] else {}
    groups |= {"finetune": cfg["finetune"]} if cfg["ckpt"] or weights_of(cfg["model"]) else {}
    for group, settings in groups.items():
        for key, value in settings.items():
            if key == "_target_":
                columns[group] = value.rpartition(".")[2]
            elif not key.startswith("enable_"):  # of the trainer: what is printed
                columns[f"{group}.{key}"] = value
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in columns.items()
    }


def summary(record: RunRecord) -> dict[str, float]:
    """Return the run's results for its loggers; unknown ones are left out.

    TensorBoard's HParams table shows the first five metrics in alphabetical order: with these names, the two
    results come first.
    """
    best = next((epoch for epoch in record.history if epoch["epoch"] == record.best_epoch), {})
    numbers = {
        "accuracy/best_val": best.get("val_accuracy"),
        "accuracy/test": record.accuracy,
        "macro_f1/test": record.macro_f1,
        "best_epoch": record.best_epoch,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that affect a run's numbers."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
    own = {"fer-lightning": fer_lightning.__version__}
    return {"python": platform.python_version()} | {name: version(name) for name in packages} | own


def git_commit() -> str | None:
    """Return the clone's commit, with "-dirty" if files differ from it; None outside a clone or without git."""
    if not (REPOSITORY / "train.py").exists():  # installed from a wheel, perhaps inside another repository
        return None
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
