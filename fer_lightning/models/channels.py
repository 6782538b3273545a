"""Validation of the ``channels`` option, shared by the networks that take it."""

from collections.abc import Sequence

from fer_lightning.errors import UserError

MAX_WIDTH = 2**16  # far wider than any network here; limits what an untrusted checkpoint can request


def check_channels(channels: Sequence[int], image_size: int, halvings: int) -> None:
    """Check that a network's widths are in range and that its image can be halved often enough.

    Args:
        channels: the width of each stage.
        image_size: height and width of the image, in pixels.
        halvings: how often the network halves the image.

    Raises:
        UserError: `channels` is empty, a width is out of range, or the image is too small.
    """
    if not channels or not all(1 <= width <= MAX_WIDTH for width in channels):
        raise UserError(f"channels: expected at least one width, each from 1 to {MAX_WIDTH}")
    if image_size >> halvings < 1:
        raise UserError(f"channels: {image_size} px cannot be halved {halvings} times")
