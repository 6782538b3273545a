"""Exponential moving average of the weights: what is validated, tested and kept in checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from fer_lightning.errors import UserError


class EMA(WeightAveraging):
    """Averages weights and batch-norm statistics over the last steps (Polyak and Juditsky 1992).

    Early in the fit, when there is little worth remembering, the average is shorter: its decay at the n-th update
    is at most (1 + n) / (10 + n).

    Args:
        decay: part of the average that an optimizer step leaves as it is; 0.99 remembers about 100 steps.
        every_n_steps: updates only every so many steps, by as much more.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, decay: float = 0.99, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} is out of range: it goes from 0 to below 1.")
        if every_n_steps < 1:
            raise UserError(f"callbacks.ema.every_n_steps={every_n_steps} must be at least 1.")
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay
        self.every_n_steps = every_n_steps

    def _average(self, averages: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int) -> None:
        n = self._latest_update_step // self.every_n_steps  # not n_averaged: reading it would make a GPU wait
        weight = 1 - min(self.decay**self.every_n_steps, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(current), weight)
        else:  # batch norm's counters
            torch._foreach_copy_(list(averages), list(current))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self.every_n_steps == 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # In a test after the fit on the same Trainer the average is what was loaded: Lightning 2.6 would put the
        # unaveraged weights in its place.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
