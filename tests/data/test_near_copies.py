"""Near copies are found, different faces are not; the cache returns what the search found."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from fer_lightning.data import near_copies as search
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces, fingerprint, first_copies
from fer_lightning.data.near_copies import contrast, copied_elsewhere, near_copies, near_pairs
from fer_lightning.data.synthetic import synthetic_faces

Pixels = npt.NDArray[np.uint8]
DRAWN = synthetic_faces(56, 0, 0).images  # distinct faces
N = len(DRAWN)


def faces_of(images: Sequence[Pixels], usage: Sequence[int] | None = None) -> Faces:
    n = len(images)
    arrays = (np.stack(images), np.zeros(n, np.int64), np.array([TRAIN] * n if usage is None else usage, np.uint8))
    return Faces(*arrays, [str(i) for i in range(n)], "FER-2013", "here", fingerprint(*arrays))


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def crop(pixels: Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    box = (left, top, 48 - right, 48 - bottom)
    return np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR, box))


def watermark(pixels: Pixels) -> Pixels:
    marked = Image.fromarray(pixels)
    ImageDraw.Draw(marked).text((1, 30), "stock.co", fill=230)
    return np.asarray(Image.blend(Image.fromarray(pixels), marked, 0.3))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "brighter_by_1": lambda x: np.clip(x, 0, 254) + np.uint8(1),
    "darker_by_a_third": lambda x: (x * 0.67).astype(np.uint8),
    "less_contrast": lambda x: (x // 2 + 60).astype(np.uint8),
    "jpeg_30": lambda x: jpeg(x, 30),
    "noise": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 4, x.shape), 0, 255).astype(np.uint8),
    "resized": lambda x: np.asarray(Image.fromarray(x).resize((32, 32)).resize((48, 48))),
    "mirrored": lambda x: x[:, ::-1],
    "cropped_evenly": lambda x: crop(x, 2, 2, 2, 2),
    "cropped_at_two_sides": lambda x: crop(x, 3, 2, 0, 0),
    "mirrored_cropped_jpeg": lambda x: jpeg(crop(x[:, ::-1], 1, 0, 2, 1), 50),
    "watermark": watermark,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("exhaustive", [True, False])
def test_changed_copy_is_near_its_original_only(
    change: str, exhaustive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exhaustive:  # 50 neighbourhoods of 112 images
        monkeypatch.setattr(search, "_EXHAUSTIVE", 0)
    changed = np.stack([CHANGES[change](image) for image in DRAWN])
    assert not (changed == DRAWN).all(axis=(1, 2)).any()
    pairs = near_pairs(np.concatenate([DRAWN, changed]))
    assert pairs.tolist() == [[i, i + N] for i in range(N)]


def test_distinct_faces_have_no_near_copies() -> None:
    pairs = near_pairs(synthetic_faces(1000, 3, 0).images)
    assert (pairs.shape, pairs.dtype) == ((0, 2), np.int64)


def test_larger_crops_are_not_near_copies() -> None:
    assert near_pairs(np.stack([DRAWN[0], crop(DRAWN[0], 12, 12, 0, 0)])).tolist() == []


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_to_compare(n: int) -> None:
    assert near_pairs(DRAWN[:n]).shape == (0, 2)


def test_images_without_content_have_no_near_copies() -> None:
    rng = np.random.default_rng(0)
    plain = [np.full((48, 48), grey, np.uint8) for grey in (0, 100, 101, 255)]
    noisy = [(128 + rng.integers(-2, 3, (48, 48))).astype(np.uint8) for _ in range(3)]
    ramp = np.tile(np.linspace(120, 136, 48).astype(np.uint8), (48, 1))
    assert near_pairs(np.stack([*plain, *noisy, ramp, np.clip(ramp, 0, 254) + np.uint8(1)])).tolist() == []


def test_plain_stripes_are_compared_without_a_warning() -> None:
    stripes = np.tile(np.where(np.arange(48) // 6 % 2, 200, 40).astype(np.uint8), (48, 1))  # no vertical slope
    assert near_pairs(np.stack([stripes, jpeg(stripes, 60), stripes.T])).tolist() == [[0, 1]]


def test_contrast_is_the_standard_deviation() -> None:
    images = np.zeros((3, 48, 48), np.uint8)
    images[0, :24] = 10
    images[1] = 77
    images[2, :, :12] = 4
    np.testing.assert_allclose(contrast(images), [5, 0, np.sqrt(3)], rtol=1e-6)


def test_only_the_first_of_equal_images_is_searched() -> None:
    a, b = DRAWN[:2]
    near_a = jpeg(a, 60)
    faces = faces_of([a, b, near_a, a, near_a, b])
    assert first_copies(faces).tolist() == [0, 1, 2, 0, 2, 1]
    assert near_pairs(faces.images, first_copies(faces)).tolist() == [[0, 2]]


def test_search_is_bounded_where_all_images_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MOST_ALIGNED", 3)
    rng = np.random.default_rng(0)
    alike = np.clip(np.tile(DRAWN[0], (60, 1, 1)) + rng.normal(0, 3, (60, 48, 48)), 0, 255).astype(np.uint8)
    pairs = near_pairs(alike)
    assert np.unique(pairs).tolist() == list(range(60))  # each has a near copy
    assert 60 * 3 / 2 <= len(pairs) <= 60 * 3
    # In windows of 5 to 10 images of the 120 with their mirror images.
    monkeypatch.setattr(search, "_MOST_COMPARED", 5)
    monkeypatch.setattr(search, "_EXHAUSTIVE", 0)
    windowed = near_pairs(alike)
    assert len(np.unique(windowed)) >= 55
    assert len(windowed) <= 60 * 3


def test_search_is_deterministic() -> None:
    images = np.concatenate([DRAWN, np.stack([jpeg(image, 40) for image in DRAWN])])
    np.testing.assert_array_equal(near_pairs(images), near_pairs(images))


# Copies in other splits


def test_copied_elsewhere_by_hand() -> None:
    a, b, c, d, e = DRAWN[:5]
    #        0 train  1 test  2 train  3 val  4 test  5 val  6 train  7 test  8 train
    images = [a, a, b, b, c, d, e, e[:, ::-1], b]
    usage = [TRAIN, TEST, TRAIN, VAL, TEST, VAL, TRAIN, TEST, TRAIN]
    faces = faces_of(images, usage)
    near = np.array([[2, 5], [4, 5], [6, 7]])  # b like d like c, but b unlike c

    def rows(*usages: int) -> list[int]:
        return np.flatnonzero(copied_elsewhere(faces, usages, near)).tolist()

    assert rows(TEST) == [1, 4, 7]  # exact in train, near in val, near in train
    assert rows(VAL) == [3, 5]  # exact in train; near in train and test
    assert rows(TRAIN) == [0, 2, 6, 8]
    assert rows(VAL, TEST) == [1, 3, 5, 7]  # 4 is near an image of the same two splits only
    assert rows(TRAIN, VAL, TEST) == []
    none = np.zeros((0, 2), np.int64)
    assert np.flatnonzero(copied_elsewhere(faces, [TEST], none)).tolist() == [1]


def test_near_copy_of_an_exact_copy_counts() -> None:
    a, near_a = DRAWN[0], jpeg(DRAWN[0], 60)
    faces = faces_of([a, a, near_a, near_a], [VAL, TRAIN, TEST, TEST])
    near = near_pairs(faces.images, first_copies(faces))
    assert near.tolist() == [[0, 2]]
    assert copied_elsewhere(faces, [TEST], near).tolist() == [False, False, True, True]


# Cache


def some_faces() -> Faces:
    return faces_of([DRAWN[0], DRAWN[1], jpeg(DRAWN[0], 60)])


def forbid_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_: object) -> None:
        raise AssertionError("searched again although it is cached")

    monkeypatch.setattr(search, "near_pairs", searched)


def the_file(folder: Path) -> Path:
    (file,) = folder.glob(f"near-v{search.FORMAT}/*")
    return file


def test_second_call_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert near_copies(some_faces(), tmp_path).tolist() == [[0, 2]]
    forbid_search(monkeypatch)
    cached = near_copies(some_faces(), tmp_path)
    assert (cached.tolist(), cached.dtype) == ([[0, 2]], np.int64)


def test_no_pairs_are_cached_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = faces_of(DRAWN[:2])
    near_copies(faces, tmp_path)
    forbid_search(monkeypatch)
    assert near_copies(faces, tmp_path).shape == (0, 2)


def test_default_folder_is_that_of_the_decoded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    near_copies(some_faces())
    assert the_file(tmp_path / "fer_lightning").is_file()


def test_labels_and_splits_share_an_entry_but_pixels_and_rules_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near_copies(some_faces(), tmp_path)
    near_copies(faces_of(list(some_faces().images), [TEST, VAL, TEST]), tmp_path)
    assert the_file(tmp_path)
    near_copies(faces_of([DRAWN[0], DRAWN[1], jpeg(DRAWN[0], 61)]), tmp_path)
    assert len(list(tmp_path.glob("near-v*/*"))) == 2
    monkeypatch.setattr(search, "FORMAT", search.FORMAT + 1)
    near_copies(some_faces(), tmp_path)
    assert len(list(tmp_path.glob("near-v*/*"))) == 3


def sealed(pairs: list[list[int]]) -> bytes:
    content = np.array(pairs, "<i8").tobytes()
    return hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content[:-1] + b"\1",
        lambda content: b"x" + content[1:],
        lambda content: sealed([[0, 3]]),  # not written by us, although the checksum is right
        lambda content: sealed([[2, 0]]),
        lambda content: sealed([[-1, 1]]),
        lambda content: hashlib.sha256(b"12345678").digest() + b"12345678",
    ],
)
def test_damaged_entry_is_replaced(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    near_copies(some_faces(), tmp_path)
    written = the_file(tmp_path).read_bytes()
    the_file(tmp_path).write_bytes(damage(written))
    assert near_copies(some_faces(), tmp_path).tolist() == [[0, 2]]
    assert the_file(tmp_path).read_bytes() == written


@pytest.mark.parametrize("blocker", ["cache", f"cache/near-v{search.FORMAT}"])
def test_unwritable_folder_is_no_error(blocker: str, tmp_path: Path) -> None:
    (tmp_path / blocker).parent.mkdir(exist_ok=True)
    (tmp_path / blocker).write_text("no folder")  # instead of a read-only disk: root can write anywhere
    assert near_copies(some_faces(), tmp_path / "cache").tolist() == [[0, 2]]
    assert (tmp_path / blocker).read_text() == "no folder"


# The real dataset


def test_near_copies_of_fer2013(real_data: str) -> None:
    from fer_lightning.data.fer2013 import load_faces

    faces = load_faces(real_data, download=False)
    near = near_copies(faces)
    # A correlation close to the limit may fall on the other side of it on another machine.
    assert len(near) == pytest.approx(7644, abs=20)
    assert copied_elsewhere(faces, [VAL], near).sum() == pytest.approx(950, abs=5)
    assert copied_elsewhere(faces, [TEST], near).sum() == pytest.approx(961, abs=5)
