"""Decoder of image files, shared by training data and photos."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from fer_lightning.arguments import first_line
from fer_lightning.data.truncated_jpeg import END_OF_IMAGE, TruncatedJpeg
from fer_lightning.errors import UserError

# Pillow 11.3 and newer read AVIF, if built with libavif; older versions warn when asked for a feature that they do
# not know.
_HAS_AVIF = "avif" in features.modules and bool(features.check("avif"))

# A subset of Pillow's formats: an EPS, for example, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", *(("AVIF",) if _HAS_AVIF else ()))
FORMAT_NAMES = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"

# The suffixes, in lower case, of the files that are images: in class folders, in zips and in folders of photos. All
# those of FORMATS, and those of images that cannot be decoded, which are an error instead of being skipped.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
        *(".pbm", ".pgm", ".ppm", ".pnm"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".avif", ".avifs"),
        *(".heic", ".heif", ".hif"),
    )
)
MAX_IMAGE_BYTES = 50 * 2**20  # a face takes 2 KiB, a photo 10 MiB; a larger file is a mistake or an attack

# Exceptions that Pillow raises for damaged images, besides OSError.
_DAMAGED = (
    *(SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error),
    *(ArithmeticError, MemoryError),  # from sizes claimed in the header
    RuntimeError,  # from libavif
)

# Brands, in the header of the container that AVIF and HEIC share with MP4. mif1 and msf1 stand for either.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

# The largest share of a JPEG's pixels that may be missing at its end. Of the faces of PrivateTest, the pretrained
# network "tiny" recognises 67%; 63% if their lowest eighth is grey, 54% if a quarter is, and 28% if half is.
_MAX_MISSING = 1 / 8
_TRUNCATED = "lacks its last bytes"  # key in Image.info


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
    8, and only the first frame of an animation is used. The end of a JPEG that lacks its last bytes is filled, as
    browsers do, unless more than an eighth of the pixels is missing; `is_truncated` is then true for the result.

    Args:
        file: a path, an open binary file, or a PIL image whose pixels may not have been loaded yet.

    Returns:
        An image of any size, in mode "L" if the file is plain 8-bit grey, otherwise in mode "RGB".

    Raises:
        ImageError: the file cannot be read, is not an image or is damaged, or has more than 178 million pixels or
            32 bits per pixel.
    """
    with image_errors():
        if isinstance(file, Image.Image):
            return _to_display(file)
        # Opened here, because older versions of Pillow resolve /dev/fd/N to a path that does not exist.
        with Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as stream:
            return _decode(stream if stream.seekable() else io.BytesIO(stream.read()))


@contextmanager
def image_errors() -> Iterator[None]:
    """Turn the exceptions that Pillow raises for unreadable, damaged and oversized images into ImageError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns up to twice its limit, which a large photo may reach; beyond that it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as error:
        raise ImageError("oversized image", "too large: more than 178 million pixels") from error
    except OSError as error:
        raise ImageError("damaged image", error.strerror or f"damaged: {first_line(error)}") from error
    except _DAMAGED as error:
        raise ImageError("damaged image", f"damaged: {first_line(error)}") from error


def is_truncated(image: Image.Image) -> bool:
    """Return whether `decode` filled the missing end of this image."""
    return _TRUNCATED in image.info


def _decode(stream: BinaryIO) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        stream.seek(0)
        header = stream.read(256)
        if not _is_heic(header) or not _can_read_heic():
            raise _explain_unidentified(header) from error
        stream.seek(0)
        try:
            image = Image.open(stream, formats=("HEIF",))
        except UnidentifiedImageError:
            raise ImageError("damaged image", "damaged: a HEIC that cannot be decoded") from error
    with image:
        if image.format in ("JPEG", "MPO") and (jpeg := _find_truncated(stream)):
            return _decode_truncated(jpeg)
        return _to_display(image)


def _find_truncated(stream: BinaryIO) -> TruncatedJpeg | None:
    """Return the JPEG if it lacks its last bytes, which Pillow does not notice if there are zeros instead."""
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - len(END_OF_IMAGE)))
    if stream.read() == END_OF_IMAGE:
        return None
    stream.seek(0)
    jpeg = TruncatedJpeg(stream.read())
    return None if jpeg.has_end else jpeg  # other data may follow the image


def _explain_unidentified(header: bytes) -> ImageError:
    """Return the error for a file that Pillow does not identify, from its first bytes."""
    if _brands(header) & _AVIF_BRANDS:
        if "AVIF" in FORMATS:
            return ImageError("damaged image", "damaged: an AVIF that cannot be decoded")
        remedy = 'pip install "pillow>=11.3", or convert it to JPEG'
        return ImageError("unsupported image", f"Pillow {features.version('pil')} cannot read AVIF here: {remedy}")
    if _is_heic(header):
        remedy = 'pip install -e ".[heic]", or convert it to JPEG'
        return ImageError("unsupported image", f"reading HEIC needs pillow-heif: {remedy}")
    if header.startswith(b"\xff\xd8\xff"):
        return ImageError("damaged image", "damaged: a JPEG whose header is incomplete or invalid")
    return ImageError("damaged image", f"not an image of type {FORMAT_NAMES}")


def _brands(header: bytes) -> set[bytes]:
    """Return the brands of a file in the container of AVIF, HEIC and MP4, from its first bytes."""
    if header[4:8] != b"ftyp":
        return set()
    size = int.from_bytes(header[:4], "big")
    return {header[at : at + 4] for at in (8, *range(16, min(size, len(header)), 4))}


def _is_heic(header: bytes) -> bool:
    brands = _brands(header)
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


def _can_read_heic() -> bool:
    """Let Pillow read HEIC, under the format name HEIF, and return whether it can."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _decode_truncated(jpeg: TruncatedJpeg) -> Image.Image:
    """Decode a JPEG that lacks its last bytes, unless too much is missing."""
    with Image.open(io.BytesIO(jpeg.complete()), formats=("JPEG",)) as image:
        decoded = _to_display(image)
    if not jpeg.has_detail():
        raise ImageError("damaged image", "damaged: image file is truncated, its finer scans are missing")
    if (missing := jpeg.missing_share()) > _MAX_MISSING:
        cause = f"damaged: image file is truncated, {missing:.0%} of the pixels are missing"
        raise ImageError("damaged image", cause)
    decoded.info[_TRUNCATED] = True
    return decoded


def _to_display(image: Image.Image) -> Image.Image:
    image.load()  # before reading the EXIF, which may follow the pixels in a PNG
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    # Pillow would clip 16 bits at 255. It reads a PGM of more than 8 bits as 32, with values up to 65535.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("unsupported image", "32 bits per pixel, range unknown: save it with 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")
