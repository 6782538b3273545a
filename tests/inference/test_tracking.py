"""Ids that stay with a face, and probabilities smoothed in time."""

import math

import pytest

from fer_lightning.inference.faces import DetectedFace
from fer_lightning.inference.tracking import Follower, Smoother, Tracker


def box(x, y=0, side=100):
    return x, y, side, side


def test_faces_that_cross_keep_their_ids():
    tracker = Tracker()
    for frame in range(41):
        right, left = box(10 * frame), box(400 - 10 * frame, 60)
        # The detector lists faces from left to right, so their order changes.
        boxes = sorted([right, left])
        ids = dict(zip(boxes, tracker.update(frame / 10, boxes), strict=True))
        assert (ids[right], ids[left]) == (1, 2)


def test_the_pair_with_the_largest_overlap_comes_first():
    tracker = Tracker()
    assert tracker.update(0, [box(0), box(60)]) == [1, 2]
    # The new face overlaps with both; the second is nearer, and the first is not seen.
    assert tracker.update(0.1, [box(40)]) == [2]
    assert tracker.update(0.2, [box(10), box(50)]) == [1, 2]


@pytest.mark.parametrize(("back", "expected"), [(2.0, 1), (2.1, 2)])
def test_a_face_that_returns_within_the_gap_keeps_its_id(back, expected):
    tracker = Tracker(gap_seconds=1.0)
    assert [tracker.update(seconds, [box(0)]) for seconds in (0.0, 0.5, 1.0)] == [[1]] * 3
    assert tracker.update(1.5, []) == []
    assert tracker.update(back, [box(20)]) == [expected]


def test_a_face_of_the_frame_before_keeps_its_id_after_any_time():
    tracker = Tracker(gap_seconds=1.0)
    assert tracker.update(0, [box(0)]) == [1]
    assert tracker.update(30, [box(0)]) == [1]
    assert tracker.update(60, [box(0), box(500)]) == [1, 2]


def test_a_face_moves_further_between_rare_looks():
    # Boxes that do not overlap any more: 1.3 sides in half a second are a walk, in a thirtieth of one another face.
    for seconds, expected in ((0.5, 1), (1 / 30, 2)):
        tracker = Tracker()
        tracker.update(0, [box(0)])
        assert tracker.update(seconds, [box(130)]) == [expected]
    tracker = Tracker()
    tracker.update(0, [box(0)])
    assert tracker.update(0.5, [box(160)]) == [2]  # two people side by side


def test_a_face_of_another_size_is_another_person():
    tracker = Tracker()
    tracker.update(0, [box(0, side=100)])
    assert tracker.update(0.1, [box(-50, -50, side=200)]) == [1]
    assert tracker.update(0.2, [box(0, side=90)]) == [2]


def test_the_mean_follows_the_time_and_not_the_frames():
    smoother = Smoother(0.5)
    assert smoother.update(3.0, 1, {"happy": 1.0, "sad": 0.0}) == {"happy": 1.0, "sad": 0.0}
    mean = smoother.update(3.5, 1, {"happy": 0.0, "sad": 1.0})
    assert mean == pytest.approx({"happy": math.exp(-1), "sad": 1 - math.exp(-1)})
    often = Smoother(0.5)
    often.update(3.0, 1, {"happy": 1.0, "sad": 0.0})
    for frame in range(1, 11):
        means = often.update(3.0 + frame / 20, 1, {"happy": 0.0, "sad": 1.0})
    assert means == pytest.approx(mean)
    assert often.update(3.6, 2, {"happy": 0.25, "sad": 0.75}) == {"happy": 0.25, "sad": 0.75}  # another person


def test_smoothing_can_be_off():
    smoother = Smoother(0)
    smoother.update(0, 1, {"happy": 1.0})
    assert smoother.update(1e-9, 1, {"happy": 0.5}) == {"happy": 0.5}


def test_a_followed_face_keeps_its_own_probabilities():
    follower = Follower(smooth_seconds=1.0)
    first = DetectedFace(box(0), {"happy": 0.9, "sad": 0.1})
    (face,) = follower.update(0, [first])
    assert (face.id, face.smoothed) == (1, first.probabilities)
    (face,) = follower.update(math.log(2), [DetectedFace(box(5), {"happy": 0.3, "sad": 0.7})])
    assert (face.id, face.emotion, face.confidence) == (1, "sad", 0.7)
    assert face.smoothed == pytest.approx({"happy": 0.6, "sad": 0.4})
    assert face.steady.emotion == "happy"
    assert list(face.to_json()) == ["box", "emotion", "confidence", "probabilities", "id", "smoothed"]
    assert list(first.to_json()) == ["box", "emotion", "confidence", "probabilities"]
    assert first.steady is first


def test_faces_that_are_lost_are_forgotten():
    tracker, smoother = Tracker(gap_seconds=1.0), Smoother(1000.0)
    for number in range(50):
        seconds = 2.0 * number
        for face_id in tracker.update(seconds, [(400 * (number % 2), 0, 50, 50)]):
            smoother.update(seconds, face_id, {"happy": 1.0, "sad": 0.0})
        smoother.keep(tracker.known)
    assert len(tracker.known) <= 2
    # The mean of an id that was forgotten starts anew.
    assert smoother.update(100.0, 1, {"happy": 0.0, "sad": 1.0}) == {"happy": 0.0, "sad": 1.0}
