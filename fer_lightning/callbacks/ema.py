"""Exponential moving average of the weights: what is validated, tested and kept in checkpoints."""

from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from fer_lightning.errors import UserError
from fer_lightning.training.compat import averaged_model, copy_all_, latest_update, lerp_all_, set_latest_update


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
        super().__init__()
        self.decay = decay
        self.every_n_steps = every_n_steps
        # Of the average and of the network: weights and statistics, and batch norm's counters.
        self._floats: list[list[Tensor]] = []
        self._counters: list[list[Tensor]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        average = averaged_model(self)
        assert average is not None
        # Lightning makes the average before the network goes to its device, and each step would copy from there.
        average.to(pl_module.device)
        tensors = [
            [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]
            for module in (average.module, pl_module)
        ]
        self._floats, self._counters = (
            [[tensor for tensor in of_model if tensor.is_floating_point() == wanted] for of_model in tensors]
            for wanted in (True, False)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # In place of Lightning's, which asks the averaged model for the number of its updates: that is on the
        # device, and every step would wait for it.
        step = trainer.global_step
        latest = latest_update(self)
        if step <= latest or step % self.every_n_steps:
            return
        n = latest // self.every_n_steps  # updates before this one
        decay = min(self.decay**self.every_n_steps, (1 + n) / (10 + n)) if n else 0.0  # the first is a copy
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
        return False  # never by Lightning's own hooks

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # In a test after the fit on the same Trainer the average is what was loaded: Lightning 2.6 would put the
        # unaveraged weights in its place.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
