"""Optimizers and learning-rate schedules, by name."""

from collections.abc import Callable, Iterable
from math import ceil, cos, pi
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from fer_lightning.arguments import call
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.transfer import is_within, last_layer
from fer_lightning.training.compat import let_lightning_unscale

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine")


def steps_per_epoch_of(trainer: Trainer) -> int:
    """Return the number of optimizer steps in an epoch of a fit."""
    return ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def lr_factor(step: int, total_steps: float, warmup_steps: int, schedule: str) -> float:
    """Compute the factor of the learning rate at a step: linear warm-up to 1, then constant or half a cosine to 0.

    The cosine schedule follows Loshchilov and Hutter 2017, "SGDR", without restarts.

    Args:
        step: optimizer step, from 0.
        total_steps: steps of the whole fit, warm-up included; may be infinite.
        warmup_steps: steps of linear warm-up.
        schedule: one of SCHEDULES.

    Returns:
        A factor in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + cos(pi * min(1.0, progress)))


def parameter_groups(net: nn.Module, n_classes: int, backbone_lr_factor: float) -> list[Any]:
    """Return the parameters of a network, in two groups if all layers but the last have another learning rate.

    Args:
        net: float (B, 1, H, W) -> logits (B, n_classes).
        n_classes: number of logits.
        backbone_lr_factor: learning rate of all layers but the last, as a fraction of that of the last.

    Returns:
        Parameters, or groups of them for ``build_optimizer``, the last layer first.

    Raises:
        UserError: it is not clear which layer is the last.
    """
    if backbone_lr_factor == 1:
        return list(net.parameters())
    layers = last_layer(net, n_classes)
    last = [parameter for name, parameter in net.named_parameters() if is_within(name, layers)]
    others = [parameter for name, parameter in net.named_parameters() if not is_within(name, layers)]
    return [{"params": last}, {"params": others, "lr_factor": backbone_lr_factor}]


def build_optimizer(
    parameters: Iterable[Any],
    total_steps: float,
    steps_per_epoch: int,
    name: str = "adam",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    warmup_epochs: float = 0.0,
    **options: Any,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Build an optimizer and its learning-rate schedule, which is stepped after every optimizer step.

    Args:
        parameters: the parameters to optimise; or groups of them as torch's optimizers take, where "lr_factor"
            scales the learning rate.
        total_steps: steps of the whole fit; infinity keeps a cosine at its maximum.
        steps_per_epoch: optimizer steps per epoch.
        name: a key of OPTIMIZERS.
        lr: the maximum learning rate.
        weight_decay: L2 penalty for adam and sgd, decoupled for adamw.
        schedule: one of SCHEDULES.
        warmup_epochs: epochs of linear warm-up from 0.
        options: further arguments of the torch optimizer, e.g. ``momentum``.

    Raises:
        UserError: `name` or `schedule` is unknown, or a value is out of range.
    """
    if name not in OPTIMIZERS:
        near = did_you_mean(name, OPTIMIZERS)
        raise UserError(f"optim.name={name}: unknown optimizer.{near} Choose from {', '.join(OPTIMIZERS)}.")
    if schedule not in SCHEDULES:
        near = did_you_mean(schedule, SCHEDULES)
        raise UserError(f"optim.schedule={schedule}: unknown schedule.{near} Choose from {', '.join(SCHEDULES)}.")
    if lr <= 0:
        raise UserError(f"optim.lr={lr}: expected a number above 0.")
    for key, value in (("weight_decay", weight_decay), ("warmup_epochs", warmup_epochs)):
        if value < 0:
            raise UserError(f"optim.{key}={value}: expected at least 0.")
    groups = list(parameters)
    weights = [weight for group in groups for weight in (group["params"] if isinstance(group, dict) else [group])]
    # Fused optimizers update all weights with one kernel instead of a dozen kernels for each.
    fused = all(weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights)
    options = {"lr": lr, "weight_decay": weight_decay, "fused": fused} | options
    optimizer = call(OPTIMIZERS[name], f"optim.name={name}", options, groups)
    let_lightning_unscale(optimizer)
    warmup_steps = round(warmup_epochs * steps_per_epoch)

    def factor_of(group: dict[str, Any]) -> Callable[[int], float]:
        scale = group.get("lr_factor", 1.0)
        return lambda step: scale * lr_factor(step, total_steps, warmup_steps, schedule)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, list(map(factor_of, optimizer.param_groups)))
