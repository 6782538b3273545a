"""The shared decoder: a picture gives the same pixels as a training image and as a photo."""

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from fer_lightning.data import images
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import FORMAT_NAMES, FORMATS, IMAGE_SUFFIXES, ImageError, decode, is_truncated
from fer_lightning.data.truncated_jpeg import TruncatedJpeg
from fer_lightning.errors import UserError
from fer_lightning.inference.faces import Region
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
    np.testing.assert_array_equal(training, crop_face(photo, Region((0, 0, *photo.size))))
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
        assert not is_truncated(image)
    assert is_truncated(read_photo(io.BytesIO(both[: second - 2])))


def container(major: bytes, compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + len(compatible)) + b"ftyp" + major + bytes(4) + compatible + bytes(500)


HEIC = container(b"heic", b"mif1heic")


@pytest.mark.parametrize("content", [HEIC, container(b"mif1", b"mif1heic"), container(b"msf1", b"hevc")])
def test_heic_is_named_with_its_remedy(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(
            ImageError, match=r'^reading HEIC needs pillow-heif: pip install -e "\.\[heic\]"'
        ) as caught:
            read_photo(io.BytesIO(content))
        assert caught.value.kind == "unsupported image"
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageError, match=r"^damaged: ") as caught:
        read_photo(io.BytesIO(content))
    assert caught.value.kind == "damaged image"


def test_heic_is_read_as_it_is_displayed() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    upright = smooth((48, 66))
    for mode in ("RGB", "L", "RGBA"):
        image = decode(io.BytesIO(encoded(upright.convert(mode), "HEIF", quality=95)))
        assert image.mode == ("L" if mode == "L" else "RGB")
        assert np.abs(np.asarray(image.convert("L")).astype(int) - np.asarray(upright)).mean() < 4
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    turned = decode(
        io.BytesIO(encoded(upright.transpose(Image.Transpose.ROTATE_90), "HEIF", quality=95, exif=exif.tobytes()))
    )
    assert np.abs(np.asarray(turned.convert("L")).astype(int) - np.asarray(upright)).mean() < 4
    content = encoded(upright, "HEIF")
    with pytest.raises(ImageError, match=r"^damaged: .*\S$"):  # one line
        decode(io.BytesIO(content[: len(content) * 3 // 4]))


def test_other_files_in_the_same_container_are_not_taken_for_heic() -> None:
    for content in (container(b"isom", b"isommp42"), HEIC[:11], b"ftyp" * 20, container(b"heic", b"")[4:]):
        with pytest.raises(ImageError, match=f"^not an image of type {FORMAT_NAMES}$"):
            decode(io.BytesIO(content))


def test_heic_in_a_class_folder_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(3):
        put(tmp_path / "data" / "happy" / f"{number}.jpg", encoded(smooth((48, 48))))
    for name in ("happy/a.HEIC", "happy/b.heif", "sad/renamed.jpg"):
        put(tmp_path / "data" / name, HEIC)
    with pytest.raises(UserError) as caught:
        load_faces(tmp_path / "data", cache_dir=tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 faults in ")
    starts = [line.split(": reading HEIC needs pillow-heif: ")[0] for line in lines[1:4]]
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


# ---------------------------------------------------------------------------------------------------------
# JPEGs that lack their last bytes

JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "grey": ("L", {}),
    "colour": ("RGB", {}),
    "every colour": ("RGB", {"subsampling": 0, "quality": 98}),
    "RGB": ("RGB", {"keep_rgb": True}),
    "CMYK": ("CMYK", {}),
    "restart markers": ("RGB", {"restart_marker_rows": 1}),
    "restart markers at blocks": ("L", {"restart_marker_blocks": 5}),
}
PROGRESSIVE: dict[str, tuple[str, dict[str, object]]] = {
    "progressive": ("RGB", {"progressive": True}),
    "grey progressive": ("L", {"progressive": True}),
    "progressive with restart markers": ("RGB", {"progressive": True, "restart_marker_rows": 1}),
}


def pixels(content: bytes) -> npt.NDArray[np.int_]:
    return np.asarray(decode(io.BytesIO(content)).convert("L")).astype(int)


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("kind", [*JPEGS, *PROGRESSIVE])
def test_a_jpeg_without_its_end_marker_has_all_pixels(kind: str, tmp_path: Path) -> None:
    mode, options = (JPEGS | PROGRESSIVE)[kind]
    whole = encoded(smooth((66, 54), mode), **options)
    assert not is_truncated(decode(io.BytesIO(whole)))
    for content in (whole[:-2], whole[:-1], whole[:-2] + bytes(1000)):  # zeros: room reserved for a download
        for file in (io.BytesIO(content), Pipe(content), put(tmp_path / "a.jpg", content)):
            image = decode(file)
            assert is_truncated(image)
            np.testing.assert_array_equal(np.asarray(image.convert("L")), pixels(whole))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_is_filled_up_to_an_eighth_of_its_pixels(kind: str) -> None:
    mode, options = JPEGS[kind]
    whole = encoded(smooth((240, 240), mode), **options)
    outcomes = set()
    for share in (0.99, 0.95, 0.92, 0.8, 0.7, 0.5, 0.3):
        content = whole[: round(share * len(whole))]
        jpeg = TruncatedJpeg(content)
        missing = jpeg.missing_share()
        wrong = np.asarray(Image.open(io.BytesIO(jpeg.complete())).convert("L")) != pixels(whole)
        assert missing == pytest.approx(wrong.mean(), abs=0.04)
        outcomes.add(missing > 1 / 8)
        if missing > 1 / 8:
            with pytest.raises(ImageError, match=f"damaged: .* truncated, {missing:.0%} of the pixels") as caught:
                decode(io.BytesIO(content))
            assert caught.value.kind == "damaged image"
        else:
            assert (pixels(content) != pixels(whole)).mean() == pytest.approx(wrong.mean(), abs=0.01)
    assert outcomes == {False, True}


def test_only_luma_counts_as_missing() -> None:
    whole = encoded(smooth((32, 32), "RGB"), quality=98)  # four blocks of 16x16 pixels, which end with their colour
    content = whole[:-20]
    colours = [np.asarray(decode(io.BytesIO(file))).astype(int) for file in (content, whole)]
    assert (colours[0] != colours[1]).any(axis=2).mean() > 1 / 8
    assert TruncatedJpeg(content).missing_share() == 0


@pytest.mark.parametrize("kind", PROGRESSIVE)
def test_a_progressive_jpeg_may_lack_its_finest_detail(kind: str) -> None:
    mode, options = PROGRESSIVE[kind]
    whole = encoded(smooth((240, 240), mode), **options)
    errors = []
    for share in (0.99, 0.9, 0.8):
        content = whole[: round(share * len(whole))]
        assert is_truncated(decode(io.BytesIO(content)))
        errors.append(np.abs(pixels(content) - pixels(whole)).mean())
    assert 0 < errors[0] < errors[1] < errors[2] < 5  # grey levels
    for share in (0.3, 0.2, 0.1):
        with pytest.raises(ImageError, match="damaged: image file is truncated, its finer scans are missing"):
            decode(io.BytesIO(whole[: round(share * len(whole))]))


REFINED = [(1, 0, 0, 0, 1), (1, 1, 5, 0, 2), (1, 6, 63, 0, 2), (1, 1, 63, 2, 1), (1, 0, 0, 1, 0), (1, 1, 63, 1, 0)]


@pytest.mark.parametrize(
    ("scans", "has_detail"),
    [
        (REFINED, True),
        (REFINED[:5], True),
        (REFINED[:4], False),  # the file ends in the scan that sends the last bit but one
        (REFINED[:3], False),
        ([(1, 0, 0, 0, 0)], False),
        ([(1, 0, 0, 0, 0), (1, 1, 63, 0, 0)], True),  # how much of this scan is missing is measured
        ([(1, 0, 0, 0, 0), (1, 1, 8, 0, 0)], False),
        ([(1, 0, 0, 0, 0), (1, 1, 8, 0, 0), (2, 1, 63, 0, 0)], False),
        ([(1, 0, 0, 0, 0), (1, 1, 63, 0, 1), (2, 1, 63, 0, 0)], True),
    ],
)
def test_the_scans_that_a_progressive_jpeg_needs(scans: list[tuple[int, ...]], has_detail: bool) -> None:
    content = b"\xff\xd8\xff\xe1\0\6\xff\xda\xff\xd9"  # a thumbnail's markers inside a segment
    content += b"\xff\xc2\0\x0b" + bytes(9)
    for component, first, last, high, low in scans:
        content += (
            b"\xff\xda\0\x08" + bytes((1, component, 0, first, last, high << 4 | low)) + b"data\xff\0\xff\xd0"
        )
    for rest in (b"", b"\xff", b"\xff\xda", b"\xff\xda\0\x08\1"):  # a header that is cut off does not count
        jpeg = TruncatedJpeg(content + rest)
        assert (jpeg.has_detail(), jpeg.has_end) == (has_detail, False)
    assert TruncatedJpeg(content + b"\xff\xd9").has_end


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_other_truncated_images_are_refused(file_format: str) -> None:
    content = encoded(smooth((96, 96), "RGB"), file_format)
    with pytest.raises(ImageError):
        decode(io.BytesIO(content[: -len(content) // 10]))


def test_a_jpeg_that_is_damaged_elsewhere_is_refused() -> None:
    content = bytearray(encoded(smooth((48, 48))))
    at = content.index(b"\xff\xc4")
    content[at + 5] = 255  # too many Huffman codes
    for end in (None, -2):
        with pytest.raises(ImageError, match="damaged: broken data stream"):
            decode(io.BytesIO(bytes(content[:end])))


@pytest.mark.parametrize("kind", [*JPEGS, *PROGRESSIVE])
def test_zeros_do_not_stand_for_missing_pixels(kind: str) -> None:
    mode, options = (JPEGS | PROGRESSIVE)[kind]
    whole = encoded(smooth((240, 240), mode), **options)
    for share in (0.25, 0.75) if kind in JPEGS else (0.25,):
        content = whole[: round(share * len(whole))]
        for zeros in (len(whole) - len(content), 100_000):
            with pytest.raises(ImageError, match="damaged: image file is truncated, "):
                decode(io.BytesIO(content + bytes(zeros)))


def test_other_data_may_follow_a_jpeg() -> None:
    whole = encoded(smooth((66, 54)))
    for rest in (bytes(1000), b"a phone's video", b"\xff" * 9, whole[: len(whole) // 2]):
        image = decode(io.BytesIO(whole + rest))
        assert not is_truncated(image)
        np.testing.assert_array_equal(np.asarray(image), pixels(whole))


def test_truncated_training_images_are_counted_in_a_note(tmp_path: Path) -> None:
    whole = encoded(smooth((48, 48)), quality=95)
    for number in range(4):
        put(tmp_path / "data" / "happy" / f"{number}.jpg", encoded(smooth((48, 48))))
        put(tmp_path / "data" / "sad" / f"{number}.jpg", encoded(smooth((48, 48)))[:-2])
    put(tmp_path / "data" / "sad" / "whole.jpg", whole)
    put(tmp_path / "data" / "sad" / "truncated.jpg", whole[:-2])
    for _ in range(2):  # read, and from the cache
        faces = load_faces(tmp_path / "data", cache_dir=tmp_path / "cache")
        (note,) = (note for note in faces.notes if "JPEG" in note)
        assert note == (
            "JPEGs that lack their last bytes: 5; the missing ends were filled, as browsers do: "
            "sad/0.jpg, sad/1.jpg, sad/2.jpg and 2 more."
        )
        of = dict(zip(faces.ids, faces.images, strict=True))
        np.testing.assert_array_equal(of["sad/truncated.jpg"], of["sad/whole.jpg"])
    put(tmp_path / "data" / "sad" / "half.jpg", whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"sad/half\.jpg: damaged: image file is truncated, \d\d% of the pixels"):
        load_faces(tmp_path / "data", cache_dir=tmp_path / "cache")
