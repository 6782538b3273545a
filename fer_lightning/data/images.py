"""The one decoder of image files, for training and for photos."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fer_lightning.errors import UserError

# Not all of Pillow's: an EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")

# What Pillow raises for damaged images, beside OSError.
_DAMAGED = (
    *(SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error),
    *(ArithmeticError, MemoryError),  # of what the header claims
)


class ImageError(UserError):
    """An image cannot be decoded: the message is the cause alone, without the file's name.

    Args:
        kind: the sort of fault, for counting.
        cause: what exactly is wrong.
    """

    def __init__(self, kind: str, cause: str) -> None:
        super().__init__(cause)
        self.kind = kind


def decode(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """Return the image of a file as it is to be seen.

    It is turned as its EXIF orientation says, transparent parts become white, 16 bits a pixel become 8, and only
    the first frame of an animation is taken.

    Args:
        file: a path, an open binary file, or a PIL image, whose pixels are read only now.

    Returns:
        An image of any size in mode "L" if the file is plain 8-bit grey, otherwise in mode "RGB".

    Raises:
        ImageError: the file cannot be read or is no image, is damaged, has more than 178 million pixels, or 32 bits
            a pixel.
    """
    try:
        with warnings.catch_warnings():
            # Up to twice Pillow's limit is a large photo; beyond, it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(file, Image.Image):
                return _as_seen(file)
            with Image.open(file, formats=FORMATS) as image:
                return _as_seen(image)
    except UnidentifiedImageError as error:
        raise ImageError("damaged image", f"not an image, or none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("oversized image", "too large: more than 178 million pixels") from error
    except OSError as error:
        raise ImageError("damaged image", error.strerror or f"damaged: {error}") from error
    except _DAMAGED as error:
        raise ImageError("damaged image", f"damaged: {error}") from error


def _as_seen(image: Image.Image) -> Image.Image:
    image.load()  # before the EXIF is asked for: that of a PNG may follow the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("unsupported image", "32 bits a pixel, of unknown range: save it with 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


MAX_IMAGE_BYTES = 50 * 2**20  # a face is 2 KiB, a photo 10 MiB: more is a mistake or an attack
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
