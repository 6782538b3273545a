"""TensorBoard entries of a run besides its curves: texts, combined charts and hyperparameters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.callbacks.drawing import tensorboard
from fer_lightning.training.compat import write_hparams
from fer_lightning.training.module import EmotionClassifier


def charts(classes: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout for add_custom_scalars, in which tags are regular expressions anchored at their start."""
    recalls = [f"recall/{re.escape(name)}$" for name in classes]
    return {
        "learning": {
            "loss": ["Multiline", ["loss/train$", "loss/val$"]],
            "accuracy": ["Multiline", ["accuracy/train$", "accuracy/val$"]],
            "recall by emotion": ["Multiline", recalls],
        }
    }


class Dashboard(Callback):
    """Callback that writes texts, chart layout and hyperparameters, which distinguish a run from others.

    Args:
        texts: heading -> text to show verbatim under ``run/<heading>``, such as the config as YAML.
        hparams: the run's row in the HParams tab. Resuming a run does not change the row.
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
        logger = tensorboard(trainer)
        if logger is None or self._written:
            return
        self._written = True
        writer = logger.experiment
        assert isinstance(pl_module, EmotionClassifier)
        writer.add_custom_scalars(charts(pl_module.inputs.classes))
        for heading, text in self.texts.items():
            writer.add_text(f"run/{heading}", _verbatim(text), trainer.current_epoch)

        write_hparams(writer, self.hparams)
        writer.flush()

    def report(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Write the run's results into the HParams table as ``hp/<name>``, once, after the last test.

        By default the table shows the first five results in alphabetical order: accuracy/train and accuracy/val of
        the last epoch, then the first three of these.
        """
        if (logger := tensorboard(trainer)) is None:
            return
        for name, value in metrics.items():
            logger.experiment.add_scalar(f"hp/{name}", value, trainer.current_epoch)
        # Lightning closed the writer after the test, and add_scalar reopened it. Unless it is closed again, a sweep
        # leaks one thread per run.
        logger.finalize("success")


def _verbatim(text: str) -> str:
    """Format a text as Markdown code, because rendering would drop the underscores and brackets of a command."""
    return f"```yaml\n{text.rstrip()}\n```" if "\n" in text.strip() else f"`{text.strip()}`"
