"""The text of ``python train.py --help``: the choices of every config group, and every setting once.

conf/train.yaml inserts it through the resolver ``settings_help``. Lines are at most 80 columns wide, unless a name
or value is longer.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.schema import TYPES, Settings, keys, shown

_COLUMNS = 80


def register() -> None:
    """Make ``${settings_help:}`` available to Hydra's configuration."""
    OmegaConf.register_new_resolver("settings_help", _settings_help, replace=True)


def _settings_help(*, _root_: DictConfig) -> str:
    """Return the groups, and the settings with the values that this command line gives them."""
    lines = ["== Config groups =="]
    for group, choices in _groups(GlobalHydra.instance().config_loader()):
        lines += _wrapped(f"{group}: {', '.join(choices)}", "", "    ")
    lines += ["", "== Settings =="]
    for key, _, _, text in keys():
        value = OmegaConf.select(_root_, key)
        value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        lines += [f"{key}={shown(value)}", *_wrapped(text, "    ", "    ")]
    lines += ["", "== Settings of the chosen groups =="]
    chosen = _root_.hydra.runtime.choices
    for entry in fields(Settings):
        group, node = entry.name, OmegaConf.select(_root_, entry.name)
        if OmegaConf.is_dict(node) and "help" in entry.metadata:
            choice = f"{group}={chosen[group]}" if group in chosen else group  # Hydra omits lists of choices
            lines += _wrapped(f"{choice}: {entry.metadata['help']}", "", "    ")
            values = _leaves(OmegaConf.to_container(node, resolve=True), f"{group}.")
            lines += [f"    {key}={shown(value)}" for key, value in values if key not in TYPES]
    # Hydra substitutes $NAME in the text.
    return "\n".join(lines).replace("$", "$$")


def _wrapped(text: str, first_indent: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _groups(loader: ConfigLoader, parent: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield every config group except Hydra's own, with its choices."""
    for name in loader.list_groups(parent):
        group = f"{parent}/{name}" if parent else name
        if group != "hydra":
            choices = loader.get_group_options(group)
            if choices:
                yield group, sorted(choices)
            yield from _groups(loader, group)


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every value below a node with its key as typed on the command line: data.NAME for data.source.NAME."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, prefix if f"{prefix}{key}" == "data.source" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
