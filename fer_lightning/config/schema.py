"""The settings of a run: the type, default, unit and help text of each.

The valid keys, the types of their values, ``--help`` and "did you mean" come from here. Anything chosen by name or
``_target_`` has its settings in conf/ and in the signature of the class or function.
"""

import os
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from fer_lightning.arguments import call
from fer_lightning.errors import UserError

Config = dict[str, Any]  # a configuration as plain nested dicts


def setting(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def group(text: str) -> Any:
    """Return a dataclass field for a config group, with a help text."""
    return field(default_factory=dict, metadata={"help": text, "group": True})


@dataclass(frozen=True)
class DataSettings:
    """``data``: batches of faces. Settings of the source are given directly below ``data``, e.g. data.path=PATH."""

    source: Config = group("the function that loads the images, with its settings")
    split: str = setting(
        "official",
        "official: train on Training, validate on PublicTest, test on PrivateTest; kaggle_folder: validate and "
        "test on both held-out splits together, like test/ of the Kaggle folder",
    )
    fold: str | None = setting(
        None,
        "K/N: train without fold K of N of Training, from 0/N, and select the best epoch on it instead; copies and "
        "near copies share a fold; null: train on all of Training",
    )
    batch_size: int = setting(32, "images per training batch, over all processes")
    eval_batch_size: int = setting(128, "images per validation or test batch")
    image_size: int = setting(128, "height and width of the network's input, in pixels")
    mean: float = setting(0.5, "pixels in [0, 1] are normalised as (x - mean) / std")
    std: float = setting(0.5, "see mean")
    class_weights: str | list[float] = setting(
        "none", "weights of the classes in the training loss: none, balanced, or a number for each class"
    )
    sampler: str = setting(
        "shuffle", "shuffle: each training image once per epoch; balanced: equally many images of each class"
    )
    augment_epochs: int | None = setting(
        None,
        "epochs after which augmentation repeats, the same for every seed, so that a teacher's predictions are "
        "computed once and kept in the cache; null: never",
    )


@dataclass(frozen=True)
class MixSettings:
    """``mix``: training images blended with each other."""

    mixup_alpha: float = setting(
        0.0,
        "mixup: blend each training image and its label with another's, whose share has the distribution "
        "Beta(mixup_alpha, mixup_alpha); 0.001 to 1, or 0 for none",
    )


@dataclass(frozen=True)
class DistillSettings:
    """``distill``: knowledge distillation from trained networks."""

    ckpt: str | list[str] | None = setting(
        None,
        "teacher: a checkpoint, a folder of runs, a shipped network (best), or a list of them to average their "
        "probabilities; each gets the images at its own input size",
    )
    weight: float = setting(
        0.5, "weight of the distillation loss, above 0 to 1; the loss on the labels gets the rest"
    )
    temperature: float = setting(1.0, "divides the logits of teacher and student in the distillation loss")
    tta: str = setting("none", "test-time augmentation of the teacher; see tta")


@dataclass(frozen=True)
class FinetuneSettings:
    """``finetune``: training that starts from trained weights, those of ckpt, model.weights or model.pretrained."""

    freeze_epochs: int = setting(
        0, "epochs at the start in which only the last layer is trained; trainer.max_epochs or more: all of them"
    )
    backbone_lr_factor: float = setting(1.0, "learning rate of all layers but the last, as a fraction of optim.lr")


@dataclass(frozen=True)
class CheckpointSettings:
    """``checkpoint``: when checkpoints are written."""

    every_n_minutes: float | None = setting(
        None, "minutes between saves of last.ckpt within an epoch; null: save at the end of each epoch only"
    )


@dataclass(frozen=True)
class Settings:
    """Every setting of a run."""

    seed: int = setting(
        0, "seed of the initial weights, the order of the images and, without data.augment_epochs, the augmentation"
    )
    name: str | int | float | None = setting(
        None, "name of the run's folder in runs/<experiment>/; null: date and time"
    )
    tags: list[str] = setting([], "labels to find the run by, in the loggers, results.json and fer-lightning runs")
    stages: list[str] = setting(["fit", "test"], "fit, test or both")
    ckpt: str | list[str] | None = setting(
        None,
        "checkpoint, folder of a run or a sweep (its best checkpoint), or shipped network (best) to test without "
        "fitting, or a list of them to average their probabilities; with a fit, the initial weights, without the "
        "last layer if the data have other classes",
    )
    resume: str | None = setting(
        None,
        "folder of a run to resume; if trainer.max_epochs is raised, the learning rate follows the longer schedule "
        "from there on",
    )
    label_smoothing: float = setting(0.0, "share of each training label that is spread evenly over all classes")
    mix: MixSettings = field(default_factory=MixSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    tta: str = setting(
        "none", "test-time augmentation: none, mirror, shifts, zooms or ten_crop; reported in addition to none"
    )
    monitor: str = setting(
        "accuracy/val", 'metric that selects the best checkpoint: highest, or lowest if the name starts with "loss"'
    )
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    channels_last: bool = setting(True, "memory format of the network; affects speed, not results")
    compile: bool = setting(
        False,
        "use torch.compile for the fit: about a minute to start, then up to 25% faster, or slower; measure it",
    )
    data: DataSettings = field(default_factory=DataSettings, metadata={"help": "the source of the images"})
    augment: Config = group("augmentation of the training images")
    model: Config = group("the network")
    optim: Config = group("the optimizer and its learning-rate schedule")
    trainer: Config = group("arguments of Lightning's Trainer")
    callbacks: Config = group("Lightning callbacks")
    logger: Config = group("the destinations of curves and figures")
    experiment: str = field(default="default", metadata={"group": True})
    overrides: list[str] = field(default_factory=list, metadata={"group": True})


def keys(kind: type = Settings, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the dotted key, type, default and help text of every setting outside the config groups."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            yield from keys(hints[entry.name], f"{prefix}{entry.name}.")
        elif not entry.metadata.get("group"):
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            yield f"{prefix}{entry.name}", hints[entry.name], default, entry.metadata["help"]


TYPES: dict[str, Any] = {key: kind for key, kind, _, _ in keys()}

# Settings whose values are paths: text whatever they look like, with ~ for the home folder.
PATHS = (
    "ckpt",
    "distill.ckpt",
    "resume",
    "model.weights",
    "data.source.path",
    "data.source.exclude",
    "data.source.relabel",
    "data.source.ferplus",
)

# Types of settings of the data source that their defaults in conf/ do not show.
SOURCE_TYPES: dict[str, Any] = {"data.source.classes": str | list[Any] | None, "data.source.rename": dict | None}
EXAMPLES: dict[str, Any] = {"data.fold": "0/5"}  # values to suggest for settings whose default is null
RENAME = "data.source.rename."  # every key below it is the name of a class


def full_key(key: str) -> str:
    """Return the full key of a setting: data.NAME is data.source.NAME unless NAME is one of DataSettings."""
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    is_full = group != "data" or name in ("", "source") or f"data.{name}" in TYPES
    return key if is_full else f"data.source.{rest}"


def defaults() -> Config:
    """Return the defaults as nested dicts, which Hydra composes with the files of conf/."""
    nested: Config = {}
    for key, _, default, _ in keys():
        node, _, name = key.rpartition(".")
        (nested.setdefault(node, {}) if node else nested)[name] = default
    return nested


def to_settings(cfg: Config) -> Settings:
    """Convert a configuration to typed settings; missing keys get their defaults.

    Raises:
        UserError: an unknown key or a value of the wrong type, set by a file. The command line is checked earlier.
    """
    cfg = _expand_home(cfg)
    data = cfg.get("data", {})
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict) or "_target_" not in source:
        raise UserError(
            "data.source: expected a _target_, the function that loads the images, with its settings beside it. "
            "See conf/data/fer2013.yaml for an example."
        )
    for group, name in (("augment", "_target_"), ("model", "name")):
        if group in cfg and not (isinstance(cfg[group], dict) and cfg[group].get(name)):
            raise UserError(f"{group}: {name} is missing. Choose with {group}=NAME, or set {group}.{name}.")
    typed = dict(cfg)
    groups = {
        "data": DataSettings,
        "mix": MixSettings,
        "finetune": FinetuneSettings,
        "distill": DistillSettings,
        "checkpoint": CheckpointSettings,
    }
    for key, kind in groups.items():
        values = cfg.get(key) or {}
        if not isinstance(values, dict):
            raise UserError(f"{key}={shown(values)}: expected settings such as {key}.{fields(kind)[0].name}=VALUE.")
        typed[key] = call(kind, key, values)
    return call(Settings, "configuration", typed)


def _expand_home(value: Any, key: str = "") -> Any:
    """Return a value of the configuration with ~ expanded in all paths."""
    if isinstance(value, dict):
        return {name: _expand_home(child, f"{key}.{name}" if key else name) for name, child in value.items()}
    if key in PATHS and isinstance(value, list):
        return [_expand_home(element, key) for element in value]
    return os.path.expanduser(value) if key in PATHS and isinstance(value, str) else value


def data_arguments(settings: Settings) -> Config:
    """Return the arguments of FaceDataModule, apart from the faces and their augmentation."""
    arguments = to_dict(settings.data) | {"seed": settings.seed, "mixup_alpha": settings.mix.mixup_alpha}
    del arguments["source"]
    return arguments


def to_dict(settings: Settings | DataSettings) -> Config:
    """Return settings as plain nested dicts."""
    return asdict(settings)


def shown(value: Any) -> str:
    """Format a value the way it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
