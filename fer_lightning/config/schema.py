"""The settings of a run itself: types, defaults, units, and one line of help each.

Keys, the types of values, ``--help`` and "did you mean" come from here. What is chosen by name or ``_target_`` has
its settings in conf/ and in the signature of what is built.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from fer_lightning.arguments import call
from fer_lightning.errors import UserError

Config = dict[str, Any]  # settings as plain nested dicts


def setting(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a line of help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def group(text: str) -> Any:
    """Return a dataclass field for what conf/ builds or names, with a line of help."""
    return field(default_factory=dict, metadata={"help": text, "group": True})


@dataclass(frozen=True)
class DataSettings:
    """``data``: batches of faces. The settings of its source are given without that name, as data.path=PATH."""

    source: Config = group("what reads the images")
    split: str = setting(
        "official",
        "official: train on Training, select on PublicTest, test on PrivateTest; kaggle_folder: validate and test "
        "on both held-out splits together, as the Kaggle folder's test/ has them",
    )
    batch_size: int = setting(32, "images a training batch, all processes together")
    eval_batch_size: int = setting(128, "images a validation or test batch")
    image_size: int = setting(128, "height and width in pixels that the network gets")
    mean: float = setting(0.5, "pixels in [0, 1] are normalised as (x - mean) / std")
    std: float = setting(0.5, "see mean")
    augment_epochs: int | None = setting(
        None, "epochs after which augmentation repeats its draws, so that a teacher answers only once; null: never"
    )


@dataclass(frozen=True)
class DistillSettings:
    """``distill``: what a trained network teaches the one in training."""

    ckpt: str | list[str] | None = setting(
        None,
        "teacher: a checkpoint, a shipped network (best), or a list of them for the mean of their probabilities; "
        "each gets the images at its own size",
    )
    weight: float = setting(0.5, "share of the loss that is the distance from the teacher's answer, not the labels")
    temperature: float = setting(1.0, "what the logits of both are divided by before that")
    tta: str = setting("none", "the teacher's answer is the mean over these views, as in tta")


@dataclass(frozen=True)
class CheckpointSettings:
    """``checkpoint``: when checkpoints are written."""

    every_n_minutes: float | None = setting(
        None, "minutes after which last.ckpt is also saved within an epoch; null: at its end only"
    )


@dataclass(frozen=True)
class Settings:
    """Every setting of a run."""

    seed: int = setting(0, "of the weights, the order of the epochs and the augmentation")
    name: str | int | float | None = setting(
        None, "folder of the run under runs/<experiment>/; null: the date and time"
    )
    stages: list[str] = setting(["fit", "test"], "what to do: fit, test or both")
    ckpt: str | list[str] | None = setting(
        None,
        "checkpoint or shipped network (best) to test when there is no fit, or a list of them for the mean of "
        "their probabilities; with a fit, its weights are where that starts",
    )
    resume: str | None = setting(
        None,
        "folder of a run to go on with; where trainer.max_epochs is raised, the learning rate follows the longer "
        "schedule from there on",
    )
    label_smoothing: float = setting(0.0, "part of each training label that is spread over all classes")
    distill: DistillSettings = field(default_factory=DistillSettings)
    tta: str = setting("none", "test-time augmentation: none, mirror, shifts or ten_crop; reported beside none")
    monitor: str = setting(
        "accuracy/val", 'chooses the best checkpoint: highest, or lowest if its name begins with "loss"'
    )
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    channels_last: bool = setting(True, "memory layout of the network; it changes the speed, not the result")
    compile: bool = setting(
        False, "torch.compile for the fit: a minute at the start, then up to 25% faster, or slower: measure"
    )
    data: DataSettings = field(default_factory=DataSettings)
    augment: Config = group("what training images go through")
    model: Config = group("the network")
    optim: Config = group("the optimizer and the schedule of its learning rate")
    trainer: Config = group("arguments of Lightning's Trainer")
    callbacks: Config = group("what draws, averages and stops")
    logger: Config = group("where curves and pictures go")
    experiment: str = field(default="default", metadata={"group": True})
    overrides: list[str] = field(default_factory=list, metadata={"group": True})


def keys(kind: type = Settings, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield dotted key, type, default and help of every setting that is not chosen by name or ``_target_``."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            yield from keys(hints[one.name], f"{prefix}{one.name}.")
        elif not one.metadata.get("group"):
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            yield f"{prefix}{one.name}", hints[one.name], default, one.metadata["help"]


TYPES: dict[str, Any] = {key: kind for key, kind, _, _ in keys()}


def defaults() -> Config:
    """Return the defaults as nested dicts, for Hydra to compose with what conf/ chooses."""
    nested: Config = {}
    for key, _, default, _ in keys():
        node, _, name = key.rpartition(".")
        (nested.setdefault(node, {}) if node else nested)[name] = default
    return nested


def to_settings(cfg: Config) -> Settings:
    """Return a configuration as typed settings, with the defaults of what it lacks.

    Raises:
        UserError: a key that does not exist or a value of the wrong type, which a file has set: the command line is
            checked before.
    """
    data = cfg.get("data", {})
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict) or "_target_" not in source:
        raise UserError(
            "data.source needs a _target_, the function that reads the images, with its settings beside it; "
            "conf/data/fer2013.yaml is an example."
        )
    nodes = {"data": DataSettings, "distill": DistillSettings, "checkpoint": CheckpointSettings}
    typed = {key: call(nodes[key], key, value) if key in nodes else value for key, value in cfg.items()}
    return call(Settings, "the configuration", typed)


def to_dict(settings: Settings | DataSettings) -> Config:
    """Return settings as plain nested dicts."""
    return asdict(settings)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}


def describe(kind: Any) -> str:
    """Return in words what a setting's type accepts."""
    inner = getattr(kind, "__args__", ())
    if inner and getattr(kind, "__origin__", None) is list:
        return _WORDS[list]
    words = [describe(one) for one in inner] if inner else [_WORDS.get(kind, "null")]
    return " or ".join(word for word in dict.fromkeys(words) if word != "null" or words == ["null"])


def shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def help_text() -> str:
    """Return every setting with its default and its help, at most 80 columns wide."""
    lines = []
    for key, _, default, text in keys():
        lines.append(f"{key}={shown(default)}")
        lines += textwrap.wrap(text, 74, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
