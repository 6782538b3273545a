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
