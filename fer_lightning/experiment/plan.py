"""What a run is to do, and from where it goes on: checked before anything is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_lightning.config.schema import Config, DistillSettings, Settings, to_dict
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import checkpoint_path
from fer_lightning.models.checkpoint import Checkpoint, InputSpec, net_from, read_checkpoint
from fer_lightning.training.distillation import InputAdapter, Teacher


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    fit: bool
    test: bool
    resumed: Checkpoint | None  # where a stopped run goes on
    starts: list[Checkpoint]  # the weights that a fit starts from, one at most, or those to test without a fit
    teachers: list[Checkpoint]

    @property
    def tested(self) -> list[Checkpoint]:
        """The checkpoints of a run that only tests."""
        return [] if self.fit else self.starts


def make_plan(cfg: Settings, run_dir: Path) -> Plan:
    """Return what the configuration asks for, and read the checkpoints that it names.

    Raises:
        UserError: stages, checkpoints or a seed that cannot be.
    """
    ckpts = checkpoint_paths(cfg.ckpt)
    fit, test = stages(cfg.stages, ckpts, cfg.checkpoint.every_n_minutes)
    check_seed(cfg.seed)
    resumed = resume_point(run_dir) if cfg.resume else None
    return Plan(
        fit=fit,
        test=test,
        resumed=resumed,
        starts=[] if resumed and fit else [read_checkpoint(path) for path in ckpts],
        teachers=[read_checkpoint(path) for path in checkpoint_paths(cfg.distill.ckpt)],
    )


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
    cfg: DistillSettings, checkpoints: Sequence[Checkpoint], inputs: InputSpec, data: FaceDataModule
) -> Teacher | None:
    """Return the networks that the one in training learns from, or None. Each may have an input of its own."""
    if not checkpoints:
        return None
    nets = [
        net_from(checkpoint)
        if checkpoint.inputs == inputs
        else InputAdapter(net_from(checkpoint), checkpoint.inputs, inputs)
        for checkpoint in checkpoints
    ]
    n_train = len(data.rows(data.train_usages))
    return Teacher(
        nets, cfg.weight, cfg.temperature, cfg.tta, data.augment_epochs, n_images=len(data.faces), n_train=n_train
    )


def selected_on(checkpoints: Sequence[Checkpoint]) -> str | None:
    """The splits that the checkpoints' own runs selected on, all together; None if none of them says."""
    splits = "+".join(checkpoint.val_split for checkpoint in checkpoints if checkpoint.val_split)
    return "+".join(dict.fromkeys(splits.split("+"))) or None


def own_input(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the data that the checkpoint's network was trained on."""
    return {key: getattr(checkpoint.inputs, key) for key in ("image_size", "mean", "std")}


def own_settings(cfg: Settings, checkpoints: Sequence[Checkpoint]) -> Config:
    """Return what takes the place of the configuration's network and input when checkpoints are only tested."""
    data, own = to_dict(cfg.data), own_input(checkpoints[0])
    if len(checkpoints) == 1:
        return {"model": checkpoints[0].model, "data": data | own}
    # The members' own are in their checkpoints.
    return {"model": {"name": "ensemble"}, "data": {key: value for key, value in data.items() if key not in own}}


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
