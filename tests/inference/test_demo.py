"""The demo's server: the page, its predictions, and the refusal of requests from other sites."""

import io
import json
import re
import socket
from threading import Event, Thread

import pytest
import torch
from PIL import Image
from torch import nn

from fer_lightning.errors import UserError
from fer_lightning.inference import demo
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models.checkpoint import InputSpec


class Bright(nn.Module):
    """A network that predicts happy for bright faces and angry for dark ones."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 7)
        logits[:, 3] = 9 * (images.mean(dim=(1, 2, 3)) - 0.5)
        return logits


CLF = Classifier(Bright(), InputSpec(48, 0.0, 1.0), "cpu")


@pytest.fixture
def serving():
    with demo.server(CLF, 0) as server:
        yield server


def send(server, request, body=b"", host=None, **headers):
    """Return the status, headers and body of the server's response, without a network connection."""
    lines = [f"{request} HTTP/1.0", f"Host: {host or f'127.0.0.1:{server.server_port}'}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        ours.shutdown(socket.SHUT_WR)
        server.RequestHandlerClass(theirs, ("127.0.0.1", 1), server)
        theirs.close()
        response = b"".join(iter(lambda: ours.recv(65536), b""))
    head, _, content = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), content


def photo(shade=255):
    file = io.BytesIO()
    Image.new("RGB", (60, 48), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def test_the_server_listens_on_localhost_only(serving):
    assert serving.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match=f"--port={serving.server_port}: cannot listen on 127.0.0.1"):
        demo.server(CLF, serving.server_port)
    with pytest.raises(UserError, match="--port=70000: cannot listen"):
        demo.server(CLF, 70000)


def test_the_page_loads_nothing_from_other_hosts(serving):
    status, head, page = send(serving, "GET /")
    assert status == 200
    assert "default-src 'none'" in head
    assert b"__COLOURS__" not in page
    assert re.findall(rb"https?://", page) == []


def test_a_photo_gets_its_faces(serving):
    body = photo()
    status, head, content = send(serving, "POST /predict", body, Content_Length=len(body))
    assert status == 200
    assert "no-store" in head
    result = json.loads(content)
    assert (result["width"], result["height"]) == (60, 48)
    (face,) = result["faces"]
    assert (face["box"], face["emotion"]) == ([0, 0, 60, 48], "happy")
    assert face["confidence"] == face["probabilities"]["happy"] > 0.9


def test_invalid_requests_get_an_error(serving):
    status, _, content = send(serving, "POST /predict", b"hello", Content_Length=5)
    assert (status, list(json.loads(content))) == (422, ["error"])
    assert send(serving, "POST /predict")[0] == 411
    assert send(serving, "POST /predict", Content_Length=10**9)[0] == 413
    assert send(serving, "POST /predict", Content_Length="9" * 5000)[0] == 411
    assert send(serving, "POST /else", Content_Length=0)[0] == 404
    assert send(serving, "GET /else")[0] == 404


def test_other_sites_are_refused(serving, monkeypatch):
    monkeypatch.setattr(Classifier, "predict_stream", lambda *args, **options: pytest.fail("it was processed"))
    body = photo()
    port = serving.server_port
    for headers in ({"host": f"evil.example:{port}"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert send(serving, "POST /predict", body, Content_Length=len(body), **headers)[0] == 403
        assert send(serving, "GET /", **headers)[0] == 403
    assert send(serving, "GET /", host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_an_aborted_upload_is_not_processed(serving, monkeypatch, capsys):
    monkeypatch.setattr(Classifier, "predict_stream", lambda *args, **options: pytest.fail("it was processed"))
    with pytest.raises(IndexError):  # there is no response
        send(serving, "POST /predict", b"half", Content_Length=8)
    assert capsys.readouterr() == ("", "")


def test_closing_waits_for_a_running_prediction(monkeypatch):
    """A process that exits during a prediction would be aborted."""
    started, proceed, order = Event(), Event(), []

    def slow(*args, **options):
        started.set()
        proceed.wait()
        order.append("predicted")
        return iter([(None, Image.new("RGB", (2, 2)), [])])

    monkeypatch.setattr(Classifier, "predict_stream", slow)
    server = demo.server(Classifier(Bright(), InputSpec(48, 0.0, 1.0), "cpu"), 0)
    body = photo()
    client = Thread(target=send, args=(server, "POST /predict", body), kwargs={"Content_Length": len(body)})
    closing = Thread(target=lambda: (server.server_close(), order.append("closed")))
    client.start()
    assert started.wait(30)
    closing.start()
    closing.join(0.1)
    proceed.set()
    closing.join(30)
    client.join(30)
    assert order == ["predicted", "closed"]
