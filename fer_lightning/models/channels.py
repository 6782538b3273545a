"""The check that every network with ``channels`` makes."""

from collections.abc import Sequence

from fer_lightning.errors import UserError

MAX_WIDTH = 2**16  # far above any network here; a checkpoint may claim any number


def check_channels(channels: Sequence[int], image_size: int, halvings: int) -> None:
    """Compare the widths of a network's stages with the image that it halves.

    Raises:
        UserError: no stage, a width out of range, or an image that is too small for so many halvings.
    """
    if not channels or not all(1 <= width <= MAX_WIDTH for width in channels):
        raise UserError(f"channels needs at least one width, each from 1 to {MAX_WIDTH}")
    if image_size >> halvings < 1:
        raise UserError(f"{halvings} halvings leave nothing of {image_size} px")
