"""The votes of FER+: ten people's opinions on each image of FER-2013, in fer2013new.csv.

E. Barsoum, C. Zhang, C. Canton Ferrer and Z. Zhang, "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016 (arXiv:1608.01041). The file is in github.com/microsoft/FERPlus (MIT
licence), has one row for each row of fer2013.csv, and is not part of this project.
"""

import csv
import hashlib
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lightning.data import cache
from fer_lightning.data.classes import PUBLISHED
from fer_lightning.data.faces import FER2013_SPLITS
from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.data.stores import suffix
from fer_lightning.emotions import canonical
from fer_lightning.errors import UserError
from fer_lightning.files import sha256, write_atomically

FILE = "fer2013new.csv"
URL = f"https://raw.githubusercontent.com/microsoft/FERPlus/master/{FILE}"
SHA256 = "9206e20d62f56475939f516847d61753e4860caeac9718b560129541b776fc2c"

EMOTIONS = PUBLISHED["ferplus"][0]
COLUMNS = (*EMOTIONS, "unknown", "NF")  # what people could vote for; NF means that there is no face
PEOPLE = 10  # who voted on each image
ROWS = (28709, 3589, 3589)  # rows of fer2013.csv, and so of the votes, by split
NAMES_SHA256 = "6215afa5820d2f17dc20f0465ada3dbefa38ef127ce083d6a615402e9643f89b"  # of the images, in their order

Counts = npt.NDArray[np.uint8]  # (N, 10), the number of votes for each of COLUMNS


@dataclass(frozen=True, eq=False)
class Votes:
    """The rows of fer2013new.csv.

    Attributes:
        counts: uint8 (N, 10), the number of votes for each of COLUMNS.
        usage: uint8 (N,), TRAIN, VAL or TEST.
        names: FER+'s own names of the images, such as "fer0000000.png"; empty where nobody saw a face.
    """

    counts: Counts
    usage: npt.NDArray[np.uint8]
    names: Sequence[str]


def majority(counts: Counts) -> npt.NDArray[np.int64]:
    """Return the column of COLUMNS with more than half of the votes, single votes ignored; -1 without any.

    Args:
        counts: uint8 (N, 10).

    Returns:
        int64 (N,).
    """
    kept = without_single(counts)
    return np.where(2 * kept.max(axis=1) > kept.sum(axis=1), kept.argmax(axis=1), -1)


def without_single(counts: Counts) -> npt.NDArray[np.int64]:
    """Return the votes (N, 10) without single ones, which the paper takes for outliers."""
    return np.where(counts == 1, 0, counts).astype(np.int64)


def find_votes(path: str | Path | None, data: Path, download: bool, cache_dir: str | Path | None = None) -> Path:
    """Return the path of the votes: as given, beside the data, or downloaded before or now.

    Args:
        path: the file, or a folder with it such as a clone of the FERPlus repository.
        data: the archive, CSV or folder with the images. In a folder, and beside any of them, the votes may lie in
            a folder "ferplus" or "FERPlus".
        download: whether to download.
        cache_dir: see ``label_by_votes``.

    Raises:
        UserError: nothing is found, or the download failed or is not the published file.
    """
    cached = (cache.default_dir() if cache_dir is None else Path(cache_dir)) / FILE
    try:
        if (found := _find_file(path, data, cached)) is not None:
            return found
    except OSError as error:  # a name that is too long, or no permission
        raise UserError(f"The votes of FER+ cannot be read ({error}).\n{_REMEDIES}") from error
    if not download:
        raise UserError(f"The votes of FER+ were not found, and are not downloaded here.\n{_REMEDIES}")
    content = _download()
    try:
        write_atomically(cached, content)
    except OSError as error:
        raise UserError(f"{cached} cannot be written ({error}).\n{_REMEDIES}") from error
    return cached


def _find_file(path: str | Path | None, data: Path, cached: Path) -> Path | None:
    """Return the votes as given, beside the data, or downloaded before; None if they are in none of these places.

    Raises:
        UserError: the given path does not exist.
        OSError: a path is too long, or may not be read.
    """
    if path is not None:
        given = Path(os.path.expanduser(path))
        given = given / FILE if given.is_dir() else given
        if not given.is_file():
            raise UserError(f"data.ferplus={path}: {given} does not exist. Give {FILE}, or the folder that has it.")
        return given
    for folder in (data, data.parent):
        for clone in ("", "ferplus", "FERPlus"):
            if (beside := folder / clone / FILE).is_file():
                return beside
    return cached if cached.is_file() and sha256(cached) == SHA256 else None


_REMEDIES = (
    f"Download {URL}\n"
    "and put it beside the data, or give its path: data.ferplus=PATH to train.py, --ferplus PATH to fer-lightning."
)


def _download() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            content: bytes = response.read(2**24)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise UserError(
            f"The votes of FER+ were not found, and their download failed ({error}).\n{_REMEDIES}"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise UserError(f"{URL} is not the published file: its SHA-256 is {found}, not {SHA256}.\n{_REMEDIES}")
    return content


def read_votes(path: Path) -> Votes:
    """Read fer2013new.csv.

    Raises:
        UserError: it cannot be read, or is not the published table: another header, other rows, or no votes.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UserError(f"{path} cannot be read ({error}).\n{_REMEDIES}") from error
    if not has_votes(header):
        raise UserError(f"{path} has other columns than FER+ ({', '.join(header)[:200]}).\n{_REMEDIES}")
    split_of = {name: split for split, name in enumerate(FER2013_SPLITS)}
    counts, usage = np.zeros((len(rows), len(COLUMNS)), np.uint8), np.zeros(len(rows), np.uint8)
    for at, row in enumerate(rows):
        try:
            counts[at] = parse_votes(row[2:])
            usage[at] = split_of[row[0]]
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"{path}, line {at + 2}: expected a split, a name and {len(COLUMNS)} numbers of votes, got "
                f"{','.join(row)[:100]!r}.\n{_REMEDIES}"
            ) from error
    if (found := tuple(np.bincount(usage, minlength=3).tolist())) != ROWS:
        raise UserError(f"{path} has {found} rows by split, FER-2013 has {ROWS}.\n{_REMEDIES}")
    names = [row[1] for row in rows]
    if hashlib.sha256("\n".join(names).encode()).hexdigest() != NAMES_SHA256:
        raise UserError(f"{path} has other names of images than FER+, or in another order.\n{_REMEDIES}")
    return Votes(counts, usage, names)


def parse_votes(texts: Sequence[str]) -> list[int]:
    """Return the votes for each of COLUMNS; raise ValueError unless these are numbers of at most ten votes."""
    counts = [int(text) for text in texts]
    if len(counts) != len(COLUMNS) or min(counts) < 0 or not 0 < sum(counts) <= PEOPLE:
        raise ValueError
    return counts


def parse_line(row: Sequence[str]) -> tuple[str, list[int]]:
    """Return the image and its votes in a line of FER+'s own lists: a name, perhaps a box "(0, 0, 48, 48)", votes.

    Raises:
        ValueError: it is none.
    """
    names, numbers = [text.strip() for text in row[: -len(COLUMNS)]], row[-len(COLUMNS) :]
    if len(names) not in (1, 2) or not all(box.startswith("(") for box in names[1:]):
        raise ValueError
    return names[0], parse_votes(numbers)


def is_vote_list(row: Sequence[str]) -> bool:
    """Return whether a row is from FER+'s own lists, which have no header."""
    try:
        name, _ = parse_line(row)
    except ValueError:
        return False
    return suffix(name) in IMAGE_SUFFIXES


def has_votes(header: Sequence[str]) -> bool:
    """Return whether the columns are those of fer2013new.csv."""
    return tuple(map(canonical, header)) == ("usage", "image name", *map(str.lower, COLUMNS))
