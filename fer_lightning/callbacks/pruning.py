"""Early end of unpromising runs of a search."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.errors import Pruned

if TYPE_CHECKING:
    import optuna


class Pruning(Callback):
    """Callback that reports each epoch to the run's search and ends the run when it is unpromising.

    A trial is pruned when its best epoch so far is worse than the median of the earlier trials at this epoch
    (Optuna's MedianPruner). The callback does nothing in a run that is not a trial.

    Args:
        monitor: name of the logged metric to report.
        startup_trials: number of trials that must have ended before any is pruned.
        warmup_epochs: number of epochs in which a trial is never pruned.

    Raises:
        Pruned: at the start of the next epoch, when all previous epochs are recorded and saved.
    """

    def __init__(self, monitor: str, startup_trials: int = 5, warmup_epochs: int = 2) -> None:
        self.monitor = monitor
        self.startup_trials = startup_trials
        self.warmup_epochs = warmup_epochs
        self.trial: optuna.Trial | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the trial that the run belongs to, if any."""
        run_dir = Path(trainer.default_root_dir)
        if stage == "fit" and trainer.is_global_zero and (run_dir.parent / "optuna.journal").exists():
            from fer_lightning.runs.search import trial_of

            self.trial = trial_of(run_dir, self.startup_trials, self.warmup_epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run if the search prunes its trial."""
        prune = self.trial is not None and self.trial.should_prune()
        if trainer.strategy.broadcast(prune):
            print(f"pruned: {self.monitor} is worse than the median of the earlier trials")
            raise Pruned

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch to the search."""
        value = trainer.callback_metrics.get(self.monitor)
        if self.trial is not None and value is not None:
            from fer_lightning.runs.search import report

            report(self.trial, value.item(), trainer.current_epoch)
