"""Test-time augmentation: average the predictions over several views of each face."""

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.errors import UserError, did_you_mean

Views = Callable[[Tensor], list[Tensor]]


def _mirrored(views: list[Tensor]) -> list[Tensor]:
    """Return the views followed by their mirror images."""
    return views + [view.flip(-1) for view in views]


def _shifted(images: Tensor) -> list[Tensor]:
    """Return the images and their shifts by 1/24 of the width (2 of 48 px) in eight directions, edges repeated."""
    size = images.shape[-1]
    step = max(1, round(size / 24))
    padded = F.pad(images, (step,) * 4, mode="replicate")
    offsets = (step, 0, 2 * step)
    return [padded[..., y : y + size, x : x + size] for y in offsets for x in offsets]


def _five_crops(images: Tensor) -> list[Tensor]:
    """Return the corner crops and the centre crop, 11/12 of the width (44 of 48 px), resized to full size."""
    size = images.shape[-1]
    side = round(size * 11 / 12)
    ends = (0, size - side)
    corners = [(y, x) for y in ends for x in ends] + [((size - side) // 2, (size - side) // 2)]
    return [
        F.interpolate(images[..., y : y + side, x : x + side], size=(size, size), mode="bilinear")
        for y, x in corners
    ]


def _zoomed(images: Tensor) -> list[Tensor]:
    """Return the images, and themselves magnified 0.85, 0.92, 1.09 and 1.18 times, edges repeated."""
    # Not by affine_grid: in mixed precision its matrix product would round the coordinates to bfloat16.
    size = images.shape[-1]
    pixels = torch.arange(size, dtype=images.dtype, device=images.device)
    line = (2 * pixels + 1) / size - 1  # their centres
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    return [images] + [
        F.grid_sample(images, grid / factor, mode="bilinear", padding_mode="border", align_corners=False)
        for factor in (0.85, 0.92, 1.09, 1.18)
    ]


VIEWS: dict[str, Views] = {
    "none": lambda images: [images],
    "mirror": lambda images: _mirrored([images]),
    "shifts": lambda images: _mirrored(_shifted(images)),
    "zooms": lambda images: _mirrored(_zoomed(images)),
    "ten_crop": lambda images: _mirrored(_five_crops(images)),
}


def n_views(tta: str) -> int:
    """Return how many views of each face a key of VIEWS makes: the forward passes that a prediction takes."""
    return len(VIEWS[tta](torch.zeros(1, 1, 48, 48)))


def check_tta(tta: str) -> None:
    """Raise UserError if `tta` is not a key of VIEWS."""
    if tta not in VIEWS:
        raise UserError(f"tta={tta} does not exist.{did_you_mean(tta, VIEWS)} Choose from {', '.join(VIEWS)}.")


def predict_logits(net: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """Compute the logits of images under a test-time augmentation.

    Args:
        net: float (B, 1, H, W) -> logits (B, C).
        images: float (B, 1, H, W), normalised.
        tta: a key of VIEWS.

    Returns:
        float32 (B, C) whose softmax is the mean of the views' probabilities; for "none" the network's own logits.
    """
    views = VIEWS[tta](images)
    if len(views) == 1:
        return net(views[0]).float()
    return log_mean_probabilities(torch.stack([net(view) for view in views]))


def log_mean_probabilities(logits: Tensor) -> Tensor:
    """Compute the logarithm of the mean of K predictions' probabilities: logits (K, B, C) -> float32 (B, C).

    The computation stays in log space because a probability may underflow in float32.
    """
    return logits.float().log_softmax(dim=-1).logsumexp(dim=0) - log(len(logits))
