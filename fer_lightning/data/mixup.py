"""Mixup: training images blended with others of the training set, and their labels with them.

Zhang et al. 2017, "mixup: Beyond empirical risk minimization". There, a batch is blended with a permutation of
itself. Here, an image's partner comes from the whole training set, whatever data.sampler is. Like its share, it is
a pure function of (seed, epoch, image index), so that batch size, number of processes and interruptions change
nothing.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.data.philox import MIXUP, to_unit, words
from fer_lightning.errors import UserError

_POINTS = 1024  # of the table of quantiles


class Mixup:
    """Partners of the training images, and how much of each mixture is the partner's.

    A share s has the distribution Beta(alpha, alpha). The mixture of a pair is the same with s and 1 - s exchanged,
    so the partner always gets the smaller one: every image is the main one of exactly one mixture in each epoch.

    Args:
        alpha: from 0.001 to 1, which makes s uniform; small values blend most images only slightly.
        seed: seed of the draws.
        rows: int64 (n,), the rows of the training images in the dataset.
        repeat_epochs: number of epochs after which the draws repeat; None for never.
    """

    def __init__(self, alpha: float, seed: int, rows: Tensor, repeat_epochs: int | None = None) -> None:
        self.alpha = alpha
        self.seed = seed
        self.rows = rows
        self.repeat_epochs = repeat_epochs
        # The density s^(alpha - 1) (1 - s)^(alpha - 1) is infinite at 0, but that of t = s^alpha is bounded, so its
        # quantiles are nearly a straight line.
        t = np.linspace(0, 0.5**alpha, _POINTS)
        density = (1 - t ** (1 / alpha)) ** (alpha - 1)
        cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        quantiles = np.interp(np.linspace(0, 1, _POINTS), cumulative / cumulative[-1], t)
        self._quantiles = torch.from_numpy(quantiles).float().to(rows.device)

    def draw(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the partners' rows, int64 (B,), and their shares, float32 (B,) in [0, 0.5].

        Args:
            index: int64 (B,), the images' draws, on the device of `rows`; see ``Augment``.
            epoch: epoch number, from 0.
        """
        if self.repeat_epochs is not None:
            epoch %= self.repeat_epochs
        bits = words(self.seed, epoch, index, 1, MIXUP)
        partners = self.rows[(bits[:, 0] * len(self.rows)) >> 32]
        place = to_unit(bits[:, 1]) * (_POINTS - 1)
        below = place.long()
        t = torch.lerp(self._quantiles[below], self._quantiles[below + 1], place - below)
        return partners, t ** (1 / self.alpha)


def blend(
    batch: dict[str, Tensor], partners: dict[str, Tensor], shares: Tensor, n_classes: int
) -> dict[str, Tensor]:
    """Blend a batch with its partners.

    Args:
        batch: "images" float (B, 1, H, W), "labels" int64 (B,), and "targets" float32 (B, n_classes) if the dataset
            has any.
        partners: the same of the partners.
        shares: float32 (B,), the partners' shares.
        n_classes: number of classes.

    Returns:
        The batch with blended "images" and "targets". "labels" stay those of the main images.
    """
    targets = torch.lerp(_targets(batch, n_classes), _targets(partners, n_classes), shares.view(-1, 1))
    images = torch.lerp(batch["images"], partners["images"], shares.view(-1, 1, 1, 1))
    return batch | {"images": images, "targets": targets}


def _targets(batch: dict[str, Tensor], n_classes: int) -> Tensor:
    return batch["targets"] if "targets" in batch else F.one_hot(batch["labels"], n_classes).float()


def check_mixup_alpha(alpha: float) -> None:
    """Raise UserError unless alpha is 0 or in [0.001, 1]."""
    if alpha and not 1e-3 <= alpha <= 1:
        raise UserError(f"mix.mixup_alpha={alpha}: expected 0, for no mixup, or 0.001 to 1.")
