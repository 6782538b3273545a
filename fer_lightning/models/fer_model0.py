"""FERModel0, the network of experiment=baseline."""

from collections.abc import Sequence

from torch import Tensor, nn

from fer_lightning.emotions import EMOTIONS
from fer_lightning.models.channels import check_channels


class FERModel0(nn.Module):
    """Convolutional blocks followed by one linear layer.

    Each block is [3x3 convolution, batch norm, ReLU] twice and a 2x2 max pool: a small VGG (Simonyan and Zisserman
    2014) with batch norm (Ioffe and Szegedy 2015). The widths of the original are not known.

    Args:
        channels: the width of each block.
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: a width is out of range, or the image is too small for the number of blocks.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 32, 128), image_size: int = 128, n_classes: int = len(EMOTIONS)
    ) -> None:
        super().__init__()
        check_channels(channels, image_size, halvings=len(channels))
        side = image_size >> len(channels)
        layers: list[nn.Module] = []
        width_in = 1
        for width in channels:
            for _ in range(2):
                # No bias: the batch norm that follows would cancel it.
                layers += [
                    nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(True),
                ]
                width_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width_in * side * side, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: float (B, 1, H, W) -> (B, n_classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
