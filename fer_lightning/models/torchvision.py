"""Classification networks of torchvision, adapted to grey faces."""

from typing import Any

import torch
from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean


def torchvision_net(
    architecture: str = "resnet18", image_size: int = 224, n_classes: int = len(EMOTIONS)
) -> nn.Module:
    """Build a network of ``torchvision.models`` with random weights, one input channel.

    The kernels of the first convolution are summed over the colours, which is equivalent to repeating the grey
    channel three times.

    Args:
        architecture: a name for ``torchvision.models.get_model``, e.g. "resnet18" or "convnext_tiny".
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: torchvision has no classification network of that name, or it does not support this image size.
    """
    from torchvision import models  # slow to import, and not needed for other networks

    known = models.list_models(module=models)
    if architecture not in known:
        raise UserError(
            f"model.architecture={architecture} does not exist.{did_you_mean(architecture, known)} "
            "Choose from https://docs.pytorch.org/vision/stable/models.html#classification, "
            "e.g. resnet18, vgg11_bn, convnext_tiny."
        )
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # In training mode the auxiliary classifiers would return extra outputs. init_weights=True is the default,
        # but torchvision warns unless it is passed explicitly.
        options = {"aux_logits": False, "init_weights": True}
    elif architecture.startswith("vit_"):
        options = {"image_size": image_size}
    elif architecture.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}
    try:
        net: nn.Module = models.get_model(architecture, weights=None, num_classes=n_classes, **options)
        _use_grey_input(net)
        with torch.no_grad():
            # Some architectures detect only here that the image is too small.
            net.eval()(torch.zeros(1, 1, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and hardware.is_out_of_memory(error):
            raise
        reason = first_line(error).rstrip(".")
        raise UserError(f"choose another data.image_size; most expect 224 ({reason})") from error
    return net.train()


def _use_grey_input(net: nn.Module) -> None:
    """Reduce the first convolution to one input channel, in place."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
