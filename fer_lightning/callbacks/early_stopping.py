"""An early end of the fit."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from fer_lightning.callbacks.checkpoints import check_monitor
from fer_lightning.errors import check_at_least_one
from fer_lightning.runs.ranking import is_minimised
from fer_lightning.training.module import EmotionClassifier


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, which minimises losses, maximises everything else, and prints why a fit ended.

    Args:
        monitor: the metric, one that EmotionClassifier logs.
        patience: number of validations without an improvement after which the fit ends.
        min_delta: smallest change that counts as an improvement.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, monitor: str = "accuracy/val", patience: int = 10, min_delta: float = 0.0) -> None:
        check_at_least_one("callbacks.early_stopping.patience", patience)
        super().__init__(monitor, min_delta, patience, mode="min" if is_minimised(monitor) else "max")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the metric.

        Raises:
            UserError: the module does not log it.
        """
        assert isinstance(pl_module, EmotionClassifier)
        check_monitor(self.monitor, pl_module.inputs.classes, "callbacks.early_stopping.monitor")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the progress, but not the patience, which a resumed run may raise."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit of a resumed run that had ended already."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print why the fit ended, and at which learning rate, which a schedule may have been about to lower."""
        if self.wait_count >= self.patience and trainer.is_global_zero:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            print(
                f"note:     stopped after {self.patience} validations without a better {self.monitor} than\n"
                f"          {float(self.best_score):.4f}; the learning rate was {lr:.2g}"
            )
