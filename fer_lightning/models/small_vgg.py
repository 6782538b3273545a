"""SmallVGG: the network of the speed run, and of the tiny one that ships."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.models.channels import check_channels


class Shortcut(nn.Sequential):
    """Layers whose output is added to their input.

    After He et al. 2015, "Deep residual learning for image recognition".
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + out


class MirroredConv2d(nn.Conv2d):
    """A convolution whose filters come in pairs, one the mirror image of the other: for half the parameters.

    The second half of the maps is what the first half would be for the mirrored image, mirrored back. Where the
    input is made of such pairs too, each filter looks at both. This is the convolution of Cohen and Welling 2016,
    "Group equivariant convolutional networks", for the group of one reflection.

    Args:
        in_channels: maps of the input, in two halves; or 1, the image itself.
        out_channels: maps of the output, an even number.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels // 2, kernel_size, stride, padding, bias=False)

    def pairs(self) -> Tensor:
        """All filters, float (out_channels, in_channels, kernel_size, kernel_size)."""
        # What was left is right for a twin, and the first half of its input the second.
        twins = self.weight.flip(3).roll(self.in_channels // 2, dims=1)
        return torch.cat([self.weight, twins])

    def forward(self, x: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, out_channels, H', W')
        return F.conv2d(x, self.pairs(), None, self.stride, self.padding)

    def plain(self) -> nn.Conv2d:
        """The same as an ordinary convolution of twice the parameters."""
        filters = self.pairs().detach()
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        conv = nn.Conv2d(self.in_channels, len(filters), size, stride, padding, bias=False)
        conv.weight.data = filters
        return conv


class MirroredBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that takes a map and its twin for one, so that each has the other's mean, variance and factors.

    Args:
        num_features: maps, twins included.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features // 2)

    def forward(self, x: Tensor) -> Tensor:  # (B, num_features, H, W) -> the same
        # Channels are the last in memory where it matters: side by side, the twins lie in place already.
        batch, channels, height, width = x.shape
        beside = x.permute(0, 2, 3, 1).reshape(batch, height, 2 * width, channels // 2).permute(0, 3, 1, 2)
        return (
            super().forward(beside).permute(0, 2, 3, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        )

    def plain(self) -> nn.BatchNorm2d:
        """The same as an ordinary batch norm, for evaluation alone."""
        norm = nn.BatchNorm2d(2 * self.num_features, self.eps).eval()
        norm.load_state_dict(
            {name: value.repeat(2) if value.ndim else value for name, value in self.state_dict().items()}
        )
        return norm


class SmallVGG(nn.Module):
    """A strided stem, stages of two 3x3 convolutions with a max pool after the first, then the mean over the image.

    The stages' order, convolution, max pool, batch norm, activation, is that of the CIFAR-10 speed record by Jordan
    2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU"; pooling before the norm leaves a quarter of the work.

    Args:
        channels: the width of the stem and of each stage; the stem and every stage halve the image.
        residual: whether a shortcut leads around each stage's second convolution.
        mirrored: whether the filters come in mirrored pairs. It halves the parameters, and the answer to a face is
            that to its mirror image.
        image_size: height and width in pixels of the input.

    Raises:
        UserError: a width out of range, odd widths of mirrored filters, or more stages than the image has room for.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64, 128),
        residual: bool = False,
        mirrored: bool = False,
        image_size: int = 48,
    ) -> None:
        super().__init__()
        check_channels(channels, image_size, halvings=len(channels))
        if mirrored and (any(width % 2 for width in channels) or image_size % 2 ** len(channels)):
            # A halving of an odd width leaves out a column on one side only.
            raise UserError(
                f"mirrored=true needs even channels and an image_size that can be halved {len(channels)} times"
            )
        self.mirrored = mirrored
        # No biases: the batch norm that follows would subtract them again.
        conv: Any = MirroredConv2d if mirrored else partial(nn.Conv2d, bias=False)
        norm: Any = MirroredBatchNorm2d if mirrored else nn.BatchNorm2d
        width, *stages = channels
        layers = [conv(1, width, 4, stride=2, padding=1), norm(width), nn.ReLU(True)]
        for stage in stages:
            second = [conv(stage, stage, 3, padding=1), norm(stage)]
            layers += [
                conv(width, stage, 3, padding=1),
                nn.MaxPool2d(2),
                norm(stage),
                nn.ReLU(True),
                *([Shortcut(*second)] if residual else second),
                nn.ReLU(True),
            ]
            width = stage
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width // 2 if mirrored else width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        features = self.features(images).mean(dim=(2, 3))
        if self.mirrored:
            features = features.unflatten(1, (2, -1)).mean(dim=1)
        logits: Tensor = self.classifier(features)
        return logits
