"""Follow faces from frame to frame and smooth their probabilities in time. Needs neither OpenCV nor torch."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fer_lightning.inference.faces import Box, DetectedFace, overlap

# Default of smoothing: the prediction for a face that keeps still flickers from frame to frame, while expressions
# shorter than half a second count as micro-expressions (Yan et al. 2013, "How Fast are the Leaked Facial
# Expressions").
SMOOTH_SECONDS = 0.5

# How far a face's centre may move between two looks at it, in sides of its box: a start for the detector's
# inaccuracy, plus two sides a second, which a person who walks past reaches. The limit is below the distance of two
# people side by side.
_START, _SIDES_PER_SECOND, _LIMIT = 0.5, 2.0, 1.5
_MOST_GROWTH = 2.0  # ratio of the sides of two boxes of one face; a larger one is another person behind or in front


@dataclass
class _Track:
    id: int
    box: Box
    seconds: float  # when it was last seen


class Tracker:
    """Gives every face an id that stays with it from frame to frame.

    Boxes are assigned greedily: of all pairs of a known face and a new box that are near enough, the pair with the
    largest overlap (intersection over union) first. Ids count from 1 in order of appearance and are never reused.

    Args:
        gap_seconds: how long a face may be out of sight and still keep its id. A face of the frame before keeps it
            however long ago that frame was, so that slow cameras and few looks a second work.

    Attributes:
        seconds: time of the last frame; minus infinity before the first one.
    """

    def __init__(self, gap_seconds: float = 1.0) -> None:
        self.gap_seconds = gap_seconds
        self._tracks: list[_Track] = []
        self._ids = 0
        self.seconds = -math.inf

    @property
    def known(self) -> set[int]:
        """The ids that may still be given to a face."""
        return {track.id for track in self._tracks}

    def update(self, seconds: float, boxes: Sequence[Box]) -> list[int]:
        """Return the ids of the N boxes of a frame.

        Args:
            seconds: time of the frame, not before that of the last call.
            boxes: N boxes (x, y, width, height) in pixels.
        """
        oldest = min(self.seconds, seconds - self.gap_seconds)
        self._tracks = [track for track in self._tracks if track.seconds >= oldest]
        self.seconds = seconds
        pairs = sorted(
            (-overlap(track.box, box), distance, at, number)
            for number, track in enumerate(self._tracks)
            for at, box in enumerate(boxes)
            if (distance := _distance(track.box, box)) <= _reach(seconds - track.seconds)
        )
        assigned: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, _, at, number in pairs:
            if at not in assigned and number not in taken:
                assigned[at] = self._tracks[number]
                taken.add(number)
        for at, box in enumerate(boxes):
            if at not in assigned:
                self._ids += 1
                assigned[at] = _Track(self._ids, box, seconds)
                self._tracks.append(assigned[at])
            assigned[at].box, assigned[at].seconds = box, seconds
        return [assigned[at].id for at in range(len(boxes))]


class Smoother:
    """The exponential mean, in time, of each face's probabilities.

    After `dt` seconds, a new value has the weight 1 - exp(-dt / smooth_seconds): the mean depends on the time that
    has passed, not on the number of frames. The first value of an id is its own mean.

    Args:
        smooth_seconds: time after which an old value's weight has fallen to 1/e; 0 turns smoothing off.
    """

    def __init__(self, smooth_seconds: float) -> None:
        self.smooth_seconds = smooth_seconds
        self._means: dict[int, tuple[float, dict[str, float]]] = {}  # id -> time of the last value, mean

    def update(self, seconds: float, face_id: int, probabilities: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of a face's probabilities up to and including these, by class.

        Args:
            seconds: time of the frame, not before that of the id's last value.
            face_id: id from `Tracker`.
            probabilities: the frame's probability of each class.
        """
        mean = dict(probabilities)
        if self.smooth_seconds > 0 and face_id in self._means:
            then, before = self._means[face_id]
            kept = math.exp((then - seconds) / self.smooth_seconds)
            mean = {name: kept * before[name] + (1 - kept) * value for name, value in mean.items()}
        self._means[face_id] = seconds, mean
        return mean

    def keep(self, face_ids: Collection[int]) -> None:
        """Forget all faces but these."""
        self._means = {face_id: mean for face_id, mean in self._means.items() if face_id in face_ids}


class Follower:
    """Gives the faces of a video their ids and smoothed probabilities.

    Args:
        smooth_seconds: see `Smoother`.
        gap_seconds: see `Tracker`.
    """

    def __init__(self, smooth_seconds: float, gap_seconds: float = 1.0) -> None:
        self._tracker = Tracker(gap_seconds)
        self._smoother = Smoother(smooth_seconds)

    @property
    def seconds(self) -> float:
        """The time of the last frame; minus infinity before the first one."""
        return self._tracker.seconds

    def update(self, seconds: float, faces: Iterable[DetectedFace]) -> list[DetectedFace]:
        """Return the faces of a frame, in their order, with `id` and `smoothed`.

        Args:
            seconds: time of the frame, not before that of the last call.
            faces: the faces with the probabilities of this frame.
        """
        faces = list(faces)
        ids = self._tracker.update(seconds, [face.box for face in faces])
        self._smoother.keep(self._tracker.known)
        return [
            replace(face, id=number, smoothed=self._smoother.update(seconds, number, face.probabilities))
            for number, face in zip(ids, faces, strict=True)
        ]


def _reach(seconds: float) -> float:
    """Return how many sides of its box a face may have moved in this time."""
    return min(_START + _SIDES_PER_SECOND * seconds, _LIMIT)


def _distance(a: Box, b: Box) -> float:
    """Return the distance of the centres in sides of the larger box; infinity if the sizes differ too much."""
    small, large = sorted((max(a[2:]), max(b[2:])))
    if large > _MOST_GROWTH * small:
        return math.inf
    return math.hypot(a[0] - b[0] + (a[2] - b[2]) / 2, a[1] - b[1] + (a[3] - b[3]) / 2) / large
