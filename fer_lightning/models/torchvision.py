"""torchvision's classification networks by name, for grey faces."""

from typing import Any

import torch
from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError, did_you_mean


def torchvision_net(architecture: str = "resnet18", image_size: int = 224) -> nn.Module:
    """A network of ``torchvision.models`` with fresh weights, one input channel and seven classes.

    The first convolution is what three equal channels would make of it: its kernels are summed over the colours.

    Args:
        architecture: what ``torchvision.models.get_model`` calls it, e.g. "resnet18" or "convnext_tiny".
        image_size: height and width in pixels of the input.

    Raises:
        UserError: torchvision has no such classification network, or it does not take images of this size.
    """
    from torchvision import models  # not needed for other networks, and not quick to import

    known = models.list_models(module=models)
    if architecture not in known:
        raise UserError(
            f"model.architecture={architecture} does not exist.{did_you_mean(architecture, known)} "
            "There are those of https://docs.pytorch.org/vision/stable/models.html#classification, "
            "e.g. resnet18, vgg11_bn, convnext_tiny."
        )
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # The auxiliary classifiers would answer too while it trains. The initialisation is torchvision's default,
        # which warns unless it is asked for.
        options = {"aux_logits": False, "init_weights": True}
    elif architecture.startswith("vit_"):
        options = {"image_size": image_size}
    elif architecture.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}
    try:
        net: nn.Module = models.get_model(architecture, weights=None, num_classes=NUM_CLASSES, **options)
        _take_grey(net)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 1, image_size, image_size))  # how the others say that it is too small
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and hardware.is_out_of_memory(error):
            raise
        why = first_line(error).rstrip(".")
        raise UserError(f"choose another data.image_size, most were made for 224 ({why})") from error
    return net.train()


def _take_grey(net: nn.Module) -> None:
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
