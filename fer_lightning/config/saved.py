"""Read a run's config.yaml to resume the run. The file is untrusted."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.compat import Override
from fer_lightning.config.compose import CONF, Conf, first_lines, to_plain
from fer_lightning.config.overrides import TRAINER_ARGUMENTS, check_value
from fer_lightning.config.schema import TYPES, Settings, defaults, full_key, to_settings
from fer_lightning.errors import UserError

_MAX_CONFIG = 2**20  # characters; a run's config.yaml has about 2,000
# Arguments of Trainer that could make it write or send data elsewhere.
_OUTWARD = ("trainer.default_root_dir", "trainer.logger", "trainer.model_registry")
# Arguments of loggers that could not.
_HARMLESS = ("max_queue", "flush_secs", "flush_logs_every_n_steps", "group", "job_type", "notes")


def _check_yaml(text: str) -> None:
    """Raise ValueError for YAML that no run writes and that could do harm when it is merely loaded."""
    if "${" in text:  # ${oc.env:...} would copy a secret of this machine into the next config.yaml
        raise ValueError("it contains ${...}")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        # Nested aliases could exhaust memory, and deep nesting would take very long to parse.
        if isinstance(event, yaml.AliasEvent) or depth > 20:
            raise ValueError("it contains aliases or is nested too deeply")


def _check_saved(saved: DictConfig, named: set[str], conf: Conf) -> None:
    """Check that an untrusted config.yaml names only classes, functions and settings that conf/ names.

    Anything else, such as a custom callback, has to be named again on the command line that resumes the run.

    Args:
        saved: the configuration.
        named: full keys that the command line names.
        conf: the folders whose classes and settings are trusted.

    Raises:
        UserError: it names something that conf/ does not.
        ValueError: it is not the configuration of a run.
    """
    plain = OmegaConf.to_container(saved)
    assert isinstance(plain, dict)
    for group in ("data", "augment", "model", "optim", "trainer", "callbacks", "logger"):
        if not isinstance(plain.get(group), dict):
            raise ValueError(f"{group} is not a mapping")
    if not all(isinstance(text, str) for text in [plain["experiment"], *plain["overrides"]]):
        raise ValueError("experiment or overrides is not a string")
    shipped = _shipped(conf)
    # Naming the class on the command line is explicit consent to its arguments.
    named |= {name.removesuffix("._target_") for name in named}
    for key, value in _entries(plain):
        is_named = any(key == name or key.startswith(f"{name}.") for name in named)
        if not is_named and not _is_known(key, value, shipped):
            raise UserError(
                f"resume: {key}={value} is not one of the settings and classes in conf/; a config.yaml from an "
                f"untrusted source could run any code this way. If you trust it, add {key}={value}"
            )


def _shipped(conf: Conf) -> dict[str, set[Any]]:
    """Return every key in conf/, with the values that it has there.

    Raises:
        UserError: a file cannot be read or parsed.
    """
    shipped: dict[str, set[Any]] = {}
    for prefix, path in conf.files():
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
            raise UserError(f"{path} cannot be read: {first_lines(error)}") from error
        for key, value in _entries(content, prefix):
            shipped.setdefault(key, set()).add(value)
    return shipped


def _is_known(key: str, value: Any, shipped: dict[str, set[Any]]) -> bool:
    """Return whether conf/ could have set a saved setting."""
    group, _, rest = key.partition(".")
    if key.endswith("_target_"):
        return any(value in values for name, values in shipped.items() if name.endswith("_target_"))
    if group == "trainer":
        return rest.partition(".")[0] in TRAINER_ARGUMENTS and key not in _OUTWARD
    if group == "logger" and rest.partition(".")[2] in _HARMLESS:
        return True
    chosen = group in ("data", "augment", "callbacks", "logger")
    return not chosen or key in TYPES or key in shipped or "[" in key


def _entries(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar with its dotted key; a list element's key ends in its index in brackets."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _entries(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _entries(value, f"{prefix}[{number}]")
    else:
        yield prefix, content


def _nest_source(data: DictConfig) -> None:
    """Move the settings of the data source into data.source; runs of version 0.1.0 have them in data itself."""
    if "source" in data:
        return
    data.source = {key: data.pop(key) for key in list(data) if f"data.{key}" not in TYPES}


def _name_logger(saved: DictConfig) -> None:
    """Give the logger a name; runs of version 0.1.0 have at most one, without a name."""
    if "_target_" in (saved.get("logger") or {}):
        saved.logger = {"tensorboard": saved.logger}


def resumed(folder: Path, overrides: list[Override], named: Iterable[Override] = (), conf: Conf = CONF) -> Settings:
    """Return the settings of a run to resume, with changes from the command line.

    Args:
        folder: the run's folder.
        overrides: single values to change.
        named: further overrides of the command line, which name what the run may build, e.g. a custom callback.
        conf: the folders whose classes and settings are trusted.

    Raises:
        UserError: there is no run, its config.yaml is damaged or could run code, or a value cannot be changed.
    """
    saved = _read(folder, [*overrides, *named], conf)
    # Settings that are newer than the run get their defaults.
    merged = OmegaConf.merge(defaults(), saved)
    assert isinstance(merged, DictConfig)
    for override in overrides:
        _check_change(override, folder, merged, conf)
        OmegaConf.update(merged, full_key(override.key_or_group), override.value(), force_add=True)
    settings = to_settings(to_plain(merged))
    all_overrides = [*settings.overrides, *(str(override.input_line) for override in overrides)]
    return replace(settings, resume=str(folder), overrides=all_overrides)


def _read(folder: Path, named: Iterable[Override], conf: Conf) -> DictConfig:
    """Load a run's config.yaml after checking that it is harmless.

    Raises:
        UserError: it does not exist, is damaged, or names something that conf/ does not.
    """
    path = folder / "config.yaml"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"more than {_MAX_CONFIG:,} characters")
        _check_yaml(text)
        saved = OmegaConf.load(io.StringIO(text))
        if not isinstance(saved, DictConfig) or not isinstance(saved.get("data"), DictConfig):
            raise ValueError("it or its data is not a mapping")
        _nest_source(saved.data)
        _name_logger(saved)
        _check_saved(saved, {full_key(override.key_or_group) for override in named}, conf)
    except OSError as error:
        raise UserError(
            f"resume={folder}: no run to resume ({error.strerror or error}: {path}). "
            "Give the folder with the run's config.yaml and checkpoints/."
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"resume={folder}: {path} is damaged: {first_lines(error)}") from error
    return saved


def _check_change(override: Override, folder: Path, saved: DictConfig, conf: Conf) -> None:
    """Raise UserError for a setting that a resumed run cannot change."""
    key, text = override.key_or_group, override.input_line
    if conf.is_group(key):
        raise UserError(
            f"{text}: a resumed run keeps its {key}. Change single values instead, e.g. trainer.max_epochs=40."
        )
    if key.partition(".")[0] in ("model", "optim", "finetune"):
        raise UserError(
            f"{text}: a resumed run keeps its network and optimizer. To start a new run from its weights, use "
            f"ckpt={folder}/checkpoints/last.ckpt."
        )
    without_fit = key == "stages" and "fit" not in str(override.value())
    if key in ("ckpt", "monitor", "seed", "data.fold") or without_fit:
        raise UserError(
            f"{text}: a resumed run continues its fit. To test a checkpoint, start a new run with "
            f"stages=[test] ckpt={folder}/checkpoints/best.ckpt."
        )
    check_value(override, saved, conf)
    if override.is_delete() or override.is_sweep_override():
        raise UserError(f"{text}: a resumed run accepts single values only, as NAME=value.")
