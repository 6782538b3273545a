"""Effects of each corruption on known pixels, and their reproducibility."""

import numpy as np
import pytest

from fer_lightning.evaluation.corruptions import CORRUPTIONS, corrupt

GREY = np.full((200, 48, 48), 128, np.uint8)
EDGE = np.zeros((2, 48, 48), np.uint8)
EDGE[:, :, 24:] = 200


def test_seven_corruptions_at_five_increasing_strengths():
    assert list(CORRUPTIONS) == ["noise", "blur", "brightness", "contrast", "JPEG", "occlusion", "rotation"]
    faces = (
        np.random.default_rng(0).integers(0, 256, (8, 12, 12), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    )
    for name, corruption in CORRUPTIONS.items():
        change = [
            np.abs(corrupt(faces, name, strength).astype(float) - faces).mean() for strength in corruption.strengths
        ]
        assert len(change) == 5
        assert change == sorted(change), name
        assert change[0] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_result_depends_only_on_the_seed_and_input_is_unchanged(name):
    faces = np.random.default_rng(1).integers(0, 256, (4, 48, 48), dtype=np.uint8)
    before = faces.copy()
    faces.flags.writeable = False
    strength = CORRUPTIONS[name].strengths[4]
    first, second, other = (corrupt(faces, name, strength, seed) for seed in (0, 0, 1))
    assert (first.dtype, first.shape) == (np.uint8, faces.shape)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(faces, before)
    assert (first != other).any() == (name in ("noise", "brightness", "occlusion", "rotation"))


def test_noise_has_the_given_standard_deviation():
    noisy = corrupt(GREY, "noise", 0.1).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    assert noisy.std() == pytest.approx(25.5, rel=0.01)


def test_blurred_edge_follows_the_normal_distribution():
    row = corrupt(EDGE, "blur", 1.5)[0, 24]
    # Weights of a Gaussian with sigma 1.5 px at whole pixels. For pixel 24, pixels 24 to 29 are right of the edge.
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    assert row[24] == pytest.approx(200 * weights[5:].sum(), abs=0.51)
    assert row[22] == pytest.approx(200 * weights[7:].sum(), abs=0.51)
    assert (row[10], row[40]) == (0, 200)


def test_brightness_shifts_up_or_down_by_the_given_amount():
    levels, counts = np.unique(corrupt(GREY, "brightness", 0.2)[:, 0, 0], return_counts=True)
    assert levels.tolist() == [77, 179]  # 128 -+ 51
    assert counts.min() > 70
    assert set(corrupt(GREY, "brightness", 0.9)[:, 0, 0]) == {0, 255}


def test_contrast_is_reduced_about_the_mean():
    row = corrupt(EDGE, "contrast", 0.3)[0, 0]
    assert (row[0], row[-1]) == (70, 130)  # 100 -+ 30


def test_occlusion_is_a_square_within_the_image():
    hidden = corrupt(np.zeros((50, 48, 48), np.uint8), "occlusion", 0.5) > 0
    assert set(hidden.sum(axis=(1, 2))) <= {23 * 23, 23 * 24, 24 * 24, 24 * 25, 25 * 25}
    assert set(hidden.any(axis=1).sum(axis=1)) <= {23, 24, 25}
    assert len({tuple(np.argwhere(one)[0]) for one in hidden}) > 20  # positions vary


def test_rotation_turns_left_or_right():
    bar = np.zeros((20, 48, 48), np.uint8)
    bar[:, 22:26, 36:] = 255  # pointing right
    turned = corrupt(bar, "rotation", 90)
    up, down = np.rot90(bar[0]), np.rot90(bar[0], -1)
    is_up = np.array([np.abs(one.astype(int) - up).max() <= 1 for one in turned])
    is_down = np.array([np.abs(one.astype(int) - down).max() <= 1 for one in turned])
    assert (is_up ^ is_down).all()
    assert 3 < is_up.sum() < 17


def test_results_do_not_depend_on_the_block_size(monkeypatch):
    faces = np.random.default_rng(2).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    whole = {name: corrupt(faces, name, CORRUPTIONS[name].strengths[2]) for name in ("blur", "contrast", "JPEG")}
    monkeypatch.setattr("fer_lightning.evaluation.corruptions._BLOCK", 2)
    for name, expected in whole.items():
        np.testing.assert_array_equal(corrupt(faces, name, CORRUPTIONS[name].strengths[2]), expected)
