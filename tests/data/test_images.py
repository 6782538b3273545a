"""The shared decoder: a picture gives the same pixels as a training image and as a photo."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import ImageError, decode
from fer_lightning.inference.photos import crop_face, read_photo

RNG = np.random.default_rng(0)
Make = Callable[[tuple[int, int]], tuple[Image.Image, str, dict[str, object]]]


def noise(size: tuple[int, int], bands: int) -> npt.NDArray[np.uint8]:
    width, height = size
    return RNG.integers(0, 256, (height, width, bands), dtype=np.uint8)


def see_through(size: tuple[int, int], mode: str) -> Image.Image:
    image = Image.fromarray(noise(size, 3)).convert(mode)
    image.putalpha(Image.fromarray(noise(size, 1)[..., 0]))
    return image


def turned(size: tuple[int, int], mode: str) -> dict[str, object]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif.tobytes()}


KINDS: dict[str, Make] = {
    "grey JPEG": lambda size: (Image.fromarray(noise(size, 1)[..., 0]), "JPEG", {}),
    "grey JPEG to be turned": lambda size: (Image.fromarray(noise(size, 1)[..., 0]), "JPEG", turned(size, "L")),
    "grey PNG to be turned": lambda size: (Image.fromarray(noise(size, 1)[..., 0]), "PNG", turned(size, "L")),
    "colour": lambda size: (Image.fromarray(noise(size, 3)), "PNG", {}),
    "colour to be turned": lambda size: (Image.fromarray(noise(size, 3)), "JPEG", turned(size, "RGB")),
    "alpha": lambda size: (see_through(size, "RGB"), "PNG", {}),
    "grey with alpha": lambda size: (see_through(size, "L"), "PNG", {}),
    "palette": lambda size: (Image.fromarray(noise(size, 3)).quantize(), "PNG", {}),
    "palette with a transparent colour": lambda size: (
        Image.fromarray(noise(size, 3)).quantize(),
        "PNG",
        {"transparency": 3},
    ),
    "grey with a transparent level": lambda size: (
        Image.fromarray(noise(size, 1)[..., 0]),
        "PNG",
        {"transparency": 7},
    ),
    "16 bits": lambda size: (Image.fromarray(noise(size, 1)[..., 0].astype(np.uint16) * 257), "PNG", {}),
    "1 bit": lambda size: (Image.fromarray(noise(size, 1)[..., 0]).convert("1"), "PNG", {}),
    "CMYK": lambda size: (Image.fromarray(noise(size, 4), "CMYK"), "JPEG", {}),
    "animation": lambda size: (Image.fromarray(noise(size, 3)), "GIF", {}),
}


@pytest.mark.parametrize("size", [(48, 48), (60, 90)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_photos_see_the_same_pixels(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    image, file_format, options = KINDS[kind](size)
    path = tmp_path / "data" / "happy" / f"a.{file_format.lower()}"
    path.parent.mkdir(parents=True)
    image.save(path, file_format, **options)
    [training] = load_faces(tmp_path / "data", cache_dir=tmp_path / "cache").images
    photo = read_photo(path)
    np.testing.assert_array_equal(training, crop_face(photo, (0, 0, *photo.size)))
    assert photo.mode == "RGB"
    assert photo.size == (size[::-1] if "turned" in kind else size)


def test_pixel_values_of_transparent_and_16_bit_images() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (100, 128))
    deep = Image.fromarray(np.full((4, 4), 200 * 256 + 255, np.uint16))
    for image, mode, value in ((clear, "RGB", 255), (half, "RGB", 177), (deep, "RGB", 200)):
        decoded = decode(image)
        assert decoded.mode == mode
        assert np.unique(np.asarray(decoded)).tolist() == [value]


@pytest.mark.parametrize(
    ("content", "kind", "cause"),
    [
        (b"not a picture", "damaged image", "not an image of type JPEG, PNG, "),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "damaged image",
            "not an image of type JPEG, PNG, ",
        ),
        (b"\x89PNG\r\n\x1a\n", "damaged image", ""),
    ],
)
def test_invalid_image_is_refused_with_its_cause(content: bytes, kind: str, cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        decode(io.BytesIO(content))
    assert caught.value.kind == kind


def test_32_bits_per_pixel_are_refused() -> None:
    with pytest.raises(ImageError, match="32 bits per pixel, range unknown") as caught:
        decode(Image.new("I", (4, 4)))
    assert caught.value.kind == "unsupported image"
