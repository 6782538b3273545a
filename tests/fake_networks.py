"""Networks whose predictions follow visibly from the image."""

import torch
from torch import nn


class Brightness(nn.Module):
    """A network that predicts happy for bright faces and sad for dark ones."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 7)
        logits[:, 3] = 9 * (images.mean(dim=(1, 2, 3)) - 0.5)
        logits[:, 4] = -logits[:, 3]
        return logits


class ByHalf(nn.Module):
    """A network that predicts class 0 if the left half is brighter, surely, and class 1 otherwise.

    With the mirror image as a second view, every face is of class 0.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = images[..., :24].mean(dim=(1, 2, 3)), images[..., 24:].mean(dim=(1, 2, 3))
        return torch.stack([(left > right) * 9.0, (left <= right) * 1.0, *[torch.full_like(left, -9.0)] * 5], dim=1)
