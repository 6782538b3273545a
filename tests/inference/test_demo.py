"""The demo's server: the page, its predictions, videos, and the refusal of requests from other sites."""

import io
import json
import math
import re
import socket
from http.client import HTTPConnection
from importlib import resources
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
SCHEMA = json.loads(resources.files("fer_lightning.inference").joinpath("demo_schema.json").read_text())


@pytest.fixture
def serving():
    with demo.server(CLF, 0, smooth_seconds=0.5) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def connection(serving):
    connection = HTTPConnection("127.0.0.1", serving.server_port, timeout=60)
    yield connection
    connection.close()


def send(connection, request, body=None, **headers):
    """Return the status and the content of an answer, and check that it is JSON with the schema."""
    connection.request(*request.split(), body, {name.replace("_", "-"): text for name, text in headers.items()})
    response = connection.getresponse()
    result = json.loads(response.read())
    check(result, SCHEMA)
    return response.status, result


def check(value, schema, where="answer"):
    """Check a value against the parts of JSON schema that demo_schema.json uses."""
    known = {"$schema", "title", "description", "type", "anyOf", "required", "properties", "additionalProperties"}
    assert schema.keys() <= known | {"items", "minItems", "maxItems"}
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    if "type" in schema:
        assert isinstance(value, types[schema["type"]]), where
    if isinstance(value, dict):
        assert any(value.keys() >= set(one.get("required", ())) for one in schema.get("anyOf", [schema])), where
        for name, inner in value.items():
            inner_schema = schema.get("properties", {}).get(name, schema["additionalProperties"])
            assert inner_schema is not False, f"{where}.{name}"
            check(inner, inner_schema, f"{where}.{name}")
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf), where
        for inner in value:
            check(inner, schema["items"], f"{where}[]")


def photo(shade=255, size=(60, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def test_the_server_listens_on_localhost_only(serving):
    assert serving.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match=f"--port={serving.server_port}: cannot listen on 127.0.0.1"):
        demo.server(CLF, serving.server_port)
    with pytest.raises(UserError, match="--port=70000: cannot listen"):
        demo.server(CLF, 70000)


def test_the_page_loads_nothing_from_other_hosts(connection):
    connection.request("GET", "/?x")
    response = connection.getresponse()
    page = response.read()
    assert response.status == 200
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert b"__COLOURS__" not in page
    assert b"__MAX_BYTES__" not in page
    assert re.findall(rb"https?://", page) == []


def test_the_schema_is_served(connection):
    connection.request("GET", "/schema.json")
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/schema+json"
    assert json.loads(response.read()) == SCHEMA


def test_a_photo_gets_its_faces(connection):
    connection.request("POST", "/predict", photo())
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    result = json.loads(response.read())
    check(result, SCHEMA)
    assert (result["width"], result["height"]) == (60, 48)
    (face,) = result["faces"]
    assert list(face) == ["box", "emotion", "confidence", "probabilities"]
    assert (face["box"], face["emotion"]) == ([0, 0, 60, 48], "happy")
    assert face["confidence"] == face["probabilities"]["happy"] > 0.9


def test_a_photo_is_tried_in_quarter_turns_but_a_frame_is_not(connection, monkeypatch):
    tried = []

    def predict_stream(self, photos, tta, batch_size, try_turns):
        tried.append(try_turns)
        return [(*photos[0], [])]

    monkeypatch.setattr(Classifier, "predict_stream", predict_stream)
    for query in ("", "?video=a&seconds=0"):
        assert send(connection, f"POST /predict{query}", photo()) == (200, {"width": 60, "height": 48, "faces": []})
    assert tried == [True, False]


def test_the_faces_of_a_video_keep_their_ids_and_are_smoothed(connection):
    def face(video, seconds, shade, size=(60, 48)):
        _, result = send(connection, f"POST /predict?video={video}&seconds={seconds}", photo(shade, size))
        (face,) = result["faces"]
        return face["id"], face["probabilities"]["happy"], face["smoothed"]["happy"]

    id_0, bright, smoothed_0 = face("a", 10, 255)
    id_1, dark, smoothed_1 = face("a", 10.25, 0)
    assert (id_0, id_1) == (1, 1)
    assert smoothed_0 == bright
    kept = math.exp(-0.25 / 0.5)
    assert smoothed_1 == pytest.approx(kept * bright + (1 - kept) * dark)
    assert face("a", 10.5, 0, (20, 20))[0] == 2  # another size is another person
    assert face("b", 0, 0) == (1, dark, dark)  # videos are independent, and so are their clocks


def test_the_videos_used_last_are_followed(connection):
    def id_of(video, seconds, size=(60, 48)):
        _, result = send(connection, f"POST /predict?video={video}&seconds={seconds}", photo(size=size))
        return result["faces"][0]["id"]

    assert [id_of(0, 1), id_of(0, 2, (20, 20))] == [1, 2]
    assert [id_of(1, 1), id_of(1, 2, (20, 20))] == [1, 2]
    assert [id_of(video, 1) for video in range(2, demo.MOST_VIDEOS)] == [1] * 14
    assert id_of(0, 3, (20, 20)) == 2  # now 1 is the one used longest ago
    assert id_of("new", 1) == 1
    assert id_of(0, 4, (20, 20)) == 2
    assert id_of(1, 0, (20, 20)) == 1


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("video=a&second=1", r"second=1: unknown parameter\. Use video=ID&seconds=T"),
        ("video=a", r"video=a: expected each of video and seconds once\. Use video=ID"),
        ("seconds=1", r"seconds=1: expected each of video and seconds once"),
        ("video=a&video=b&seconds=1", "video=a&video=b&seconds=1: expected each"),
        ("video=&seconds=1", "video=: expected 1 to 64 characters, got 0"),
        (f"video={'a' * 65}&seconds=1", "got 65"),
        ("video=a&seconds=now", "seconds=now: expected a finite number"),
        ("video=a&seconds=nan", "seconds=nan: expected a finite number"),
        ("video=a&seconds=1e999", "seconds=1e999: expected a finite number"),
        ("video=a&seconds=1.5", r"seconds=1\.5: the frame before was at 2\. Send frames in order"),
    ],
)
def test_wrong_parameters_are_refused(connection, query, error):
    send(connection, "POST /predict?video=a&seconds=2", photo())
    status, result = send(connection, f"POST /predict?{query}", photo())
    assert status == 422
    assert re.match(f".*{error}", result["error"])
    assert send(connection, "POST /predict?video=a&seconds=2", photo())[0] == 200  # the same time is in order


def test_a_connection_survives_refused_requests(connection):
    refused = [
        ("POST /predict", b"hello", {}, 422),
        ("POST /else", photo(), {}, 404),
        ("GET /else", None, {}, 404),
        ("GET /else", b"GET / HTTP/1.1\r\n\r\n", {}, 404),  # the content is not taken for a request
        ("POST /predict", photo(), {"Origin": "http://evil.example"}, 403),
    ]
    send(connection, "POST /predict", photo())
    first = connection.sock
    for request, body, headers, status in refused:
        assert send(connection, request, body, **headers)[0] == status
        assert send(connection, "POST /predict", photo())[0] == 200
        assert connection.sock is first


def test_lengths_are_checked(connection, monkeypatch):
    lengths = ({"Content-Length": text} for text in ("-1", "1e3", "²", "9" * 5000))
    for headers in ({}, {"Transfer-Encoding": "chunked", "Content-Length": "0"}, *lengths):
        connection.putrequest("POST", "/predict")
        for name, text in headers.items():
            connection.putheader(name, text.encode())
        connection.endheaders()
        response = connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (411, "close")
        check(json.loads(response.read()), SCHEMA)
    monkeypatch.setattr(demo, "_MAX_BYTES", 1_000_000)
    status, result = send(connection, "POST /predict", bytes(1_000_001))
    assert (status, result["error"]) == (413, "The image is larger than 1 MB. Shrink it.")
    assert send(connection, "POST /predict", photo())[0] == 200


def test_unknown_methods_are_refused_as_json(connection):
    assert send(connection, "PUT /predict", photo()) == (501, {"error": "Unsupported method ('PUT')"})


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:65535", "[::1]:8000", "LOCALHOST:80"])
def test_any_port_of_localhost_passes(connection, host):
    """A forwarded port differs from the server's own."""
    assert send(connection, "POST /predict", photo(), Host=host, Origin=f"http://{host}")[0] == 200
    assert send(connection, "POST /predict", photo(), Host=host, Origin=f"https://{host}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8000"},
        {"Host": "evil.example:127.0.0.1"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.2:8000"},
        {"Host": "user@localhost:8000"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://evil.example/localhost"},
        {"Origin": "http://evil.example://localhost"},
        {"Origin": "null"},
        {"Origin": "localhost:8000"},
        {"Origin": ""},
    ],
    ids=str,
)
def test_other_sites_are_refused(connection, monkeypatch, headers):
    monkeypatch.setattr(Classifier, "predict_stream", lambda *args, **options: pytest.fail("it was processed"))
    for request, body in (("POST /predict", photo()), ("GET /", None), ("GET /schema.json", None)):
        status, result = send(connection, request, body, **headers)
        assert status == 403
        assert result["error"].endswith("only localhost may use the demo. Forward its port.")


def test_an_aborted_upload_is_not_processed(serving, monkeypatch, capfd):
    monkeypatch.setattr(Classifier, "predict_stream", lambda *args, **options: pytest.fail("it was processed"))
    with socket.create_connection(serving.server_address) as aborted:
        aborted.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\nhalf")
        aborted.shutdown(socket.SHUT_WR)
        assert aborted.recv(65536) == b""
    assert capfd.readouterr() == ("", "")


def test_a_bug_shows_its_traceback_in_the_terminal(serving, capfd, monkeypatch):
    monkeypatch.setattr(Classifier, "predict_stream", lambda *args, **options: 1 / 0)
    with socket.create_connection(serving.server_address) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photo())}\r\n\r\n"
        client.sendall(head.encode() + photo())
        # The traceback is written before the connection is closed.
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b'{"error": "fer-lightning demo failed; its terminal shows why."}')
    assert "ZeroDivisionError: division by zero" in capfd.readouterr().err


def test_closing_waits_for_a_running_prediction_and_cancels_the_others(monkeypatch):
    """A process that exits during a prediction would be aborted."""
    started, proceed, order = Event(), Event(), []

    def slow(self, photos, **options):
        started.set()
        proceed.wait()
        order.append("predicted")
        return [(*photos[0], [])]

    monkeypatch.setattr(Classifier, "predict_stream", slow)
    server = demo.server(CLF, 0)
    running = server.submit(photo(), None)
    assert started.wait(30)
    waiting = server.submit(photo(), None)
    closing = Thread(target=lambda: (server.server_close(), order.append("closed")))
    closing.start()
    closing.join(0.1)
    proceed.set()
    closing.join(30)
    assert order == ["predicted", "closed"]
    assert running.result()["faces"] == []
    assert waiting.cancelled()
    assert server.submit(photo(), None).cancelled()


def test_a_request_to_a_closed_server_is_told_so(serving, connection):
    connection.request("GET", "/")
    connection.getresponse().read()
    serving.server_close()  # the connection stays open
    assert send(connection, "POST /predict", photo()) == (
        503,
        {"error": "fer-lightning demo was stopped. Start it again."},
    )
