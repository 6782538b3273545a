"""Synthetic faces: reproducible, balanced, all different, and shaped by their action units."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import fer_lightning.data.synthetic as synthetic
from fer_lightning.data.faces import GENERIC_SPLITS, TEST, TRAIN, VAL, Faces, fingerprint, seen_elsewhere
from fer_lightning.data.synthetic import (
    PROTOTYPES,
    Units,
    brow_lift,
    draw_faces,
    lid_arcs,
    mouth_shape,
    synthetic_faces,
)
from fer_lightning.emotions import EMOTIONS


@pytest.fixture(scope="module")
def faces() -> Faces:
    return synthetic_faces(n_train=3000, n_val=70, n_test=700, seed=0)


def split(faces: Faces, usage: int) -> npt.NDArray[np.uint8]:
    return faces.images[faces.usage == usage]


def units(**moved: float) -> Units:
    """Return all action units at rest except those given, e.g. au12=1.0."""
    every = {au for prototype in PROTOTYPES.values() for au in prototype}
    return {au: np.full((1, 1, 1), moved.get(f"au{au}", 0), np.float32) for au in every}


def test_arrays_and_names(faces: Faces) -> None:
    assert faces.images.shape == (3770, 48, 48)
    assert faces.images.dtype == np.uint8
    assert faces.labels.dtype == np.int64
    assert faces.usage.dtype == np.uint8
    assert [int((faces.usage == usage).sum()) for usage in (TRAIN, VAL, TEST)] == [3000, 70, 700]
    assert len(set(faces.ids)) == len(faces) == 3770
    assert [faces.ids[0], faces.ids[3000], faces.ids[3769]] == [
        "synthetic:train:0",
        "synthetic:validation:0",
        "synthetic:test:699",
    ]
    assert (faces.dataset, faces.split_names) == ("synthetic", GENERIC_SPLITS)
    assert faces.fingerprint == fingerprint(faces.images, faces.labels, faces.usage)


def test_every_split_is_balanced(faces: Faces) -> None:
    for usage in (TRAIN, VAL, TEST):
        counts = np.bincount(faces.labels[faces.usage == usage], minlength=len(EMOTIONS))
        assert counts.max() - counts.min() <= 1


def test_grey_values_are_distributed_as_in_fer2013(faces: Faces) -> None:
    unit = faces.images / 255
    assert unit.mean() == pytest.approx(0.507, abs=0.05)  # FER-2013: mean 0.507, std 0.255
    assert unit.std() == pytest.approx(0.255, abs=0.05)
    assert unit.std(axis=(1, 2)).min() > 0.02  # no blank face


def test_the_seed_determines_all_faces() -> None:
    first, again, other = (synthetic_faces(20, 5, 5, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint
    assert (first.images != other.images).any(axis=(1, 2)).all()


def test_split_sizes_do_not_change_other_faces() -> None:
    few, many = synthetic_faces(10, 6, 7), synthetic_faces(37, 9, 7)
    for usage in (TRAIN, VAL, TEST):
        n = (few.usage == usage).sum()
        np.testing.assert_array_equal(split(few, usage), split(many, usage)[:n])


def test_faces_drawn_together_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    together = synthetic_faces(20, 3, 3)
    monkeypatch.setattr(synthetic, "_CHUNK", 1)
    np.testing.assert_array_equal(together.images, synthetic_faces(20, 3, 3).images)


def test_all_faces_are_different(faces: Faces) -> None:
    assert len({image.tobytes() for image in faces.images}) == len(faces)
    assert not seen_elsewhere(faces, [VAL, TEST]).any()


def test_the_emotion_changes_the_face_and_not_its_surroundings() -> None:
    """The same generator draws the same person in the same place, so the corners of the picture do not change."""
    drawn = draw_faces([np.random.default_rng(1) for _ in EMOTIONS], np.arange(len(EMOTIONS)))
    neutral = drawn[EMOTIONS.index("neutral")]
    for image, name in zip(drawn, EMOTIONS, strict=True):
        differs = np.abs(image.astype(int) - neutral) > 20
        assert differs[8:40, 8:40].any() == (name != "neutral")
        assert not differs[:4, :4].any()


def test_a_face_is_the_same_at_any_size() -> None:
    small, large = (draw_faces([np.random.default_rng(5)], np.array([3]), size_px) for size_px in (48, 96))
    assert large.shape == (1, 96, 96)
    halved = large.reshape(48, 2, 48, 2).mean(axis=(1, 3))
    assert np.abs(small[0] - halved).mean() < 10


def test_au12_lifts_the_corners_of_the_mouth() -> None:
    corners = [mouth_shape(units(au12=intensity))[1].item() for intensity in (0, 0.5, 1)]
    assert corners == pytest.approx([0, -0.1, -0.2])  # y grows downwards


@pytest.mark.parametrize(
    ("au", "part", "sign"),
    [
        ("au1", lambda u: brow_lift(u)[0], -1),  # inner brow up
        ("au2", lambda u: brow_lift(u)[2], -1),  # outer brow up
        ("au4", lambda u: brow_lift(u)[0], +1),  # inner brow down
        ("au5", lambda u: lid_arcs(u)[0], +1),  # upper lid up
        ("au6", lambda u: lid_arcs(u)[1], -1),  # lower lid up
        ("au7", lambda u: lid_arcs(u)[0], -1),  # upper lid down
        ("au10", lambda u: mouth_shape(u)[2], +1),  # upper lip up
        ("au15", lambda u: mouth_shape(u)[1], +1),  # corners down
        ("au20", lambda u: mouth_shape(u)[0], +1),  # wider
        ("au23", lambda u: mouth_shape(u)[0], -1),  # narrower
        ("au26", lambda u: mouth_shape(u)[3], +1),  # jaw down
    ],
)
def test_action_units_move_the_right_part(au: str, part, sign: int) -> None:  # type: ignore[no-untyped-def]
    rest, moved = part(units()).item(), part(units(**{au: 1.0})).item()
    assert sign * (moved - rest) > 0.05


def logistic_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], weight_decay: float) -> float:
    """Return the accuracy of multinomial logistic regression on standardised pixels, fitted by L-BFGS."""
    mean, std = train[0].mean(0), train[0].std(0)
    x, x_test = (train[0] - mean) / std, (test[0] - mean) / std
    weight, bias = torch.zeros(x.shape[1], len(EMOTIONS)), torch.zeros(len(EMOTIONS))
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, train[1])
        value = value + weight_decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(loss)
    return float(((x_test @ weight + bias).argmax(1) == test[1]).float().mean())


def test_pixels_alone_do_not_reveal_the_emotion(faces: Faces) -> None:
    """A linear model stays below 50%, so a network has to learn shapes; it is clearly above chance (14%)."""

    def tensors(usage: int) -> tuple[Tensor, Tensor]:
        rows = faces.usage == usage
        return torch.from_numpy(faces.images[rows]).flatten(1).float(), torch.from_numpy(faces.labels[rows])

    accuracies = [logistic_accuracy(tensors(TRAIN), tensors(TEST), decay) for decay in (0.03, 0.3)]
    assert 0.2 < max(accuracies) < 0.5, accuracies
