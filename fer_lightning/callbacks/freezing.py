"""Freeze all layers but the last for the first epochs of a fit."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from fer_lightning.models.transfer import is_within


class FreezeBackbone(Callback):
    """Train only the last layer at first, so that its random weights do not spoil the pretrained ones before it.

    The frozen layers are in evaluation mode, so their batch norms keep their statistics. Lightning's
    BackboneFinetuning does not fit here: the frozen weights enter its optimizer later, outside this project's
    learning-rate schedule, and their gradients are not averaged between processes.

    Args:
        last_layer: names of the last layer, or of several side by side, in the module's `net`.
        epochs: number of epochs in which the others are frozen.
    """

    def __init__(self, last_layer: tuple[str, ...], epochs: int) -> None:
        self.last_layer = last_layer
        self.epochs = epochs
        self._frozen: bool | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze or unfreeze when it is time to, which after a resume can be within an epoch."""
        frozen = trainer.current_epoch < self.epochs
        if frozen == self._frozen:
            return
        self._frozen = frozen
        net = pl_module.get_submodule("net")
        last = nn.ModuleList(net.get_submodule(name) for name in self.last_layer)
        net.train(not frozen)
        last.train()
        if trainer.model is pl_module:  # saves the backward pass; DDP would wait for these gradients
            net.requires_grad_(not frozen)
            last.requires_grad_(True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Discard the gradients of the frozen layers: without one, no optimizer changes a weight or its moments."""
        if self._frozen:
            for name, parameter in pl_module.get_submodule("net").named_parameters():
                if not is_within(name, self.last_layer):
                    parameter.grad = None
