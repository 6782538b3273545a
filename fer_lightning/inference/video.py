"""Videos and cameras: frames with their times in, annotated videos out. OpenCV is imported when it is needed."""

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

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), blue first as in OpenCV

SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

_CAMERA_FPS = 15  # of the video written from a camera, whose frames come when the network is ready for them


def opencv() -> ModuleType:
    """OpenCV, told to be silent.

    Raises:
        UserError: it is not installed.
    """
    # OpenCV and its FFmpeg would write to stderr what becomes a UserError here.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise UserError('Videos and cameras need OpenCV: pip install -e ".[photo]".') from error
    return cv2


class Video:
    """The frames of a video file, or of a camera until one stops asking.

    Args:
        source: the file's path, or the camera's index.

    Raises:
        UserError: it cannot be opened (the message is the cause alone), or OpenCV is missing.
    """

    def __init__(self, source: str | Path | int) -> None:
        cv2 = opencv()
        self.is_camera = isinstance(source, int)
        _check_name(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            why = "no camera of this index answers" if self.is_camera else "not a video that OpenCV can read"
            raise UserError(why)
        self._milliseconds = cv2.CAP_PROP_POS_MSEC
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = _CAMERA_FPS if self.is_camera or not 1 <= fps <= 240 else fps  # 1000 is WebM's clock
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = frames if frames > 0 and not self.is_camera else None  # as the file says, if it does

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        """Each frame's time in seconds and the frame, upright in RGB.

        Raises:
            UserError: the file ends, damaged, more than a tenth before the end that it states.
        """
        started = perf_counter()
        read = 0
        try:
            while True:
                there, bgr = self._capture.read()
                if not there:
                    break
                seconds = (
                    perf_counter() - started if self.is_camera else self._capture.get(self._milliseconds) / 1000
                )
                read += 1
                yield seconds, Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))
        finally:
            self._capture.release()
        if read == 0:
            raise UserError("no frame of it can be read")
        if self.frames and read < 0.9 * self.frames:
            raise UserError(f"damaged: only {read} of its {self.frames} frames can be read")


class VideoWriter:
    """Writes a WebM video (VP8, which browsers play); it takes its place when the writer is closed, Ctrl-C or not.

    Args:
        path: ending in .webm.
        fps: frames a second. A frame is repeated, or left out, for the next to come at its time.
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
        """Appends a frame of RGB.

        Args:
            seconds: its time since the first frame.
            frame: of the first one's size.
        """
        bgr: Pixels = np.ascontiguousarray(np.asarray(frame)[:, :, ::-1])
        if self._writer is None:
            codec = self._cv2.VideoWriter_fourcc(*"VP80")
            with _silent_stderr():
                self._writer = self._cv2.VideoWriter(str(self._unfinished), codec, self.fps, frame.size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path} cannot be written: this build of OpenCV has no VP8 encoder.")
        due = round(seconds * self.fps)
        while self._last is not None and self._written < due:  # the one before is shown until this one's time
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
    """OpenCV takes the process down with it where a name is no text."""
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the path {source} is not UTF-8, which OpenCV needs: rename it") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """For a warning about WebM's codecs that OpenCV prints past all its log levels, and that means nothing."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
