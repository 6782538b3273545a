"""Network registry: plain torch modules that map grey faces (B, 1, H, W) to logits (B, 7)."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import call, first_line
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.fer_model0 import FERModel0
from fer_lightning.models.resnet import ResNet
from fer_lightning.models.small_vgg import SmallVGG
from fer_lightning.models.torchvision import torchvision_net

MODELS: dict[str, Callable[..., nn.Module]] = {
    "fer_model0": FERModel0,
    "resnet": ResNet,
    "small_vgg": SmallVGG,
    "torchvision": torchvision_net,
}


def build_model(name: str, image_size: int, **options: Any) -> nn.Module:
    """Build a network by name, with freshly initialised weights.

    Args:
        name: a key of MODELS.
        image_size: height and width of the input images, in pixels.
        options: keyword arguments of the network, e.g. ``channels=[16, 32, 64]``.

    Raises:
        UserError: `name` is unknown, the options are invalid, or the network does not fit in memory.
    """
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UserError(f"model={name}: unknown network.{did_you_mean(name, MODELS)} Choose from {known}.")
    try:
        return call(MODELS[name], f"model={name}", options | {"image_size": image_size})
    except UserError as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"The network {name} cannot be built with {given} at {image_size} px: {error}") from error
    except RuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise UserError(f"The network {name} does not fit in memory: {first_line(error)}") from error
