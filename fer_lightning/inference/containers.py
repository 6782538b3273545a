"""Tell from a video file's container whether bytes are missing at its end.

A frame count or duration in a header proves nothing: edit lists hide frames, and uneven times make counts wrong.
The sizes of the outermost elements do: a file that is shorter than them was cut.
"""

import os
from pathlib import Path
from typing import BinaryIO

_HEADER_BYTES = 32  # enough for the header of any element here

# Boxes of ISO/IEC 14496-12 (MP4, MOV, 3GP). Others are not judged: bytes after the last box need not be one.
_MP4_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"uuid", b"sidx", b"styp", b"mfra")
_ASF_OBJECTS = (  # GUIDs of the header and data objects, from Microsoft's ASF specification
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),
)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")  # RFC 8794 and RFC 9559: Matroska, WebM


def missing_bytes(path: str | Path) -> int:
    """Return how many bytes the outermost elements of a video file extend past its end: 0 unless it was cut.

    Known are MP4 and its relatives, AVI, Matroska, WebM and ASF (WMV). 0 as well if there is no proof: in other
    containers, and where a live recorder stated no size.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return max(0, (_end(file) or 0) - os.fstat(file.fileno()).st_size)


def is_finished_webm(path: str | Path) -> bool:
    """Return whether a WebM file's segment has a size and ends where the file ends.

    FFmpeg writes the size last and nothing at all after a failed write, so that it is missing if the disk was full.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return _end(file) == os.fstat(file.fileno()).st_size


def _end(file: BinaryIO) -> int | None:
    """Return the byte at which the last of the known outermost elements ends, or None if there is none."""
    start, end = 0, None
    while len(header := _read(file, start)) >= 8:
        size = next((size for read in (_mp4, _riff, _asf, _ebml) if (size := read(header))), None)
        if size is None:
            break
        start = end = start + size
    return end


def _read(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(_HEADER_BYTES)


def _mp4(header: bytes) -> int | None:
    if header[4:8] not in _MP4_BOXES:
        return None
    size = int.from_bytes(header[:4], "big")
    if size == 1:  # the size is in the eight bytes after the type
        size = int.from_bytes(header[8:16], "big")
    return size if size >= 8 else None  # 0: up to the end of the file


def _riff(header: bytes) -> int | None:
    if header[:4] != b"RIFF" or header[8:12] not in (b"AVI ", b"AVIX"):
        return None
    size = int.from_bytes(header[4:8], "little")
    return 8 + size + size % 2 if 0 < size < 0xFFFFFFFF else None  # recorders fill in the size last


def _asf(header: bytes) -> int | None:
    size = int.from_bytes(header[16:24], "little")
    return size if header[:16] in _ASF_OBJECTS and size > 24 else None


def _ebml(header: bytes) -> int | None:
    if header[:4] not in (_EBML, _SEGMENT):
        return None
    length = 9 - header[4].bit_length()  # of the size, whose first set bit says it
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(header[4 : 4 + length], "big") & unknown
    return 4 + length + size if length <= 8 and size != unknown else None
