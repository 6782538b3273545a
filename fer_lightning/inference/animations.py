"""Read animated GIF, WebP, PNG and AVIF images as clips."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fer_lightning.data.images import FORMATS, decode, image_errors
from fer_lightning.errors import UserError
from fer_lightning.inference.video import Sampler

_FORMATS = tuple(name for name in FORMATS if name in ("GIF", "WEBP", "PNG", "AVIF"))  # TIFF and MPO have pages
_UNSTATED_SECONDS = 0.1  # how long browsers show a frame that states a duration of 0
_FPS = 50  # of annotated videos: no browser shows frames of an animation for less than two hundredths of a second


class Animation:
    """The frames of an animated image, each at the time at which it appears.

    Args:
        path: path of a file for which `is_animation` is true.
        fps: frames to yield of each second; None for all of them.

    Attributes:
        is_live, fps, frames, note: as in `Video`.

    Raises:
        UserError: the file is damaged (the message gives the cause alone).
    """

    is_live = False
    note: str | None = None

    def __init__(self, path: str, fps: float | None = None) -> None:
        self.fps = min(fps or _FPS, _FPS)
        self._sampler = Sampler(fps)
        with image_errors():
            self._image = Image.open(path, formats=_FORMATS)
            # A PNG may begin with a still image for viewers that show no animations.
            self._first = int(getattr(self._image, "default_image", False))
            self.frames: int | None = getattr(self._image, "n_frames", 1) - self._first

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        """Yield each frame's time in seconds and the frame in RGB, white where it is transparent.

        Raises:
            UserError: a frame is damaged or has more than 178 million pixels; those before it have been yielded.
        """
        seconds = 0.0
        with self._image as image:
            for number in range(self._first, self._first + (self.frames or 0)):
                with image_errors():
                    image.seek(number)
                frame = decode(image)
                milliseconds = image.info.get("duration") or 0  # known once the frame has been decoded
                if self._sampler.wants(seconds):
                    yield seconds, frame.convert("RGB")
                seconds += milliseconds / 1000 or _UNSTATED_SECONDS


def is_animation(path: str) -> bool:
    """Return whether a file is an image of several frames that follow each other in time.

    False for everything that Pillow cannot open, and for pipes, which could not be read a second time.
    """
    if not Path(path).is_file():
        return False
    try:
        with image_errors(), Image.open(path, formats=_FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except UserError:
        return False  # reading it as a photo reports the cause
