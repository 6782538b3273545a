"""Confident learning checked by hand, probabilities read from files, and the out-of-fold network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fer_lightning.audit.mislabels import (
    FOLDS,
    assign_folds,
    confident_labels,
    out_of_fold_probabilities,
    read_probabilities,
)
from fer_lightning.errors import UserError


def rows(*angry_happy_sad: tuple[float, float, float]) -> np.ndarray:
    """Return probabilities (N, 7), zero except for classes 0, 3 and 4."""
    p = np.zeros((len(angry_happy_sad), 7))
    p[:, [0, 3, 4]] = angry_happy_sad
    return p


def test_confident_labels_by_hand() -> None:
    p = rows(
        (0.9, 0.1, 0.0),  # angry
        (0.5, 0.4, 0.1),  # angry, below its threshold
        (0.2, 0.8, 0.0),  # angry: wrong
        (0.0, 0.9, 0.1),  # happy
        (0.3, 0.7, 0.0),  # happy, below its threshold
        (0.6, 0.2, 0.2),  # sad: confidently angry and sad, angry is more probable
        (0.1, 0.7, 0.2),  # sad
    )
    labels = np.array([0, 0, 0, 3, 3, 4, 4])
    # Thresholds: angry (0.9 + 0.5 + 0.2) / 3 = 0.533, happy (0.9 + 0.7) / 2 = 0.8, sad 0.2.
    assert confident_labels(p, labels).tolist() == [0, 0, 3, 3, 3, 0, 4]


def test_each_class_has_its_own_threshold() -> None:
    # The last is more probably happy than sad, but only sad reaches its threshold.
    p = rows((0.0, 0.8, 0.2), (0.0, 0.8, 0.2), (0.1, 0.6, 0.3), (0.0, 0.7, 0.3))
    assert confident_labels(p, np.array([3, 3, 4, 3])).tolist() == [3, 3, 4, 4]


def test_a_class_without_labels_is_never_suggested() -> None:
    p = rows((0.9, 0.1, 0.0), (0.1, 0.9, 0.0))
    assert confident_labels(p, np.array([3, 3])).tolist() == [3, 3]


IDS = ("a", "b", "c")
P = np.full((3, 7), 1 / 7)


def test_probabilities_are_returned_in_the_order_of_the_ids(tmp_path: Path) -> None:
    p = np.eye(7, dtype=np.float32)[:4]
    np.savez(tmp_path / "p.npz", ids=np.array(["c", "x", "a", "b"]), probabilities=p)
    np.testing.assert_array_equal(read_probabilities(tmp_path / "p.npz", IDS, 7), p[[2, 3, 0]])


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"probabilities": P}, "ids is not a file in the archive"),
        ({"ids": "a", "probabilities": P}, "expected ids of shape (N,), got ()"),
        ({"ids": IDS, "probabilities": P[:2]}, "shape (3, 7) and a float dtype for 3 ids, got (2, 7) and float64"),
        ({"ids": IDS, "probabilities": P.astype(int)}, "got (3, 7) and int64"),
        ({"ids": IDS, "probabilities": P * 7}, "3 rows are not probabilities, the first is that of 'a'"),
        ({"ids": IDS, "probabilities": P + np.array([[0], [np.nan], [0]])}, "1 rows are not probabilities"),
        ({"ids": ("a", "x", "c"), "probabilities": P}, "no row for 1 of 3 images, the first is 'b'"),
        ({"ids": np.array(IDS, object), "probabilities": P}, "cannot be read (Object arrays cannot be loaded"),
    ],
)
def test_invalid_arrays_are_rejected(arrays: dict[str, np.ndarray], why: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError) as caught:
        read_probabilities(tmp_path / "p.npz", IDS, 7)
    assert why in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 cut off", b"\x93NUMPY", b"text"])
def test_unreadable_files_are_rejected(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.npz cannot be read"):
        read_probabilities(tmp_path / "p.npz", IDS, 7)
    np.save(tmp_path / "p.npy", P)
    with pytest.raises(UserError, match=r"p\.npy cannot be read"):
        read_probabilities(tmp_path / "p.npy", IDS, 7)


def test_folds_keep_groups_together_and_have_equal_sizes() -> None:
    groups = np.arange(4000)
    groups[1::2] = groups[::2]
    folds = assign_folds(groups)
    np.testing.assert_array_equal(folds[::2], folds[1::2])
    assert np.bincount(folds, minlength=FOLDS).min() > 900
    assert (assign_folds(groups, seed=1) != folds).any()
    np.testing.assert_array_equal(np.bincount(assign_folds(np.arange(4000))), [1000] * FOLDS)


def test_planted_mistakes_are_found() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, 350)
    images = rng.integers(0, 60, (350, 48, 48), dtype=np.uint8)
    for image, label in zip(images, truth, strict=True):
        image[6 * label + 2 : 6 * label + 8] += 180  # a bright bar whose position encodes the class
    labels = truth.copy()
    labels[:7] = (truth[:7] + 3) % 7
    state = torch.random.get_rng_state()
    lines: list[str] = []
    probabilities = out_of_fold_probabilities(images, labels, np.arange(350), 7, lines.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(lines) == FOLDS
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    suggested = confident_labels(probabilities, labels)
    np.testing.assert_array_equal(suggested[:7], truth[:7])
    assert (suggested[7:] != labels[7:]).mean() < 0.02


def test_too_few_images_are_rejected() -> None:
    with pytest.raises(UserError, match="3 images are too few"):
        out_of_fold_probabilities(np.zeros((3, 48, 48), np.uint8), np.zeros(3, int), np.arange(3), 7, print)
