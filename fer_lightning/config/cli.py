"""The command line: Hydra, checked before anything is written, and left behind at this room's door.

It turns the command line into a plain nested
dict and a run folder, and hands both to a job. Nothing heavy is imported here, so that ``--help`` and a typo answer
in about a second.
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

from fer_lightning.config import compose
from fer_lightning.config.compat import Override
from fer_lightning.config.compose import CONF, Conf, to_plain
from fer_lightning.config.overrides import Checked, as_typed, check, check_search, parse, parse_flags, values_of
from fer_lightning.config.saved import resumed
from fer_lightning.config.schema import Config, Settings, to_settings
from fer_lightning.errors import UserError
from fer_lightning.exit import exit_code
from fer_lightning.runs.folders import claim, remove_unstarted
from fer_lightning.runs.sweep import Sweep, begin_sweep

# Hydra checks our choices of hydra/launcher against those of the same names in the launchers' packages, and warns
# that a later Hydra will not.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against")
Job = Callable[[Settings, Path], None]


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Runs `job` for the command line: once, or once for each combination of a sweep.

    Args:
        job: called with the settings and the run's folder, which does not exist yet unless resumed.
        arguments: the command line without the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 done, 1 a mistake of the person's or a failed run, 130 or 143 interrupted.
    """
    return exit_code(lambda rest: _run(job, rest), sys.argv[1:] if arguments is None else arguments)


def _run(job: Job, arguments: list[str]) -> int:
    if _RUN_OF in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        return _join_run(job, *os.environ[_RUN_OF].split(":", 1))
    flags = parse_flags(arguments)
    if flags.shell_completion:  # whose install=bash is no setting
        return _run_hydra(arguments, {}, CONF, _never)
    overrides = [parse(text) for text in flags.overrides]
    _check_flags(flags, overrides)
    conf = _conf(flags, overrides)
    for override in overrides:
        if override.key_or_group == "resume" and override.value():
            return _resume(job, Path(str(override.value())), overrides, conf)
    checked = check(overrides, conf)
    rest = [argument for argument in arguments if argument not in flags.overrides]
    if flags.help or flags.hydra_help or flags.cfg or flags.info:
        return _run_hydra([*rest, *checked.for_hydra], checked.typed, conf, _never)
    folder = _folder(overrides, flags.multirun)
    if flags.multirun:
        return _sweep(job, folder, rest, overrides, checked, conf)
    return _single(job, folder, rest, checked, conf)


def _check_flags(flags: Namespace, overrides: list[Override]) -> None:
    """Raise UserError for flags and settings that do not go together."""
    given = {o.key_or_group for o in overrides if o.value()}
    if "resume" in given and (flags.multirun or flags.cfg or flags.info):
        raise UserError("resume takes one run's folder and goes on with it: leave out -m, --cfg and --info.")
    if "hydra/launcher" in given and not flags.multirun:
        raise UserError("hydra/launcher is for the runs of a sweep: add -m, or leave it out for a single run.")
    if "sweep" in given and not (flags.multirun or flags.cfg):
        raise UserError("sweep is of many runs: add -m, or leave it out for a single run.")
    if flags.multirun and (flags.cfg or flags.info):
        raise UserError("--cfg and --info show one run: leave out -m and give each setting one value.")


def _conf(flags: Namespace, overrides: list[Override]) -> Conf:
    """Return conf/ and the folders of the user's own that --config-dir and hydra.searchpath name.

    Raises:
        UserError: one of them is no folder.
    """
    own = {f"--config-dir={flags.config_dir}": [flags.config_dir]} if flags.config_dir else {}
    for o in overrides:
        value = o.value()
        if o.key_or_group == "hydra.searchpath" and isinstance(value, list):
            paths = [str(path).removeprefix("file://") for path in value]
            own[str(o.input_line)] = [path for path in paths if "://" not in path]  # pkg:// is Hydra's to find
    for text, folders in own.items():
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(
                    f"{text}: {folder} is not a folder. Give one that holds experiment/, model/ or such."
                )
    return Conf(tuple(Path(folder).absolute() for folders in own.values() for folder in folders), tuple(own))


def _resume(job: Job, folder: Path, overrides: list[Override], conf: Conf) -> int:
    _alone(job, resumed(folder, [o for o in overrides if o.key_or_group != "resume"], conf=conf), folder)
    return 0


def _never(cfg: Config, run_dir: Path) -> None:
    raise AssertionError("Hydra began a run instead of printing something")


def _single(job: Job, folder: Path, rest: list[str], checked: Checked, conf: Conf) -> int:
    raised: list[Exception] = []

    def once(cfg: Config, run_dir: Path) -> None:
        try:
            _alone(job, to_settings(cfg), run_dir)
        except Exception as error:  # noqa: BLE001
            # Again below: Hydra would shorten a bug's traceback, and print one for a UserError.
            raised.append(error)

    code = _run_hydra([*rest, *checked.for_hydra, f"hydra.run.dir={folder}"], checked.typed, conf, once)
    if raised:
        raise raised[0]
    return code


def _sweep(job: Job, folder: Path, rest: list[str], overrides: list[Override], checked: Checked, conf: Conf) -> int:
    check_search(checked.sweeper, overrides)
    params = [f"{key}={values}" for key, values in (checked.sweeper.params or {}).items()]
    begin_sweep(folder, params + [str(o.input_line) for o in overrides if _numbers_runs(o)])
    sweep = Sweep(folder)

    def each(cfg: Config, run_dir: Path) -> None:
        def work() -> None:
            _work(job, _begun(run_dir, overrides, conf) or to_settings(cfg), run_dir)

        sweep.attempt(run_dir, shlex.join(["python", "train.py", *cfg["overrides"]]), work)

    command_line = [*rest, *checked.for_hydra, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    code = _run_hydra(command_line, checked.typed, conf, each)
    while not code and sweep.has_new_leftovers():
        code = _run_hydra(command_line, checked.typed, conf, each)
    if code:
        remove_unstarted(sweep.folder)
    return 1 if sweep.report() or code else 0


def _run_hydra(
    arguments: list[str], typed: Mapping[str, str], conf: Conf, do: Callable[[Config, Path], None]
) -> int:
    """Have Hydra do what a command line says, and return the exit code with which it ends.

    Args:
        arguments: the command line.
        typed: the key that was typed, of each full key that differs from it.
        conf: where configurations are found.
        do: called with the configuration and the folder of each run; what it raises is Hydra's to print.
    """
    command_line = list(sys.argv)

    def task(cfg: DictConfig) -> None:
        sys.argv[:] = command_line  # by which Lightning starts the further processes of a run
        hydra_cfg = HydraConfig.get()
        plain = to_plain(cfg)
        plain["experiment"] = hydra_cfg.runtime.choices.get("experiment") or "default"
        plain["overrides"] = [*conf.typed, *(as_typed(text, typed) for text in hydra_cfg.overrides.task)]
        do(plain, Path(os.path.relpath(hydra_cfg.runtime.output_dir)))

    sys.argv[1:] = arguments  # Hydra reads the process's own command line
    try:
        hydra.main(config_path=str(compose.CONF_DIR), config_name="train", version_base="1.3")(task)()
    except SystemExit as left:  # how Hydra leaves after printing what went wrong
        return 1 if left.code else 0
    finally:
        sys.argv[:] = command_line
    return 0


def _alone(job: Job, cfg: Settings, run_dir: Path) -> None:
    with claim(run_dir) as ours:
        if not ours:
            raise UserError(
                f"{run_dir} is in use: another process works on this run. Wait for it, or stop it first."
            )
        try:
            if not cfg.resume:
                _check_unused(run_dir)  # again: another process may have run here since the first time
            _work(job, cfg, run_dir)
        finally:
            remove_unstarted(run_dir)


def _begun(run_dir: Path, overrides: Iterable[Override], conf: Conf) -> Settings | None:
    """The configuration to go on with, where a run of a sweep has a checkpoint: the one that it began with."""
    begun = any((run_dir / "checkpoints" / name).exists() for name in ("last.ckpt", "best.ckpt"))
    return resumed(run_dir, [], overrides, conf) if begun else None


def _numbers_runs(override: Override) -> bool:
    """Whether an override of a sweep has a say in what its run number 3 is."""
    key = override.key_or_group
    return key != "name" and (not override.is_hydra_override() or key.startswith("hydra.sweeper.params"))


# Lightning runs this program again for each further process of a run on several GPUs (trainer=ddp). Such a process
# finds here whose run it is part of, "PROCESS:FOLDER", and leaves the command line unread: that of a sweep, or one
# with a folder named by the time, would lead it elsewhere.
_RUN_OF = "FER_LIGHTNING_RUN_OF"


def _work(job: Job, cfg: Settings, run_dir: Path) -> None:
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
            job(to_settings(to_plain(saved)), Path(folder))
        except UserError as error:
            raise UserError(f"process {os.environ.get('LOCAL_RANK')}: {error}") from error
    return 0


def _folder(overrides: list[Override], multirun: bool) -> Path:
    """runs/<experiment>/<name>, where everything that this command writes will be."""
    values = {o.key_or_group: "+".join(str(value) for value in values_of(o)) for o in overrides}
    name = values.get("name", "null")
    if name in ("null", "None"):
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UserError(f"name={name} becomes a folder: use letters, digits, '_', '-', '+' and '.' only.")
    experiment = values.get("experiment", "default")
    folder = Path("runs") / ("default" if experiment in ("null", "None") else experiment) / name
    if multirun and (folder / "sweep.json").exists():
        return folder  # whether it is the same sweep is begin_sweep's to say
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
