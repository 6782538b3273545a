"""Entries of a run in its loggers besides the curves: texts, combined charts, hyperparameters and results."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from fer_lightning.callbacks.drawing import tensorboard
from fer_lightning.training.compat import write_charts, write_hparams
from fer_lightning.training.module import EmotionClassifier


def charts(classes: Sequence[str]) -> dict[str, list[str]]:
    """Return the charts of the Custom Scalars tab, title -> tags."""
    return {
        "loss": ["loss/train", "loss/val"],
        "accuracy": ["accuracy/train", "accuracy/val"],
        "recall by emotion": [f"recall/{name}" for name in classes],
    }


class Dashboard(Callback):
    """Callback that writes texts, chart layout and hyperparameters, which distinguish a run from others.

    Loggers other than TensorBoard get the texts among the hyperparameters, except for the configuration.

    Args:
        texts: heading -> text to show verbatim under ``run/<heading>``, such as the config as YAML.
        hparams: the run's row in TensorBoard's HParams tab, and the hyperparameters of other loggers. Resuming a
            run does not change them.
    """

    def __init__(self, texts: Mapping[str, str], hparams: Mapping[str, bool | int | float | str]) -> None:
        self.texts = dict(texts)
        self.hparams = dict(hparams)
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entries."""
        self._write(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush the writer."""
        # It buffers two minutes of events, which would be missing from a killed run even after resuming it.
        if (logger := tensorboard(trainer)) is not None:
            logger.experiment.flush()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entries of a run without a fit."""
        self._write(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entries of an ensemble."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entries once per process. A resumed run writes them again, at the epoch where it resumes."""
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        facts = {f"run/{heading}": text for heading, text in self.texts.items() if heading != "config"}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._write_tensorboard(logger.experiment, trainer.current_epoch, pl_module)
            elif trainer.global_step == 0:  # MLflow refuses other values when the run is resumed
                logger.log_hyperparams({**self.hparams, **facts})

    def _write_tensorboard(self, writer: Any, epoch: int, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, EmotionClassifier)
        write_charts(writer, "learning", charts(pl_module.inputs.classes))
        for heading, text in self.texts.items():
            writer.add_text(f"run/{heading}", _verbatim(text), epoch)
        write_hparams(writer, self.hparams)
        writer.flush()

    def report(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Write the run's results, once, after the last test."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(dict(metrics), trainer.current_epoch)
                # Lightning closed TensorBoard's writer after the test, and the line above reopened it. Unless it is
                # closed again, a sweep leaks one thread per run.
                logger.finalize("success")


def _verbatim(text: str) -> str:
    """Format a text as Markdown code, because rendering would drop the underscores and brackets of a command."""
    return f"```yaml\n{text.rstrip()}\n```" if "\n" in text.strip() else f"`{text.strip()}`"
