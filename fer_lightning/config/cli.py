"""The command line: check it, compose the configuration with Hydra, and call a job with typed settings.

The job gets the settings and a run folder, and never sees Hydra. Nothing heavy is imported here, so that ``--help``
and errors in the command line take about a second.
"""

import ctypes
import os
import re
import shlex
import signal
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config import compose, help
from fer_lightning.config.compat import Override, run_composed
from fer_lightning.config.compose import CONF, Conf, to_plain
from fer_lightning.config.grammar import parse, parse_typed, quoted, quoting_hint, values_of
from fer_lightning.config.overrides import (
    Checked,
    as_choice,
    as_typed,
    check,
    check_search,
    parse_flags,
    remove,
    unfit_keys,
)
from fer_lightning.config.saved import resumed
from fer_lightning.config.schema import Config, Settings, to_settings
from fer_lightning.environment import RUN_OF, joins_run, prepare_training
from fer_lightning.errors import UserError
from fer_lightning.exit import exit_code
from fer_lightning.files import expand_home
from fer_lightning.runs.folders import RUNS, claim, is_replaceable, remove_replaceable, remove_unstarted
from fer_lightning.runs.sweep import Sweep, begin_sweep

# Hydra validates our hydra/launcher files against the launchers' schemas of the same names, and warns that later
# versions will not.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against")
help.register()

Job = Callable[[Settings, Path], None]


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Run `job` for the command line: once, or once per combination of a sweep.

    Args:
        job: called with the settings and the run's folder, which does not exist yet unless the run is resumed.
        arguments: the command line without the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 for success, 1 for a user mistake or a failed run, 130 or 143 if interrupted.
    """
    return exit_code(lambda rest: _run(job, rest), sys.argv[1:] if arguments is None else arguments)


def _run(job: Job, arguments: list[str]) -> int:
    if not prepare_training(os.environ):
        return 0
    if joins_run(os.environ):
        return _join_run(job, *os.environ[RUN_OF].split(":", 1))
    arguments = list(map(expand_home, arguments))
    flags = parse_flags(arguments)
    if flags.shell_completion:  # its install=bash is not a setting
        return _run_hydra(arguments, {}, CONF, _must_not_run)
    _check_hydra_flags(flags)
    typed = list(map(parse_typed, flags.overrides))
    conf = _find_conf(flags, typed)
    overrides = [as_choice(override, conf) for override in typed]
    _check_flags(flags, overrides)
    for override in overrides:
        if override.key_or_group == "resume" and override.value():
            return _run_resumed(job, override, overrides, conf)
    checked = check(overrides, conf)
    if not flags.multirun:
        _check_single(overrides)
    rest = [argument for argument in arguments if argument not in flags.overrides]
    if flags.help or flags.hydra_help or flags.cfg or flags.info:
        without = [f"~{key}" for key in checked.unfit]
        return _run_hydra([*rest, *checked.for_hydra, *without], checked.typed, conf, _must_not_run)
    folder = _choose_folder(overrides, flags.multirun)
    if flags.multirun:
        return _run_sweep(job, folder, rest, overrides, checked, conf)
    return _run_single(job, folder, checked, conf)


def _check_flags(flags: Namespace, overrides: list[Override]) -> None:
    """Raise UserError for flags and settings that cannot be combined."""
    given = {o.key_or_group for o in overrides if o.value() and not o.is_delete() and o.input_line != "sweep=none"}
    if "resume" in given and (flags.multirun or flags.cfg or flags.info):
        raise UserError("resume continues a single run. Leave out -m, --cfg and --info.")
    if "hydra/launcher" in given and not flags.multirun:
        raise UserError(
            "hydra/launcher= applies to sweeps only. Add -m, or leave out hydra/launcher= for a single run."
        )
    if "sweep" in given and not (flags.multirun or flags.cfg):
        raise UserError("sweep= needs -m. Add -m, or leave out sweep= for a single run.")
    if flags.multirun and (flags.cfg or flags.info):
        raise UserError("--cfg and --info show a single run. Leave out -m and give each setting one value.")


def _check_hydra_flags(flags: Namespace) -> None:
    """Raise UserError for flags of Hydra that would replace conf/train.yaml or a run's settings."""
    for name, instead in (
        ("config_path", "--config-dir=FOLDER for your own files"),
        ("config_name", "--config-dir=FOLDER for your own files"),
        ("experimental_rerun", "resume=RUN_FOLDER"),
    ):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not supported. Use {instead}.")


def _check_single(overrides: list[Override]) -> None:
    """Raise UserError for several values of a setting."""
    for o in overrides:
        if o.is_sweep_override():
            raise UserError(
                f"{o.input_line}: several values need a sweep. Add -m, or give one value.{quoting_hint(o)}"
            )


def _find_conf(flags: Namespace, overrides: list[Override]) -> Conf:
    """Return conf/ and the user's own folders from --config-dir and hydra.searchpath.

    Raises:
        UserError: one of them is not a folder.
    """
    own = {f"--config-dir={flags.config_dir}": [flags.config_dir]} if flags.config_dir else {}
    for o in overrides:
        value = o.value()
        if o.key_or_group == "hydra.searchpath" and isinstance(value, list):
            paths = [str(path).removeprefix("file://") for path in value]
            own[str(o.input_line)] = [path for path in paths if "://" not in path]  # Hydra finds pkg:// itself
    for text, folders in own.items():
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(
                    f"{text}: {folder} is not a folder. Give one that contains experiment/, model/ or the like."
                )
    return Conf(tuple(Path(folder).absolute() for folders in own.values() for folder in folders), tuple(own))


def _run_resumed(job: Job, resume: Override, overrides: list[Override], conf: Conf) -> int:
    folder = resume.value()
    if not isinstance(folder, str):
        raise UserError(f"{resume.input_line}: expected the folder of one run.{quoting_hint(resume)}")
    changes = [o for o in overrides if o.key_or_group != "resume"]
    _run_claimed(job, resumed(Path(folder), changes, conf=conf), Path(folder))
    return 0


def _must_not_run(cfg: Config, run_dir: Path) -> None:
    raise AssertionError("Hydra started a run where it should have printed something")


def _run_single(job: Job, folder: Path, checked: Checked, conf: Conf) -> int:
    def task(cfg: DictConfig) -> None:
        _run_claimed(job, to_settings(_to_config(cfg, checked.typed, conf)), _output_dir())

    run_composed(checked.cfg, folder, task)
    return 0


def _run_sweep(
    job: Job, folder: Path, rest: list[str], overrides: list[Override], checked: Checked, conf: Conf
) -> int:
    check_search(checked.cfg.hydra.sweeper, overrides)
    params = [f"{key}={values}" for key, values in (checked.cfg.hydra.sweeper.params or {}).items()]
    begin_sweep(folder, params + [str(o.input_line) for o in overrides if _affects_numbering(o)])
    sweep = Sweep(folder)

    def each(cfg: Config, run_dir: Path) -> None:
        def work() -> None:
            _run_job(job, _settings_to_resume(run_dir, overrides, conf) or to_settings(cfg), run_dir)

        sweep.attempt(run_dir, shlex.join(["python", "train.py", *cfg["overrides"]]), work)

    folders = [f"hydra.{mode}.dir={quoted(str(folder))}" for mode in ("run", "sweep")]
    command_line = [*rest, *checked.for_hydra, *folders]
    code = _run_hydra(command_line, checked.typed, conf, each)
    while not code and sweep.has_new_leftovers():
        code = _run_hydra(command_line, checked.typed, conf, each)
    if code:
        remove_unstarted(sweep.folder)
    return 1 if sweep.report() or code else 0


def _run_hydra(
    arguments: list[str], typed: Mapping[str, str], conf: Conf, do: Callable[[Config, Path], None]
) -> int:
    """Run Hydra on a command line and return its exit code.

    Args:
        arguments: the command line.
        typed: full key -> typed key, where they differ.
        conf: the folders of the configuration files.
        do: called with the configuration and the folder of each run; Hydra prints any exception it raises.
    """
    command_line = list(sys.argv)

    def task(cfg: DictConfig) -> None:
        sys.argv[:] = command_line  # Lightning starts the other processes of a run with it
        # `check` did this for the first combination of a sweep only.
        named = {parse(text).key_or_group for text in HydraConfig.get().overrides.task}
        unfit = unfit_keys(cfg, HydraConfig.get().runtime.choices, conf)
        remove(cfg, [key for key in unfit if key not in named])
        do(_to_config(cfg, typed, conf), _output_dir())

    sys.argv[1:] = arguments  # Hydra reads the process's own command line
    try:
        hydra.main(config_path=str(compose.CONF_DIR), config_name="train", version_base="1.3")(task)()
    except SystemExit as system_exit:  # raised by Hydra after it has printed an error
        return 1 if system_exit.code else 0
    finally:
        sys.argv[:] = command_line
    return 0


def _to_config(cfg: DictConfig, typed: Mapping[str, str], conf: Conf) -> Config:
    """Return the configuration of the current Hydra job, with its experiment and the overrides as typed."""
    hydra_cfg = HydraConfig.get()
    plain = to_plain(cfg)
    plain["experiment"] = _name_experiment(hydra_cfg.overrides.task)
    plain["overrides"] = [*conf.typed, *(as_typed(text, typed) for text in hydra_cfg.overrides.task)]
    return plain


def _output_dir() -> Path:
    """Return the folder of the current Hydra job, relative to the working directory."""
    return Path(os.path.relpath(HydraConfig.get().runtime.output_dir))  # hydra.job.chdir=true changes into it


def _run_claimed(job: Job, cfg: Settings, run_dir: Path) -> None:
    with claim(run_dir) as ours:
        if not ours:
            raise UserError(f"{run_dir} is in use by another process. Wait for it to end, or stop it first.")
        try:
            if not cfg.resume:
                if is_replaceable(run_dir):
                    remove_replaceable(run_dir)
                _check_unused(run_dir)  # again, now that other processes are locked out
            _run_job(job, cfg, run_dir)
        finally:
            remove_unstarted(run_dir)


def _settings_to_resume(run_dir: Path, overrides: Iterable[Override], conf: Conf) -> Settings | None:
    """Return the saved settings of a run of a sweep, or None if it has no checkpoint to resume from."""
    has_checkpoint = any((run_dir / "checkpoints" / name).exists() for name in ("last.ckpt", "best.ckpt"))
    return resumed(run_dir, [], overrides, conf) if has_checkpoint else None


def _affects_numbering(override: Override) -> bool:
    """Return whether an override affects which settings the n-th run of a sweep has."""
    key = override.key_or_group
    return key != "name" and (not override.is_hydra_override() or key.startswith("hydra.sweeper.params"))


def _run_job(job: Job, cfg: Settings, run_dir: Path) -> None:
    os.environ[RUN_OF] = f"{os.getpid()}:{run_dir}"
    try:
        job(cfg, run_dir)
    finally:
        del os.environ[RUN_OF]


def _join_run(job: Job, process: str, folder: str) -> int:
    """Run the job as a further process of another process's run, without output; end when that process ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches every process; the first one handles it
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
            job(to_settings(to_plain(saved)), Path(folder))
        except UserError as error:
            raise UserError(f"process {os.environ.get('LOCAL_RANK')}: {error}") from error
    return 0


def _choose_folder(overrides: list[Override], multirun: bool) -> Path:
    """Return the folder for everything that this command writes, runs/<experiment>/<name>.

    Raises:
        UserError: the name is not valid in a path, or the folder is used by another run or cannot be written.
    """
    values = {o.key_or_group: "+".join(str(value) for value in values_of(o)) for o in overrides}
    name = values.get("name", "null")
    if name in ("null", "None"):
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not _is_folder_name(name):
        raise UserError(f"name={name} becomes a folder name. Use letters, digits, '_', '-', '+' and '.' only.")
    if len(os.fsencode(name)) > 255:  # the limit of common file systems
        raise UserError(f"name={name} is too long for a folder name. Choose a shorter one.")
    folder = Path(RUNS) / _name_experiment(str(o.input_line) for o in overrides) / name
    if multirun and (folder / "sweep.json").exists():
        return folder  # begin_sweep checks that it is the same sweep
    if multirun or not is_replaceable(folder):
        _check_unused(folder)
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise UserError(f"{folder} cannot be created: {above} is a file. Move it, or run from another folder.")
    if not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be created: {above} is read-only. Run from a writable folder.")
    return folder


def _name_experiment(overrides: Iterable[str]) -> str:
    """Return the name of the experiment that the overrides choose, joined by "+" if there are several."""
    name = "default"
    for text in overrides:
        if text.startswith("experiment="):
            values = values_of(parse(text))
            choices = [choice for value in values for choice in (value if isinstance(value, list) else [value])]
            name = "+".join("default" if choice == "none" else str(choice) for choice in choices)
    return name


def _is_folder_name(name: str) -> bool:
    """Return whether a name consists of letters, digits, a few signs and visible characters beyond ASCII."""
    if not re.fullmatch(r"[A-Za-z0-9_\x80-\U0010ffff][A-Za-z0-9_.+\x80-\U0010ffff-]*", name):
        return False
    return name[0].isprintable() and name.replace("\u200d", "").isprintable()  # the joiner occurs within emoji


def _check_unused(folder: Path) -> None:
    if any(next(folder.glob(f"**/{name}"), None) for name in ("config.yaml", "results.json", "sweep.json")):
        raise UserError(
            f"{folder} already contains a run. Choose another name, or resume the run with resume=RUN_FOLDER."
        )
