"""ResNet: residual networks for small images, from the ablations' width to the largest that ships."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.models.channels import check_channels


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    The block is that of He et al. 2015, "Deep residual learning for image recognition". A strided block's
    shortcut is the mean over the stride's pixels and a 1x1 convolution, as in ResNet-D (He et al. 2018, "Bag of
    tricks for image classification").
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        # A block begins as its shortcut (Goyal et al. 2017, section 5.1).
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(width_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:  # (B, C_in, H, W) -> (B, C, H / stride, W / stride)
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, the mean over the image, dropout and one linear layer.

    Args:
        channels: the width of each stage; each stage but the first halves the image.
        blocks: residual blocks a stage, up to 100.
        stem_stride: 2 halves the image at once, for a quarter of the work.
        dropout: part of the features that training leaves out before the linear layer.
        image_size: height and width in pixels of the input.

    Raises:
        UserError: a value out of range, or more stages than the image has room for.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        stem_stride: int = 1,
        dropout: float = 0.0,
        image_size: int = 48,
    ) -> None:
        super().__init__()
        for name, value, most in (("blocks", blocks, 100), ("stem_stride", stem_stride, image_size)):
            if not 1 <= value <= most:
                raise UserError(f"{name}={value} is out of range: it goes from 1 to {most}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout} is out of range: it goes from 0 to below 1")
        check_channels(channels, image_size // stem_stride, halvings=len(channels) - 1)
        width = channels[0]
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
        ]
        for number, stage in enumerate(channels):
            for block in range(blocks):
                layers.append(ResidualBlock(width, stage, stride=2 if number and not block else 1))
                width = stage
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        logits: Tensor = self.classifier(self.dropout(self.features(images).mean(dim=(2, 3))))
        return logits
