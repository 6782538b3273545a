"""Read frames with timestamps from videos and cameras, and write annotated videos. Imports OpenCV lazily."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.errors import UserError

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), BGR as in OpenCV

SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

_CAMERA_FPS = 15  # for videos written from a camera, which is read only as fast as the network predicts


def opencv() -> ModuleType:
    """Import OpenCV with its logging silenced.

    Raises:
        UserError: OpenCV is not installed.
    """
    # OpenCV and its FFmpeg would also print to stderr what is raised as a UserError here.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise UserError('Videos and cameras need OpenCV: pip install -e ".[photo]".') from error
    return cv2


class Video:
    """The frames of a video file, or the endless frames of a camera.

    Args:
        source: path of a file, or index of a camera.

    Raises:
        UserError: the source cannot be opened (the message gives the cause alone), or OpenCV is not installed.
    """

    def __init__(self, source: str | Path | int) -> None:
        cv2 = opencv()
        self.is_camera = isinstance(source, int)
        _check_name(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise UserError("no camera with this index" if self.is_camera else "not a video that OpenCV can read")
        self._milliseconds = cv2.CAP_PROP_POS_MSEC
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        # OpenCV may report a WebM file's clock rate, 1000, as its frame rate.
        self.fps = _CAMERA_FPS if self.is_camera or not 1 <= fps <= 240 else fps
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = frames if frames > 0 and not self.is_camera else None  # the file's own count, if it has one

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        """Yield each frame's time in seconds and the frame, upright and in RGB.

        Raises:
            UserError: no frame can be read, or more than a tenth of the frames that the file states are missing.
        """
        started = perf_counter()
        read = 0
        try:
            while True:
                ok, bgr = self._capture.read()
                if not ok:
                    break
                seconds = (
                    perf_counter() - started if self.is_camera else self._capture.get(self._milliseconds) / 1000
                )
                read += 1
                yield seconds, Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))
        finally:
            self._capture.release()
        if read == 0:
            raise UserError("no frame can be read")
        if self.frames and read < 0.9 * self.frames:
            raise UserError(f"damaged: only {read} of {self.frames} frames can be read")


class VideoWriter:
    """A context manager that writes a WebM video (VP8, which browsers play).

    The file appears at `path` when the context exits, even after an exception or Ctrl-C.

    Args:
        path: path of the video, ending in .webm.
        fps: frames per second. Frames are repeated or dropped so that each appears at its own time.
    """

    def __init__(self, path: Path, fps: float) -> None:
        _check_name(path)
        self.path = path
        self.fps = fps
        self._cv2 = opencv()
        self._folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
        self._unfinished = Path(self._folder.name) / path.name
        self._writer: Any = None
        self._written = 0
        self._last: Pixels | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, seconds: float, frame: Image.Image) -> None:
        """Append an RGB frame.

        Args:
            seconds: time since the first frame.
            frame: image of the same size as the first frame.
        """
        bgr: Pixels = np.ascontiguousarray(np.asarray(frame)[:, :, ::-1])
        if self._writer is None:
            codec = self._cv2.VideoWriter_fourcc(*"VP80")
            with _silent_stderr():
                self._writer = self._cv2.VideoWriter(str(self._unfinished), codec, self.fps, frame.size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path} cannot be written: this build of OpenCV has no VP8 encoder.")
        due = round(seconds * self.fps)
        while self._last is not None and self._written < due:  # show the previous frame until this one is due
            self._writer.write(self._last)
            self._written += 1
        if self._written <= due:
            self._writer.write(bgr)
            self._written += 1
        self._last = bgr

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if self._written:
            os.replace(self._unfinished, self.path)
        self._folder.cleanup()


def _check_name(source: str | Path | int) -> None:
    """Raise UserError for a path that is not valid UTF-8, which would crash the process inside OpenCV."""
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the path {source} is not valid UTF-8, which OpenCV needs: rename it") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence stderr for a harmless warning about WebM codecs that OpenCV prints regardless of its log level."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
