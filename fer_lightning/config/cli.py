"""The command line: Hydra, checked before anything is written, and left behind at this module's door.

The only module of the package that may import hydra or omegaconf. It turns the command line into a plain nested
dict and a run folder, and hands both to a job. Nothing heavy is imported here, so that ``--help`` and a typo answer
in about a second.
"""

import argparse
import ctypes
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.arguments import call
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.exit import exit_code
from fer_lightning.runs import ranking as runs

CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"

# Hydra checks our choices of hydra/launcher against those of the same names in the launchers' packages, and warns
# that a later Hydra will not.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against")

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

# Below these anybody may add keys, without a plus sign: `build` checks the arguments of what is built there.
_NEW_KEYS = ("callbacks", "logger")
_OPEN_NODES = (*_NEW_KEYS, "augment.transforms", "hydra")


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Runs `job` for the command line: once, or once for each combination of a sweep.

    Args:
        job: called with the plain configuration and the run's folder, which does not exist yet unless resumed.
        arguments: the command line without the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 done, 1 a mistake of the person's or a failed run, 130 or 143 interrupted.
    """
    return exit_code(lambda rest: _run(job, rest), sys.argv[1:] if arguments is None else arguments)


def _run(job: Job, arguments: list[str]) -> int:
    if _RUN_OF in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        return _join_run(job, *os.environ[_RUN_OF].split(":", 1))
    flags = _flags(arguments)
    overrides = [_parse(text) for text in flags.overrides]
    resume = next((str(o.value()) for o in overrides if o.key_or_group == "resume" and o.value()), None)
    if resume is not None:
        if flags.multirun or flags.cfg or flags.info:
            raise UserError("resume takes one run's folder and goes on with it: leave out -m, --cfg and --info.")
        _alone(job, _resumed(Path(resume), [o for o in overrides if o.key_or_group != "resume"]), Path(resume))
        return 0

    if any(o.key_or_group == "hydra/launcher" for o in overrides) and not flags.multirun:
        raise UserError("hydra/launcher is for the runs of a sweep: add -m, or leave it out for a single run.")
    if any(o.key_or_group == "sweep" and o.value() for o in overrides) and not (flags.multirun or flags.cfg):
        raise UserError("sweep is of many runs: add -m, or leave it out for a single run.")
    if flags.multirun and (flags.cfg or flags.info):
        raise UserError("--cfg and --info show one run: leave out -m and give each setting one value.")
    rewritten, sweeper, typed = _check(overrides)
    folder, sweep = None, None
    if not any((flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion)):
        folder = _folder(overrides, flags.multirun)
        rewritten += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
        if flags.multirun:
            _check_search(sweeper, overrides)
            params = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
            runs.begin_sweep(folder, params + [str(o.input_line) for o in overrides if _numbers_runs(o)])
            sweep = runs.Sweep(folder)
    failed = False
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        plain = _plain(cfg)
        plain["experiment"] = hydra_cfg.runtime.choices.get("experiment") or "default"
        plain["overrides"] = [_as_typed(text, typed) for text in hydra_cfg.overrides.task]
        run_dir = Path(os.path.relpath(hydra_cfg.runtime.output_dir))
        if sweep is not None:
            command = shlex.join(["python", "train.py", *plain["overrides"]])
            sweep.attempt(run_dir, command, lambda: _work(job, _begun(run_dir, overrides) or plain, run_dir))
            return
        try:
            _alone(job, plain, run_dir)
        except Exception as error:  # noqa: BLE001
            raised.append(
                error
            )  # again below: Hydra would shorten a bug's traceback, and print one for a UserError

    # Hydra reads the process's own command line.
    sys.argv[1:] = [argument for argument in arguments if argument not in flags.overrides] + rewritten
    try:
        hydra_main = hydra.main(config_path=str(CONF_DIR), config_name="train", version_base="1.3")(task)
        hydra_main()
        while sweep is not None and sweep.look_again():
            hydra_main()
    except SystemExit as left:  # how Hydra leaves after printing what went wrong
        if left.code:
            failed = True
            if sweep is not None:
                runs.remove_unbegun(sweep.folder)
    if raised:
        raise raised[0]
    if sweep is not None:
        return 1 if sweep.report() or failed else 0
    return 1 if failed else 0


def _alone(job: Job, cfg: Config, run_dir: Path) -> None:
    with runs.claim(run_dir) as ours:
        if not ours:
            raise UserError(
                f"{run_dir} is in use: another process works on this run. Wait for it, or stop it first."
            )
        try:
            if not cfg["resume"]:
                _check_unused(run_dir)  # again: another process may have run here since the first time
            _work(job, cfg, run_dir)
        finally:
            runs.remove_unbegun(run_dir)


def _begun(run_dir: Path, overrides: Iterable[Override]) -> Config | None:
    """The configuration to go on with, where a run of a sweep has a checkpoint: the one that it began with."""
    begun = any((run_dir / "checkpoints" / name).exists() for name in ("last.ckpt", "best.ckpt"))
    return _resumed(run_dir, [], overrides) if begun else None


def _numbers_runs(override: Override) -> bool:
    """Whether an override of a sweep has a say in what its run number 3 is."""
    key = override.key_or_group
    return key != "name" and (not override.is_hydra_override() or key.startswith("hydra.sweeper.params"))


# Lightning runs this program again for each further process of a run on several GPUs (trainer=ddp). Such a process
# finds here whose run it is part of, "PROCESS:FOLDER", and leaves the command line unread: that of a sweep, or one
# with a folder named by the time, would lead it elsewhere.
_RUN_OF = "FER_LIGHTNING_RUN_OF"


def _work(job: Job, cfg: Config, run_dir: Path) -> None:
    os.environ[_RUN_OF] = f"{os.getpid()}:{run_dir}"
    try:
        job(cfg, run_dir)
    finally:
        del os.environ[_RUN_OF]


def _join_run(job: Job, process: str, folder: str) -> int:
    """Works on the run of another process, in silence, and as long as that one lives."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches every process; the first one answers
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(process):
        return 1
    saved = OmegaConf.load(Path(folder) / "config.yaml")
    assert isinstance(saved, DictConfig)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            job(_plain(saved), Path(folder))
        except UserError as error:
            raise UserError(f"process {os.environ.get('LOCAL_RANK')}: {error}") from error
    return 0


def build(node: Any, **arguments: Any) -> Any:
    """Build the object that a configuration node names, and those within it.

    Args:
        node: a dict with a ``_target_``, the dotted name of a class or function, and its arguments; or a dict or
            list of such. ``_args_`` holds positional arguments; ``_partial_: true`` asks for a partial function.
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


_BUILD_KEYS = ("_target_", "_args_", "_partial_")


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
    except HydraException as error:
        raise UserError(
            f"cannot read {text!r}: a setting is NAME=value, e.g. trainer.max_epochs=20. "
            "A value with spaces, commas or brackets of its own needs quotes within quotes: 'name=\"a, b\"'."
        ) from error


def _folder(overrides: list[Override], multirun: bool) -> Path:
    """runs/<experiment>/<name>, where everything that this command writes will be."""
    values = {o.key_or_group: "+".join(str(value) for value in _values(o)) for o in overrides}
    name = values.get("name", "null")
    if name in ("null", "None"):
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UserError(f"name={name} becomes a folder: use letters, digits, '_', '-', '+' and '.' only.")
    experiment = values.get("experiment", "default")
    folder = Path("runs") / ("default" if experiment in ("null", "None") else experiment) / name
    if multirun and (folder / "sweep.json").exists():
        return folder  # whether it is the same sweep is runs.begin_sweep's to say
    _check_unused(folder)
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise UserError(f"{folder} cannot be made: {above} is a file. Move it away, or work in another folder.")
    if not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be made: {above} is read-only. Work in a folder that can be written.")
    return folder


def _check_unused(folder: Path) -> None:
    if any(next(folder.glob(f"**/{name}"), None) for name in ("config.yaml", "results.json", "sweep.json")):
        raise UserError(
            f"{folder} already holds a run, which would be overwritten: choose another name, or go on with a run "
            f"by resume=RUN_FOLDER."
        )


def _values(override: Override) -> list[Any]:
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


def _full_key(key: str, data: DictConfig) -> str:
    """Return the key of a setting in its nodes: data.path stands for data.source.path."""
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    return f"data.source.{rest}" if group == "data" and name not in data and name in data.source else key


def _as_typed(text: str, typed: Mapping[str, str]) -> str:
    """Return one of Hydra's overrides as it was typed, before `_check` rewrote its key."""
    key, equals, value = text.removeprefix("++").partition("=")
    return f"{typed.get(key, key)}{equals}{value}"


def _check(overrides: list[Override]) -> tuple[list[str], DictConfig, dict[str, str]]:
    """Check the overrides, and rewrite them for Hydra.

    Returns:
        The overrides for Hydra, with full keys, and with a plus sign where keys may be new; hydra.sweeper; and the
        typed key of each full key that differs from it.

    Raises:
        UserError: a name or value that does not exist, with the nearest one that does.
    """
    for o in overrides:
        if o.key_or_group in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            raise UserError(f"{o.input_line}: a run's folder is runs/<experiment>/<name>; set name=.")
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
    others = [o for o in overrides if o.key_or_group.startswith("hydra/") and o not in groups]
    known_groups = cfg.hydra.runtime.choices
    for o in others:
        if o.key_or_group not in known_groups:
            raise UserError(f"{o.key_or_group} does not exist.{did_you_mean(o.key_or_group, known_groups)}")
    if others:
        cfg = _compose([_first(o) for o in [*groups, *others]])
    _check_launcher(cfg.hydra.runtime.choices["hydra/launcher"], cfg.hydra.launcher._target_)
    choices = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if "/" not in group}
    _check_keys(cfg, _compose([f"{group}={choices[group]}" for group in choices if group not in _GLOBAL_GROUPS]))
    for key in cfg.hydra.sweeper.get("params") or {}:  # set by a file in conf/
        if (full := _full_key(key, cfg.data)) != key:
            raise UserError(f"hydra.sweeper.params: {key} does not exist. Did you mean {full}?")
    rewritten, typed = [], {}
    own_source = any(o.key_or_group in ("data._target_", "data.source._target_") for o in overrides)
    for o in overrides:
        text = o.input_line
        assert text is not None
        key = o.key_or_group
        if not _is_group(key):
            full = _full_key(key, cfg.data)
            if full != key:
                typed[full] = key
                text = text.replace(key, full, 1)
            of_own_source = own_source and full.startswith("data.source.")
            takes_any = full.startswith(("trainer.", *(f"{node}." for node in _NEW_KEYS)))
            if (takes_any or of_own_source) and not o.is_delete():
                text = "++" + text.lstrip("+")
            if not _is_open(full) and not of_own_source:
                _check_value(o, cfg)
        rewritten.append(text)
    # Once as a whole, for what Hydra would refuse at length; a group that is swept stands for its first choice.
    final = [_parse(text) for text in rewritten]
    cfg = _compose([_first(o) for o in final if _is_group(o.key_or_group) or not o.is_sweep_override()])
    if cfg.hydra.launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0 must be a number of processes, or -1 for all.")
    return rewritten, cfg.hydra.sweeper, typed


def _check_search(sweeper: DictConfig, overrides: list[Override]) -> None:
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


# Packages of these groups reach into the whole configuration, so what they may set is what the others define.
_GLOBAL_GROUPS = ("experiment", "sweep", "ablation")


def _is_group(key: str) -> bool:
    return (CONF_DIR / key.partition("@")[0]).is_dir()


def _options(group: str) -> set[str]:
    options = {path.stem for path in (CONF_DIR / group.partition("@")[0]).glob("*.yaml")}
    if group == "hydra/launcher":
        options.add("basic")  # Hydra's own: one run after the other
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
    cause = str(error.__cause__ or "").partition("\n")[0].strip()
    said = " ".join(lines[:2]) or type(error).__name__
    return said if not cause or cause in said else f"{said}: {cause}"


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
        names = _known_keys(known)
        raise UserError(f"{name} (set by a file in conf/) does not exist.{did_you_mean(name, names)}")


def _known_keys(cfg: DictConfig) -> set[str]:
    own = {name for name in _leaves(cfg) if not _is_open(name)}
    return own | {f"trainer.{name}" for name in TRAINER_ARGUMENTS}


def _typed_keys(cfg: DictConfig) -> set[str]:
    known = _known_keys(cfg)
    return known | {key.replace("data.source.", "data.") for key in known}


def _check_value(override: Override, cfg: DictConfig) -> None:
    key = full = override.key_or_group
    if key.startswith("trainer."):
        if key.split(".")[1] not in TRAINER_ARGUMENTS:
            raise UserError(
                f"{key} is not an argument of Lightning's Trainer.{did_you_mean(key, _typed_keys(cfg))}"
            )
        if key != "trainer.max_epochs":
            return  # Trainer takes values of several types for most, and says itself what it does not take
    elif (full := _full_key(key, cfg.data)) not in set(_leaves(cfg)):
        groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
        raise UserError(f"{key} does not exist.{did_you_mean(key, _typed_keys(cfg) | groups)}")
    if override.is_delete() or key in ("ckpt", "distill.ckpt"):  # a path or a list of them, whatever it replaces
        return
    default = OmegaConf.select(cfg, full)
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


def _check_saved(saved: DictConfig, named: set[str]) -> None:
    """Checks a run's config.yaml, which may come from a stranger.

    It may name only what conf/ names: classes and functions to build, and settings. Everything else, such as a
    callback of one's own, has to be named again by the command that resumes.

    Args:
        saved: the configuration.
        named: keys of the command line.

    Raises:
        UserError: something that conf/ does not name.
        ValueError: no configuration of a run.
    """
    plain = OmegaConf.to_container(saved)
    assert isinstance(plain, dict)
    shipped: set[str] = set()
    targets: set[str] = set()
    for path in CONF_DIR.rglob("*.yaml"):
        prefix = "" if path.parent == CONF_DIR or path.parent.name in _GLOBAL_GROUPS else path.parent.name
        for key, value in _entries(OmegaConf.to_container(OmegaConf.load(path)), prefix):
            shipped.add(key)
            if key.endswith("_target_"):
                targets.add(value)
    for group in ("data", "augment", "model", "optim", "trainer", "callbacks", "logger"):
        if not isinstance(plain.get(group), dict):
            raise ValueError(f"{group} is not a mapping")
    if not all(isinstance(text, str) for text in [plain["experiment"], *plain["overrides"]]):
        raise ValueError("experiment or overrides is not text")
    named |= {name.removesuffix("._target_") for name in named}  # who names a class again trusts what it gets
    for key, value in _entries(plain):
        group, _, rest = key.partition(".")
        if any(key == name or key.startswith(f"{name}.") for name in named):
            continue
        if key.endswith("_target_"):
            known = value in targets
        elif group == "trainer":
            known = rest.partition(".")[0] in TRAINER_ARGUMENTS and key not in _OUTWARD
        else:
            known = group not in ("data", "augment", "callbacks", "logger") or key in shipped or "[" in key
        if not known:
            raise UserError(
                f"resume: {key}={value} is not one of the settings and classes in conf/, and a configuration from "
                f"elsewhere could run anything by it. If it is yours, say it again: {key}={value}"
            )


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
    shipped = OmegaConf.load(CONF_DIR / "data" / "fer2013.yaml")
    source = {key: data.pop(key) for key in list(data) if key not in shipped}
    data.source = source


def _resumed(folder: Path, overrides: list[Override], named: Iterable[Override] = ()) -> Config:
    """The configuration of the run in `folder`, with single values changed; `named` are those said once more."""
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
        _check_saved(saved, {_full_key(o.key_or_group, saved.data) for o in [*overrides, *named]})
    except OSError as error:
        raise UserError(
            f"resume={folder}: there is no run to go on with ({error.strerror or error}: {path}). "
            "Give the folder that holds the run's config.yaml and checkpoints/."
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"resume={folder}: {path} is damaged: {_first_lines(error)}") from error
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
        if override.key_or_group in ("ckpt", "monitor", "seed") or (
            override.key_or_group == "stages" and "fit" not in str(override.value())
        ):
            raise UserError(
                f"{override.input_line}: a resumed run goes on with its own fit. To test a checkpoint, do "
                f"so in a run of its own: stages=[test] ckpt={folder}/checkpoints/best.ckpt."
            )
        _check_value(override, saved)
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"{override.input_line}: a resumed run takes single values only, as NAME=value.")
        OmegaConf.update(saved, _full_key(override.key_or_group, saved.data), override.value(), force_add=True)
    plain = _plain(saved)
    plain["resume"] = str(folder)
    plain["overrides"] += [override.input_line for override in overrides]
    return plain
