"""Decoder of image files, shared by training data and photos."""

import struct
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fer_lightning.errors import UserError

# A subset of Pillow's formats: an EPS, for example, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")

# Exceptions that Pillow raises for damaged images, besides OSError.
_DAMAGED = (
    *(SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error),
    *(ArithmeticError, MemoryError),  # from sizes claimed in the header
)


class ImageError(UserError):
    """An image cannot be decoded; the message is the cause only, without the file name.

    Args:
        kind: category of the fault, for counting.
        cause: description of the fault.
    """

    def __init__(self, kind: str, cause: str) -> None:
        super().__init__(cause)
        self.kind = kind


def decode(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """Decode an image file as it is meant to be displayed.

    The image is rotated according to its EXIF orientation, transparent parts become white, 16 bits per pixel become
    8, and only the first frame of an animation is used.

    Args:
        file: a path, an open binary file, or a PIL image whose pixels may not have been loaded yet.

    Returns:
        An image of any size, in mode "L" if the file is plain 8-bit grey, otherwise in mode "RGB".

    Raises:
        ImageError: the file cannot be read, is not an image or is damaged, or has more than 178 million pixels or
            32 bits per pixel.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns up to twice its limit, which a large photo may reach; beyond that it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(file, Image.Image):
                return _to_display(file)
            # Opened here, because older versions of Pillow resolve /dev/fd/N to a path that does not exist.
            with (
                Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as stream,
                Image.open(stream, formats=FORMATS) as image,
            ):
                return _to_display(image)
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ImageError("damaged image", f"not an image of type {formats}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("oversized image", "too large: more than 178 million pixels") from error
    except OSError as error:
        raise ImageError("damaged image", error.strerror or f"damaged: {error}") from error
    except _DAMAGED as error:
        raise ImageError("damaged image", f"damaged: {error}") from error


def _to_display(image: Image.Image) -> Image.Image:
    image.load()  # before reading the EXIF, which may follow the pixels in a PNG
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("unsupported image", "32 bits per pixel, range unknown: save it with 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


MAX_IMAGE_BYTES = 50 * 2**20  # a face takes 2 KiB, a photo 10 MiB; a larger file is a mistake or an attack
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
