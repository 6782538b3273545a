"""What TensorBoard shows of a run beside its curves: texts, combined charts, hyperparameters, figures."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.callbacks.drawing import tensorboard
from fer_lightning.emotions import EMOTIONS
from fer_lightning.training.compat import write_hparams

# As add_custom_scalars takes it. TensorBoard reads each tag as a regular expression to match from the start.
CHARTS = {
    "learning": {
        "loss": ["Multiline", ["loss/train$", "loss/val$"]],
        "accuracy": ["Multiline", ["accuracy/train$", "accuracy/val$"]],
        "recall by emotion": ["Multiline", [f"recall/{emotion}$" for emotion in EMOTIONS]],
    }
}


class Dashboard(Callback):
    """Writes what a person needs to tell one run from another: texts, chart layout and hyperparameters.

    Args:
        texts: heading -> text to show word for word, such as the config as YAML, under ``run/<heading>``.
        hparams: the run's row in the HParams tab. It stays as first written when a run is resumed.
    """

    def __init__(self, texts: Mapping[str, str], hparams: Mapping[str, bool | int | float | str]) -> None:
        self.texts = dict(texts)
        self.hparams = dict(hparams)
        self._announced = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The writer keeps two minutes in memory, which a killed process would lose, and its resumed run too.
        if (logger := tensorboard(trainer)) is not None:
            logger.experiment.flush()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce(trainer)  # for a run that only tests

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce(trainer)  # for an ensemble

    def _announce(self, trainer: Trainer) -> None:
        """Once in a process. A resumed run does it again, at the epoch where it goes on."""
        logger = tensorboard(trainer)
        if logger is None or self._announced:
            return
        self._announced = True
        writer = logger.experiment
        writer.add_custom_scalars(CHARTS)
        for heading, text in self.texts.items():
            writer.add_text(f"run/{heading}", _verbatim(text), trainer.current_epoch)

        write_hparams(writer, self.hparams)
        writer.flush()

    def report(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Write the run's results into the HParams table, as ``hp/<name>``: once, after the last test.

        The table opens with five results in the order of the alphabet: accuracy/train and accuracy/val of the
        last epoch, then the first three of these.
        """
        if (logger := tensorboard(trainer)) is None:
            return
        for name, value in metrics.items():
            logger.experiment.add_scalar(f"hp/{name}", value, trainer.current_epoch)
        # Closed after the test, and opened again by this: a sweep would gather a thread from every run.
        logger.finalize("success")


def _verbatim(text: str) -> str:
    """As code: TensorBoard renders Markdown, which would eat the underscores and brackets of a command."""
    return f"```yaml\n{text.rstrip()}\n```" if "\n" in text.strip() else f"`{text.strip()}`"
