"""Configurations out of conf/, as plain dicts, and the objects that they name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.arguments import call
from fer_lightning.config.schema import Config, defaults, help_text
from fer_lightning.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
# Within the package where it was installed from a wheel, beside it in a clone.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (path / "train.yaml").exists())

# What conf/train.yaml takes from config/schema.py: the defaults, and the text of --help.
ConfigStore.instance().store("settings", defaults())
OmegaConf.register_new_resolver("settings_help", help_text, replace=True)


# Packages of these groups reach into the whole configuration, so what they may set is what the others define.
GLOBAL_GROUPS = ("experiment", "sweep", "ablation")


@dataclass(frozen=True)
class Conf:
    """The folders that configurations are composed from: conf/, and those of a user's own beside it.

    Args:
        own: absolute paths, as given by ``--config-dir`` and ``hydra.searchpath``.
        typed: what the command line says of them, for a run's command to be repeated.
    """

    own: tuple[Path, ...] = ()
    typed: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them, conf/ first."""
        return (CONF_DIR, *self.own)

    def groups(self) -> set[str]:
        """Return the names of all groups."""
        return {path.name for folder in self.folders for path in folder.iterdir() if path.is_dir()}

    def is_group(self, key: str) -> bool:
        """Return whether a key of the command line chooses from a group."""
        return any((folder / key.partition("@")[0]).is_dir() for folder in self.folders)

    def options(self, group: str) -> set[str]:
        """Return the names that a group can be set to."""
        group = group.partition("@")[0]
        options = {path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")}
        if group == "hydra/launcher":
            options.add("basic")  # Hydra's own: one run after the other
        return options | {"null", "None"} if group in GLOBAL_GROUPS else options

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file with the key of the node that it describes, "" for the whole configuration.

        Of a user's own folders only those of the groups in conf/: runs may lie beside them, and a run's config.yaml
        must not vouch for itself.
        """
        yield "", CONF_DIR / "train.yaml"
        for folder in self.folders:
            for group in CONF.groups():
                for path in [*(folder / group).glob("*.yaml"), *(folder / group).glob("*/*.yaml")]:
                    yield "" if group in GLOBAL_GROUPS else path.parent.name, path

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return what Hydra composes, its own node included.

        Raises:
            UserError: Hydra cannot compose it.
        """
        search = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in self.own)}]"] if self.own else []
        try:
            with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="train"):
                return hydra.compose("train", [*overrides, *search], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(first_lines(error)) from error


CONF = Conf()


def build(node: Any, **arguments: Any) -> Any:
    """Build the object that a configuration node names, and those within it.

    Args:
        node: a dict with a ``_target_``, the dotted name of a class or function, and its arguments; or a dict or
            list of such. ``_args_`` holds positional arguments; ``_partial_: true`` asks for a partial function;
            ``_convert_`` changes nothing, for all values are plain already.
        arguments: further keyword arguments of the outermost one.

    Raises:
        UserError: the target does not exist, or does not take these arguments. What else the target raises is a bug
            in it, and passes unchanged.
    """
    if isinstance(node, list):
        return [build(one) for one in node]
    if not isinstance(node, dict):
        return node
    options = {key: build(value) for key, value in node.items() if key not in _BUILD_KEYS} | arguments
    if "_target_" not in node:
        return options
    name = node["_target_"]
    target, positional = _locate(name), build(node.get("_args_", []))
    if node.get("_partial_"):
        return partial(target, *positional, **options)
    return call(target, str(name), options, *positional)


_BUILD_KEYS = ("_target_", "_args_", "_partial_", "_convert_")


def _locate(name: Any) -> Callable[..., Any]:
    """Return the class or function of a dotted name.

    Raises:
        UserError: there is none. An exception of the module itself passes unchanged.
    """
    parts = str(name).split(".")
    for n_modules in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n_modules])
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # of an import within the module
            continue
        for part in parts[n_modules:]:
            if not hasattr(found, part):
                raise UserError(f"_target_={name}: {found.__name__} has no {part}.{did_you_mean(part, dir(found))}")
            found = getattr(found, part)
        if not callable(found):
            raise UserError(f"_target_={name} is neither a class nor a function.")
        return found  # type: ignore[no-any-return]
    raise UserError(f"_target_={name}: there is no module {parts[0]}; the full name of a class is expected.")


def to_yaml(cfg: Config) -> str:
    """The configuration as YAML text, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(cfg))


def to_plain(cfg: DictConfig) -> Config:
    """Return a configuration as plain nested dicts, with every ${...} replaced by what it stands for.

    Raises:
        UserError: it stands for nothing.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(first_lines(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = str(error.__cause__ or "").partition("\n")[0].strip()
    said = " ".join(lines[:2]) or type(error).__name__
    return said if not cause or cause in said else f"{said}: {cause}"
