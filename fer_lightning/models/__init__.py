"""Network registry: plain torch modules that map grey faces (B, 1, H, W) to logits (B, classes)."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import call, first_line
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.fer_model0 import FERModel0
from fer_lightning.models.pretrained import ExpectedInput
from fer_lightning.models.resnet import ResNet
from fer_lightning.models.small_vgg import SmallVGG
from fer_lightning.models.timm import timm_input, timm_net
from fer_lightning.models.torchvision import torchvision_input, torchvision_net

MODELS: dict[str, Callable[..., nn.Module]] = {
    "fer_model0": FERModel0,
    "resnet": ResNet,
    "small_vgg": SmallVGG,
    "timm": timm_net,
    "torchvision": torchvision_net,
}
# What the pretrained weights of a network expect, given its options; those networks that have any.
EXPECTED_INPUTS: dict[str, Callable[[Mapping[str, Any]], ExpectedInput | None]] = {
    "timm": timm_input,
    "torchvision": torchvision_input,
}


def build_model(name: str, image_size: int, n_classes: int = len(EMOTIONS), **options: Any) -> nn.Module:
    """Build a network by name, with random weights or the pretrained ones that its options choose.

    Args:
        name: a key of MODELS.
        image_size: height and width of the input images, in pixels.
        n_classes: number of logits.
        options: keyword arguments of the network, e.g. ``channels=[16, 32, 64]``.

    Raises:
        UserError: `name` is unknown, the options are invalid, pretrained weights cannot be had, or the network
            does not fit in memory.
    """
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UserError(f"model={name}: unknown network.{did_you_mean(name, MODELS)} Choose from {known}.")
    options |= {"image_size": image_size}
    parameters = inspect.signature(MODELS[name]).parameters.values()
    if any(parameter.name == "n_classes" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        options |= {"n_classes": n_classes}
    elif n_classes != len(EMOTIONS):  # a network that was written for FER-2013 alone
        raise UserError(f"model={name} has no parameter n_classes, so it cannot have {n_classes} classes. Add one.")
    try:
        return call(MODELS[name], f"model={name}", options)
    except UserError as error:
        if str(error).startswith("model"):  # it names the setting already
            raise
        own = {key: value for key, value in options.items() if key not in ("image_size", "n_classes")}
        given = ", ".join(f"{key}={value}" for key, value in own.items())
        raise UserError(f"The network {name} cannot be built with {given} at {image_size} px: {error}") from error
    except RuntimeError as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise UserError(f"The network {name} does not fit in memory: {first_line(error)}") from error
