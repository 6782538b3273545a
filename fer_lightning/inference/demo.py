"""Serve a local web page that shows a network's predictions for a photo or a camera.

The browser sends each image to this process, which responds with the faces. Nothing is stored and nothing leaves
the machine. The server needs only the standard library. Programs can send images, too::

    curl --data-binary @photo.jpg http://localhost:8000/predict

``GET /schema.json`` returns the JSON schema of the answers, demo_schema.json.
"""

import io
import json
import math
import re
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fer_lightning.emotions import colours
from fer_lightning.errors import UserError
from fer_lightning.inference.photos import read_photo
from fer_lightning.inference.tracking import SMOOTH_SECONDS, Follower

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier

HOST = "127.0.0.1"  # not reachable from other machines
MOST_VIDEOS = 16  # videos whose faces are followed at a time

_MAX_BYTES = 100_000_000  # size limit of an uploaded photo
_IDLE_SECONDS = 60  # after which a connection without a request is closed
_CHUNK_BYTES = 65536
# Names of this machine. The port may be any: whoever forwards it to another machine may choose another one there.
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
# The page may not load anything from other hosts, and no other page may frame it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def server(
    clf: "Classifier", port: int, tta: str = "none", smooth_seconds: float = SMOOTH_SECONDS
) -> ThreadingHTTPServer:
    """Build the server of the demo page, bound to a port of 127.0.0.1; call `serve_forever` to run it.

    ``GET /`` returns the page, ``GET /schema.json`` the JSON schema of the other answers. ``POST /predict`` accepts
    the bytes of a photo and returns ``{"width", "height", "faces": [{"box", "emotion", "confidence",
    "probabilities"}]}`` or ``{"error"}``.

    ``POST /predict?video=ID&seconds=T`` accepts a frame of a video, whose faces also have ``"id"`` and
    ``"smoothed"``. ID is a name that the client chooses, and T the time of the frame on the client's clock, which
    must not go backwards. Frames are not tried in quarter turns. The faces of the 16 videos used last are followed.

    Args:
        clf: the network that predicts.
        port: port number; 0 selects a free one.
        tta: test-time augmentation, a key of tta.VIEWS.
        smooth_seconds: see tracking.Smoother.

    Raises:
        UserError: the port is in use, not permitted or out of range.
    """
    files = resources.files("fer_lightning.inference")
    page = files.joinpath("demo.html").read_text(encoding="utf-8")
    palette = json.dumps(dict(zip(clf.classes, colours(clf.classes), strict=True))).replace("<", "\\u003c")
    page = page.replace("__COLOURS__", palette).replace("__MAX_BYTES__", str(_MAX_BYTES))

    class Handler(_Handler):
        documents = {  # noqa: RUF012
            "/": ("text/html; charset=utf-8", page.encode()),
            "/schema.json": ("application/schema+json", files.joinpath("demo_schema.json").read_bytes()),
        }

    try:
        return _Server((HOST, port), Handler, _Predictor(clf, tta, smooth_seconds))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port={port}: cannot listen on {HOST} ({error}). Choose another port.") from error


@dataclass(frozen=True)
class _Frame:
    """Which video an image belongs to, and when it was taken on the client's clock."""

    video: str
    seconds: float


def _frame_of(query: str) -> _Frame | None:
    """Return the frame that the query of a POST names; None for a photo.

    Raises:
        UserError: a parameter is unknown, missing, repeated or out of range.
    """
    given = parse_qs(query, keep_blank_values=True)
    remedy = "Use video=ID&seconds=T for a frame of a video and no parameters for a photo."
    if unknown := sorted(given.keys() - {"video", "seconds"}):
        raise UserError(f"{unknown[0]}={given[unknown[0]][0]}: unknown parameter. {remedy}")
    if not given:
        return None
    if sorted((name, len(values)) for name, values in given.items()) != [("seconds", 1), ("video", 1)]:
        raise UserError(f"{query}: expected each of video and seconds once. {remedy}")
    (video,), (text,) = given["video"], given["seconds"]
    if not 1 <= len(video) <= 64:
        raise UserError(f"video={video[:64]}: expected 1 to 64 characters, got {len(video)}. Choose another ID.")
    seconds = math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not math.isfinite(seconds):
        raise UserError(f"seconds={text}: expected a finite number, e.g. 12.34. Send the time of the frame.")
    return _Frame(video, seconds)


class _Predictor:
    """Predicts images and follows the faces of videos. Not thread-safe."""

    def __init__(self, clf: "Classifier", tta: str, smooth_seconds: float) -> None:
        self._clf = clf
        self._tta = tta
        self._smooth_seconds = smooth_seconds
        self._videos: OrderedDict[str, Follower] = OrderedDict()  # the one used last at the end

    def predict(self, content: bytes, frame: _Frame | None) -> dict[str, Any]:
        """Return the faces of an image file, in a video with their ids, as the answer to a POST.

        Raises:
            UserError: the image cannot be read, or the frame is older than the one before.
        """
        follower = None
        if frame is not None:
            follower = self._videos.get(frame.video) or Follower(self._smooth_seconds)
            if frame.seconds < follower.seconds:
                raise UserError(
                    f"seconds={frame.seconds:g}: the frame before was at {follower.seconds:g}. Send frames in "
                    "order, or choose another video=ID for another video."
                )
        image = read_photo(io.BytesIO(content))
        ((_, photo, faces),) = self._clf.predict_stream(
            [(None, image)], tta=self._tta, batch_size=1, try_turns=frame is None
        )
        if frame is not None and follower is not None:
            faces = follower.update(frame.seconds, faces)
            self._videos[frame.video] = follower
            self._videos.move_to_end(frame.video)
            if len(self._videos) > MOST_VIDEOS:
                self._videos.popitem(last=False)
        return {"width": photo.width, "height": photo.height, "faces": [face.to_json() for face in faces]}


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type["_Handler"], predictor: _Predictor) -> None:
        # One thread for all images: two predictions would only slow each other down.
        self._worker = ThreadPoolExecutor(1, "predictions")
        self._predictor = predictor
        super().__init__(address, handler)

    def submit(self, content: bytes, frame: _Frame | None) -> "Future[dict[str, Any]]":
        """Start a prediction; the future is cancelled if the server is closed before its turn comes."""
        try:
            return self._worker.submit(self._predictor.predict, content, frame)
        except RuntimeError:  # the server is closed
            future: Future[dict[str, Any]] = Future()
            future.cancel()
            return future

    def server_close(self) -> None:
        super().server_close()
        # Wait for a running prediction and allow no other: a process that exits while one of its threads is inside
        # a native library may be aborted.
        self._worker.shutdown(cancel_futures=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps the connection of a camera open from frame to frame
    disable_nagle_algorithm = True  # headers and content are separate packets, and the second must not wait
    timeout = _IDLE_SECONDS
    server: _Server
    documents: dict[str, tuple[str, bytes]]  # path -> content type, content

    def handle(self) -> None:
        """Answer the requests of a connection until it is closed."""
        with suppress(ConnectionError):  # the page was closed
            super().handle()

    def do_GET(self) -> None:
        content, path = self._receive(), self.path.partition("?")[0]
        if content is None:
            return
        if path in self.documents:
            self._send(HTTPStatus.OK, *self.documents[path])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"{path}: unknown page. The demo is at /.")

    def do_POST(self) -> None:
        content, (path, _, query) = self._receive(), self.path.partition("?")
        if content is None:
            return
        if path != "/predict":
            self._refuse(HTTPStatus.NOT_FOUND, f"{path}: unknown address. Images are accepted at /predict.")
            return
        try:
            result = self.server.submit(content, _frame_of(query)).result()
        except UserError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except CancelledError:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "fer-lightning demo was stopped. Start it again.")
        except Exception:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "fer-lightning demo failed; its terminal shows why.")
            raise
        else:
            self._send(HTTPStatus.OK, "application/json", json.dumps(result).encode())

    def _receive(self) -> bytes | None:
        """Return the content of the request; None if the request is refused, which is then answered, or aborted.

        The content is always read to its end: the next request of the connection follows it, and a client that
        still sends would not see an answer.
        """
        length = self.headers.get("Content-Length", "0" if self.command == "GET" else "")
        if not re.fullmatch(r"[0-9]{1,19}", length) or "Transfer-Encoding" in self.headers:
            self.send_error(
                HTTPStatus.LENGTH_REQUIRED, f"Content-Length={length[:20]}: expected a number of bytes."
            )
            return None
        allowed, n = self._from_here(), int(length)
        if allowed and n <= _MAX_BYTES:
            content = self.rfile.read(n)
            self.close_connection |= len(content) < n
            return content if len(content) == n else None
        while n > 0 and (chunk := self.rfile.read(min(n, _CHUNK_BYTES))):
            n -= len(chunk)
        if allowed:
            limit = f"{_MAX_BYTES // 10**6} MB"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The image is larger than {limit}. Shrink it.")
        else:
            host, origin = self.headers.get("Host"), self.headers.get("Origin")
            sender = f"Host={host}" if origin is None else f"Host={host}, Origin={origin}"
            self._refuse(HTTPStatus.FORBIDDEN, f"{sender}: only localhost may use the demo. Forward its port.")
        return None

    def _from_here(self) -> bool:
        """Return whether the page itself or a program on this machine sent the request.

        Checking Host as well as Origin also stops DNS rebinding: a foreign name that resolves to 127.0.0.1.
        """
        origin = self.headers.get("Origin")
        local = origin is None or (origin.startswith("http") and _LOCAL.fullmatch(origin.partition("://")[2]))
        return bool(local and _LOCAL.fullmatch(self.headers.get("Host", "")))

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        """Answer with an error and keep the connection."""
        self._send(status, "application/json", json.dumps({"error": error}).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error as JSON, instead of the base class's HTML, and close the connection."""
        self.close_connection = True
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the request log: a camera would fill the terminal with one line per frame."""
