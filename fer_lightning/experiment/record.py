"""What a run leaves: results.json, config.yaml and command.txt, and what TensorBoard shows of it."""

import errno
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from fer_lightning import hardware
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import Pruned, Stopped, UserError
from fer_lightning.experiment.plan import selected_on
from fer_lightning.experiment.trainer import own_processes
from fer_lightning.files import Json, write_atomically, write_json
from fer_lightning.models.checkpoint import Checkpoint
from fer_lightning.runs.folders import error_line, read_results
from fer_lightning.training.module import EmotionClassifier

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def new_results(
    cfg: Mapping[str, Any],
    data: FaceDataModule,
    modules: Sequence[EmotionClassifier],
    checkpoints: Sequence[Checkpoint],
    machine: str,
) -> Json:
    """results.json of a run that has not done anything yet.

    Args:
        cfg: the configuration.
        data: the faces.
        modules: the network, or the members of an ensemble.
        checkpoints: the weights of each network that is only tested; none where there is a fit.
        machine: what `for_this_machine` says of it.
    """
    members = [
        {"ckpt": str(checkpoint.path), "val_split": checkpoint.val_split, "splits": None}
        for checkpoint in checkpoints
    ]
    layout = "channels_last" if cfg["channels_last"] else "contiguous"
    return {
        "status": "interrupted",
        "error": None,
        "stages": list(cfg["stages"]),
        "experiment": cfg["experiment"],
        "command": shlex.join(["python", "train.py", *cfg["overrides"]]),
        "dataset": data.faces.dataset,
        "data_fingerprint": data.faces.fingerprint,
        "split": data.test_split,
        "val_split": selected_on(checkpoints) if checkpoints else data.val_split,
        "n": None,
        "accuracy": None,
        "macro_f1": None,
        "loss": None,
        "accuracy_leak_free": None,
        "n_leak_free": None,
        "tta": modules[0].tta,
        "per_class": None,
        "splits": None,
        "without_tta": None,
        "members": members if len(checkpoints) > 1 else None,
        "last_epoch": None,
        "history": [],
        "best_epoch": None,
        "best_value": None,
        "monitor": cfg["monitor"],
        "seed": cfg["seed"],
        "parameters": sum(map(n_parameters, modules)),
        **provenance(),
        "processes": 1,
        "hardware": f"{machine}, {layout}, {'compiled' if cfg['compile'] else 'not compiled'}",
        "train_seconds": 0.0,
        "total_seconds": 0.0,
        "images_per_second": None,
    }


def n_parameters(module: EmotionClassifier) -> int:
    return sum(parameter.numel() for parameter in module.net.parameters())


def announce(data: FaceDataModule, modules: Sequence[EmotionClassifier], results: Json, run_dir: Path) -> None:
    """Says in a few lines what is about to run."""
    faces = data.faces
    counts = ", ".join(
        f"{count} {name}"
        for name, count in zip(faces.split_names, np.bincount(faces.usage, minlength=3), strict=True)
    )
    print(f"run:      {run_dir}")
    print(f"data:     {faces.dataset} from {faces.source}")
    print(f"          {counts}")
    selected_on = results["val_split"]
    members = results["members"] or []
    own_runs = "checkpoints' own runs" if members else "checkpoint's own run"
    by = "" if "fit" in results["stages"] else f" (by the {own_runs})"
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
    machine, _, precision = results["hardware"].partition("; ")
    print(f"machine:  {machine}\n          {precision}")
    if (n := results["processes"]) > 1:
        print(f"          {n} processes share each batch: data.batch_size={data.batch_size} in all")
    sys.stdout.flush()


@contextmanager
def recorded(
    trainer: Trainer, run_dir: Path, settings: str, results: Json, started: float, begun_at: int | None = None
) -> Iterator[None]:
    """Keeps a run's config.yaml and command.txt, and writes its results.json however it ends.

    Of a run in several processes the first one writes, and none outlives it.

    Args:
        trainer: the run's.
        run_dir: the run's folder.
        settings: the configuration as YAML.
        results: what results.json will hold; "status", "error" and "total_seconds" are filled in here.
        started: ``time.perf_counter()`` at the beginning.
        begun_at: the step that a stopped run goes on from. If it fails before another, its files stay as they were.

    Raises:
        UserError: memory or disk are full, or the folder cannot be written.
    """
    paths = [run_dir / name for name in ("config.yaml", "command.txt", "results.json")]
    before = {path: path.read_bytes() for path in paths if begun_at is not None and path.exists()}

    def save() -> None:
        if results["status"] == "failed" and paths[-1] in before and trainer.global_step in (0, begun_at):
            if trainer.is_global_zero:
                for path, content in before.items():
                    write_atomically(path, content)
            return
        results["total_seconds"] = time.perf_counter() - started
        if trainer.is_global_zero:
            write_json(run_dir / "results.json", results)

    with own_processes(trainer):
        try:
            try:
                if trainer.is_global_zero:
                    write_atomically(run_dir / "config.yaml", settings)
                    write_atomically(run_dir / "command.txt", results["command"] + "\n")
                    if earlier := read_results(run_dir):  # a kill must not leave an earlier end standing
                        write_json(run_dir / "results.json", earlier | {"status": "interrupted", "error": None})
                yield
                results["status"] = "finished"
            except Pruned:
                results["status"] = "pruned"
            except Exception as error:
                results |= {"status": "failed", "error": error_line(error)}
                raise
            finally:
                save()
        # By a signal to this command or to a launcher's job; also where it came in the lines above, which may have
        # cut the writing short.
        except (Stopped, SystemExit, KeyboardInterrupt):
            results["status"] = "interrupted"
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
                f"Out of memory: {str(error).splitlines()[0]} Lower data.batch_size, data.eval_batch_size, "
                "data.image_size or model.channels, or set trainer.precision=bf16-mixed."
            ) from error


# Disk or quota full, read-only, no permission.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def texts(settings: str, results: Json) -> dict[str, str]:
    """What TensorBoard shows of a run as text."""
    return {
        "config": settings,
        "command": results["command"],
        "commit": str(results["git_commit"]),
        "data": f"{results['dataset']} {results['data_fingerprint']}",
        "hardware": results["hardware"],
    }


def hparams(cfg: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
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


def summary(results: Json) -> dict[str, float]:
    """A run in the few numbers of TensorBoard's HParams table."""
    epochs = {epoch["epoch"]: epoch for epoch in results["history"]}
    numbers = {
        "best_val_accuracy": epochs.get(results["best_epoch"], {}).get("val_accuracy"),
        "test_accuracy": results["accuracy"],
        "test_macro_f1": results["macro_f1"],
        "best_epoch": results["best_epoch"],
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def provenance() -> Json:
    """Versions of what ran, and the clone's commit, with "-dirty" where files differ from it."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not a clone, or no git on this machine
    versions = {"python": platform.python_version()}
    return {"versions": versions | {name: version(name) for name in packages}, "git_commit": commit}
