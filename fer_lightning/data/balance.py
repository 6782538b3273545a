"""Against unequal classes: weights of the loss, and epochs in which every class is equally frequent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fer_lightning.data.philox import BALANCE, permutation, words
from fer_lightning.errors import UserError

SAMPLERS = ("shuffle", "balanced")


def class_weights(setting: str | Sequence[float], labels: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Return the weight of each class in the training loss.

    Args:
        setting: "none"; "balanced", inversely proportional to the class's share of the training images (King and
            Zeng 2001, "Logistic regression in rare events data"); or a number for each class.
        labels: int64 (n,), the training images' classes.
        classes: names of the C classes.

    Returns:
        float32 (C,), scaled so that the mean over the training images is 1, which leaves the learning rate alone;
        None for "none".

    Raises:
        UserError: another word, or numbers that do not fit the classes.
    """
    if setting == "none":
        return None
    counts = torch.bincount(labels, minlength=len(classes)).double()
    weights = torch.where(counts > 0, 1 / counts, 0) if setting == "balanced" else _given_weights(setting, classes)
    mean = (weights * counts).sum() / counts.sum()
    if not mean > 0:
        raise UserError(f"data.class_weights={setting}: no training image would count. Raise a weight.")
    return (weights / mean).float()


def _given_weights(setting: str | Sequence[float], classes: Sequence[str]) -> Tensor:
    if isinstance(setting, str):
        raise UserError(f"data.class_weights={setting}: expected none, balanced, or a number for each class.")
    if len(setting) != len(classes):
        raise UserError(
            f"data.class_weights has {len(setting)} numbers for {len(classes)} classes. Give one for each of "
            f"{', '.join(classes)}, in this order."
        )
    weights = torch.tensor(setting, dtype=torch.float64)
    if not (weights.isfinite() & (weights >= 0)).all():
        raise UserError(f"data.class_weights={list(setting)}: expected numbers of at least 0.")
    return weights


def balanced_epoch(seed: int, epoch: int, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images of an epoch in which every class is equally frequent, in a random order.

    The epoch has as many images as there are, shared equally by the classes that have any. Over the epochs, each
    class goes through all its images, in a new order every time, before one of them is repeated. All draws are pure
    functions of the arguments, so nothing has to be saved, and batch size and number of processes change nothing.

    Args:
        seed: any 64-bit integer.
        epoch: epoch number, from 0.
        rows: int64 (n,), the images' rows in the dataset.
        labels: int64 (n,), their classes, on the same device.

    Returns:
        The rows of the epoch, int64 (n,); and how many times each was drawn earlier in it, int64 (n,).
    """
    present = labels.bincount().nonzero()[:, 0].tolist()
    drawn, copies = [], []
    for place, label in enumerate(present):
        own = rows[labels == label]
        quota = len(rows) // len(present) + (place < len(rows) % len(present))
        draws = torch.arange(epoch * quota, (epoch + 1) * quota, device=rows.device)
        passes = draws // len(own)
        for number in range(epoch * quota // len(own), ((epoch + 1) * quota - 1) // len(own) + 1):
            order = own[words(seed, number, own, 1, BALANCE)[:, 0].argsort(stable=True)]
            drawn.append(order[draws[passes == number] % len(own)])
        copies.append(passes - passes[0])
    order = permutation(seed, epoch, len(rows), rows.device)
    return torch.cat(drawn)[order], torch.cat(copies)[order]
