"""Searches with Optuna: sweeps whose runs are the trials of a study, which lies in a journal beside them.

The trial's number is the name of its run's folder. Several processes may work on one study, and each may die at any
moment: what it had begun is taken up by the others, or by the same command given again.
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
from fer_lightning.runs.sweep import Sweep, lock_sweep

JOURNAL = "optuna.journal"
_STUDY = "search"


class _KernelLock(JournalFileOpenLock):
    """Ours in place of Optuna's, which outlive a killed process and are broken open after half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path.with_name(f".{path.name}.lock")
        self._held = ExitStack()

    def acquire(self) -> bool:
        return self._held.enter_context(lock(self._path))

    def release(self) -> None:
        self._held.close()


def _storage(folder: Path) -> JournalStorage:
    path = folder / JOURNAL
    journal_lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else _KernelLock(path)
    backend = JournalFileBackend(str(path), journal_lock)
    journal_lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the machine stopped while the last line was written
            with path.open("r+b") as file:
                file.truncate(whole)
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
    """Has trials run until there are enough; those that nobody has finished come first.

    Args:
        folder: of the sweep; each trial's run is in a folder below, named by the trial's number.
        monitor: the metric to bring to its best: lowest if its name begins with "loss", else highest.
        n_trials: how many there shall be, those of former and of parallel processes included.
        seed: of the choices. Each trial has a sampler of its own, so that a search that was interrupted does not
            begin again with the choices that it had made already.
        suggest: what a trial runs with, asked of it by its suggest methods.
        launch: does the run of a trial's number with these settings, or sees that another process does it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(folder),
        study_name=_STUDY,
        direction="minimize" if monitor.startswith("loss") else "maximize",
        load_if_exists=True,
    )
    sweep = Sweep(folder)
    failed: set[int] = set()  # tried once more by the next command, not by this one
    while True:
        with lock_sweep(folder):
            unfinished = []
            for begun in study.get_trials(states=(TrialState.RUNNING,)):
                run_dir = folder / str(begun.number)
                told = _tell(study, begun.number, run_dir)
                if not told and begun.number not in failed and sweep.is_open(run_dir):
                    unfinished.append(begun)
            if not unfinished and len(study.trials) >= n_trials:
                return
            study.sampler = TPESampler(seed=seed + len(study.trials))
            trial = optuna.Trial(study, unfinished[0]._trial_id) if unfinished else study.ask()
            settings = suggest(trial)
        launch(trial.number, settings)
        if status(folder / str(trial.number)) == "failed":
            failed.add(trial.number)


def _tell(study: optuna.Study, number: int, run_dir: Path) -> bool:
    """Tells the study what came of a trial whose run has ended well; whether there was anything to tell.

    A failed or interrupted run is not told: it will be tried again.
    """
    results = read_results(run_dir) or {"status": "none"}
    if results["status"] == "finished":
        value = results["best_value"]  # none where nothing was validated
        study.tell(number, value, TrialState.FAIL if value is None else None)
    elif results["status"] == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    else:
        return False
    return True


def trial_of(run_dir: Path, startup_trials: int, warmup_epochs: int) -> optuna.Trial | None:
    """The trial that a run belongs to, with a pruner; None where it belongs to none or that has ended.

    Args:
        run_dir: the run's folder.
        startup_trials: so many trials must have ended before one is given up.
        warmup_epochs: so many epochs a trial is let alone.
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
    """Tells an epoch's value, unless it was told before: an epoch that was cut short is done again."""
    reported = trial.study.trials[trial.number].intermediate_values
    if epoch not in reported:
        trial.report(value, epoch)
