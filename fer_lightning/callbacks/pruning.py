"""The end of a run that a search has no hope for."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.errors import Pruned

if TYPE_CHECKING:
    import optuna


class Pruning(Callback):
    """Reports each epoch to the search that the run is a trial of, and ends the run when it is hopeless.

    Hopeless means that the best epoch so far is worse than the median of the earlier trials at this epoch (Optuna's
    MedianPruner). A run that is no trial is left alone.

    Args:
        monitor: the metric, as it is logged.
        startup_trials: so many trials must have ended before one is given up.
        warmup_epochs: so many epochs a trial is let alone.

    Raises:
        Pruned: in place of the epoch that would begin, so that all before are recorded and saved.
    """

    def __init__(self, monitor: str, startup_trials: int = 5, warmup_epochs: int = 2) -> None:
        self.monitor = monitor
        self.startup_trials = startup_trials
        self.warmup_epochs = warmup_epochs
        self.trial: optuna.Trial | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run_dir = Path(trainer.default_root_dir)
        if stage == "fit" and trainer.is_global_zero and (run_dir.parent / "optuna.journal").exists():
            from fer_lightning.runs.search import trial_of

            self.trial = trial_of(run_dir, self.startup_trials, self.warmup_epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hopeless = self.trial is not None and self.trial.should_prune()
        if trainer.strategy.broadcast(hopeless):
            print(f"given up: {self.monitor} is worse than in half of the trials before")
            raise Pruned

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if self.trial is not None and value is not None:
            from fer_lightning.runs.search import report

            report(self.trial, value.item(), trainer.current_epoch)
