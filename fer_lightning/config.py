"""The command line: Hydra, checked before anything is written, and left behind at this module's door.

The only module of the package that may import hydra or omegaconf. It turns the command line into a plain nested
dict and a run folder, and hands both to a job. Nothing heavy is imported here, so that ``--help`` and a typo answer
in about a second.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.errors import UserError, did_you_mean, exit_code

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

Config = dict[str, Any]
Job = Callable[[Config, Path], None]

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

# Below these a person may add keys of their own: what is built there checks its arguments itself.
_OPEN_NODES = ("callbacks", "logger", "augment.transforms", "hydra")


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Runs `job` for the command line: once, or once for each combination of a sweep.

    Args:
        job: called with the plain configuration and the run's folder, which does not exist yet unless resumed.
        arguments: the command line without the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 done, 1 a mistake of the person's or a failed run, 130 or 143 interrupted.
    """
    return exit_code(lambda: _run(job, list(sys.argv[1:] if arguments is None else arguments)))


def _run(job: Job, arguments: list[str]) -> int:
    flags = _flags(arguments)
    overrides = [_parse(text) for text in flags.overrides]
    resume = next((str(o.value()) for o in overrides if o.key_or_group == "resume" and o.value()), None)
    if resume is not None:
        if flags.multirun or flags.cfg or flags.info:
            raise UserError("resume takes one run's folder and goes on with it: leave out -m, --cfg and --info.")
        settings = _resumed(Path(resume), [o for o in overrides if o.key_or_group != "resume"])
        with _alone_in(Path(resume)):
            job(settings, Path(resume))
        return 0

    rewritten = _check(overrides)
    folder = None
    if not any((flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion)):
        folder = _folder(overrides)
        rewritten += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    failed: list[str] = []

    def task(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        plain = _plain(cfg)
        plain["experiment"] = hydra_cfg.runtime.choices.get("experiment") or "default"
        # As the person may write them: the pluses are `_check`'s.
        plain["overrides"] = [text.removeprefix("++") for text in hydra_cfg.overrides.task]
        run_dir = Path(os.path.relpath(hydra_cfg.runtime.output_dir))
        try:
            with _alone_in(run_dir):
                _check_unused(run_dir)  # again: another process may have run here since the first time
                job(plain, run_dir)
        except UserError as error:
            # Not raised further: Hydra would print a traceback for what one line says.
            print(f"error: {error}", file=sys.stderr)
            failed.append(str(error))
        finally:
            _remove_empty(run_dir)

    # Hydra reads the process's own command line.
    sys.argv[1:] = [argument for argument in arguments if argument not in flags.overrides] + rewritten
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="train", version_base="1.3")(task)()
    except SystemExit as left:  # how Hydra leaves after printing what went wrong
        if left.code:
            failed.append(str(left.code))
    if flags.multirun and folder is not None:
        from fer_lightning.results import print_ranking

        print_ranking(folder)
    return 1 if failed else 0


def build(node: Any, **arguments: Any) -> Any:
    """The object that a configuration node's ``_target_`` names, built with the node's other keys.

    Args:
        node: a dict with a ``_target_``, or a dict or list of such.
        arguments: further keyword arguments of the outermost one.

    Raises:
        UserError: the target does not exist or does not take these arguments.
    """
    try:
        return hydra.utils.instantiate(node, **arguments, _convert_="all")
    except HydraException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(_first_lines(error)) from error


def to_yaml(cfg: Config) -> str:
    """The configuration as YAML text, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(cfg))


def _plain(cfg: DictConfig) -> Config:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flags(arguments: list[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}. Settings are given as NAME=value, without dashes; see python train.py --help.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)  # flags may stand among the settings


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise UserError(
            f"cannot read {text!r}: a setting is NAME=value, e.g. trainer.max_epochs=20. "
            "A value with spaces, commas or brackets of its own needs quotes within quotes: 'name=\"a, b\"'."
        ) from None


def _folder(overrides: list[Override]) -> Path:
    """runs/<experiment>/<name>, where everything that this command writes will be."""
    values = {o.key_or_group: "+".join(str(value) for value in _values(o)) for o in overrides}
    name = values.get("name", "null")
    if name in ("null", "None"):
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UserError(f"name={name} becomes a folder: use letters, digits, '_', '-', '+' and '.' only.")
    experiment = values.get("experiment", "default")
    folder = Path("runs") / ("default" if experiment in ("null", "None") else experiment) / name
    _check_unused(folder)
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be made: {above} is read-only. Work in a folder that can be written.")
    return folder


def _check_unused(folder: Path) -> None:
    if next(folder.glob("**/config.yaml"), None):
        raise UserError(
            f"{folder} already holds a run, which would be overwritten: choose another name, or go on with a run "
            f"by resume=RUN_FOLDER."
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run's folder. The lock ends with the process, however that ends.

    Raises:
        UserError: another process is at work there, or nothing can be written.
    """
    if int(os.environ.get("LOCAL_RANK", "0")):  # a further process of the same run
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is in use: another process is at work on this run. Wait for it, or choose another name."
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
        lock.release()


def _remove_empty(folder: Path) -> None:
    """Hydra makes the run's folder before the run begins; one that never began should leave nothing behind."""
    with suppress(OSError):  # "not empty" ends it
        while folder.name:
            folder.rmdir()
            folder = folder.parent


def _values(override: Override) -> list[Any]:
    """Every value that an override stands for: several for a sweep."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        try:
            return list(override.sweep_iterator())
        except HydraException as error:
            raise UserError(f"{override.input_line}: list the choices instead, separated by commas.") from error
    return [override.value()]


def _check(overrides: list[Override]) -> list[str]:
    """The overrides as Hydra shall see them: Trainer's arguments without the need of a plus sign.

    Raises:
        UserError: a name or value that does not exist, with the nearest one that does.
    """
    groups = [o for o in overrides if _is_group(o.key_or_group)]
    for o in groups:
        options = _options(o.key_or_group)
        for value in _values(o):
            for option in value if isinstance(value, list) else [value]:
                if str(option) not in options:
                    known = ", ".join(sorted(options - {"null", "None"}))
                    near = did_you_mean(str(option), options)
                    raise UserError(f"{o.key_or_group}={option} does not exist.{near} There are: {known}.")
    cfg = _compose([_first(o) for o in groups])
    choices = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if "/" not in group}
    _check_keys(cfg, _compose([f"{group}={choices[group]}" for group in choices if group not in _GLOBAL_GROUPS]))
    rewritten = []
    for o in overrides:
        text = o.input_line
        assert text is not None
        if not _is_group(o.key_or_group) and not _is_open(o.key_or_group):
            if o.key_or_group.startswith("trainer.") and not o.is_delete():
                text = "++" + text.lstrip("+")
            _check_value(o, cfg)
        rewritten.append(text)
    return rewritten


# Packages of these groups reach into the whole configuration, so what they may set is what the others define.
_GLOBAL_GROUPS = ("experiment", "sweep")


def _is_group(key: str) -> bool:
    return (CONF_DIR / key.partition("@")[0]).is_dir()


def _options(group: str) -> set[str]:
    options = {path.stem for path in (CONF_DIR / group.partition("@")[0]).glob("*.yaml")}
    return options | {"null", "None"} if group in _GLOBAL_GROUPS else options


def _is_open(key: str) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in _OPEN_NODES) or key.startswith("hydra/")


def _first(override: Override) -> str:
    """A sweep over a group stands for its first choice, to see which keys there are."""
    text = override.input_line
    assert text is not None
    if not override.is_sweep_override():
        return text
    return f"{override.get_key_element()}={_values(override)[0]}"


def _compose(overrides: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="train"):
            return hydra.compose("train", overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_lines(error)) from error


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        name = f"{prefix}{key}"
        child = node._get_node(key)
        yield name
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _leaves(child, f"{name}.")


def _check_keys(cfg: DictConfig, known: DictConfig) -> None:
    """Finds the keys that an experiment's or sweep's YAML misspells: Hydra would take them as new ones."""
    known_names = set(_leaves(known))
    for name in _leaves(cfg):
        if name in known_names or _is_open(name):
            continue
        if name.startswith("trainer.") and name.split(".")[1] in TRAINER_ARGUMENTS:
            continue
        raise UserError(f"{name} (set by a file in conf/) does not exist.{did_you_mean(name, _names(known))}")


def _names(cfg: DictConfig) -> set[str]:
    own = {name for name in _leaves(cfg) if not _is_open(name)}
    return own | {f"trainer.{name}" for name in TRAINER_ARGUMENTS}


def _check_value(override: Override, cfg: DictConfig) -> None:
    key = override.key_or_group
    if key.startswith("trainer."):
        if key.split(".")[1] not in TRAINER_ARGUMENTS:
            raise UserError(f"{key} is not an argument of Lightning's Trainer.{did_you_mean(key, _names(cfg))}")
        if key != "trainer.max_epochs":
            return  # Trainer takes values of several types for most, and says itself what it does not take
    elif key not in set(_leaves(cfg)):
        groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
        raise UserError(f"{key} does not exist.{did_you_mean(key, _names(cfg) | groups)}")
    if override.is_delete() or key == "ckpt":  # a path or a list of them, whatever it replaces
        return
    default = OmegaConf.select(cfg, key)
    for value in _values(override):
        expected = _expected(value, default)
        if expected:
            raise UserError(f"{key}={value} will not do: it takes {expected}, e.g. {key}={_shown(default)}.")


def _expected(value: Any, default: Any) -> str | None:
    """What a value should have been, going by the type of the default that it replaces; None if it will do."""
    if value is None or (isinstance(value, str) and "${" in value):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if isinstance(default, float):
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if isinstance(default, str):
        return None if isinstance(value, str) else "text"
    if OmegaConf.is_list(default):
        return None if isinstance(value, list) else "a list"
    return None


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    assert isinstance(default, int | float | str | list | ListConfig)
    return str(default).replace(" ", "")


def _resumed(folder: Path, overrides: list[Override]) -> Config:
    """The configuration of the run in `folder`, with single values changed."""
    path = folder / "config.yaml"
    try:
        saved = OmegaConf.load(path)
    except OSError as error:
        raise UserError(
            f"resume={folder}: there is no run to go on with ({error.strerror}: {path}). "
            "Give the folder that holds the run's config.yaml and checkpoints/."
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"resume={folder}: {path} is damaged: {_first_lines(error)}") from error
    assert isinstance(saved, DictConfig)
    # A run begun before a setting existed gets its default.
    defaults = OmegaConf.load(CONF_DIR / "train.yaml")
    assert isinstance(defaults, DictConfig)
    saved = OmegaConf.merge({key: defaults[key] for key in defaults if key not in ("defaults", "hydra")}, saved)
    assert isinstance(saved, DictConfig)
    for override in overrides:
        if _is_group(override.key_or_group):
            raise UserError(
                f"{override.input_line}: a resumed run keeps its own {override.key_or_group}; only single values "
                f"can be changed, e.g. trainer.max_epochs=40."
            )
        if override.key_or_group.partition(".")[0] in ("model", "optim"):
            raise UserError(
                f"{override.input_line}: a resumed run keeps its own network and optimizer; a new run can start "
                f"from its weights by ckpt={folder}/checkpoints/last.ckpt."
            )
        _check_value(override, saved)
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"{override.input_line}: a resumed run takes single values only, as NAME=value.")
        OmegaConf.update(saved, override.key_or_group, override.value(), force_add=True)
    plain = _plain(saved)
    plain["resume"] = str(folder)
    plain["overrides"] += [override.input_line for override in overrides]
    return plain
