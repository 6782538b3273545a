"""Small video files as phones, recorders and interrupted copies leave them."""

import io
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.opencv import opencv

SIZE = (128, 96)

with suppress(UserError):
    opencv()  # before any test imports it, because OpenCV reads its log level then


def plain(shade: int) -> Image.Image:
    return Image.new("RGB", SIZE, (shade,) * 3)


def noise(n: int) -> list[Image.Image]:
    """Return n frames that compress badly, so that a file's bytes are spread over its frames."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)) for _ in range(n)]


def write_clip(
    path: str | Path, frames: Iterable[Image.Image], codec: str = "mp4v", size: tuple[int, int] = SIZE
) -> Path:
    """Write a video of frames of this size, or scaled to it, at 10 frames a second."""
    cv2 = opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(np.asarray(frame.resize(size))[:, :, ::-1]))
    writer.release()
    return Path(path)


def boxes_of(mp4: bytes, start: int = 0, end: int | None = None) -> dict[str, tuple[int, int]]:
    """Return offset and size of the boxes of an MP4, by their names joined by slashes."""
    found = {}
    end = len(mp4) if end is None else end
    while start + 8 <= end:
        size, name = int.from_bytes(mp4[start : start + 4], "big"), mp4[start + 4 : start + 8].decode("latin1")
        found[name] = start, size
        if name in ("moov", "trak", "mdia", "minf", "stbl", "edts"):
            inner = boxes_of(mp4, start + 8, start + size)
            found |= {f"{name}/{inside}": place for inside, place in inner.items()}
        start += size
    return found


def trim(path: Path, start_seconds: int) -> None:
    """Change the edit list so that an MP4's frames before this time are hidden, as phones do when they trim."""
    mp4 = bytearray(path.read_bytes())
    boxes = boxes_of(bytes(mp4))
    media, _ = boxes["moov/trak/mdia/mdhd"]
    per_second = int.from_bytes(mp4[media + 20 : media + 24], "big")
    edits, _ = boxes["moov/trak/edts/elst"]
    mp4[edits + 20 : edits + 24] = (start_seconds * per_second).to_bytes(4, "big")
    path.write_bytes(mp4)


def index_first(path: Path) -> None:
    """Move an MP4's index, the "moov", before its frames, as on web pages and in phones' uploads."""
    mp4 = path.read_bytes()
    boxes = boxes_of(mp4)
    (moov, size), (table, _) = boxes["moov"], boxes["moov/trak/mdia/minf/stbl/stco"]
    index = bytearray(mp4[moov : moov + size])
    at = table - moov + 16  # after the header, the version and the number of offsets
    for entry in range(at, at + 4 * int.from_bytes(index[at - 4 : at], "big"), 4):
        index[entry : entry + 4] = (int.from_bytes(index[entry : entry + 4], "big") + size).to_bytes(4, "big")
    frames, _ = boxes["mdat"]
    frames = min(frames, boxes.get("free", (frames, 0))[0])
    path.write_bytes(mp4[:frames] + index + mp4[frames:moov] + mp4[moov + size :])


def element(name: str, content: bytes) -> bytes:
    """Return an EBML element, with a size of eight bytes."""
    return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8, "big") + content


def number(name: str, value: int) -> bytes:
    return element(name, value.to_bytes(8, "big"))


def matroska(milliseconds: Sequence[int], frames: Iterable[Image.Image], fps: int) -> bytes:
    """Return a Matroska file of JPEGs at these times, which may be uneven; `fps` is what its header claims."""
    info = number("2ad7b1", 1_000_000) + element("4489", struct.pack(">d", milliseconds[-1] + 100))
    video = element("e0", number("b0", SIZE[0]) + number("ba", SIZE[1]))
    track = number("d7", 1) + number("73c5", 1) + number("83", 1) + element("86", b"V_MJPEG")
    track += number("23e383", 10**9 // fps) + video
    content = element("1549a966", info) + element("1654ae6b", element("ae", track))
    for time, frame in zip(milliseconds, frames, strict=True):
        jpeg = io.BytesIO()
        frame.save(jpeg, "JPEG")
        block = element("a3", b"\x81\0\0\x80" + jpeg.getvalue())
        content += element("1f43b675", number("e7", time) + block)
    return element("1a45dfa3", element("4282", b"matroska")) + element("18538067", content)
