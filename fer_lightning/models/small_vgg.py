"""SmallVGG: the network of the speed run."""

from collections.abc import Sequence

from torch import Tensor, nn

from fer_lightning.emotions import NUM_CLASSES


class Shortcut(nn.Sequential):
    """Layers whose output is added to their input.

    After He et al. 2015, "Deep residual learning for image recognition".
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + out


class SmallVGG(nn.Module):
    """A strided stem, stages of two 3x3 convolutions with a max pool after the first, then the mean over the image.

    The stages' order, convolution, max pool, batch norm, activation, is that of the CIFAR-10 speed record by Jordan
    2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU"; pooling before the norm leaves a quarter of the work.

    Args:
        channels: the width of the stem and of each stage; the stem and every stage halve the image.
        residual: whether a shortcut leads around each stage's second convolution.
        image_size: height and width in pixels of the input.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 32, 64, 128), residual: bool = False, image_size: int = 48
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError("channels needs at least the stem, each at least 1 wide")
        if image_size >> len(channels) < 1:
            raise ValueError(f"{len(channels)} halvings leave nothing of {image_size} px")
        width, *stages = channels
        # No biases: the batch norm that follows would subtract them again.
        layers = [nn.Conv2d(1, width, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
        for stage in stages:
            second = [nn.Conv2d(stage, stage, 3, padding=1, bias=False), nn.BatchNorm2d(stage)]
            layers += [
                nn.Conv2d(width, stage, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(stage),
                nn.ReLU(True),
                *([Shortcut(*second)] if residual else second),
                nn.ReLU(True),
            ]
            width = stage
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits
