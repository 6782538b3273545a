"""Test-time augmentation: several views of each face, one averaged answer."""

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.errors import UserError, did_you_mean

Views = Callable[[Tensor], list[Tensor]]


def _mirrored(views: list[Tensor]) -> list[Tensor]:
    return views + [view.flip(-1) for view in views]


def _shifted(images: Tensor) -> list[Tensor]:
    """The images and their shifts by 1/24 of the width (2 pixels of 48) in eight directions, edges repeated."""
    size = images.shape[-1]
    step = max(1, round(size / 24))
    padded = F.pad(images, (step,) * 4, mode="replicate")
    offsets = (step, 0, 2 * step)
    return [padded[..., y : y + size, x : x + size] for y in offsets for x in offsets]


def _five_crops(images: Tensor) -> list[Tensor]:
    """The four corners and the centre at 11/12 of the width (44 pixels of 48), enlarged to the images' size."""
    size = images.shape[-1]
    side = round(size * 11 / 12)
    ends = (0, size - side)
    corners = [(y, x) for y in ends for x in ends] + [((size - side) // 2, (size - side) // 2)]
    return [
        F.interpolate(images[..., y : y + side, x : x + side], size=(size, size), mode="bilinear")
        for y, x in corners
    ]


VIEWS: dict[str, Views] = {
    "none": lambda images: [images],
    "mirror": lambda images: _mirrored([images]),
    "shifts": lambda images: _mirrored(_shifted(images)),
    "ten_crop": lambda images: _mirrored(_five_crops(images)),
}


def check_tta(tta: str) -> None:
    """Raises UserError if there is no test-time augmentation of that name."""
    if tta not in VIEWS:
        raise UserError(f"tta={tta} does not exist.{did_you_mean(tta, VIEWS)} There are: {', '.join(VIEWS)}.")


def answer(net: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """The network's answer over all views: the logarithm of the mean of the probabilities.

    Args:
        net: float (B, 1, H, W) -> logits (B, 7).
        images: float (B, 1, H, W), normalised.
        tta: a key of VIEWS.

    Returns:
        float32 (B, 7) whose softmax is the mean over the views; the network's own logits for "none".
    """
    views = VIEWS[tta](images)
    if len(views) == 1:
        return net(views[0]).float()
    return mean_answer(torch.stack([net(view) for view in views]))


def mean_answer(logits: Tensor) -> Tensor:
    """The logarithm of the mean of several answers' probabilities: (K, B, 7) -> float32 (B, 7).

    Never through the probabilities themselves, which may be too small for float32.
    """
    return logits.float().log_softmax(dim=-1).logsumexp(dim=0) - log(len(logits))
