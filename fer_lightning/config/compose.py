"""Compose configurations from conf/, turn them into plain dicts, and build the objects that they name."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.arguments import call
from fer_lightning.config.grammar import quoted
from fer_lightning.config.schema import Config, defaults
from fer_lightning.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
# Inside the package when it is installed from a wheel, beside the package in a clone.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (path / "train.yaml").exists())

# The defaults of config/schema.py, which conf/train.yaml includes by this name.
ConfigStore.instance().store("settings", defaults())

# Files of these groups are merged at the top level, where they may set only keys that the other groups define.
GLOBAL_GROUPS = ("experiment", "sweep", "ablation", "debug")
for _group in GLOBAL_GROUPS:  # Hydra does not accept null as a choice
    ConfigStore.instance().store("none", {}, group=_group, package="_global_")


@dataclass(frozen=True)
class Conf:
    """The folders that configurations are composed from: conf/ and the user's own.

    Args:
        own: absolute paths of the folders given by ``--config-dir`` and ``hydra.searchpath``.
        typed: the arguments that gave them, recorded so that a run's command can be repeated.
    """

    own: tuple[Path, ...] = ()
    typed: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders, conf/ first."""
        return (CONF_DIR, *self.own)

    def groups(self) -> set[str]:
        """Return the names of all config groups."""
        return {path.name for folder in self.folders for path in folder.iterdir() if path.is_dir()}

    def is_group(self, key: str) -> bool:
        """Return whether a key of the command line is a config group."""
        return any((folder / key.partition("@")[0]).is_dir() for folder in self.folders)

    def options(self, group: str) -> set[str]:
        """Return the choices of a config group."""
        group = group.partition("@")[0]
        options = {path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")}
        if group == "hydra/launcher":
            options.add("basic")  # Hydra's default, which runs one job after the other
        return options | {"none"} if group in GLOBAL_GROUPS else options

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file with the key of the node that it sets, "" for the whole configuration.

        In the user's folders only files of the groups in conf/ count. Runs may be stored there too, and a run's
        config.yaml must not make its own contents trusted.
        """
        yield "", CONF_DIR / "train.yaml"
        for folder in self.folders:
            for group in CONF.groups():
                for path in [*(folder / group).glob("*.yaml"), *(folder / group).glob("*/*.yaml")]:
                    yield "" if group in GLOBAL_GROUPS else path.parent.name, path

    def compose(self, overrides: list[str]) -> DictConfig:
        """Compose the configuration for these overrides, including Hydra's own node.

        Raises:
            UserError: Hydra rejects an override or a file.
        """
        running = GlobalHydra.instance().hydra  # None, except in a job of a sweep
        GlobalHydra.instance().clear()
        paths = ",".join(quoted(f"file://{path}") for path in self.own)
        search = [f"hydra.searchpath=[{paths}]"] if self.own else []
        try:
            with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="train"):
                return hydra.compose("train", [*overrides, *search], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(first_lines(error)) from error
        finally:
            GlobalHydra.instance().hydra = running


CONF = Conf()


def build(node: Any, **arguments: Any) -> Any:
    """Build the object that a configuration node names, and the objects nested in it.

    Args:
        node: a dict with a ``_target_``, the dotted name of a class or function, and its arguments; or a dict or
            list of such nodes. ``_args_`` holds positional arguments; ``_partial_: true`` makes a partial function;
            ``_convert_`` has no effect, because all values are plain already.
        arguments: further keyword arguments for the outermost target.

    Returns:
        The object; a dict or list of objects for a dict or list of nodes; any other value unchanged.

    Raises:
        UserError: the target does not exist, or its arguments do not fit. Any other exception of the target is a
            bug in it and propagates.
    """
    if isinstance(node, list):
        return [build(element) for element in node]
    if not isinstance(node, dict):
        return node
    options = {key: build(value) for key, value in node.items() if key not in _BUILD_KEYS} | arguments
    if "_target_" not in node:
        return options
    name = node["_target_"]
    target, positional = locate(name), build(node.get("_args_", []))
    if node.get("_partial_"):
        return partial(target, *positional, **options)
    try:
        return call(target, str(name), options, *positional)
    except UserError as error:
        if inspect.isfunction(target) and "missing a required argument" in str(error):
            raise UserError(f"{error} To pass the function itself, set _partial_=true beside _target_.") from error
        raise


_BUILD_KEYS = ("_target_", "_args_", "_partial_", "_convert_")


def locate(name: Any) -> Callable[..., Any]:
    """Import the class or function with a dotted name.

    Raises:
        UserError: it does not exist. An exception raised by the module itself propagates.
    """
    parts = str(name).split(".")
    for n_modules in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n_modules])
        try:
            target: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # an import inside the module failed
            continue
        for part in parts[n_modules:]:
            if not hasattr(target, part):
                near = did_you_mean(part, dir(target))
                raise UserError(f"_target_={name}: {target.__name__} has no {part}.{near}")
            target = getattr(target, part)
        if not callable(target):
            raise UserError(f"_target_={name}: expected a class or function.")
        return target  # type: ignore[no-any-return]
    raise UserError(f"_target_={name}: no module {parts[0]}. Give the full name of a class or function.")


def to_yaml(cfg: Config) -> str:
    """Return a configuration as YAML text, with the keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(cfg))


def to_plain(cfg: DictConfig) -> Config:
    """Return a configuration as plain nested dicts, with every ``${...}`` resolved.

    Raises:
        UserError: an interpolation cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(first_lines(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def first_lines(error: BaseException) -> str:
    """Return the first two lines of an exception's message, and the first of its cause, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = str(error.__cause__ or "").partition("\n")[0].strip()
    message = " ".join(lines[:2]) or type(error).__name__
    return message if not cause or cause in message else f"{message}: {cause}"
