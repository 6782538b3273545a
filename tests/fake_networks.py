"""Networks whose answers can be told by looking at the picture."""

import torch
from torch import nn


class Brightness(nn.Module):
    """Happy for bright faces, sad for dark ones."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 7)
        logits[:, 3] = 9 * (images.mean(dim=(1, 2, 3)) - 0.5)
        logits[:, 4] = -logits[:, 3]
        return logits
