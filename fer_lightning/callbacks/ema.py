"""Exponential moving average of the weights, used for validation, tests and checkpoints."""

from itertools import chain
from math import exp, inf
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from fer_lightning.errors import UserError, check_at_least_one
from fer_lightning.training.compat import averaged_model, copy_all_, latest_update, lerp_all_, set_latest_update
from fer_lightning.training.optim import steps_per_epoch_of


class EMA(WeightAveraging):
    """Callback that averages weights and batch-norm statistics over recent steps (Polyak and Juditsky 1992).

    Early in the fit the average covers fewer steps: the decay of the n-th update is at most (1 + n) / (10 + n).

    Args:
        horizon_epochs: epochs after which a step's weights count 1/e as much as the latest, above 0. Unlike a
            decay, it means the same at every batch size.
        every_n_steps: steps between two updates; the decay is adjusted to match.
        decay: share of the average that each optimizer step keeps, in [0, 1). It overrides the horizon:
            the setting of runs that are older than it. None for the horizon.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, horizon_epochs: float = 0.5, every_n_steps: int = 1, decay: float | None = None) -> None:
        if not 0 < horizon_epochs < inf:
            raise UserError(f"callbacks.ema.horizon_epochs={horizon_epochs}: expected a number above 0.")
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: expected at least 0 and below 1.")
        check_at_least_one("callbacks.ema.every_n_steps", every_n_steps)
        super().__init__()
        self.horizon_epochs = horizon_epochs
        self.every_n_steps = every_n_steps
        self.decay = decay
        self._decay = 0.0  # of one update
        # The tensors of the average and of the network: weights and statistics, and batch norm's counters.
        self._floats: list[list[Tensor]] = []
        self._counters: list[list[Tensor]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the network's device and pair up their tensors."""
        average = averaged_model(self)
        assert average is not None
        # Lightning creates the average before it moves the network, so every step would copy between devices.
        average.to(pl_module.device)
        tensors = [
            [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]
            for module in (average.module, pl_module)
        ]
        self._floats, self._counters = (
            [[tensor for tensor in model if tensor.is_floating_point() == is_float] for model in tensors]
            for is_float in (True, False)
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Convert the horizon to the decay of an update."""
        decay = self.decay
        if decay is None:
            decay = exp(-1 / (self.horizon_epochs * steps_per_epoch_of(trainer)))
        self._decay = decay**self.every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if this step is due."""
        # Lightning's version reads the number of updates from the device, which every step would wait for.
        step = trainer.global_step
        latest = latest_update(self)
        if step <= latest or step % self.every_n_steps:
            return
        n = latest // self.every_n_steps  # updates before this one
        decay = min(self._decay, (1 + n) / (10 + n)) if n else 0.0  # the first update copies
        averages, current = self._floats
        lerp_all_(averages, current, 1 - decay)
        averages, current = self._counters
        if averages:
            copy_all_(averages, current)
        average = averaged_model(self)
        assert average is not None
        average.n_averaged += 1
        set_latest_update(self, step)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Disable the updates by Lightning's own hooks."""
        return False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average when resuming a fit."""
        # In a test with the same Trainer the loaded weights already are the average. Lightning 2.6 would replace it
        # with the unaveraged weights.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
