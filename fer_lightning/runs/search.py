"""Search with Optuna: a sweep whose runs are the trials of a study, kept in a journal in the sweep's folder.

A run's folder is named by its trial's number. Several processes may share a study, and each may be killed at any
time: its unfinished trial is resumed by another process, or when the command is repeated.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from fer_lightning.runs.folders import read_results, status
from fer_lightning.runs.lock import lock
from fer_lightning.runs.ranking import is_minimised
from fer_lightning.runs.sweep import Sweep, lock_sweep

JOURNAL = "optuna.journal"
_STUDY = "search"


class _KernelLock(JournalFileOpenLock):
    """Journal lock that the kernel releases when its process dies.

    Optuna's own locks outlive a killed process, and expire only after half a minute.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path.with_name(f".{path.name}.lock")
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        return self._held.enter_context(lock(self._path))

    def release(self) -> None:
        """Release the lock."""
        self._held.close()


def _storage(folder: Path) -> JournalStorage:
    """Open the journal of a sweep, after removing a half-written last line."""
    path = folder / JOURNAL
    # On Windows our own lock is untested, so Optuna's is used.
    journal_lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else _KernelLock(path)
    backend = JournalFileBackend(str(path), journal_lock)
    journal_lock.acquire()
    try:
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):  # the machine stopped while the last line was written
            with path.open("r+b") as file:
                file.truncate(complete)
    finally:
        journal_lock.release()
    return JournalStorage(backend)


def search(
    folder: Path,
    monitor: str,
    n_trials: int,
    seed: int,
    suggest: Callable[[optuna.Trial], list[str]],
    launch: Callable[[int, list[str]], None],
) -> None:
    """Run trials until the study has `n_trials`; unfinished trials come first.

    Args:
        folder: the sweep's folder; each trial's run gets a subfolder named by the trial's number.
        monitor: the metric to optimise, minimised if its name begins with "loss", otherwise maximised.
        n_trials: total number of trials, including those of earlier commands and of parallel processes.
        seed: seed of the sampler. Each trial gets its own sampler, seeded by `seed` and the number of trials, so
            that an interrupted search does not repeat its choices when it is resumed.
        suggest: returns the settings of a trial, chosen with the trial's suggest methods.
        launch: carries out the run of a trial's number with these settings, unless another process is doing so.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(folder),
        study_name=_STUDY,
        direction="minimize" if is_minimised(monitor) else "maximize",
        load_if_exists=True,
    )
    sweep = Sweep(folder)
    failed: set[int] = set()  # retried when the command is repeated, not by this process
    while True:
        with lock_sweep(folder):
            unfinished = []
            for started in study.get_trials(states=(TrialState.RUNNING,)):
                run_dir = folder / str(started.number)
                ended = _tell_outcome(study, started.number, run_dir)
                if not ended and started.number not in failed and sweep.is_pending(run_dir):
                    unfinished.append(started)
            if not unfinished and len(study.trials) >= n_trials:
                return
            study.sampler = TPESampler(seed=seed + len(study.trials))
            trial = optuna.Trial(study, unfinished[0]._trial_id) if unfinished else study.ask()
            settings = suggest(trial)
        launch(trial.number, settings)
        if status(folder / str(trial.number)) == "failed":
            failed.add(trial.number)


def _tell_outcome(study: optuna.Study, number: int, run_dir: Path) -> bool:
    """Tell the study the outcome of a finished or pruned run, and return whether there was one.

    Failed and interrupted runs are not reported, because they will be retried.
    """
    results = read_results(run_dir) or {"status": "none"}
    if results["status"] == "finished":
        value = results["best_value"]  # None if the run did not validate
        study.tell(number, value, TrialState.FAIL if value is None else None)
    elif results["status"] == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    else:
        return False
    return True


def trial_of(run_dir: Path, startup_trials: int, warmup_epochs: int) -> optuna.Trial | None:
    """Return the trial of a run, with a pruner, or None if the run has no trial or its trial has ended.

    Args:
        run_dir: the run's folder.
        startup_trials: trials that must have finished before any is pruned.
        warmup_epochs: epochs of a trial before it may be pruned.
    """
    if not run_dir.name.isdigit() or not (run_dir.parent / JOURNAL).exists():
        return None
    study = optuna.load_study(
        storage=_storage(run_dir.parent),
        study_name=_STUDY,
        pruner=optuna.pruners.MedianPruner(startup_trials, warmup_epochs),
    )
    number = int(run_dir.name)
    trial = next((trial for trial in study.trials if trial.number == number), None)
    if trial is None or trial.state.is_finished():
        return None
    return optuna.Trial(study, trial._trial_id)


def report(trial: optuna.Trial, value: float, epoch: int) -> None:
    """Report the value of an epoch, unless a run that was then interrupted has already reported that epoch."""
    reported = trial.study.trials[trial.number].intermediate_values
    if epoch not in reported:
        trial.report(value, epoch)
