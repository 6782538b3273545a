"""JPEGs that lack their last bytes: complete them, and measure what is missing."""

import io
import re

import numpy as np
import numpy.typing as npt
from PIL import Image

END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN, _RESTART_INTERVAL = b"\xff\xda", b"\xff\xdd"
_PROGRESSIVE = (b"\xff\xc2", b"\xff\xc6", b"\xff\xca", b"\xff\xce")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # that begins a segment, or ends the image
_COEFFICIENTS = 64  # of a block of 8x8 pixels


class TruncatedJpeg:
    """A JPEG file that may lack its last bytes.

    Args:
        content: the file.

    Attributes:
        has_end: whether its end marker is there, so that nothing is missing.
    """

    def __init__(self, content: bytes) -> None:
        # Interrupted downloads that reserve the whole file first leave zeros.
        self._content = content.rstrip(b"\0")
        self._scans: list[bytes] = []  # their headers
        self._last_scan = 0  # where its data begin
        self._restart_interval = 0  # units of at least one block between restart markers; 0 for none
        self._is_progressive = self.has_end = False
        at = 2
        while marker := _MARKER.search(self._content, at):
            start = marker.end()
            at = start + max(2, int.from_bytes(self._content[start : start + 2], "big"))
            self.has_end = marker[0] == END_OF_IMAGE
            if self.has_end or at > len(self._content):  # the file ends within this segment
                self._content = self._content[: marker.start()]
                break
            segment = self._content[start + 2 : at]
            if marker[0] == _START_OF_SCAN:
                self._scans.append(segment)
                self._last_scan = at
            elif marker[0] == _RESTART_INTERVAL:
                self._restart_interval = int.from_bytes(segment, "big")
            else:
                self._is_progressive |= marker[0] in _PROGRESSIVE

    def complete(self) -> bytes:
        """Return the file with an end marker, for which decoders leave empty what is missing."""
        return self._content + END_OF_IMAGE

    def has_detail(self) -> bool:
        """Return whether a progressive JPEG has its luma, except for the last scan of it; true for any other JPEG.

        A progressive JPEG sends the whole image several times, adding detail: of each block, more of the 64
        coefficients or another bit of these. All of them must have been sent down to their last bit but one. The
        scan in which the file ends counts if it is the first to send its coefficients, but not as a refinement of
        them: how much of a first scan is missing can be measured.
        """
        if not self._is_progressive:
            return True
        lowest_bits = [13] * _COEFFICIENTS
        for scan in self._scans[:-1] if self._ends_in_refinement() else self._scans:
            components, (first, last, bits) = scan[1:-3:2], scan[-3:]
            if self._scans[0][1] in components:  # luma is the first component
                lowest_bits[first : last + 1] = [bits & 15] * (last + 1 - first)
        return max(lowest_bits) <= 1

    def missing_share(self) -> float:
        """Return the share of the pixels, from 0 to 1, that are missing from the scan in which the file ends.

        To find them, the scan is completed in two ways: by nothing and by random data. The results differ in the
        pixels that the file does not determine. Only luma counts: the networks see grey, and progressive JPEGs may
        send the finest colour last. Pixels that lack only a refinement are not missing.
        """
        if self._is_progressive and self._ends_in_refinement():
            return 0.0
        empty = _luma(self.complete())
        filled = _luma(self._content + self._random_data(empty.shape[0] * empty.shape[1]) + END_OF_IMAGE)
        return float((empty != filled).mean())

    def _ends_in_refinement(self) -> bool:
        """Return whether the last scan of a progressive JPEG adds a bit to coefficients sent before."""
        return self._scans[-1][-1] >> 4 > 0

    def _random_data(self, pixels: int) -> bytes:
        """Return data to continue the last scan of an image of this size, with restart markers if it has these.

        The number of bytes is several times what the image takes. The decoder skips the rest before each marker.
        """
        count, size = 1, pixels
        if self._restart_interval:
            count, size = pixels // (64 * self._restart_interval) + 1, 256 * self._restart_interval
        data = np.random.default_rng(0).integers(0xFF, size=(count, size), dtype=np.uint8)  # no FF, so no markers
        data[0, 0] = 0  # the file may end with FF
        if self._restart_interval:
            last = _RESTART.findall(self._content, self._last_scan)[-1:]
            first = last[0][1] + 1 if last else 0
            data[:, -2] = 0xFF
            data[:, -1] = 0xD0 + (first + np.arange(count)) % 8  # numbered from 0 to 7, cyclically
        return data.tobytes()


def _luma(jpeg: bytes) -> npt.NDArray[np.uint8]:
    """Return the luma of a JPEG, uint8 (H, W), or all components if it is CMYK, (H, W, 4)."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        image.draft("L", None)
        return np.asarray(image)
