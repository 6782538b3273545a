"""Networks by name: plain torch modules, grey faces (B, 1, H, W) -> logits (B, 7)."""

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
    """The network called `name`, with fresh weights.

    Args:
        name: a key of MODELS.
        image_size: height and width in pixels of the images that it will get.
        options: the network's own options, e.g. ``channels=[16, 32, 64]``.

    Raises:
        UserError: no such network, options that it cannot be built with, or too little memory.
    """
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UserError(f"There is no network called {name!r}.{did_you_mean(name, MODELS)} There are: {known}.")
    try:
        return call(MODELS[name], f"model={name}", options | {"image_size": image_size})
    except UserError as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"The network {name} cannot be built with {given} at {image_size} px: {error}") from error
    except RuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise UserError(f"The network {name} is too large for the memory: {first_line(error)}") from error
