"""Frames and times of videos, animations and streams; files that are cut; and videos that cannot be written."""

import io
import math
import resource
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fake_clips import SIZE, element, index_first, matroska, noise, plain, trim, write_clip
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference import video
from fer_lightning.inference.animations import Animation, is_animation
from fer_lightning.inference.containers import is_finished_webm, missing_bytes
from fer_lightning.inference.video import Sampler, Video, VideoWriter, is_stream, without_secrets


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)


def read(clip):
    """Return the times of a clip's frames, in milliseconds, and its error."""
    times = []
    try:
        times.extend(round(1000 * seconds) for seconds, _ in clip)
    except UserError as error:
        return times, str(error)
    return times, None


class Clock:
    """A capture whose frames have the given times."""

    def __init__(self, milliseconds):
        self.times = list(milliseconds)
        self.now = None
        self.converted = []

    def grab(self):
        self.now = self.times.pop(0) if self.times else None
        return self.now is not None

    def get(self, key):
        return self.now

    def retrieve(self):
        self.converted.append(self.now)
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self):
        pass


def timed(monkeypatch, milliseconds, fps=None):
    """Return a clip at 10 frames a second whose container states these times."""
    write_clip("clip.mp4", [plain(0)])
    clip = Video("clip.mp4", fps)
    monkeypatch.setattr(clip, "_capture", Clock(milliseconds))
    return clip


def test_times_begin_at_0_and_ascend(monkeypatch):
    clip = timed(monkeypatch, [500, 600, 0, 600, math.nan, 1000, 950])
    assert read(clip) == ([0, 100, 200, 300, 400, 500, 600], None)
    assert read(timed(monkeypatch, [math.nan, 40, 80])) == ([0, 40, 80], None)
    assert read(timed(monkeypatch, [])) == ([], "no frame can be read")


def test_frames_that_are_not_looked_at_are_not_converted(monkeypatch):
    uneven = [0, 33, 67, 100, 133, 167, 200, 1200, 1210, 1900, 3000]
    clip = timed(monkeypatch, uneven, fps=5)
    assert read(clip)[0] == clip._capture.converted == [0, 167, 1200, 1900, 3000]
    assert clip.fps == 5


@pytest.mark.parametrize(("fps", "expected"), [(None, 30), (60, 30), (30, 30), (15, 15), (12, 12), (10, 10)])
def test_a_second_has_as_many_looks_as_requested(fps, expected):
    sampler = Sampler(fps)
    times = [round(frame / 30, 3) for frame in range(30)]  # in milliseconds, as in Matroska
    looked_at = [time for time in times if sampler.wants(time)]
    assert len(looked_at) == expected
    if fps:
        assert max(np.diff(looked_at)) <= max(1 / fps, 1 / 30) + 1 / 30


def test_a_stated_frame_count_proves_nothing():
    write_clip("trimmed.mp4", [plain(0)] * 60)
    trim(Path("trimmed.mp4"), 4)
    clip = Video("trimmed.mp4")
    assert clip.frames == 60
    assert read(clip) == ([100 * frame for frame in range(20)], None)
    uneven = [round(frame * 1000 / 30) for frame in range(30)] + [1000 + 250 * frame for frame in range(40)]
    Path("uneven.mkv").write_bytes(matroska(uneven, [plain(0)] * 70, 60))
    clip = Video("uneven.mkv")
    assert clip.frames > 600
    assert read(clip) == (uneven, None)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.webm", "VP80"), ("a.wmv", "WMV2")],
)
def test_a_file_that_is_cut_is_answered_up_to_there(name, codec, capfd):
    path = write_clip(name, noise(20), codec)
    capfd.readouterr()  # OpenCV's remarks about codecs while writing
    if path.suffix == ".mp4":
        index_first(path)
    whole = path.read_bytes()
    assert missing_bytes(path) == 0
    times, error = read(Video(path))
    assert (times, error) == ([100 * frame for frame in range(20)], None)
    counts = []
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        missing = missing_bytes(path)
        # The index at the end of an ASF is not counted.
        assert 0.9 * (1 - share) * len(whole) - 100 < missing <= len(whole) - int(share * len(whole))
        some, error = read(Video(path))
        assert some == times[: len(some)]
        counts.append(len(some))
        end = f"after {some[-1] / 1000:.1f} s the file ends, {missing:,} bytes early"
        assert error == f"damaged: {end}; copy it anew"
    assert 0 < counts[0] < counts[1] < counts[2] < 20
    assert capfd.readouterr().err == ""


def test_an_mp4_without_its_index_cannot_be_read():
    path = write_clip("a.mp4", noise(5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not a video that OpenCV can read"):
        Video(path)


def box(kind, size, content=b""):
    return size.to_bytes(4, "big") + kind + content


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (box(b"ftyp", 8) + box(b"mdat", 20, b"x" * 12), 0),
        (box(b"ftyp", 8) + box(b"mdat", 20, b"x" * 9), 3),
        (box(b"ftyp", 8) + box(b"mdat", 0, b"up to the end"), 0),
        (box(b"ftyp", 8) + box(b"mdat", 1, (2**33).to_bytes(8, "big")), 2**33 - 16),
        (box(b"ftyp", 8) + box(b"mdat", 8) + box(b"\0\0\0\0", 9999), 0),  # padding
        (b"RIFF" + (5).to_bytes(4, "little") + b"AVI x", 1),  # padded to an even size
        (b"RIFF" + (0).to_bytes(4, "little") + b"AVI x", 0),  # an interrupted recorder
        (b"RIFF" + b"\xff" * 4 + b"AVI x", 0),
        (b"RIFF" + (900).to_bytes(4, "little") + b"WAVE", 0),
        (element("1a45dfa3", b"x") + element("18538067", b"frames")[:-2], 2),
        (element("1a45dfa3", b"x") + bytes.fromhex("1853806701ffffffffffffff") + b"live", 0),
        (b"\x1a\x45\xdf\xa3\x84xxxx\x18\x53\x80\x67\x40\x04xxx", 1),  # sizes of one and two bytes
        (b"FLV\x01", 0),
        (b"", 0),
    ],
)
def test_only_a_size_in_the_container_proves_that_bytes_are_missing(content, missing):
    Path("file").write_bytes(content)
    assert missing_bytes("file") == missing


def save_animation(form, frames, durations, **options):
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=durations, **options)
    path = Path(f"a.{form.lower()}")
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips_with_the_durations_of_their_frames(form):
    shades = (0, 80, 160, 240)
    path = save_animation(form, [plain(shade) for shade in shades], [200, 0, 50, 50])
    assert is_animation(str(path))
    clip = Animation(str(path))
    assert clip.frames == 4
    times, seen = zip(*((seconds, np.asarray(frame)) for seconds, frame in clip), strict=True)
    assert times == pytest.approx((0, 0.2, 0.3, 0.35))
    for frame, shade in zip(seen, shades, strict=True):
        assert frame.shape == (*SIZE[::-1], 3)
        assert np.abs(frame.astype(int) - shade).max() <= 3
    assert read(Animation(str(path), fps=4)) == ([0, 200], None)
    save_animation(form, [plain(0)], [100])
    assert not is_animation(str(path))


def test_a_still_image_before_an_animation_is_no_frame():
    path = save_animation("PNG", [plain(255), plain(0), plain(90)], [40, 40], default_image=True)
    assert [(seconds, frame.getpixel((0, 0))[0]) for seconds, frame in Animation(str(path))] == [(0, 0), (0.04, 90)]


def test_transparent_parts_of_an_animation_are_white():
    frames = [Image.new("RGBA", SIZE, (0, 0, shade, 0)) for shade in (0, 90)]
    for frame in frames:
        frame.paste((200, 0, 0, 255), (0, 0, 20, 20))
    frames[1].paste((0, 200, 0, 255), (20, 20, 40, 40))
    path = save_animation("WEBP", frames, [50, 50], lossless=True)
    first, second = (frame for _, frame in Animation(str(path)))
    assert [first.getpixel(place) for place in ((5, 5), (30, 30), (60, 60))] == [(200, 0, 0)] + [(255,) * 3] * 2
    assert second.getpixel((30, 30)) == (0, 200, 0)


def test_an_animation_that_is_cut_is_answered_up_to_there():
    path = save_animation("GIF", noise(10), [100] * 10)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.65 * len(whole))])
    times, error = read(Animation(str(path)))
    assert times == [0, 100, 200, 300, 400, 500]
    assert error.startswith("damaged: image file is truncated")


def test_an_oversized_animation_is_an_error(monkeypatch):
    path = save_animation("GIF", [plain(0), plain(90)], [100, 100])
    clip = Animation(str(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert not is_animation(str(path))  # so it is read as a photo, which is the same error
    with pytest.raises(UserError, match="too large"):
        Animation(str(path))
    assert read(clip) == ([0], "too large: more than 178 million pixels")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.7:554/live/1", "rtsp://10.0.0.7:554/live/1"),
        ("rtsp://admin:secret@10.0.0.7/live", "rtsp://***@10.0.0.7/live"),
        ("rtsp://admin:p@ss:w@rd@10.0.0.7/live", "rtsp://***@10.0.0.7/live"),
        ("rtsp://admin:a/b?c@10.0.0.7/live", "rtsp://***@10.0.0.7/live"),
        ("rtsp://admin:12/34@10.0.0.7:9/x", "rtsp://***@10.0.0.7:9/x"),
        ("http://admin:p@ss/w#rd@10.0.0.7/x", "http://***@10.0.0.7/x"),
        ("http://cam/user=a_password=b_c_channel=1", "http://cam/user=a_password=***"),
        ("http://cam/x;pwd=b#token=c", "http://cam/x;pwd=***#token=***"),
        (
            "http://cam/mjpg?user=a&pwd=b&fps=5&authToken=c#d",
            "http://cam/mjpg?user=a&pwd=***&fps=5&authToken=***#d",
        ),
    ],
)
def test_passwords_are_masked(url, shown):
    assert is_stream(url)
    assert without_secrets(url) == shown
    assert not is_stream(f"./{url}")


class Server(ThreadingHTTPServer):
    """Serves what `answers` has for a path: a content type, its stated length, and parts, sent one by one."""

    def __init__(self, answers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                kind, length, parts = answers[self.path]
                self.send_response(200)
                self.send_header("Content-Type", kind)
                if length:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Ignore clients that close the connection."""

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


@pytest.fixture
def serve():
    servers = []

    def start(answers):
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def jpeg_parts(n):
    for frame in noise(n):
        jpeg = io.BytesIO()
        frame.save(jpeg, "JPEG")
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.getvalue())}\r\n\r\n"
        yield head.encode() + jpeg.getvalue() + b"\r\n"


def test_streams(serve, capfd, monkeypatch):
    clip = write_clip("a.webm", noise(30), "VP80").read_bytes()
    capfd.readouterr()
    server = serve(
        {
            "/a.webm": ("video/webm", len(clip), [clip]),
            "/broken.webm": ("video/webm", len(clip), [clip[: len(clip) // 2]]),
            "/camera": ("multipart/x-mixed-replace; boundary=next", None, jpeg_parts(5)),
            "/page": ("text/html", None, [b"<html>"]),
        }
    )
    file = Video(server.url("/a.webm"))
    assert (file.is_live, file.frames) == (False, 30)
    assert read(file) == ([100 * frame for frame in range(30)], None)
    assert file.note is None
    broken = Video(server.url("/broken.webm"))
    times, error = read(broken)
    assert (times, error) == ([100 * frame for frame in range(len(times))], None)
    assert 10 < len(times) < 20
    assert broken.note == f"the connection may have broken after {times[-1] / 1000:.1f} s: 30 frames are stated"
    ticks = iter(range(100, 200, 2))
    monkeypatch.setattr(video, "perf_counter", lambda: next(ticks))
    camera = Video(server.url("/camera"))
    assert (camera.is_live, camera.frames) == (True, None)
    times, error = read(camera)  # JPEGs have no times of their own
    assert times == [0, 2000, 4000, 6000, 8000]
    assert error == "no more frames after 8.0 s: the sender stopped, or the connection broke"
    for url in (server.url("/page"), "rtsp://127.0.0.1:1/live"):
        with pytest.raises(UserError, match="no stream can be read here"):
            Video(url)
    assert capfd.readouterr().err == ""


def test_a_host_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(video, "_TIMEOUT_MILLISECONDS", 200)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # accepts, and no more
        for scheme in ("http", "rtsp"):
            with pytest.raises(UserError, match="no stream can be read here"):
                Video(f"{scheme}://127.0.0.1:{silent.server_port}/live")


def test_a_video_that_does_not_fit_on_the_disk_is_removed(capfd):
    Path("old.webm").write_bytes(b"an earlier run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with VideoWriter(Path("old.webm"), 10) as writer:
            for at, frame in enumerate(noise(60)):
                writer.write(at / 10, frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.failure == "old.webm cannot be written: the disk may be full"
    assert [path.read_bytes() for path in Path().iterdir()] == [b"an earlier run"]
    assert capfd.readouterr().err == ""


def test_a_stream_that_changes_its_resolution_is_written():
    with VideoWriter(Path("a.webm"), 10) as writer:
        for at, size in enumerate((SIZE, (64, 64), (200, 10))):
            writer.write(at / 10, Image.new("RGB", size))
    assert (writer.failure, is_finished_webm("a.webm")) == (None, True)
    assert len(read(Video("a.webm"))[0]) == 3
