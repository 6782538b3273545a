"""A face that was found in a photo, and what a network predicts for it."""

from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the upright photo


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photo and what a network says of it."""

    box: Box  # the square that the network saw, or the whole picture
    probabilities: dict[str, float]  # by emotion, in the order of emotions.EMOTIONS

    @property
    def emotion(self) -> str:
        """The most probable emotion."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.emotion]

    def to_json(self) -> dict[str, Any]:
        """As in the output of ``predict --json``."""
        return {
            "box": list(self.box),
            "emotion": self.emotion,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }
