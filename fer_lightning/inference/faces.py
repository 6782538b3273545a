"""Faces detected in photos, with their predictions."""

from dataclasses import dataclass
from typing import Any, NamedTuple

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the photo, turned according to its EXIF


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
    """A face in a photo, with the network's prediction.

    Attributes:
        box: the square passed to the network, or the whole image.
        probabilities: probability of each class, in the order of the network's.
        turn_deg: how far it was turned clockwise to be upright, from -180 to 180.
    """

    box: Box
    probabilities: dict[str, float]
    turn_deg: float = 0.0

    @property
    def emotion(self) -> str:
        """The most probable emotion."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of the most probable emotion."""
        return self.probabilities[self.emotion]

    def to_json(self) -> dict[str, Any]:
        """Return the face as an entry of ``predict --json``."""
        return {
            "box": list(self.box),
            "emotion": self.emotion,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }
