"""ResNet, a residual network for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models.channels import check_channels


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    The basic block of He et al. 2015, "Deep residual learning for image recognition". The shortcut of a strided
    block is average pooling over the stride and a 1x1 convolution, as in ResNet-D (He et al. 2018, "Bag of tricks
    for image classification").

    Args:
        width_in: channels of the input.
        width: channels of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        # A block starts as its shortcut alone (Goyal et al. 2017, section 5.1).
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(width_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, width_in, H, W) -> (B, width, H / stride, W / stride)."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling, dropout and one linear layer.

    Args:
        channels: the width of each stage; every stage but the first halves the image.
        blocks: residual blocks per stage, from 1 to 100.
        stem_stride: stride of the stem; 2 halves the image, for a quarter of the work.
        dropout: probability of dropping a feature before the linear layer during training, in [0, 1).
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: a value is out of range, or the image is too small for the number of stages.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        stem_stride: int = 1,
        dropout: float = 0.0,
        image_size: int = 48,
        n_classes: int = len(EMOTIONS),
    ) -> None:
        super().__init__()
        for name, value, most in (("blocks", blocks, 100), ("stem_stride", stem_stride, image_size)):
            if not 1 <= value <= most:
                raise UserError(f"{name}={value}: expected 1 to {most}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout}: expected at least 0 and below 1")
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
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: float (B, 1, H, W) -> (B, n_classes)."""
        logits: Tensor = self.classifier(self.dropout(self.features(images).mean(dim=(2, 3))))
        return logits
