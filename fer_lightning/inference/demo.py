"""A page on this machine that shows what a network says of a photo, or of what a camera sees.

The browser sends each picture to this process, which answers with the faces; nothing is stored and nothing leaves
the machine. Only the standard library serves it.
"""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from threading import Lock
from typing import TYPE_CHECKING, Any

from fer_lightning.emotions import COLOURS
from fer_lightning.errors import UserError
from fer_lightning.inference.photos import read_photo

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier

HOST = "127.0.0.1"  # this machine alone

_MAX_BYTES = 100_000_000  # of a photo
# The page may load nothing from anywhere, and no other page may frame it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def server(clf: "Classifier", port: int, tta: str = "none") -> ThreadingHTTPServer:
    """The page's server, bound to the port of 127.0.0.1; `serve_forever` runs it.

    ``GET /`` answers the page. ``POST /predict`` takes the bytes of a photo and answers
    ``{"width", "height", "faces": [{"box", "emotion", "confidence", "probabilities"}]}``, or ``{"error"}``.

    Raises:
        UserError: the port is taken or not allowed.
    """
    page = resources.files("fer_lightning.inference").joinpath("demo.html").read_text(encoding="utf-8")
    page = page.replace("__COLOURS__", json.dumps(COLOURS)).replace("__MAX_BYTES__", str(_MAX_BYTES))

    def answer(photo: bytes) -> dict[str, Any]:
        with serving.answering:
            ((_, picture, faces),) = clf.predict_stream([(None, read_photo(io.BytesIO(photo)))], tta=tta)
        return {"width": picture.width, "height": picture.height, "faces": [face.to_json() for face in faces]}

    class Handler(_Handler):
        content = page.encode()
        predict = staticmethod(answer)

    try:
        serving = _Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} of {HOST} cannot be used ({error}); choose one with --port.") from error
    Handler.port = serving.server_port  # chosen by the system if it was 0
    return serving


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.answering = Lock()  # one picture at a time: a second would only slow down the first
        super().__init__(address, handler)

    def server_close(self) -> None:
        super().server_close()
        # For good: a process that ends while one of its threads is inside torch or dlib is aborted.
        self.answering.acquire()


class _Handler(BaseHTTPRequestHandler):
    content: bytes
    port: int
    predict: Callable[[bytes], dict[str, Any]]

    def do_GET(self) -> None:
        if not self._is_own():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.content)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if not self._is_own():
            return
        length = self.headers.get("Content-Length", "")
        n = int(length) if length.isdecimal() and len(length) < 20 else None
        if self.path != "/predict":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif n is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif n > _MAX_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            photo = b""
            with suppress(ConnectionError):
                photo = self.rfile.read(n)
            if len(photo) < n:  # the page was closed meanwhile
                return
            try:
                status, answer = HTTPStatus.OK, self.predict(photo)
            except UserError as error:
                status, answer = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
            self._send(status, "application/json", json.dumps(answer).encode())

    def _is_own(self) -> bool:
        """Whether the page itself asks, and not another site, or one whose name was made to lead here."""
        own = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin.removeprefix("http://") in own):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        with suppress(ConnectionError):  # the page was closed meanwhile
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every picture of a camera helps nobody."""
