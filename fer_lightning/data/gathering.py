"""Images and faults collected in one pass over the data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fer_lightning.errors import UserError

_MAX_FAULTS = 1_000_000  # reading stops after this many
MAX_LISTED = 10  # faults listed one by one; the rest are only counted


@dataclass
class Gathered:
    """Images and faults collected in one pass over the data."""

    images: bytearray = field(default_factory=bytearray)  # grows without copying, unlike a list of arrays
    labels: list[str] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # number of faults by kind
    listed: list[str] = field(default_factory=list)  # descriptions of the first MAX_LISTED
    converted: int = 0
    stretched: int = 0
    truncated: list[str] = field(default_factory=list)  # JPEGs that lack their last bytes
    unknown: list[str] = field(default_factory=list)  # names and labels that are no class
    of_unknown: int = 0  # images of these
    left_out: int = 0  # images of classes that are not used
    votes: list[list[int]] = field(default_factory=list)  # of each image, if the data have them

    def add(self, name: str, label: str, usage: int, pixels: bytes) -> None:
        """Add an image: its id, class, split and 2,304 grey values."""
        self.images += pixels
        self.labels.append(label)
        self.usage.append(usage)
        self.ids.append(name)

    def reject(self, kind: str, where: str, why: str) -> None:
        """Count a fault and describe it if it is one of the first; raise UserError if there are too many."""
        self.faults[kind] += 1
        if len(self.listed) < MAX_LISTED:  # a file may have millions
            self.listed.append(f"{where}: {why}")
        if self.faults.total() > _MAX_FAULTS:
            raise UserError(
                f"More than {_MAX_FAULTS:,} faults, starting with {self.listed[0]}. These are not labelled faces."
            )


class RowError(Exception):
    """A row or image cannot be used.

    Args:
        kind: category of the fault, for counting.
        why: description of the fault.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def format_faults(path: Path, listed: Sequence[str], total: int, hint: str = "") -> str:
    """Return the error message for faults in the data at `path`, with another remedy than those for all faults."""
    if total == 1:
        return f"{listed[0]}.\nFix it in {path}, or set data.skip_bad=true to drop it.{hint}"
    lines = [f"  {fault}" for fault in listed]
    if total > len(listed):
        lines.append(f"  and {total - len(listed):,} more")
    head = f"{total:,} faults in {path}:"
    return "\n".join([head, *lines, f"Fix them, or set data.skip_bad=true to drop them.{hint}"])
