"""Settings on the command line: names and values checked against conf/, the nearest right one named."""

import argparse
import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fer_lightning.arguments import describe_type, fits
from fer_lightning.config.compat import IntervalSweep, Override, flag_parser, parse_override
from fer_lightning.config.compose import GLOBAL_GROUPS, Conf, to_plain
from fer_lightning.config.schema import TYPES, shown, to_settings
from fer_lightning.errors import UserError, did_you_mean

# Every argument of lightning.pytorch.Trainer (2.6), listed so that a typo is answered without importing it; a test
# holds the list against the real signature.
TRAINER_ARGUMENTS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "fast_dev_run",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "inference_mode",
    "use_distributed_sampler",
    "profiler",
    "detect_anomaly",
    "barebones",
    "plugins",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "default_root_dir",
    "enable_autolog_hparams",
    "model_registry",
)
# Below these anybody may add keys, without a plus sign: `build` checks the arguments of what is built there.
_NEW_KEYS = ("callbacks", "logger")
_OPEN_NODES = (*_NEW_KEYS, "augment.transforms", "hydra")


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    parser = flag_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}. Settings are given as NAME=value, without dashes; see python train.py --help.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)  # flags may stand among the settings


def parse(text: str) -> Override:
    try:
        return parse_override(text)
    except HydraException as error:
        raise UserError(
            f"cannot read {text!r}: a setting is NAME=value, e.g. trainer.max_epochs=20. "
            "A value with spaces, commas or brackets of its own needs quotes within quotes: 'name=\"a, b\"'."
        ) from error


def values_of(override: Override) -> list[Any]:
    """Every value that an override stands for: several for a sweep."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        if getattr(override.value(), "shuffle", False):
            raise UserError(
                f"{override.input_line}: a sweep has an order, by which it is continued: leave out shuffle."
            )
        try:
            return list(override.sweep_iterator())
        except HydraException as error:
            raise UserError(f"{override.input_line}: list the choices instead, separated by commas.") from error
        except ValueError as error:  # of a range whose step is 0
            raise UserError(f"{override.input_line}: {error}.") from error
    value = override.value()
    return [value.start, value.end] if isinstance(value, IntervalSweep) else [value]


def full_key(key: str) -> str:
    """Return the key of a setting in its nodes: what of data.* is not of the batches is of their source."""
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    of_batches = name in ("", "source") or f"data.{name}" in TYPES
    return key if group != "data" or of_batches else f"data.source.{rest}"


def as_typed(text: str, typed: Mapping[str, str]) -> str:
    """Return one of Hydra's overrides as it was typed, before `check` rewrote its key."""
    key, equals, value = text.removeprefix("++").partition("=")
    return f"{typed.get(key, key)}{equals}{value}"


@dataclass(frozen=True)
class Checked:
    """Overrides that were found right."""

    for_hydra: list[str]  # with full keys, and with plus signs where keys may be new
    typed: dict[str, str]  # the key that was typed, of each full key that differs from it
    sweeper: DictConfig  # hydra.sweeper


def check(overrides: list[Override], conf: Conf) -> Checked:
    """Check the overrides, and rewrite them for Hydra.

    Raises:
        UserError: a name or value that does not exist, with the nearest one that does.
    """
    for o in overrides:
        if o.key_or_group in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            raise UserError(f"{o.input_line}: a run's folder is runs/<experiment>/<name>; set name=.")
    cfg = _with_choices(overrides, conf)
    for_hydra, typed = _rewritten(overrides, cfg, conf)
    # Once as a whole, for what Hydra would refuse at length; a group that is swept stands for its first choice.
    final = [parse(text) for text in for_hydra]
    cfg = conf.compose([_first(o) for o in final if conf.is_group(o.key_or_group) or not o.is_sweep_override()])
    if cfg.hydra.launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0 must be a number of processes, or -1 for all.")
    to_settings(to_plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])))
    return Checked(for_hydra, typed, cfg.hydra.sweeper)


def _with_choices(overrides: list[Override], conf: Conf) -> DictConfig:
    """Return the configuration with the chosen groups alone, once these and their files are checked."""
    groups = [o for o in overrides if conf.is_group(o.key_or_group)]
    for o in groups:
        _check_options(o, conf.options(o.key_or_group))
    cfg = conf.compose([_first(o) for o in groups])
    others = [o for o in overrides if o.key_or_group.startswith("hydra/") and o not in groups]
    known_groups = cfg.hydra.runtime.choices
    for o in others:
        if o.key_or_group not in known_groups:
            raise UserError(f"{o.key_or_group} does not exist.{did_you_mean(o.key_or_group, known_groups)}")
    if others:
        cfg = conf.compose([_first(o) for o in [*groups, *others]])
    _check_launcher(cfg.hydra.runtime.choices["hydra/launcher"], cfg.hydra.launcher._target_)
    choices = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if "/" not in group}
    without_global = [f"{group}={choice}" for group, choice in choices.items() if group not in GLOBAL_GROUPS]
    _check_keys(cfg, conf.compose(without_global))
    for key in cfg.hydra.sweeper.get("params") or {}:  # set by a file in conf/
        if (full := full_key(key)) != key and full in set(_leaves(cfg)):
            raise UserError(f"hydra.sweeper.params: {key} does not exist. Did you mean {full}?")
    return cfg


def _check_options(override: Override, options: set[str]) -> None:
    """Check the choices of a group, also several in a list or in a sweep."""
    group = override.key_or_group
    for value in values_of(override):
        for option in value if isinstance(value, list) else [value]:
            if str(option) not in options:
                known = ", ".join(sorted(options - {"null", "None"}))
                near = did_you_mean(str(option), options)
                raise UserError(f"{group}={option} does not exist.{near} There are: {known}.")


def _rewritten(overrides: list[Override], cfg: DictConfig, conf: Conf) -> tuple[list[str], dict[str, str]]:
    """Return the overrides for Hydra, each checked, and the typed key of each full key that differs from it."""
    for_hydra, typed = [], {}
    own_source = any(full_key(o.key_or_group) == "data.source._target_" for o in overrides)
    # Nodes whose keys may be new: what is built there checks its arguments itself.
    new_keys = ("trainer.", *(f"{node}." for node in _NEW_KEYS), *(["data.source."] if own_source else []))
    for o in overrides:
        text, key = str(o.input_line), o.key_or_group
        if not conf.is_group(key):
            full = full_key(key)
            if full != key:
                typed[full] = key
                text = text.replace(key, full, 1)
            if full.startswith(new_keys) and not o.is_delete():
                text = "++" + text.lstrip("+")
            if not _is_open(full) and not (own_source and full.startswith("data.source.")):
                check_value(o, cfg, conf)
        for_hydra.append(text)
    return for_hydra, typed


def check_search(sweeper: DictConfig, overrides: list[Override]) -> None:
    """Finds what a sweep's values and its sweeper cannot do together."""
    if sweeper._target_ != "hydra_plugins.optuna_sweeper.OptunaSweeper":
        for o in overrides:
            if o.is_interval_sweep():
                raise UserError(f"{o.input_line}: a sweep needs its values listed; or search, by sweep=optuna.")
    elif not importlib.util.find_spec("optuna"):
        raise UserError('sweep=optuna needs Optuna: pip install -e ".[sweep]".')
    elif not sweeper.params and not any(o.is_sweep_override() for o in overrides):
        raise UserError("sweep=optuna has nothing to search: give it e.g. 'optim.lr=tag(log,interval(1e-4,1e-2))'.")
    for o in overrides:
        values = o.value()
        if isinstance(values, IntervalSweep):
            low = 0.0 if "log" in values.tags else float("-inf")
            start, end = (float(value or 0) for value in (values.start, values.end))
            if not low < start < end:
                raise UserError(
                    f"{o.input_line}: an interval goes from low to high, and on a log scale from above 0."
                )


def _check_launcher(name: str, target: str) -> None:
    try:
        import_module(target.rpartition(".")[0])
    except ImportError as error:
        raise UserError(f'hydra/launcher={name} is not installed: pip install -e ".[launchers]".') from error
    if target.endswith(".SlurmLauncher") and not shutil.which("srun"):
        raise UserError(
            f"hydra/launcher={name} finds no Slurm here, for srun is not in the PATH: start it on the cluster, "
            "where sbatch and srun are, or take hydra/launcher=joblib."
        )


def _is_open(key: str) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in _OPEN_NODES) or key.startswith("hydra/")


def _first(override: Override) -> str:
    """A sweep over a group stands for its first choice, to see which keys there are."""
    text = override.input_line
    assert text is not None
    if not override.is_sweep_override():
        return text
    return f"{override.get_key_element()}={values_of(override)[0]}"


def _leaves(cfg: DictConfig) -> Iterator[str]:
    """Every key of a configuration with dots, those of the nodes included."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, child in node.items():
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from walk(child, f"{prefix}{key}.")

    yield from walk(OmegaConf.to_container(cfg), "")


def _check_keys(cfg: DictConfig, known: DictConfig) -> None:
    """Finds the keys that an experiment's or sweep's YAML misspells: Hydra would take them as new ones."""
    known_names = set(_leaves(known))
    for name in _leaves(cfg):
        if name in known_names or _is_open(name):
            continue
        if name.startswith("trainer.") and name.split(".")[1] in TRAINER_ARGUMENTS:
            continue
        names = _known_keys(known)
        raise UserError(f"{name} (set in a YAML file) does not exist.{did_you_mean(name, names)}")


def _known_keys(cfg: DictConfig) -> set[str]:
    own = {name for name in _leaves(cfg) if not _is_open(name)}
    return own | {f"trainer.{name}" for name in TRAINER_ARGUMENTS}


def _typed_keys(cfg: DictConfig) -> set[str]:
    known = _known_keys(cfg)
    return known | {key.replace("data.source.", "data.") for key in known}


def check_value(override: Override, cfg: DictConfig, conf: Conf) -> None:
    key = full = override.key_or_group
    if key.startswith("trainer."):
        if key.split(".")[1] not in TRAINER_ARGUMENTS:
            raise UserError(
                f"{key} is not an argument of Lightning's Trainer.{did_you_mean(key, _typed_keys(cfg))}"
            )
        if key != "trainer.max_epochs":
            return  # Trainer takes values of several types for most, and says itself what it does not take
    elif (full := full_key(key)) not in set(_leaves(cfg)):
        raise UserError(f"{key} does not exist.{did_you_mean(key, _typed_keys(cfg) | conf.groups())}")
    if override.is_delete():
        return
    default = OmegaConf.select(cfg, full)
    if OmegaConf.is_list(default):
        default = OmegaConf.to_object(default)
    for value in values_of(override):
        expected = _expected(value, TYPES.get(full, _type_of(default)))
        if expected:
            example = f", e.g. {key}={shown(default)}" if default is not None else ""
            raise UserError(f"{key}={shown(value)}: expected {expected}{example}.")


def _type_of(default: Any) -> Any:
    """Return the type of a setting's default in conf/, where a setting has no other; null goes with anything."""
    if isinstance(default, list):
        return list[Any] | None
    return type(default) | None if isinstance(default, bool | int | float | str) else Any


def _expected(value: Any, kind: Any) -> str | None:
    """Return what a value should have been, or None if it is right or not known yet."""
    if fits(value, kind) or (isinstance(value, str) and "${" in value):
        return None
    return describe_type(kind)
