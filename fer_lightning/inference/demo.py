"""Serve a local web page that shows a network's predictions for a photo or a camera.

The browser sends each image to this process, which responds with the faces. Nothing is stored and nothing leaves
the machine. The server needs only the standard library.
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

from fer_lightning.emotions import colours
from fer_lightning.errors import UserError
from fer_lightning.inference.photos import read_photo

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier

HOST = "127.0.0.1"  # not reachable from other machines

_MAX_BYTES = 100_000_000  # size limit of an uploaded photo
# The page may not load anything from other hosts, and no other page may frame it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def server(clf: "Classifier", port: int, tta: str = "none") -> ThreadingHTTPServer:
    """Build the server of the demo page, bound to a port of 127.0.0.1; call `serve_forever` to run it.

    ``GET /`` returns the page. ``POST /predict`` accepts the bytes of a photo and returns
    ``{"width", "height", "faces": [{"box", "emotion", "confidence", "probabilities"}]}`` or ``{"error"}``.

    Args:
        clf: the network that predicts.
        port: port number; 0 selects a free one.
        tta: test-time augmentation, a key of tta.VIEWS.

    Raises:
        UserError: the port is in use, not permitted or out of range.
    """
    page = resources.files("fer_lightning.inference").joinpath("demo.html").read_text(encoding="utf-8")
    palette = json.dumps(dict(zip(clf.classes, colours(clf.classes), strict=True))).replace("<", "\\u003c")
    page = page.replace("__COLOURS__", palette).replace("__MAX_BYTES__", str(_MAX_BYTES))

    def predict_bytes(content: bytes) -> dict[str, Any]:
        with page_server.predicting:
            ((_, photo, faces),) = clf.predict_stream([(None, read_photo(io.BytesIO(content)))], tta=tta)
        return {"width": photo.width, "height": photo.height, "faces": [face.to_json() for face in faces]}

    class Handler(_Handler):
        content = page.encode()
        predict = staticmethod(predict_bytes)

    try:
        page_server = _Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port={port}: cannot listen on {HOST} ({error}). Choose another port.") from error
    Handler.port = page_server.server_port  # differs from `port` if that is 0
    return page_server


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.predicting = Lock()  # one image at a time, because two would only slow each other down
        super().__init__(address, handler)

    def server_close(self) -> None:
        super().server_close()
        # Wait for a running prediction and allow no other: a process that exits while one of its threads is inside
        # torch or OpenCV is aborted.
        self.predicting.acquire()


class _Handler(BaseHTTPRequestHandler):
    content: bytes
    port: int
    predict: Callable[[bytes], dict[str, Any]]

    def do_GET(self) -> None:
        if not self._check_origin():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.content)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if not self._check_origin():
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
            if len(photo) < n:  # the page was closed during the upload
                return
            try:
                status, result = HTTPStatus.OK, self.predict(photo)
            except UserError as error:
                status, result = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
            self._send(status, "application/json", json.dumps(result).encode())

    def _check_origin(self) -> bool:
        """Return whether the page itself sent the request; if not, send 403 Forbidden.

        Checking Host as well as Origin also stops DNS rebinding: a foreign name that resolves to 127.0.0.1.
        """
        allowed = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in allowed and (origin is None or origin.removeprefix("http://") in allowed):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        with suppress(ConnectionError):  # the page was closed before the response
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Suppress the request log: a camera would fill the terminal with one line per frame."""
