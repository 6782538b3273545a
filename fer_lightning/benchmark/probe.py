"""A callback that measures the start and the memory of a run of train.py."""

import json
from pathlib import Path
from time import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Probe(Callback):
    """Callback that records the end of the first training step and the fit's peak GPU memory.

    Args:
        path: JSON file to write: {"first_step_at": seconds since 1970, "peak_gpu_bytes": 0 without CUDA}.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.first_step_at: float | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Record the time after the first step."""
        if self.first_step_at is None:
            if pl_module.device.type != "cpu":
                torch.accelerator.synchronize()
            self.first_step_at = time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        probed = {"first_step_at": self.first_step_at, "peak_gpu_bytes": torch.cuda.max_memory_allocated()}
        self.path.write_text(json.dumps(probed))
