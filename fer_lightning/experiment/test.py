"""A run from its objects to its results: fit, test of the best and the last weights, results.json."""

import errno
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torchmetrics.metric import jit_distributed_available

from fer_lightning import hardware
from fer_lightning.arguments import LIBRARIES, check_options, first_line, raised_within
from fer_lightning.callbacks.checkpoints import AtomicCheckpointIO, TimedCheckpoint
from fer_lightning.callbacks.history import History
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import Pruned, Stopped, UserError, did_you_mean
from fer_lightning.evaluation.scores import Json, Predictions, ensemble, score_classes, score_splits, select
from fer_lightning.files import write_atomically, write_json
from fer_lightning.inference.classifier import checkpoint_path
from fer_lightning.models.checkpoint import Checkpoint, InputSpec, net_from, read_checkpoint
from fer_lightning.runs.ranking import error_line, read_results
from fer_lightning.training.distillation import OtherInput, Teacher
from fer_lightning.training.module import LOGGED, EmotionClassifier

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def stages(names: Sequence[str], ckpts: Sequence[str], every_n_minutes: float | None = None) -> tuple[bool, bool]:
    """Whether to fit and whether to test.

    Raises:
        UserError: a stage that does not exist, none at all, a test without anything to test, a fit of several
            checkpoints, or minutes between the checkpoints of no fit.
    """
    wrong = [name for name in names if name not in ("fit", "test")]
    if wrong or not names:
        raise UserError(f"stages={list(names)}: choose from fit and test, e.g. stages=[fit,test].")
    if "fit" not in names and not ckpts:
        raise UserError("stages=[test] needs the checkpoint to test: ckpt=RUN_FOLDER/checkpoints/best.ckpt.")
    if "fit" in names and len(ckpts) > 1:
        raise UserError(f"ckpt=[{','.join(ckpts)}] is an ensemble, which can only be tested: add stages=[test].")
    if "fit" not in names and every_n_minutes is not None:
        raise UserError(f"checkpoint.every_n_minutes={every_n_minutes} is for a fit: leave it at null.")
    return "fit" in names, "test" in names


def checkpoint_paths(ckpt: object) -> list[str]:
    """What ``ckpt=`` names: nothing, one checkpoint or several; a shipped network goes by its name."""
    if ckpt is None or ckpt == "":
        return []
    names = [str(path) for path in ckpt] if isinstance(ckpt, list) else [str(ckpt)]
    return [checkpoint_path(name) for name in names]


def teacher(
    cfg: Mapping[str, Any], checkpoints: Sequence[Checkpoint], inputs: InputSpec, data: FaceDataModule
) -> Teacher | None:
    """Return the networks that the one in training learns from, or None. Each may have an input of its own."""
    if not checkpoints:
        return None
    nets = [
        net_from(checkpoint)
        if checkpoint.inputs == inputs
        else OtherInput(net_from(checkpoint), checkpoint.inputs, inputs)
        for checkpoint in checkpoints
    ]
    how = {key: cfg[key] for key in ("weight", "temperature", "tta")}
    n_train = len(data.rows(data.train_usages))
    return Teacher(nets, **how, augment_epochs=data.augment_epochs, n_images=len(data.faces), n_train=n_train)


def selected_on(checkpoints: Sequence[Checkpoint]) -> str | None:
    """The splits that the checkpoints' own runs selected on, all together; None if none of them says."""
    splits = "+".join(checkpoint.val_split for checkpoint in checkpoints if checkpoint.val_split)
    return "+".join(dict.fromkeys(splits.split("+"))) or None


def own_input(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the data that the checkpoint's network was trained on."""
    return {key: getattr(checkpoint.inputs, key) for key in ("image_size", "mean", "std")}


def own_settings(data: Mapping[str, Any], checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """What stands in place of the configuration's network and input when checkpoints are only tested."""
    if len(checkpoints) == 1:
        return {"model": checkpoints[0].model, "data": {**data, **own_input(checkpoints[0])}}
    # The members' own are in their checkpoints.
    own = own_input(checkpoints[0])
    return {"model": {"name": "ensemble"}, "data": {key: data[key] for key in data if key not in own}}


def check_seed(seed: int) -> None:
    """Raises UserError for what NumPy, which Lightning seeds too, does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range: it goes from 0 to {2**32 - 1}.")


def resume_point(run_dir: Path) -> Checkpoint | None:
    """The checkpoint that a stopped run goes on from; None if there is none yet.

    A damaged one is set aside, and said so: the last one makes way for the best, which is older, and a damaged best
    one for the best of the epochs that follow.

    Raises:
        UserError: a checkpoint that cannot be read for want of a permission or the like.
    """
    for leftover in run_dir.glob("checkpoints/.*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    found = []
    for path in (run_dir / "checkpoints" / "last.ckpt", run_dir / "checkpoints" / "best.ckpt"):
        if not path.exists():
            continue
        try:
            found.append(read_checkpoint(path))
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            aside = path.rename(path.with_name(f"{path.name}.damaged"))
            print(f"note:     {error} It is now {aside}.")
    if found:
        print(f"resumed:  from {found[0].path.name}, after step {found[0].global_step}")
    else:
        print("resumed:  from the beginning, for there is no checkpoint")
    return found[0] if found else None


class MovableCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps the best epoch of a run whose folder was moved or copied.

    It saves absolute paths, and Lightning's own forgets the best score when they differ from today's. A best one
    that is no longer there is forgotten, so that another can take its place.
    """

    @cached_property  # Lightning asks for it twelve times a step
    def state_key(self) -> str:
        # ModelCheckpoint's, under which runs begun before this class have saved their state.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            # Lightning removes what was the best: nothing but a checkpoint, whatever the file says.
            return str(folder / Path(path).name) if Path(path).suffix == ".ckpt" else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        if any(not Path(path).exists() for path in best):
            return
        moved = {"dirpath": self.dirpath, "best_k_models": best} | {key: here(state_dict[key]) for key in paths}
        super().load_state_dict(state_dict | moved)


def checkpoints(run_dir: Path, monitor: str, every_n_minutes: float | None = None) -> list[Callback]:
    """Keeps checkpoints/best.ckpt, the epoch with the best `monitor`, and checkpoints/last.ckpt.

    Args:
        run_dir: the run's folder.
        monitor: a name that EmotionClassifier logs; losses are best low, all others high.
        every_n_minutes: how often last.ckpt is written within an epoch; None: at its end only.

    Raises:
        UserError: nothing of that name is logged, or `every_n_minutes` is not above 0.
    """
    if monitor not in LOGGED:
        raise UserError(
            f"monitor={monitor} is not a metric.{did_you_mean(monitor, LOGGED)} There are: {', '.join(LOGGED)}."
        )
    kept: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        # After the epoch's record is complete, so that the checkpoint holds it.
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = MovableCheckpoint(
        filename="best", monitor=monitor, mode="min" if monitor.startswith("loss") else "max", **kept
    )
    # Not the first one's save_last: in Lightning 2.6 that writes only when the best improves. Second, so that
    # last.ckpt knows of the epoch's best.
    timed = [] if every_n_minutes is None else [TimedCheckpoint(run_dir / "checkpoints/last.ckpt", every_n_minutes)]
    return [best, MovableCheckpoint(filename="last", **kept), *timed]


def for_this_machine(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Trainer's arguments with every "auto" of ours decided, and the machine and choice in one line."""
    chosen = dict(arguments)
    kind = hardware.accelerator(str(chosen["accelerator"]))
    why = "as asked"
    if chosen["precision"] == "auto":
        chosen["precision"], why = hardware.choose_precision(kind)
    if chosen["enable_progress_bar"] is None:
        chosen["enable_progress_bar"] = sys.stderr.isatty()
    if chosen.get("sync_batchnorm") == "auto":
        chosen["sync_batchnorm"] = kind == "cuda"
    return chosen, f"{hardware.describe(kind)}; precision {chosen['precision']} ({why})"


def build_callbacks(nodes: Mapping[str, Any], build: Callable[[Any], Any]) -> list[Callback]:
    """Build the callbacks that a configuration lists.

    Args:
        nodes: a node with a ``_target_`` for each callback's name.
        build: returns what a node names.

    Raises:
        UserError: a node that names no callback.
    """
    callbacks = []
    for name, node in nodes.items():
        callback = build(node)
        if not isinstance(callback, Callback):
            with_target = [other for other in nodes if other != name]
            raise UserError(
                f"callbacks.{name} is not a Lightning callback.{did_you_mean(name, with_target)} A callback of "
                f"your own is named by its class: callbacks.{name}._target_=my_module.MyCallback"
            )
        callbacks.append(callback)
    return callbacks


def make_trainer(
    logger: Logger | bool, callbacks: list[Callback], run_dir: Path, arguments: dict[str, Any]
) -> Trainer:
    """A Lightning Trainer; what it refuses is the person's to put right.

    Raises:
        UserError: an argument that Trainer refuses.
    """
    # Batches are gathered from memory in one call: workers would only copy them once more.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A fit that validates at its end only has no monitor before.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # Epochs are always logged, whatever the interval; and a resumed run's folder is there on purpose.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Its batches go on where they were: see FaceLoader.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    # What is logged is that of all processes already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6's own business with torch 2.15
    # `announce` has said what Lightning would, but for the network's layers, and for a process that
    # died and takes the run's others with it.
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)
    for module in ("pytorch.callbacks.model_summary", "fabric.strategies.launchers.subprocess_script"):
        logging.getLogger(f"lightning.{module}").setLevel(logging.INFO)
    ours: dict[str, Any] = {
        "logger": logger,
        "callbacks": callbacks,
        "default_root_dir": run_dir,
        "plugins": [AtomicCheckpointIO()],
        "use_distributed_sampler": False,  # EpochBatches deals the images out itself
    }
    # Lightning leaves on what an earlier run of this process has asked for.
    torch.use_deterministic_algorithms(False)
    settings = ours | arguments
    check_options(Trainer, "trainer", settings)
    try:
        trainer = Trainer(**settings)
    except Exception as error:
        if not raised_within(error, *LIBRARIES):
            raise
        raise UserError(f"Lightning's Trainer does not take this: {first_line(error)}") from error
    if trainer.world_size > 1:
        _prepare_processes(trainer)
    return trainer


def _prepare_processes(trainer: Trainer) -> None:
    """Raises UserError where Lightning would start the run's further processes by another program than train.py."""
    launcher = trainer.strategy.launcher
    external = not isinstance(launcher, _SubprocessScriptLauncher) or (
        launcher.cluster_environment.creates_processes_externally
    )
    if isinstance(trainer.strategy.cluster_environment, SLURMEnvironment):  # type: ignore[attr-defined]
        raise UserError(
            f"trainer.devices={trainer.num_devices}: Slurm's own tasks as the processes of a run are not provided "
            "for. Take trainer.devices=1, and hydra/launcher=submitit_slurm for many runs."
        )
    if not external and sys.modules["__main__"].__spec__ is not None:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: only python train.py starts the processes of a run, not "
            "hydra/launcher and no other program. Leave the launcher out, or take trainer.devices=1."
        )
    # Lightning's handler of SIGTERM broadcasts in the middle of whatever the processes exchange, and can wait for
    # ever. Ours ends this process, and with it the others.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


@contextmanager
def _processes(trainer: Trainer) -> Iterator[None]:
    """Ends the processes that Lightning starts for a run, so that none is left and another run can follow."""
    before = set(os.environ)
    failed = True
    try:
        yield
        failed = False
    finally:
        procs: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        ended = list(procs)
        if failed:
            procs.clear()  # or Lightning's watch over them would kill this process for the death of one
        for process in ended:
            if failed:
                process.kill()
            process.wait()
        if jit_distributed_available():
            torch.distributed.destroy_process_group()
        # By these the next Trainer of this process would believe that its processes are there already.
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)


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
        "parameters": sum(map(_n_parameters, modules)),
        **provenance(),
        "processes": 1,
        "hardware": f"{machine}, {layout}, {'compiled' if cfg['compile'] else 'not compiled'}",
        "train_seconds": 0.0,
        "total_seconds": 0.0,
        "images_per_second": None,
    }


def _n_parameters(module: EmotionClassifier) -> int:
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
        print(f"network:  {module.model['name']} {options}, {_n_parameters(module):,} parameters, {size}x{size} px")
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

    with _processes(trainer):
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


def train(
    module: EmotionClassifier,
    data: FaceDataModule,
    trainer: Trainer,
    history: History,
    results: Json,
    resume_from: Path | None = None,
) -> None:
    """Fits, and fills `results` with what came of it, also when it is interrupted.

    Args:
        module: with fresh weights, or those to start from.
        data: the faces.
        trainer: with `history` and a ModelCheckpoint among its callbacks.
        history: what the epochs' records are taken from.
        results: gains "history", "best_epoch", "best_value" (the monitor's), "train_seconds" and
            "images_per_second".
        resume_from: a checkpoint to go on from.

    Raises:
        UserError: settings that do not go together, such as a monitor that the Trainer never computes.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        # Settings that do not go together. What Lightning refuses in somebody's own hook is a bug of that hook.
        of_settings = isinstance(error, MisconfigurationException) or "`val_check_interval`" in str(error)
        if not of_settings or not raised_within(error, *LIBRARIES, EmotionClassifier.__module__):
            raise
        raise UserError(f"Lightning cannot fit with these settings: {first_line(error)}") from error
    finally:
        results |= {
            "history": history.epochs,
            "train_seconds": history.train_seconds,
            "images_per_second": history.images_per_second,
        }
        best = best_checkpoint(trainer)
        if best is not None:
            with suppress(UserError):  # in the place of what went wrong before; the test names it otherwise
                results["best_epoch"] = read_checkpoint(best).epoch
                results["best_value"] = best_value(trainer)


def test(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer, results: Json) -> None:
    """Tests the best weights, and after a fit the last ones beside them, on every held-out split.

    Args:
        module: as the fit left it, or with the weights to test.
        data: the faces.
        trainer: that of the fit, if there was one.
        results: gains "split", "n", "accuracy" and all that results.json says of the test.
    """
    best = best_checkpoint(trainer)
    if best is not None:
        # First, for the best weights take the place of the last ones in `module`.
        results["last_epoch"] = score_splits(predict(module, data, trainer), data.faces)
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    assert module.held_out is not None
    results |= headline(module.held_out, data)
    if module.tta != "none":
        module.tta = "none"
        results["without_tta"] = score_splits(predict(module, data, trainer), data.faces)
        module.tta = results["tta"]


def predict(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer) -> Predictions:
    """The answers to every held-out image, whichever process they come from."""
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert module.held_out is not None
    return module.held_out


def test_ensemble(
    modules: Sequence[EmotionClassifier], datas: Sequence[FaceDataModule], trainer: Trainer, results: Json
) -> None:
    """Tests the mean of the networks' probabilities, and each network beside it, on every held-out split.

    Args:
        modules: the networks.
        datas: the same faces for each network, at its own size and normalisation.
        trainer: one that has not fitted.
        results: gains all that results.json says of the test.
    """

    def predict_all(tta: str) -> list[Predictions]:
        predictions = []
        for module, data in zip(modules, datas, strict=True):
            module.tta = tta
            predictions.append(predict(module, data, trainer))
        return predictions

    faces = datas[0].faces
    predictions = predict_all(results["tta"])
    results |= headline(ensemble(predictions), datas[0])
    for member, own in zip(results["members"], predictions, strict=True):
        member["splits"] = score_splits(own, faces)
    if results["tta"] != "none":
        results["without_tta"] = score_splits(ensemble(predict_all("none")), faces)


def headline(predictions: Predictions, data: FaceDataModule) -> Json:
    """The part of results.json that says how good the tested weights are."""
    splits = score_splits(predictions, data.faces)
    logits, labels, _ = select(predictions, data.faces, data.test_usages)
    return {
        "split": data.test_split,
        **splits[data.test_split],
        "per_class": score_classes(logits, labels),
        "splits": splits,
    }


def best_checkpoint(trainer: Trainer) -> str | None:
    """The path of the best checkpoint of this fit, or None where there was none."""
    keeper = _best_keeper(trainer)
    return keeper.best_model_path if keeper else None


def best_value(trainer: Trainer) -> float | None:
    """The monitor's value at the best checkpoint, or None where there is none or it is no number."""
    keeper = _best_keeper(trainer)
    score = keeper.best_model_score if keeper else None
    return score.item() if score is not None and score.isfinite() else None


def _best_keeper(trainer: Trainer) -> ModelCheckpoint | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback
    return None


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
