"""A run's config.yaml, read again to go on with the run; it may come from a stranger."""

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
from fer_lightning.config.overrides import TRAINER_ARGUMENTS, check_value, full_key
from fer_lightning.config.schema import TYPES, Settings, defaults, to_settings
from fer_lightning.errors import UserError

_MAX_CONFIG = 2**20  # characters; a run's config.yaml has 2,000
# Which of Trainer's arguments make it write, or send, to anywhere else.
_OUTWARD = ("trainer.default_root_dir", "trainer.logger", "trainer.model_registry")


def _check_yaml(text: str) -> None:
    """Raises ValueError for what no run has saved, and what reading alone could do harm by."""
    if "${" in text:  # ${oc.env:...} would put a secret of this machine into the next config.yaml
        raise ValueError("it holds ${...}")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        # Aliases of aliases would fill the memory; and a reader of its depth would take forever.
        if isinstance(event, yaml.AliasEvent) or depth > 20:
            raise ValueError("it holds aliases or is nested too deep")


def _check_saved(saved: DictConfig, named: set[str], conf: Conf) -> None:
    """Checks a run's config.yaml, which may come from a stranger.

    It may name only what conf/ names: classes and functions to build, and settings. Everything else, such as a
    callback of one's own, has to be named again by the command that resumes.

    Args:
        saved: the configuration.
        named: keys of the command line.
        conf: the folders whose classes and settings it may name.

    Raises:
        UserError: something that conf/ does not name.
        ValueError: no configuration of a run.
    """
    plain = OmegaConf.to_container(saved)
    assert isinstance(plain, dict)
    for group in ("data", "augment", "model", "optim", "trainer", "callbacks", "logger"):
        if not isinstance(plain.get(group), dict):
            raise ValueError(f"{group} is not a mapping")
    if not all(isinstance(text, str) for text in [plain["experiment"], *plain["overrides"]]):
        raise ValueError("experiment or overrides is not text")
    shipped = _shipped(conf)
    named |= {name.removesuffix("._target_") for name in named}  # naming the class again is explicit consent
    for key, value in _entries(plain):
        is_named = any(key == name or key.startswith(f"{name}.") for name in named)
        if not is_named and not _is_known(key, value, shipped):
            raise UserError(
                f"resume: {key}={value} is not one of the settings and classes in conf/, and a configuration from "
                f"elsewhere could run anything by it. If it is yours, say it again: {key}={value}"
            )


def _shipped(conf: Conf) -> dict[str, set[Any]]:
    """Every key in conf/, with the values that it has there."""
    found: dict[str, set[Any]] = {}
    for prefix, path in conf.files():
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
            raise UserError(f"{path} cannot be read: {first_lines(error)}") from error
        for key, value in _entries(content, prefix):
            found.setdefault(key, set()).add(value)
    return found


def _is_known(key: str, value: Any, shipped: dict[str, set[Any]]) -> bool:
    """Return whether a saved setting is one that conf/ could have set."""
    group, _, rest = key.partition(".")
    if key.endswith("_target_"):
        return any(value in values for name, values in shipped.items() if name.endswith("_target_"))
    if group == "trainer":
        return rest.partition(".")[0] in TRAINER_ARGUMENTS and key not in _OUTWARD
    chosen = group in ("data", "augment", "callbacks", "logger")
    return not chosen or key in TYPES or key in shipped or "[" in key


def _entries(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value with its dotted key; elements of a list have their number in brackets."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _entries(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _entries(value, f"{prefix}[{number}]")
    else:
        yield prefix, content


def _nest_source(data: DictConfig) -> None:
    """Give the settings of a data source their own node, as runs begun with version 0.1.0 do not."""
    if "source" in data:
        return
    data.source = {key: data.pop(key) for key in list(data) if f"data.{key}" not in TYPES}


def resumed(folder: Path, overrides: list[Override], named: Iterable[Override] = (), conf: Conf = CONF) -> Settings:
    """Return the configuration of a run to go on with.

    Args:
        folder: of the run.
        overrides: single values to change.
        named: what else the command line says, such as the class of a callback of one's own.
        conf: the folders whose classes and settings a run may name.

    Raises:
        UserError: there is no such run, its config.yaml is damaged or could run code, or a value cannot be changed.
    """
    saved = _read(folder, [*overrides, *named], conf)
    # A run begun before a setting existed gets its default.
    merged = OmegaConf.merge(defaults(), saved)
    assert isinstance(merged, DictConfig)
    for override in overrides:
        _check_change(override, folder, merged, conf)
        OmegaConf.update(merged, full_key(override.key_or_group), override.value(), force_add=True)
    settings = to_settings(to_plain(merged))
    said = [*settings.overrides, *(str(override.input_line) for override in overrides)]
    return replace(settings, resume=str(folder), overrides=said)


def _read(folder: Path, named: Iterable[Override], conf: Conf) -> DictConfig:
    """Return what a run's config.yaml holds, once it is known to be harmless."""
    path = folder / "config.yaml"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"more than {_MAX_CONFIG:,} characters")
        _check_yaml(text)
        saved = OmegaConf.load(io.StringIO(text))
        if not isinstance(saved, DictConfig) or not isinstance(saved.get("data"), DictConfig):
            raise ValueError("not a mapping, or data is not one")
        _nest_source(saved.data)
        _check_saved(saved, {full_key(override.key_or_group) for override in named}, conf)
    except OSError as error:
        raise UserError(
            f"resume={folder}: there is no run to go on with ({error.strerror or error}: {path}). "
            "Give the folder that holds the run's config.yaml and checkpoints/."
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"resume={folder}: {path} is damaged: {first_lines(error)}") from error
    return saved


def _check_change(override: Override, folder: Path, saved: DictConfig, conf: Conf) -> None:
    """Raise UserError for what a resumed run cannot change."""
    key, text = override.key_or_group, override.input_line
    if conf.is_group(key):
        raise UserError(
            f"{text}: a resumed run keeps its own {key}; only single values can be changed, e.g. "
            "trainer.max_epochs=40."
        )
    if key.partition(".")[0] in ("model", "optim"):
        raise UserError(
            f"{text}: a resumed run keeps its own network and optimizer; a new run can start from its weights by "
            f"ckpt={folder}/checkpoints/last.ckpt."
        )
    without_fit = key == "stages" and "fit" not in str(override.value())
    if key in ("ckpt", "monitor", "seed") or without_fit:
        raise UserError(
            f"{text}: a resumed run goes on with its own fit. To test a checkpoint, do so in a run of its own: "
            f"stages=[test] ckpt={folder}/checkpoints/best.ckpt."
        )
    check_value(override, saved, conf)
    if override.is_delete() or override.is_sweep_override():
        raise UserError(f"{text}: a resumed run takes single values only, as NAME=value.")
