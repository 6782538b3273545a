"""Faces detected in photos, with their predictions."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

# Side of a face's square, in pixels, below which its emotion is in doubt. If portraits are shrunk to faces of 32
# pixels, a fifth of the answers of `best` change, at 24 pixels a third: results/photos/limits.json.
SMALLEST_JUDGED = 32

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the photo, turned according to its EXIF


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes: 0 if they do not overlap, 1 if they are equal."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(across, 0) * max(down, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def is_small(box: Box) -> bool:
    """Return whether a face is too small to judge its emotion."""
    return min(box[2:]) < SMALLEST_JUDGED


class Region(NamedTuple):
    """Where a face is in a photo.

    Attributes:
        box: the square around it, or the whole image.
        turn_deg: how far to turn the square's content clockwise for the face to be upright, from -180 to 180.
    """

    box: Box
    turn_deg: float = 0.0


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photo or in a frame of a video, with the network's prediction.

    Attributes:
        box: the square passed to the network, or the whole image.
        probabilities: probability of each class, in the order of the network's.
        turn_deg: how far it was turned clockwise to be upright, from -180 to 180.
        id: in a video, the number that stays with a person; otherwise None.
        smoothed: in a video, the mean of the probabilities of this id over the last moments; otherwise None.
        min_confidence: probability that the most probable emotion should reach.
    """

    box: Box
    probabilities: dict[str, float]
    turn_deg: float = 0.0
    id: int | None = None
    smoothed: dict[str, float] | None = None
    min_confidence: float = 0.0

    @property
    def emotion(self) -> str:
        """The most probable emotion."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of the most probable emotion."""
        return self.probabilities[self.emotion]

    @property
    def doubt(self) -> str | None:
        """Why not to rely on the emotion, if so: "too small" or, below the minimum confidence, "unsure"."""
        if is_small(self.box):
            return "too small"
        return "unsure" if self.confidence < self.min_confidence else None

    @property
    def steady(self) -> "DetectedFace":
        """The face with the smoothed probabilities, if it has any, as its own."""
        return self if self.smoothed is None else replace(self, probabilities=self.smoothed)

    def to_json(self) -> dict[str, Any]:
        """Return the face as an entry of ``predict --json``.

        Only a video's faces have "id" and "smoothed", and only faces in doubt have "doubt".
        """
        in_video = {} if self.id is None else {"id": self.id, "smoothed": self.smoothed}
        doubt = {} if self.doubt is None else {"doubt": self.doubt}
        return {
            "box": list(self.box),
            "emotion": self.emotion,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            **in_video,
            **doubt,
        }
