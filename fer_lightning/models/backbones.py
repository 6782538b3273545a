"""Build networks of other libraries, which check the image size in their own ways."""

from collections.abc import Callable

import torch
from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.errors import UserError


def build_for(image_size: int, build: Callable[[], nn.Module], *refusals: type[Exception]) -> nn.Module:
    """Build a network and try it on one grey image: some detect only then that the image is too small.

    Args:
        image_size: height and width of the input, in pixels.
        build: returns a network, float (B, 1, image_size, image_size) -> logits.
        refusals: what the library raises for a wrong size, beside AssertionError, RuntimeError and ValueError.

    Returns:
        The network in evaluation mode.

    Raises:
        UserError: the network does not support this image size.
    """
    refused: tuple[type[Exception], ...] = (AssertionError, RuntimeError, ValueError, *refusals)
    try:
        net = build()
        with torch.no_grad():
            net.eval()(torch.zeros(1, 1, image_size, image_size))
    except refused as error:
        if isinstance(error, RuntimeError) and hardware.is_out_of_memory(error):
            raise
        reason = first_line(error).rstrip(".")
        raise UserError(f"choose another data.image_size; most expect 224 ({reason})") from error
    return net
