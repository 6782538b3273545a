"""Check the settings of the command line against conf/ and the schema, and suggest the closest valid name."""

import argparse
import importlib.util
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf, open_dict

from fer_lightning.arguments import describe_type, fits
from fer_lightning.config.compat import IntervalSweep, Override, flag_parser
from fer_lightning.config.compose import CONF, GLOBAL_GROUPS, Conf, to_plain
from fer_lightning.config.grammar import parse, quoting_hint, values_of
from fer_lightning.config.schema import EXAMPLES, PATHS, RENAME, SOURCE_TYPES, TYPES, full_key, shown, to_settings
from fer_lightning.errors import UserError, did_you_mean

# Every argument of lightning.pytorch.Trainer (2.6), listed so that typos are found without importing Lightning. A
# test compares the list with the real signature.
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
# Nodes that accept new keys without a plus sign, because `build` checks the arguments of the objects in them.
_NEW_KEYS = ("callbacks", "logger")
_OPEN_NODES = (*_NEW_KEYS, "augment.transforms", "hydra")


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Parse Hydra's flags; ``overrides`` holds the other arguments.

    Raises:
        UserError: an unknown flag, or one with a wrong value.
    """
    parser = flag_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}. Give settings as NAME=value, without dashes; see python train.py --help.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)  # flags may appear between the settings


def as_choice(override: Override, conf: Conf) -> Override:
    """Return the choice of a config group as GROUP=choice, in place of forms that Hydra refuses.

    Plus signs are dropped, because conf/train.yaml has a default for each group in conf/. null, an empty list and
    ~GROUP become none in the groups that have it.
    """
    group, text = override.key_or_group, str(override.input_line)
    value = text.partition("=")[2]
    if not conf.is_group(group) or override.package or (override.is_delete() and override.value()):
        return override
    value = "null" if override.is_delete() or value.strip() == "[]" else value
    if "none" in conf.options(group):
        value = re.sub(r"(?<![\w./-])(null|none)(?![\w./-])", "none", value, flags=re.IGNORECASE)
    key = group if CONF.is_group(group) or override.is_delete() else override.get_key_element()
    return parse(f"{key}={value}")


def as_typed(text: str, typed: Mapping[str, str]) -> str:
    """Return an override the way it was typed, before `check` rewrote it for Hydra."""
    key, equals, value = text.removeprefix("++").partition("=")
    return f"{typed.get(key, key)}{equals}{value}"


@dataclass(frozen=True)
class Checked:
    """Overrides that passed the check."""

    for_hydra: list[str]  # with full keys, and with plus signs where new keys are allowed
    typed: dict[str, str]  # full key -> typed key, where they differ
    # Composed, Hydra's node included: without swept settings, with the first choice of swept groups.
    cfg: DictConfig
    unfit: list[str]  # full keys removed from `cfg`; see `unfit_keys`


def check(overrides: list[Override], conf: Conf) -> Checked:
    """Check the overrides and rewrite them for Hydra.

    Raises:
        UserError: an unknown name or a wrong value; the message suggests the closest valid one.
    """
    for o in overrides:
        if o.key_or_group in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            raise UserError(f"{o.input_line}: a run's folder is runs/<experiment>/<name>. Set name instead.")
        if o.key_or_group == "hydra.mode":
            raise UserError(f"{o.input_line}: leave it out, and add -m for a sweep.")
    _names.cache_clear()  # the files may have changed since the last command of this process
    cfg, unfit = _compose_choices(overrides, conf)
    for o in overrides:
        if o.key_or_group.startswith("hydra.sweeper.params.") and cfg.hydra.sweeper.get("params") is None:
            raise UserError(f"{o.input_line}: the sweeper has no params. Give NAME=VALUES, with -m.")
    for_hydra, typed = _rewrite(overrides, cfg, conf)
    # Compose everything once to get one-line errors for what Hydra would report at length. A swept group is set to
    # its first choice.
    final = [parse(text) for text in for_hydra]
    cfg = conf.compose(
        [_first_value(o) for o in final if conf.is_group(o.key_or_group) or not o.is_sweep_override()]
    )
    remove(cfg, unfit)
    for node in ("launcher", "sweeper"):
        if not cfg.hydra[node]:
            raise UserError(f"hydra.{node}=null: expected settings. Leave it out, or give hydra/{node}=NAME.")
    if cfg.hydra.launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0: expected a number of processes, or -1 for all cores.")
    to_settings(to_plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])))
    return Checked(for_hydra, typed, cfg, unfit)


def _compose_choices(overrides: list[Override], conf: Conf) -> tuple[DictConfig, list[str]]:
    """Check the chosen groups and their files.

    Returns:
        The configuration with these choices only, and the keys that `unfit_keys` removed from it.
    """
    groups = [o for o in overrides if conf.is_group(o.key_or_group)]
    for o in groups:
        _check_options(o, conf.options(o.key_or_group))
    cfg = conf.compose([_first_value(o) for o in groups])
    others = [o for o in overrides if o.key_or_group.startswith("hydra/") and o not in groups]
    known_groups = cfg.hydra.runtime.choices
    for o in others:
        if o.key_or_group not in known_groups:
            raise UserError(f"{o.key_or_group} does not exist.{did_you_mean(o.key_or_group, known_groups)}")
        if o.is_delete() or not all(isinstance(value, str) for value in values_of(o)):
            raise UserError(f"{o.input_line}: expected {o.key_or_group}=NAME. Leave it out for the default.")
    if others:
        cfg = conf.compose([_first_value(o) for o in [*groups, *others]])
    _check_launcher(cfg.hydra.runtime.choices["hydra/launcher"], cfg.hydra.launcher._target_)
    unfit = unfit_keys(cfg, cfg.hydra.runtime.choices, conf)
    remove(cfg, unfit)
    _check_files(cfg, conf)
    return cfg, unfit


def unfit_keys(cfg: DictConfig, choices: Mapping[str, Any], conf: Conf) -> list[str]:
    """Return the keys that an experiment sets for its own choices, but that the choices in their place do not have.

    experiment=demo sets the channels of its network; with model=torchvision, model.channels is such a key.

    Args:
        cfg: a composed configuration.
        choices: config group -> choice, as in ``hydra.runtime.choices``.
        conf: the folders of the configuration files.
    """
    if not choices.get("experiment"):
        return []
    others = {group: choice for group, choice in choices.items() if choice and "/" not in group}
    experiment = others.pop("experiment")
    without = _names(conf, tuple(f"{group}={choice}" for group, choice in others.items()))
    added = [name for name in _leaves(cfg) if name not in without and not _is_open(name)]
    if not added:
        return []
    own = _names(conf, _without_global(conf.compose([f"experiment={experiment}"])))
    return [name for name in added if name in own]


@cache
def _names(conf: Conf, overrides: tuple[str, ...]) -> frozenset[str]:
    """Return every dotted key of a configuration; composing it takes 0.1 s, and each run of a sweep asks for it."""
    return frozenset(_leaves(conf.compose([*overrides])))


def _without_global(cfg: DictConfig) -> tuple[str, ...]:
    """Return the choices of a configuration, but without those of GLOBAL_GROUPS."""
    choices = cfg.hydra.runtime.choices.items()
    return tuple(
        f"{group}={choice}" for group, choice in choices if "/" not in group and group not in GLOBAL_GROUPS
    )


def remove(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Remove dotted keys from a configuration, if it has them."""
    with open_dict(cfg):
        for key in keys:
            node, _, name = key.rpartition(".")
            if OmegaConf.is_dict(parent := OmegaConf.select(cfg, node)):
                parent.pop(name, None)


def _check_files(cfg: DictConfig, conf: Conf) -> None:
    """Check the keys that the files of the chosen groups set."""
    if any(cfg.hydra.runtime.choices.get(group) for group in GLOBAL_GROUPS):  # only their files can add keys
        _check_keys(cfg, _names(conf, _without_global(cfg)))
    for key in cfg.hydra.sweeper.get("params") or {}:
        if (full := full_key(key)) != key and full in set(_leaves(cfg)):
            raise UserError(f"hydra.sweeper.params: {key} does not exist. Did you mean {full}?")


def _check_options(override: Override, options: set[str]) -> None:
    """Check the choices of a group, including those in a list or sweep."""
    group = override.key_or_group
    for value in values_of(override):
        for option in value if isinstance(value, list) else [value]:
            if str(option) not in options:
                near = did_you_mean(str(option), options)
                known = f" Choose from {', '.join(sorted(options))}." if options else ""
                raise UserError(f"{group}={shown(option)} does not exist.{near}{known}")


def _rewrite(overrides: list[Override], cfg: DictConfig, conf: Conf) -> tuple[list[str], dict[str, str]]:
    """Check each override; return them for Hydra, and the typed key for each full key that differs from it."""
    for_hydra, typed = [], {}
    named = {full_key(o.key_or_group) for o in overrides}
    own = tuple(f"{node}." for node in ("data.source", "augment") if f"{node}._target_" in named)
    # Nodes that accept new keys, because their arguments are checked when the object is built.
    new_keys = ("trainer.", RENAME, *(f"{node}." for node in _NEW_KEYS), *own)
    for o in overrides:
        text, key = str(o.input_line), o.key_or_group
        if not conf.is_group(key):
            full = full_key(key)
            if full != key:
                typed[full] = key
                text = text.replace(key, full, 1)
            if full.startswith(new_keys) and not o.is_delete():
                text = "++" + text.lstrip("+")
            if not _is_open(full) and not full.startswith(own):
                check_value(o, cfg, conf)
        for_hydra.append(text)
    return for_hydra, typed


def check_search(sweeper: DictConfig, overrides: list[Override]) -> None:
    """Check that the sweeper can handle the values of a sweep.

    Raises:
        UserError: an interval without a search, a search without Optuna or without values, or an empty interval.
    """
    if sweeper._target_ != "hydra_plugins.optuna_sweeper.OptunaSweeper":
        for o in overrides:
            if o.is_interval_sweep():
                raise UserError(
                    f"{o.input_line}: an interval needs a search. Add sweep=optuna, or list the values."
                )
    elif not importlib.util.find_spec("optuna"):
        raise UserError('sweep=optuna needs Optuna: pip install -e ".[sweep]".')
    elif not sweeper.params and not any(o.is_sweep_override() for o in overrides):
        raise UserError("sweep=optuna has nothing to search. Add e.g. 'optim.lr=tag(log,interval(1e-4,1e-2))'.")
    for o in overrides:
        values = o.value()
        if isinstance(values, IntervalSweep):
            low = 0.0 if "log" in values.tags else float("-inf")
            start, end = (float(value or 0) for value in (values.start, values.end))
            if not low < start < end:
                raise UserError(
                    f"{o.input_line}: expected interval(low,high) with low < high, and 0 < low on a log scale."
                )


def _check_launcher(name: str, target: str) -> None:
    try:
        import_module(target.rpartition(".")[0])
    except ImportError as error:
        raise UserError(f'hydra/launcher={name} is not installed: pip install -e ".[launchers]".') from error
    if target.endswith(".SlurmLauncher") and not shutil.which("srun"):
        raise UserError(
            f"hydra/launcher={name}: srun is not on the PATH. Run it on a Slurm cluster, where sbatch and srun are "
            "available, or use hydra/launcher=joblib."
        )


def _is_open(key: str) -> bool:
    return key in _OPEN_NODES or key.startswith(("hydra/", RENAME, *(f"{node}." for node in _OPEN_NODES)))


def _first_value(override: Override) -> str:
    """Return an override with the first value of a sweep, to find out which keys exist."""
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


def _leaves(cfg: DictConfig) -> Iterator[str]:
    """Yield every dotted key of a configuration, including the keys of nodes."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, child in node.items():
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from walk(child, f"{prefix}{key}.")

    yield from walk(OmegaConf.to_container(cfg), "")


def _check_keys(cfg: DictConfig, known: Collection[str]) -> None:
    """Check that experiments and sweeps set existing keys only; Hydra would add a misspelt key as a new one."""
    for name in _leaves(cfg):
        if name in known or _is_open(name):
            continue
        if name.startswith("trainer.") and name.split(".")[1] in TRAINER_ARGUMENTS:
            continue
        names = _known_keys(known)
        raise UserError(f"{name} (set in a YAML file) does not exist.{did_you_mean(name, names)}")


def _known_keys(names: Iterable[str]) -> set[str]:
    configured = {name for name in names if not _is_open(name)}
    return configured | {f"trainer.{name}" for name in TRAINER_ARGUMENTS}


def _typed_keys(cfg: DictConfig) -> set[str]:
    known = _known_keys(_leaves(cfg))
    return known | {key.replace("data.source.", "data.") for key in known}


def _suggestion(key: str, names: set[str]) -> str:
    """Return which of the names a misspelt key may mean, those of its own group first."""
    group, dot, rest = key.partition(".")
    siblings = sorted(name for name in names if name.startswith(f"{group}{dot}"))
    if not (dot and siblings):
        return did_you_mean(key, names)
    same_name = sorted(name for name in names if name.rpartition(".")[2] == rest)
    return did_you_mean(key, siblings) or did_you_mean(key, same_name) or f" Choose from {', '.join(siblings)}."


def check_value(override: Override, cfg: DictConfig, conf: Conf) -> None:
    """Check the key of an override, and the type of each of its values.

    Args:
        override: sets a key outside the open nodes.
        cfg: the configuration that it changes.
        conf: the folders whose groups a misspelt key may have meant.

    Raises:
        UserError: the key does not exist, or a value is of the wrong type.
    """
    key = full = override.key_or_group
    if key.startswith("trainer."):
        if key.split(".")[1] not in TRAINER_ARGUMENTS:
            raise UserError(
                f"{key} is not an argument of Lightning's Trainer.{did_you_mean(key, _typed_keys(cfg))}"
            )
        if key != "trainer.max_epochs":
            return  # most arguments accept several types, and Trainer reports wrong values itself
    elif (full := full_key(key)) not in set(_leaves(cfg)):
        raise UserError(f"{key} does not exist.{_suggestion(key, _typed_keys(cfg) | conf.groups())}")
    if override.is_delete():
        return
    default = OmegaConf.select(cfg, full)
    if OmegaConf.is_list(default):
        default = OmegaConf.to_object(default)
    kind = _type_of(full, default)
    for value in values_of(override):
        is_interpolation = isinstance(value, str) and "${" in value  # its value is not known yet
        null_for_guessed_type = value is None and full not in TYPES
        if not (is_interpolation or null_for_guessed_type or fits(value, kind)):
            suggested = EXAMPLES.get(full, default)
            example = f", e.g. {key}={shown(suggested)}" if suggested is not None else ""
            raise UserError(
                f"{key}={shown(value)}: expected {describe_type(kind)}{example}.{quoting_hint(override)}"
            )


def _type_of(key: str, default: Any) -> Any:
    """Return the type of a setting; outside the schema, guess it from the default in conf/."""
    if key in TYPES:
        return TYPES[key]
    if key in SOURCE_TYPES:
        return SOURCE_TYPES[key]
    if key in PATHS and default is None:
        return str | None
    if isinstance(default, list):
        return list[Any]
    return type(default) if isinstance(default, bool | int | float | str) else Any
