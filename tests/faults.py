"""Faults that a callback causes in a run of train.py, in whatever process that is."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Kill(Callback):
    """Kills the process by SIGKILL at the step that a file names: once, for the file is taken away first.

    Args:
        path: of the file, with the number of steps done; where there is none, nothing happens.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.path.exists() and trainer.global_step == int(self.path.read_text()):
            self.path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(path: str | Path) -> list[str]:
    """The settings of train.py that put `Kill` among the callbacks."""
    return ["+callbacks.kill._target_=faults.Kill", f"+callbacks.kill.path={path}"]
