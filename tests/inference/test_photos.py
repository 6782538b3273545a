"""Photos: decoding, detecting and cropping faces as in FER-2013, and drawing boxes with legible labels."""

import io
import zlib
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_networks import Brightness
from PIL import Image

from fer_lightning.data.images import is_truncated
from fer_lightning.drawing import boxes
from fer_lightning.drawing.boxes import _label, annotate
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference import photos
from fer_lightning.inference.classifier import Classifier
from fer_lightning.inference.faces import DetectedFace, Region, overlap
from fer_lightning.inference.photos import FACE_SIZE, crop_face, read_photo
from fer_lightning.models.checkpoint import InputSpec

GRACE = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture
def clf():
    return Classifier(Brightness(), InputSpec(FACE_SIZE, 0.0, 1.0), "cpu")


def face_in(*, emotion="happy", box=(10, 40, 60, 60), confidence=0.93):
    rest = (1 - confidence) / 6
    return DetectedFace(box, {name: confidence if name == emotion else rest for name in EMOTIONS})


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return io.BytesIO(file.getvalue())


def test_a_rotated_photo_is_read_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    upright = read_photo(saved(Image.fromarray(np.rot90(pixels)), exif=exif))
    assert upright.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(upright)[..., 0], pixels)


def test_every_pixel_format_becomes_rgb():
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    image = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for kind in (image, image.convert("RGB"), image.convert("RGBA"), image.convert("P"), deep):
        np.testing.assert_array_equal(np.asarray(read_photo(saved(kind))), expected, err_msg=kind.mode)
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    assert np.asarray(read_photo(saved(transparent))).min() == 255
    cmyk = np.asarray(read_photo(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")))
    assert cmyk.min() > 250


def with_exif(png, exif):
    """Return the PNG with an eXIf chunk of this content."""
    chunk = b"eXIf" + exif
    framed = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return png[:33] + framed + png[33:]  # after the header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (with_exif(saved(Image.new("L", (4, 4))).getvalue(), b"II*\0"), "damaged"),
        (b"hello", "not an image"),
        (GRACE.read_bytes()[:20_000], "damaged: image file is truncated"),
        (saved(Image.new("RGB", (300, 300))).getvalue()[:200], "damaged"),
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF").getvalue(), "32 bits per pixel"),
    ],
)
def test_unreadable_photos_are_rejected(content, message):
    with pytest.raises(UserError, match=message):
        read_photo(io.BytesIO(content))


def test_a_photo_that_lacks_its_last_bytes_is_read():
    content = GRACE.read_bytes()
    photo = read_photo(io.BytesIO(content[:-2]))
    assert is_truncated(photo)
    np.testing.assert_array_equal(np.asarray(photo), np.asarray(read_photo(GRACE)))
    grey = read_photo(io.BytesIO(saved(Image.new("L", (48, 48), 90), "JPEG").getvalue()[:-2]))
    assert (grey.mode, is_truncated(grey)) == ("RGB", True)
    assert not is_truncated(read_photo(GRACE))


def test_large_photos_are_read_up_to_a_limit(monkeypatch):
    photo = saved(Image.new("L", (120, 120)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 100)
    assert read_photo(photo).size == (120, 120)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="too large"):
        read_photo(photo)


def test_a_missing_detector_is_an_error_only_where_it_is_needed(monkeypatch, clf):
    def missing(photo, try_turns):
        raise UserError("Detecting faces needs ONNX Runtime")

    monkeypatch.setattr(photos, "find_faces", missing)
    small = Image.new("RGB", (96, 60), "white")
    results = clf.predict_stream([("a", small), *((name, Image.new("RGB", (400, 300))) for name in "bcdefg")])
    assert next(results)[0] == "a"  # photos that need no detector keep their results
    with pytest.raises(UserError, match="ONNX"):
        next(results)
    ((key, photo, (face,)),) = clf.predict_stream([("a", small)])
    assert (key, photo, face.box, face.emotion) == ("a", small, (0, 0, 96, 60), "happy")


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_face_is_turned_upright(quarters):
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    photo = Image.new("L", (200, 150), 90)
    photo.paste(Image.fromarray(np.rot90(face, quarters)), (60, 70))  # counter-clockwise
    np.testing.assert_array_equal(crop_face(photo, Region((60, 70, 48, 48), 90.0 * quarters)), face)


def test_a_dark_face_is_brightened():
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    region = Region((8, 4, 48, 48))

    def cropped(pixels):
        photo = Image.new("L", (64, 64), 255)
        photo.paste(Image.fromarray(pixels), (8, 4))
        return crop_face(photo, region)

    np.testing.assert_array_equal(cropped(face // 2 + 4), face // 2 + 4)  # up to 131
    dark = face // 8
    np.testing.assert_array_equal(cropped(dark), np.round(dark * (200 / np.quantile(dark, 0.99))))
    assert (cropped(0 * face) == 0).all()
    # An image of one cropped face is passed on as it is.
    np.testing.assert_array_equal(crop_face(Image.fromarray(dark), Region((0, 0, 48, 48))), dark)


def test_a_face_turned_at_the_edge_has_no_black_corners():
    photo = Image.new("L", (100, 100), 200)
    for turn_deg in (-45, 45, 170):
        assert (crop_face(photo, Region((0, 0, 60, 60), turn_deg)) == 200).all()
        assert (crop_face(photo, Region((40, 40, 60, 60), turn_deg)) == 200).all()


def test_results_keep_the_order_of_the_photos(clf, monkeypatch):
    boxes = {300: [(0, 0, 100, 100), (150, 0, 100, 100)], 301: [], 302: [(0, 0, 50, 50)]}
    monkeypatch.setattr(photos, "find_faces", lambda photo, _: [Region(box) for box in boxes[photo.width]])
    shades = {}
    for width in boxes:
        shades[width] = Image.new("RGB", (width, 200), "black")
        shades[width].paste("white", (0, 0, 100, 200))
    for batch_size in (1, 2, 64):
        seen = list(clf.predict_stream(shades.items(), batch_size=batch_size))
        assert [key for key, _, _ in seen] == [300, 301, 302]
        assert [[face.box for face in faces] for _, _, faces in seen] == list(boxes.values())
        assert [[face.emotion for face in faces] for _, _, faces in seen] == [["happy", "sad"], [], ["happy"]]
    whole = [faces for _, _, faces in clf.predict_stream(shades.items(), detect=False)]
    assert [face.box for (face,) in whole] == [(0, 0, 300, 200), (0, 0, 301, 200), (0, 0, 302, 200)]


def test_predict_photos(clf, tmp_path):
    face = Image.new("L", (48, 48), 255)
    face.save(tmp_path / "a.png")
    expected = clf.predict(face).probabilities[0].tolist()
    for file in (tmp_path / "a.png", str(tmp_path / "a.png"), saved(face)):
        ((detected,),) = clf.predict_photos([file])
        assert (detected.box, detected.emotion) == ((0, 0, 48, 48), "happy")
        assert list(detected.probabilities.items()) == list(zip(EMOTIONS, expected, strict=True))
        assert detected.confidence == max(expected)
    assert clf.predict_photos([]) == []
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.png cannot be read: not an image"):
        clf.predict_photos([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(UserError, match="Did you mean mirror"):
        clf.predict_photos([], tta="miror")
    ((detected,),) = clf.predict_photos([face.convert("RGBA")])
    assert (detected.box, detected.emotion) == ((0, 0, 48, 48), "happy")
    for one in ("a.png", Path("a.png")):
        with pytest.raises(UserError, match=r"photos=a\.png: expected a list of paths"):
            clf.predict_photos(one)
    with pytest.raises(UserError, match=r"photos: expected paths, .*, got ndarray"):
        clf.predict_photos([np.zeros((48, 48), np.uint8)])
    (tmp_path / "c.jpg").write_bytes(GRACE.read_bytes()[:20_000])
    with (
        Image.open(tmp_path / "c.jpg") as truncated,
        pytest.raises(UserError, match="The image cannot be read: damaged"),
    ):
        clf.predict(truncated)


@pytest.mark.parametrize("background", ["black", "white"])
def test_box_and_label_are_visible_on_any_background(background):
    photo = Image.new("RGB", (400, 300), background)
    drawn = np.asarray(annotate(photo, [face_in(box=(100, 100, 90, 90))])).astype(int)
    assert np.asarray(photo).std() == 0  # the photo itself is not changed
    column = drawn[145, 95:115].sum(axis=1)  # across the left edge of the box
    assert column.max() == 3 * 255
    assert column.min() == 0
    label = drawn[70:100, 100:170].sum(axis=2)
    assert label.min() == 0
    assert label.max() > 700


def test_a_face_in_doubt_has_no_colour():
    photo = Image.new("RGB", (400, 300), "white")
    for face in (face_in(box=(100, 100, 31, 31)), replace(face_in(), min_confidence=0.95)):
        assert face.doubt
        drawn = np.asarray(annotate(photo, [face])).astype(int)
        assert (np.ptp(drawn, axis=2) == 0).all()
    assert np.ptp(np.asarray(annotate(photo, [face_in()])), axis=2).any()


def test_labels_of_neighbouring_faces_do_notoverlap(monkeypatch):
    places = []
    label = _label
    monkeypatch.setattr(boxes, "_label", lambda *args: places.append(label(*args)) or places[-1])
    annotate(Image.new("RGB", (400, 300)), [face_in(box=(100, 100, 60, 60)), face_in(box=(130, 100, 60, 60))])
    annotate(Image.new("RGB", (400, 300)), [face_in(box=(0, 0, 400, 300))])
    first, second, inside = places
    assert not overlap(first, second)
    assert overlap(inside, (0, 0, 400, 300))


def test_a_small_image_is_enlarged_for_the_label():
    assert annotate(Image.new("RGB", (48, 48)), [face_in(box=(0, 0, 48, 48))]).size == (384, 384)
