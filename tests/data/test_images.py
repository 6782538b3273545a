"""The shared decoder: a picture gives the same pixels as a training image and as a photo."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fer_lightning.data import images
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import FORMAT_NAMES, FORMATS, IMAGE_SUFFIXES, ImageError, decode
from fer_lightning.errors import UserError
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
        (b"\x89PNG\r\n\x1a\n", "damaged image", "not an image of type JPEG, PNG, "),
        (b"\xff\xd8\xff\xe0\0\x04ab", "damaged image", "damaged: a JPEG whose header is incomplete"),
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


def encoded(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def smooth(size: tuple[int, int], mode: str = "L") -> Image.Image:
    """Return a drawn image that JPEG keeps well, with detail everywhere."""
    coarse = Image.fromarray(noise((size[0] // 6, size[1] // 6), 3))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_16_bit_pgm_keeps_its_range() -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    image = decode(io.BytesIO(b"P5\n4 1\n65535\n" + values.astype(">u2").tobytes()))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 255]


# ---------------------------------------------------------------------------------------------------------
# Which files are images


def test_all_suffixes_of_the_supported_formats_are_images() -> None:
    Image.init()
    registered = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    assert registered - IMAGE_SUFFIXES <= {".pfm"}  # 32 bits per pixel


@pytest.mark.parametrize("zipped", [False, True])
def test_training_images_have_any_of_these_suffixes(zipped: bool, tmp_path: Path) -> None:
    content = encoded(smooth((48, 48)))
    names = [f"happy/a{number}{suffix}" for number, suffix in enumerate((".jfif", ".JPE", ".Jpg"))]
    for name in names:
        put(tmp_path / "data" / name, content)
    path = tmp_path / "data"
    if zipped:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content)
    faces = load_faces(path, cache_dir=tmp_path / "cache")
    assert sorted(faces.ids) == names
    assert not any("Ignored" in note for note in faces.notes)


def test_a_photo_of_several_images_gives_the_first(tmp_path: Path) -> None:
    photo = smooth((96, 60), "RGB")
    both = encoded(photo, "MPO", save_all=True, append_images=[photo.resize((48, 30))], exif=turned((), "")["exif"])
    expected = np.asarray(photo.transpose(Image.Transpose.ROTATE_270)).astype(int)
    second = both.rindex(b"\xff\xd8")
    for content in (both, both[:-50], both[:second]):  # tools often drop the second image
        image = read_photo(put(tmp_path / "phone.jpg", content))
        assert np.abs(np.asarray(image) - expected).mean() < 10


def container(major: bytes, compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + len(compatible)) + b"ftyp" + major + bytes(4) + compatible + bytes(500)


HEIC = container(b"heic", b"mif1heic")


@pytest.mark.parametrize("content", [HEIC, container(b"mif1", b"mif1heic"), container(b"msf1", b"hevc")])
def test_heic_is_named_with_its_remedy(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^HEIC is not supported: convert it to JPEG .*Most Compatible") as caught:
        read_photo(io.BytesIO(content))
    assert caught.value.kind == "unsupported image"


def test_other_files_in_the_same_container_are_not_taken_for_heic() -> None:
    for content in (container(b"isom", b"isommp42"), HEIC[:11], b"ftyp" * 20, container(b"heic", b"")[4:]):
        with pytest.raises(ImageError, match=f"^not an image of type {FORMAT_NAMES}$"):
            decode(io.BytesIO(content))


def test_heic_in_a_class_folder_is_a_fault(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / "data" / "happy" / f"{number}.jpg", encoded(smooth((48, 48))))
    for name in ("happy/a.HEIC", "happy/b.heif", "sad/renamed.jpg"):
        put(tmp_path / "data" / name, HEIC)
    with pytest.raises(UserError) as caught:
        load_faces(tmp_path / "data", cache_dir=tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 faults in ")
    starts = [line.split(": HEIC is not supported: ")[0] for line in lines[1:4]]
    assert starts == ["  happy/a.HEIC", "  happy/b.heif", "  sad/renamed.jpg"]
    faces = load_faces(tmp_path / "data", skip_bad=True, cache_dir=tmp_path / "cache")
    assert len(faces) == 3
    assert "data.skip_bad dropped 3 x unsupported image." in faces.notes


@pytest.mark.skipif("AVIF" not in FORMATS, reason="needs Pillow 11.3 with libavif")
def test_avif_is_read_like_any_image(tmp_path: Path) -> None:
    photo = smooth((96, 60), "RGB")
    content = encoded(photo, "AVIF", exif=turned((), "")["exif"])
    expected = np.asarray(photo.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(read_photo(io.BytesIO(content))) - expected).mean() < 8
    put(tmp_path / "data" / "happy" / "a.avif", content)
    assert load_faces(tmp_path / "data", cache_dir=tmp_path / "cache").ids == ("happy/a.avif",)
    with pytest.raises(ImageError, match="damaged: an AVIF"):
        decode(io.BytesIO(content[: len(content) // 2]))
    with pytest.raises(ImageError, match=r"damaged: Failed to decode"):  # libavif's RuntimeError
        decode(io.BytesIO(content.replace(b"av01", b"av02")))


def test_avif_without_support_in_pillow_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in FORMATS if name != "AVIF"))
    for content in (container(b"avif", b"mif1miaf"), container(b"mif1", b"mif1avif")):
        with pytest.raises(
            ImageError, match=r'^Pillow .* cannot read AVIF here: pip install "pillow>=11\.3"'
        ) as caught:
            decode(io.BytesIO(content))
        assert caught.value.kind == "unsupported image"
