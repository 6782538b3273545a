"""Resolve what a run does and which checkpoints it starts from, before anything is built."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fer_lightning.config.schema import (
    Config,
    DataSettings,
    DistillSettings,
    FinetuneSettings,
    Settings,
    shown,
    to_dict,
)
from fer_lightning.data.cache import default_dir
from fer_lightning.data.classes import columns_of
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.emotions import canonical
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import checkpoint_path
from fer_lightning.models import EXPECTED_INPUTS
from fer_lightning.models.checkpoint import Checkpoint, InputSpec, SelectClasses, net_from, read_checkpoint
from fer_lightning.models.pretrained import weights_of
from fer_lightning.runs.ranking import resolve_checkpoint
from fer_lightning.training.distillation import InputAdapter, Teacher
from fer_lightning.training.soft_targets import SoftTargetStore


@dataclass(frozen=True)
class Plan:
    """The stages of a run and the checkpoints that it uses.

    Attributes:
        fit: whether to train.
        test: whether to test.
        resumed: the checkpoint that a stopped run resumes from.
        initial: the checkpoints of ``ckpt=``: the initial weights of a fit (at most one), or the weights to test
            without a fit.
        teachers: the checkpoints of ``distill.ckpt=``.
    """

    fit: bool
    test: bool
    resumed: Checkpoint | None
    initial: list[Checkpoint]
    teachers: list[Checkpoint]

    @property
    def tested(self) -> list[Checkpoint]:
        """The checkpoints of a test-only run; empty if there is a fit."""
        return [] if self.fit else self.initial


def make_plan(cfg: Settings, run_dir: Path) -> Plan:
    """Check the stages and the seed, and read the checkpoints that the configuration names.

    Raises:
        UserError: invalid stages or seed, or a checkpoint that is missing or cannot be read.
    """
    ckpts = checkpoint_paths(cfg.ckpt)
    fit, test = parse_stages(cfg.stages, ckpts, cfg.checkpoint.every_n_minutes)
    if not fit and cfg.data.fold is not None:
        raise UserError(f"data.fold={cfg.data.fold}: only a fit uses it. Leave it out.")
    check_seed(cfg.seed)
    resumed = resume_point(run_dir) if cfg.resume else None
    return Plan(
        fit=fit,
        test=test,
        resumed=resumed,
        initial=[] if resumed and fit else [read_checkpoint(path) for path in ckpts],
        teachers=[read_checkpoint(path) for path in checkpoint_paths(cfg.distill.ckpt)],
    )


def parse_stages(
    names: Sequence[str], ckpts: Sequence[str], every_n_minutes: float | None = None
) -> tuple[bool, bool]:
    """Return whether to fit and whether to test.

    Raises:
        UserError: an unknown stage, no stage, a test without a fit or checkpoint, a fit with several checkpoints,
            or a checkpoint interval without a fit.
    """
    wrong = [name for name in names if name not in ("fit", "test")]
    if wrong or not names:
        raise UserError(f"stages={list(names)}: expected fit, test or both, e.g. stages=[fit,test].")
    if "fit" not in names and not ckpts:
        raise UserError("stages=[test]: no checkpoint to test. Set ckpt=RUN_FOLDER/checkpoints/best.ckpt.")
    if "fit" in names and len(ckpts) > 1:
        raise UserError(f"ckpt=[{','.join(ckpts)}]: an ensemble can only be tested. Add stages=[test].")
    if "fit" not in names and every_n_minutes is not None:
        raise UserError(f"checkpoint.every_n_minutes={every_n_minutes}: only a fit uses it. Leave it at null.")
    return "fit" in names, "test" in names


def checkpoint_paths(ckpt: object) -> list[str]:
    """Return the checkpoint paths that a ``ckpt`` setting names; shipped networks are resolved by name."""
    return [checkpoint_path(name) for name in checkpoint_names(ckpt)]


def resolve_folders(cfg: Settings) -> Settings:
    """Replace the folder of a run or a sweep in ``ckpt`` and ``distill.ckpt`` by its best checkpoint.

    Raises:
        UserError: no run in the folder has a checkpoint.
    """

    def resolve(ckpt: str | list[str] | None, setting: str) -> str | list[str] | None:
        names = [
            resolve_checkpoint(name, setting) if checkpoint_path(name) == name else name
            for name in checkpoint_names(ckpt)
        ]
        return names if isinstance(ckpt, list) else names[0] if names else ckpt

    distill = replace(cfg.distill, ckpt=resolve(cfg.distill.ckpt, "distill.ckpt"))
    return replace(cfg, ckpt=resolve(cfg.ckpt, "ckpt"), distill=distill)


def checkpoint_names(ckpt: object) -> list[str]:
    """Return the names and paths in a ``ckpt`` setting."""
    if ckpt is None or ckpt == "":
        return []
    return [str(path) for path in ckpt] if isinstance(ckpt, list) else [str(ckpt)]


def check_classes(plan: Plan, classes: Sequence[str]) -> None:
    """Raise UserError if a checkpoint that is tested or resumed has other classes than the data."""
    for checkpoint in (*plan.tested, *([plan.resumed] if plan.resumed else [])):
        if checkpoint.inputs.classes != tuple(classes):
            raise UserError(
                f"ckpt={checkpoint.path} has the classes {', '.join(checkpoint.inputs.classes)}, the data have "
                f"{', '.join(classes)}. Set data.classes and data.rename so that they agree in names and order; "
                "fer-lightning evaluate compares the classes that both have."
            )


def has_same_classes(own: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether a network has the classes of the data, in any order and by any of their names."""
    return set(map(canonical, own)) == set(map(canonical, classes))


def build_teacher(
    cfg: DistillSettings, checkpoints: Sequence[Checkpoint], inputs: InputSpec, data: FaceDataModule
) -> Teacher | None:
    """Build the distillation teacher, or return None if there are no checkpoints.

    The teachers may have input sizes, normalisations and further classes that differ from each other's and from
    `inputs`.

    Raises:
        UserError: a teacher lacks one of the student's classes.
    """
    if not checkpoints:
        return None
    store = None
    if data.augment_epochs is not None:
        rows = data.rows(data.train_usages)
        store = SoftTargetStore(
            data.augment_epochs, len(inputs.classes), data.faces.fingerprint, rows, default_dir()
        )
    nets = [_teaching_net(checkpoint, inputs) for checkpoint in checkpoints]
    return Teacher(nets, cfg.weight, cfg.temperature, cfg.tta, store)


def _teaching_net(checkpoint: Checkpoint, inputs: InputSpec) -> nn.Module:
    """Return a teacher's network for the student's input format and classes."""
    net, own = net_from(checkpoint), checkpoint.inputs
    if own.classes != inputs.classes:
        if missing := set(map(canonical, inputs.classes)) - set(map(canonical, own.classes)):
            raise UserError(
                f"distill.ckpt={checkpoint.path} does not know the class {sorted(missing)[0]}: it has "
                f"{', '.join(own.classes)}. See data.classes and data.rename."
            )
        net = SelectClasses(net, columns_of(inputs.classes, own.classes))
    same = (own.image_size, own.mean, own.std) == (inputs.image_size, inputs.mean, inputs.std)
    return net if same else InputAdapter(net, own, inputs)


def selection_splits(checkpoints: Sequence[Checkpoint]) -> str | None:
    """Return the splits that the checkpoints were selected on, joined by "+"; None if none records one."""
    splits = "+".join(checkpoint.val_split for checkpoint in checkpoints if checkpoint.val_split)
    return "+".join(dict.fromkeys(splits.split("+"))) or None


def adopt_checkpoint(cfg: Settings, plan: Plan) -> Settings:
    """Return the settings with the network and the input format of the checkpoint that the run starts from.

    Settings of the network that the command line names are kept; loading the weights refuses those that do not fit.

    Raises:
        UserError: the command line names another network or input format than that of a checkpoint.
    """
    named = named_settings(cfg)
    for checkpoint in plan.initial:
        if (setting := weights_of(cfg.model)) and setting.partition("=")[0] in named:
            raise UserError(
                f"{setting} and ckpt={checkpoint.path} are both initial weights. Leave one out, or set ckpt=null "
                "if an experiment sets it."
            )
        for key, value in input_settings(checkpoint).items():
            _check_named(named, f"data.{key}", getattr(cfg.data, key), value, checkpoint)
        if any(name in ("model", "model.name") for name in named):
            _check_named(["model"], "model", cfg.model["name"], checkpoint.model["name"], checkpoint)
        for key, value in cfg.model.items() if plan.tested else []:
            _check_named(named, f"model.{key}", value, checkpoint.model.get(key), checkpoint)
    if not plan.fit or not plan.initial:
        return cfg
    (checkpoint,) = plan.initial
    kept = {key: value for key, value in cfg.model.items() if f"model.{key}" in named}
    data = replace(cfg.data, **input_settings(checkpoint))
    return replace(cfg, data=data, model=checkpoint.model | kept)


def adopt_weights(cfg: Settings, plan: Plan) -> Settings:
    """Return the settings with the input format that the pretrained weights of the network expect.

    Settings that the command line names are kept, as are those of an experiment that chooses the weights itself.

    Raises:
        UserError: the network or the weights do not exist.
    """
    setting = weights_of(cfg.model)
    if not setting or not starts_anew(plan):
        return cfg
    named, defaults = named_settings(cfg), DataSettings()
    by_experiment = setting.partition("=")[0] not in named
    expected_input = EXPECTED_INPUTS[cfg.model["name"]](cfg.model)
    if expected_input is None:
        return cfg
    expected = {
        key: value
        for key, value in asdict(expected_input).items()
        if f"data.{key}" not in named and not (by_experiment and getattr(cfg.data, key) != getattr(defaults, key))
    }
    return replace(cfg, data=replace(cfg.data, **expected))


def starts_anew(plan: Plan) -> bool:
    """Return whether the run is a fit that neither resumes nor starts from a checkpoint."""
    return plan.fit and not plan.resumed and not plan.initial


def named_settings(cfg: Settings) -> list[str]:
    """Return the keys that the command line names."""
    return [text.lstrip("+").partition("=")[0] for text in cfg.overrides]


def check_finetune(cfg: Settings, plan: Plan) -> None:
    """Raise UserError for layers to freeze or to slow down that have random weights, or for less than no epochs."""
    if cfg.finetune.freeze_epochs < 0:
        raise UserError(f"finetune.freeze_epochs={cfg.finetune.freeze_epochs}: expected at least 0.")
    if not starts_anew(plan) or weights_of(cfg.model):
        return
    for key, value in asdict(cfg.finetune).items():
        if value != getattr(FinetuneSettings, key):
            raise UserError(
                f"finetune.{key}={value}: all layers would have random weights. Start from trained ones: "
                "ckpt=best, ckpt=PATH, or model.weights=DEFAULT with model=torchvision."
            )


def start_notes(cfg: Settings, plan: Plan, data: FaceDataModule) -> list[str]:
    """Return what a person should know about the weights that a fit starts from, and how they are trained."""
    notes = []
    epochs, factor = cfg.finetune.freeze_epochs, cfg.finetune.backbone_lr_factor
    max_epochs = cfg.trainer.get("max_epochs")
    is_never_unfrozen = isinstance(max_epochs, int) and 0 <= max_epochs <= epochs
    if plan.fit and epochs:
        notes.append(f"only the last layer is trained{'' if is_never_unfrozen else f' before epoch {epochs}'}")
    if plan.fit and factor != 1 and not is_never_unfrozen:
        notes.append(f"all layers but the last learn at {factor:g} of its rate")
    for checkpoint in (*plan.initial, *plan.teachers) if data.fold is not None else ():
        same_data = checkpoint.data_fingerprint in (None, data.faces.fingerprint)
        if same_data and checkpoint.val_split != data.val_split:
            notes.append(
                f"{checkpoint.path} may have been trained on images of the fold, so that the accuracy on it is "
                "optimistic"
            )
    return notes


def start_of(cfg: Settings, plan: Plan, classes: Sequence[str]) -> str | None:
    """Return what a fit starts from, in words; None for random weights."""
    if not plan.fit:
        return None
    for name in checkpoint_names(cfg.ckpt):  # at most one; a resumed run does not read it again
        is_same = plan.resumed or has_same_classes(plan.initial[0].inputs.classes, classes)
        return name if is_same else f"{name}, all but the last layer, which is for other classes"
    setting = weights_of(cfg.model)
    return f"{setting}, all but the last layer" if setting else None


def _check_named(named: Sequence[str], key: str, value: Any, stored: Any, checkpoint: Checkpoint) -> None:
    if key in named and value != stored:
        raise UserError(
            f"{key}={shown(value)} contradicts ckpt={checkpoint.path}, which was trained with "
            f"{key}={shown(stored)}. Leave it out: a checkpoint brings its network and its input format."
        )


def input_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the data settings image_size, mean and std that the checkpoint was trained with."""
    return {key: getattr(checkpoint.inputs, key) for key in ("image_size", "mean", "std")}


def tested_settings(cfg: Settings, checkpoints: Sequence[Checkpoint]) -> Config:
    """Return the model and data settings that replace the configuration's in a test-only run."""
    data, inputs = to_dict(cfg.data), input_settings(checkpoints[0])
    if len(checkpoints) == 1:
        return {"model": checkpoints[0].model, "data": data | inputs}
    # The members may differ in these; each checkpoint records its own values.
    return {
        "model": {"name": "ensemble"},
        "data": {key: value for key, value in data.items() if key not in inputs},
    }


def check_seed(seed: int) -> None:
    """Raise UserError for a seed outside [0, 2**32), the range of NumPy, which Lightning also seeds."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected a number from 0 to {2**32 - 1}.")


def resume_point(run_dir: Path) -> Checkpoint | None:
    """Return the checkpoint to resume a stopped run from, or None if there is none yet.

    That is last.ckpt, or best.ckpt, which is older, if last.ckpt is missing or damaged. A damaged checkpoint is
    renamed with a note; after a damaged best.ckpt, the best of the following epochs is saved instead.

    Raises:
        UserError: a checkpoint that cannot be opened, e.g. for lack of permission.
    """
    for leftover in run_dir.glob("checkpoints/.*"):  # temporary files of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    usable = []
    for path in (run_dir / "checkpoints" / "last.ckpt", run_dir / "checkpoints" / "best.ckpt"):
        if not path.exists():
            continue
        try:
            usable.append(read_checkpoint(path))
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            renamed = path.rename(path.with_name(f"{path.name}.damaged"))
            print(f"note:     renamed to {renamed}: {error}")
    if not usable:
        print("resumed:  from the beginning, no checkpoint found")
        return None
    print(f"resumed:  from {usable[0].path.name}, after step {usable[0].global_step}")
    return usable[0]
