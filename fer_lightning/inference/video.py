"""Read frames with timestamps from videos, cameras and streams, and write videos. Imports OpenCV lazily."""

import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.containers import is_finished_webm, missing_bytes
from fer_lightning.inference.opencv import opencv
from fer_lightning.inference.stderr import silent_stderr

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), BGR as in OpenCV

# The suffixes, in lower case, of the files that are videos: those of containers and codecs that FFmpeg reads.
SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".f4v", ".m4v", ".mov", ".mp4", ".qt"),
        *(".mkv", ".webm", ".ogm", ".ogv", ".avi", ".divx", ".dv", ".flv", ".asf", ".wmv", ".wtv", ".mxf"),
        *(".m1v", ".m2ts", ".m2v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".vob"),
        *(".h264", ".mjpeg", ".mjpg", ".y4m"),
    )
)
# Videos if they are named one by one, but not in a folder: most files with this suffix are TypeScript.
AMBIGUOUS_SUFFIXES = frozenset((".ts",))

_STREAM = re.compile(r"(?:https?|rtmps?|rtsps?|rtp|srt|udp)://", re.IGNORECASE)
# User and password: up to the last @, because passwords may have an unescaped slash. Hiding too much does no harm.
_USER = re.compile(r"(?<=://).*@", re.DOTALL)
_SECRET = re.compile(
    r"(?<=[?&;#/_])([^=&;#/_]*(?:pass|pwd|token|key|secret|auth|sig)[^=&;#/_]*=)[^&;#/]*", re.IGNORECASE
)

_LIVE_FPS = 15  # of videos written from a camera, which is read only as fast as the network predicts
_MOST_STILL_SECONDS = 10  # for which a written video shows one frame
_TIMEOUT_MILLISECONDS = 8_000  # of a stream: a camera may take seconds to its first frame; FFmpeg's own are 30 s


def is_stream(source: str) -> bool:
    """Return whether a source is the URL of a stream, such as rtsp://camera/1, instead of a path."""
    return _STREAM.match(source) is not None


def without_secrets(url: str) -> str:
    """Return a URL with its user and password, and the values of parameters such as "pwd", replaced by ***."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", url))


class Sampler:
    """Selects frames of a clip by their times, because frames may follow each other at uneven times.

    Args:
        fps: frames to select of each second; None for all of them.
    """

    def __init__(self, fps: float | None) -> None:
        self.fps = fps
        self._slot = -1

    def wants(self, seconds: float) -> bool:
        """Return whether to look at the frame at this time: the first one of each period of 1 / fps seconds."""
        if self.fps is None:
            return True
        # Times are rounded, to milliseconds in Matroska: a frame may come a quarter of a period before its own.
        slot = math.floor(seconds * self.fps + 0.25)
        wanted = slot > self._slot
        self._slot = max(slot, self._slot)
        return wanted


class Video:
    """The frames of a video file or a stream, or the endless frames of a camera.

    Args:
        source: path of a file, URL of a stream, or index of a camera.
        fps: frames to look at in each second; None for all of them. The others are skipped unconverted.

    Attributes:
        is_live: whether the frames come as they are taken, so that their times are those of the clock.
        fps: frames per second at which to write the frames that are looked at.
        frames: number of frames according to the file, if it states one; it may be far from the truth.
        note: what the user should know about how it was read, if anything; set after the last frame.

    Raises:
        UserError: the source cannot be opened (the message gives the cause alone), or OpenCV is not installed.
    """

    def __init__(self, source: str | Path | int, fps: float | None = None) -> None:
        cv2 = opencv()
        _check_name(source)
        self._is_stream = isinstance(source, str) and is_stream(source)
        self._file = None if self._is_stream or isinstance(source, int) else Path(source)
        self._capture = _open(cv2, source)
        self._milliseconds = cv2.CAP_PROP_POS_MSEC
        stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # A file on a web server states its length; a stream of JPEGs states neither that nor the times of frames.
        self.is_live = self._file is None and (stated <= 0 or not self._is_stream)
        self.frames = stated if stated > 0 and not self.is_live else None
        self.note: str | None = None
        own_fps = self._capture.get(cv2.CAP_PROP_FPS)
        # OpenCV may report a WebM file's clock rate, 1000, as its frame rate.
        own_fps = _LIVE_FPS if self.is_live or not 1 <= own_fps <= 240 else own_fps
        self._period = 1 / own_fps
        self.fps: float = own_fps if fps is None else min(fps, own_fps)
        self._sampler = Sampler(fps)

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        """Yield the time in seconds since the first frame, and the frame, upright and in RGB, of those looked at.

        Raises:
            UserError: no frame can be read, the end of the file is missing, or a live stream ended. All frames
                before that have been yielded.
        """
        seconds = 0.0
        grabbed = yielded = 0
        try:
            for seconds in self._grab():
                grabbed += 1
                if self._sampler.wants(seconds):
                    ok, bgr = self._capture.retrieve()
                    if ok:
                        yielded += 1
                        yield seconds, Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))
        finally:
            self._capture.release()
        if not yielded:
            raise UserError("no frame can be read")
        if self.is_live:
            raise UserError(f"no more frames after {seconds:.1f} s: the sender stopped, or the connection broke")
        if self._file and self._file.is_file() and (missing := missing_bytes(self._file)):
            raise UserError(f"damaged: after {seconds:.1f} s the file ends, {missing:,} bytes early; copy it anew")
        if self._is_stream and self.frames and grabbed < 0.9 * self.frames:
            self.note = f"the connection may have broken after {seconds:.1f} s: {self.frames:,} frames are stated"

    def _grab(self) -> Iterator[float]:
        """Advance frame by frame without converting any and yield their times, ascending from 0 seconds."""
        first = seconds = None
        while self._capture.grab():
            stated = perf_counter() if self.is_live else self._capture.get(self._milliseconds) / 1000
            if first is None or seconds is None:
                first, seconds = stated if math.isfinite(stated) else 0.0, 0.0
            else:
                # Some containers state 0 or an earlier time for some frames.
                seconds = stated - first if stated - first > seconds else seconds + self._period
            yield seconds


def _open(cv2: ModuleType, source: str | Path | int) -> Any:
    """Return OpenCV's reader of an open file, stream or camera.

    Raises:
        UserError: it cannot be opened.
    """
    if isinstance(source, int):
        cause = "no camera with this index"
        if source >= 2**31:
            raise UserError(cause)
        capture = cv2.VideoCapture(source)
    elif is_stream(str(source)):
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
        options = [value for limit in limits for value in (limit, _TIMEOUT_MILLISECONDS)]
        capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, options)
        cause = "no stream can be read here: check the address and the password, and that the sender is running"
    else:
        _check_file(Path(source))
        capture, cause = cv2.VideoCapture(str(source)), "not a video that OpenCV can read"
    if not capture.isOpened():
        raise UserError(cause)
    return capture


def _check_file(path: Path) -> None:
    """Raise UserError with the cause if the path cannot be accessed, is not a regular file or is empty."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError("not a file: save the video to one first")
    if status.st_size == 0:
        raise UserError("the file is empty")


class VideoWriter:
    """A context manager that writes a WebM video (VP8, which browsers play).

    The file appears at `path` when the context exits, even after an exception or Ctrl-C, unless writing failed.

    Args:
        path: path of the video, ending in .webm.
        fps: frames per second, at least 1. Frames are repeated or dropped so that each appears at its own time, but
            none is shown for more than 10 seconds: times may jump by hours.

    Attributes:
        note: what the user should know about the video, if anything.
        failure: why the video cannot be written, if so, at the latest when the context has exited. Not raised,
            because predicting can go on, and because Ctrl-C may be on its way already.
    """

    def __init__(self, path: Path, fps: float) -> None:
        _check_name(path)
        self.path = path
        self.fps = max(fps, 1.0)  # FFmpeg's clock needs a rate that is not too small
        self._cv2 = opencv()
        self._writer: Any = None
        self._written = 0
        self._left_out = 0  # frames by which pauses were shortened
        self._last: Pixels | None = None
        self.note: str | None = None
        self.failure: str | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".video.")
            self._unfinished = Path(self._folder.name) / "unfinished.webm"
        except OSError as error:
            self.failure = f"{path} cannot be written: {error.strerror}"

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, seconds: float, frame: Image.Image) -> None:
        """Append an RGB frame.

        Args:
            seconds: time since the first frame.
            frame: image; one of another size than the first is resized, since a stream may change its resolution.
        """
        if self.failure:
            return
        if self._last is not None and frame.size != self._last.shape[1::-1]:
            frame = frame.resize(self._last.shape[1::-1])
        bgr: Pixels = np.ascontiguousarray(np.asarray(frame)[:, :, ::-1])
        if self._writer is None:
            codec = self._cv2.VideoWriter_fourcc(*"VP80")
            with silent_stderr():  # about WebM codecs, a harmless warning that ignores OpenCV's log level
                self._writer = self._cv2.VideoWriter(str(self._unfinished), codec, self.fps, frame.size)
            if not self._writer.isOpened():
                cause = "the disk may be full, or this build of OpenCV lacks the VP8 encoder"
                self.failure = f"{self.path} cannot be written: {cause}"
                return
        due = round(seconds * self.fps) - self._left_out
        if (excess := due - self._written - round(_MOST_STILL_SECONDS * self.fps)) > 0 and self._written:
            self._left_out += excess
            due -= excess
            self.note = f"in {self.path}, pauses of more than {_MOST_STILL_SECONDS} s are shortened"
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
        if self._folder is None:
            return
        with self._folder:
            if self._writer is not None:
                self._writer.release()
            try:
                if self._written and is_finished_webm(self._unfinished):
                    os.replace(self._unfinished, self.path)
                elif self._written:  # OpenCV does not report it when a write fails
                    self.failure = f"{self.path} cannot be written: the disk may be full"
            except OSError as error:
                self.failure = f"{self.path} cannot be written: {error.strerror}"


def _check_name(source: str | Path | int) -> None:
    """Raise UserError for a path that is not valid UTF-8, which would crash the process inside OpenCV."""
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise UserError("the path is not valid UTF-8, which OpenCV needs: rename it") from error
