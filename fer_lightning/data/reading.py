"""Files into arrays: CSVs and images are decoded once, and all that is wrong with them is listed together."""

import csv
import io
import lzma
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.faces import FER2013_SPLITS, GENERIC_SPLITS, TEST, TRAIN, VAL, Faces, fingerprint
from fer_lightning.data.images import MAX_IMAGE_BYTES, ImageError, decode
from fer_lightning.data.stores import Form, Store, leaf, parent, some
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES, emotion_index
from fer_lightning.errors import UserError

SIZE = 48
PIXELS = SIZE * SIZE
# Images of each class in each split, in the order of EMOTIONS; counted in fer2013.csv, and as published.
PUBLISHED_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}
_MAX_CSV_ROW = 2**20  # characters; a row of FER-2013 has at most 9,300
_MAX_FAULTS = 1_000_000  # before the rest is not looked at
SHOWN = 10  # offenders listed by name before only their number is given
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), VAL),
    **dict.fromkeys(("test", "testing", "privatetest"), TEST),
}
_USAGES = {name.lower(): usage for usage, name in enumerate(FER2013_SPLITS)}
_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_", re.IGNORECASE)
# What zipfile raises on a damaged member or one packed in a way that it does not know; of a plain file OSError.
_DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


@dataclass
class _Gathered:
    """Good images on one side, offenders on the other, from one pass over the data."""

    images: bytearray = field(default_factory=bytearray)  # grows without the copies of a list of arrays
    labels: list[int] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    offences: Counter[str] = field(default_factory=Counter)  # by kind
    told: list[str] = field(default_factory=list)  # the sentence on each of the first ones
    converted: int = 0
    stretched: int = 0

    def add(self, name: str, label: int, usage: int, pixels: bytes) -> None:
        self.images += pixels
        self.labels.append(label)
        self.usage.append(usage)
        self.ids.append(name)

    def reject(self, kind: str, where: str, why: str) -> None:
        self.offences[kind] += 1
        if len(self.told) < SHOWN:  # a file may hold millions
            self.told.append(f"{where}: {why}")
        if self.offences.total() > _MAX_FAULTS:
            raise UserError(
                f"More than {_MAX_FAULTS:,} faults, the first: {self.told[0]}. These are no labelled faces."
            )


class _RowError(Exception):
    """Why one row or image is of no use; ``kind`` names the sort of fault, to be counted."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read_faces(store: Store, form: Form, skip_bad: bool) -> Faces:
    """Decode all of it, in memory; usage is TRAIN where the data do not say."""
    gathered = _Gathered()
    if form.kind == "csv":
        official, notes = _read_csvs(store, form.paths, gathered)
    else:
        official, notes = _read_images(store, form.paths, gathered)

    if gathered.offences and not skip_bad:
        raise UserError(_list_offences(store.path, gathered.told, gathered.offences.total()))
    if not gathered.labels:
        raise UserError(
            f"{store.path} has no usable image"
            + (f": all {gathered.offences.total():,} are bad." if gathered.offences else ".")
        )
    if gathered.offences:
        kinds = [f"{n} x {kind}" for kind, n in gathered.offences.items()]
        notes.append(f"data.skip_bad dropped {some(kinds, 20)}.")
    if gathered.converted:
        stretched = f" ({gathered.stretched:,} not square: stretched)" if gathered.stretched else ""
        notes.append(f"{gathered.converted:,} images were converted to grey 48x48{stretched}.")

    images = np.frombuffer(gathered.images, np.uint8).reshape(-1, SIZE, SIZE)
    labels = np.array(gathered.labels, np.int64)
    usage = np.array(gathered.usage, np.uint8)
    if official:
        notes += _count_differences(labels, usage)
    elif missing := [name for i, name in enumerate(EMOTIONS) if not (labels == i).any()]:
        notes.append(f"No images of: {', '.join(missing)}.")
    return Faces(
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(gathered.ids),
        dataset="FER-2013" if official else "folder",
        source=str(store.path),
        fingerprint=fingerprint(images, labels, usage),
        split_names=FER2013_SPLITS if official else GENERIC_SPLITS,
        notes=tuple(notes),
    )


def _list_offences(path: Path, told: Sequence[str], total: int) -> str:
    if total == 1:
        return f"{told[0]}.\nFix it in {path}, or set data.skip_bad=true to drop it."
    lines = [f"  {offence}" for offence in told]
    if total > len(told):
        lines.append(f"  and {total - len(told):,} more")
    head = f"{total:,} faults in {path}:"
    return "\n".join([head, *lines, "Fix them, or set data.skip_bad=true to drop them."])


def _read_images(store: Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Decode the images at ``paths``; returns whether their splits are FER-2013's own, and notes."""
    prefixes = {path: match[1].lower() for path in paths if (match := _PREFIX.match(leaf(path)))}
    official = len(prefixes) * 2 >= len(paths)
    in_split_folders = any(_split_folder(path) is not None for path in paths)
    _check_folders(store, paths, into)

    displaced = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, once for each image
        for path in paths:
            label = emotion_index(leaf(parent(path)))
            if label is None:  # `_check_folders` has rejected its folder
                continue
            try:
                if official:
                    usage = _usage_of_prefix(path, prefixes)
                    folder = _split_folder(path)
                    displaced += folder is not None and (folder == TRAIN) != (usage == TRAIN)
                else:
                    usage = (
                        _usage_of_folder(path) if in_split_folders else TRAIN
                    )  # load_faces cuts the rest from it
                into.add(path, label, usage, _decode(store, path, into))
            except _RowError as error:
                into.reject(error.kind, path, str(error))
    notes = []
    if displaced:
        notes.append(f"{displaced:,} images lie in train/ or test/ against their name's prefix: the prefix counts.")
    return official, notes


def _check_folders(store: Store, paths: Sequence[str], into: _Gathered) -> None:
    """Reject folders that are no class, class folders without images, and names that occur twice."""
    roots, filled = {parent(parent(path)) for path in paths}, {parent(path) for path in paths}
    unknown = Counter(folder for folder in map(parent, paths) if emotion_index(leaf(folder)) is None)
    for folder, count in sorted(unknown.items()):
        why = f"{leaf(folder)!r} is not one of {', '.join(EMOTIONS)} ({count:,} images)"
        into.reject(f"unknown class folder {leaf(folder)!r} ({count:,} images)", f"{folder}/", why)
    for folder in store.folders:
        if parent(folder) in roots and folder not in filled and emotion_index(leaf(folder)) is not None:
            into.reject("empty class folder", f"{folder}/", "no images in it")
    for path in sorted(set(store.repeated).intersection(paths)):
        into.reject("repeated name", path, "is in the archive more than once")


def _split_folder(path: str) -> int | None:
    """Return the split that the folder above a class folder is named after, if any."""
    return _SPLIT_FOLDERS.get(leaf(parent(parent(path))).lower())


def _usage_of_prefix(path: str, prefixes: Mapping[str, str]) -> int:
    if path not in prefixes:
        raise _RowError("name without a split", f"no {'_, '.join(FER2013_SPLITS)}_ before its name")
    return _USAGES[prefixes[path]]


def _usage_of_folder(path: str) -> int:
    usage = _split_folder(path)
    if usage is None:
        raise _RowError("image outside the split folders", "not below train/, val/ or test/")
    return usage


def _decode(store: Store, path: str, into: _Gathered) -> bytes:
    """The 2304 grey values of one image file; _RowError when there are none to be had."""
    if store.sizes[path] == 0:
        raise _RowError("empty file", "empty file (0 bytes)")
    if store.sizes[path] > MAX_IMAGE_BYTES:
        megabytes = store.sizes[path] / 2**20
        raise _RowError("oversized image", f"{megabytes:,.0f} MiB, where an image may have 50 MiB")
    try:
        with store.open(path) as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except _DAMAGED_MEMBER as error:
        raise _RowError("unreadable file", f"cannot be read ({error})") from error
    try:
        image = decode(io.BytesIO(content))
    except ImageError as error:
        raise _RowError(error.kind, str(error)) from error
    if image.mode != "L" or image.size != (SIZE, SIZE):
        into.converted += 1
        into.stretched += image.width != image.height
        image = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.tobytes()


def _read_csvs(store: Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Parse fer2013.csv or its kin; returns whether their splits are FER-2013's own, and notes."""
    official, notes = True, []
    for position, path in enumerate(paths):
        if store.sizes[path] == 0:
            raise UserError(f"{path} in {store.path} is empty (0 bytes). Download it again.")
        try:
            with store.open(path) as binary:
                # Bytes that are not UTF-8 must not end the pass: their row becomes an offender.
                text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
                with warnings.catch_warnings():
                    warnings.simplefilter("error", DeprecationWarning)  # see _parse_pixels
                    has_usage = _read_csv(leaf(path), _Lines(text), TEST if position else TRAIN, into)
        except _DAMAGED_MEMBER as error:
            raise UserError(f"{path} in {store.path} cannot be read ({error}). Download it again.") from error
        if has_usage is None:
            notes.append(f"{leaf(path)} has no labels (no emotion column), so it was not used.")
        else:
            official &= has_usage
    return official, notes


class _Lines:
    """The lines of a text for csv.reader, which can fill the memory with neither a line nor a row of many lines."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._of_row = 0

    def begin_row(self) -> None:
        self._of_row = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MAX_CSV_ROW)
        if not line:
            raise StopIteration
        self._of_row += len(line)
        if self._of_row > _MAX_CSV_ROW:
            raise csv.Error("a row of more than 2^20 characters")
        return line


def _read_csv(name: str, lines: _Lines, default_usage: int, into: _Gathered) -> bool | None:
    """Gather the rows of one CSV; whether it has a Usage column, None when it has no emotions."""
    rows = csv.reader(lines)
    header = _read_header(name, rows)
    if "pixels" in header and "emotion" not in header and default_usage == TEST:
        return None
    _check_header(name, header)
    emotion_at, pixels_at = header.index("emotion"), header.index("pixels")
    usage_at = header.index("usage") if "usage" in header else None
    while True:
        try:
            lines.begin_row()
            row = next(rows)
            if not row:
                continue
            line = rows.line_num
            if len(row) != len(header):
                raise _RowError("malformed row", f"{len(row)} columns where the first line has {len(header)}")
            label = _parse_emotion(row[emotion_at])
            usage = default_usage if usage_at is None else _parse_usage(row[usage_at])
            into.add(f"{name}:{line}", label, usage, _parse_pixels(row[pixels_at]))
        except StopIteration:
            return usage_at is not None
        except csv.Error as error:
            into.reject("malformed row", f"{name}, line {rows.line_num}", str(error))
        except _RowError as error:
            into.reject(error.kind, f"{name}, line {line}", str(error))


def _read_header(name: str, rows: Iterator[list[str]]) -> list[str]:
    """Return the names of the columns, in lower case."""
    try:
        header = [column.strip().lower() for column in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{name}, line 1: {error}. The columns emotion, pixels, Usage are needed.") from error
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for column in header for char in column):
        raise UserError(f"{name} is not UTF-8 text. Save it as CSV in UTF-8, or download it again.")
    return header


def _check_header(name: str, header: Sequence[str]) -> None:
    missing = [column for column in ("emotion", "pixels") if column not in header]
    if missing:
        hint = (
            " The challenge's test.csv has no labels: give train.csv or fer2013.csv." if "pixels" in header else ""
        )
        raise UserError(
            f"{name} has no column {' and no column '.join(missing)}: its first line has "
            f"{', '.join(map(repr, header[:SHOWN]))[:300]}.{hint}"
        )


def _parse_emotion(text: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < NUM_CLASSES:
        raise _RowError("unknown emotion", f"emotion {text[:40]!r} is not one of 0 to {NUM_CLASSES - 1}")
    return label


def _parse_usage(text: str) -> int:
    usage = _USAGES.get(text.strip().lower())
    if usage is None:
        raise _RowError("unknown Usage", f"Usage {text[:40]!r} is none of {', '.join(FER2013_SPLITS)}")
    return usage


def _parse_pixels(text: str) -> bytes:
    """48x48 grey values from "70 80 82 ..."."""
    try:
        # Seven times as fast as int() on each; numpy 1.26 only warns of what is no number.
        values = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        wrong = next((word for word in text.split() if not re.fullmatch(r"\d+", word, re.ASCII)), text)
        raise _RowError("bad pixel", f"pixel {wrong[:40]!r} is not a whole number") from None
    if len(values) != PIXELS:
        raise _RowError("wrong number of pixels", f"{len(values)} pixels where 48x48 = {PIXELS} are needed")
    if values.min() < 0 or values.max() > 255:
        wrong_value = values[(values < 0) | (values > 255)][0]
        raise _RowError("bad pixel", f"pixel {wrong_value} is not from 0 to 255")
    return values.astype(np.uint8).tobytes()


def _count_differences(labels: npt.NDArray[np.int64], usage: npt.NDArray[np.uint8]) -> list[str]:
    """A note on where the counts are not the published ones, or none."""
    differences = []
    for split, name in enumerate(FER2013_SPLITS):
        published = PUBLISHED_COUNTS[name]
        found = np.bincount(labels[usage == split], minlength=NUM_CLASSES).tolist()
        apart = [(e, a, b) for e, a, b in zip(EMOTIONS, found, published, strict=True) if a != b]
        if not any(found):
            differences.append(f"no {name} ({sum(published):,})")
        elif len(apart) > 3:
            by_class = f"{' '.join(map(str, found))} ({' '.join(map(str, published))})"
            differences.append(f"{name} {sum(found):,} ({sum(published):,}), by class {by_class}")
        else:
            differences += [f"{name} {emotion} {a:,} ({b:,})" for emotion, a, b in apart]
    if not differences:
        return []
    return [f"Not the published number of images (in brackets): {'; '.join(differences)}."]
