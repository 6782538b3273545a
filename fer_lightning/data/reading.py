"""Read CSVs and images into arrays in one pass, and report all their faults together."""

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
from fer_lightning.data.images import MAX_IMAGE_BYTES, ImageError, decode, is_truncated
from fer_lightning.data.stores import Form, Store, abbreviate, leaf, parent
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES, emotion_index
from fer_lightning.errors import UserError

SIZE = 48
PIXELS = SIZE * SIZE
# Published number of images by split and class, in the order of EMOTIONS; the counts in fer2013.csv agree.
PUBLISHED_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}
_MAX_CSV_ROW = 2**20  # characters; a row of FER-2013 has at most 9,300
_MAX_FAULTS = 1_000_000  # reading stops after this many
MAX_LISTED = 10  # faults listed one by one; the rest are only counted
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), VAL),
    **dict.fromkeys(("test", "testing", "privatetest"), TEST),
}
_USAGES = {name.lower(): usage for usage, name in enumerate(FER2013_SPLITS)}
_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_", re.IGNORECASE)
# Exceptions of zipfile for members that are damaged or of unknown compression; plain files raise OSError.
_DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


@dataclass
class _Gathered:
    """Images and faults collected in one pass over the data."""

    images: bytearray = field(default_factory=bytearray)  # grows without copying, unlike a list of arrays
    labels: list[int] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # number of faults by kind
    listed: list[str] = field(default_factory=list)  # descriptions of the first MAX_LISTED
    converted: int = 0
    stretched: int = 0
    truncated: list[str] = field(default_factory=list)  # JPEGs that lack their last bytes

    def add(self, name: str, label: int, usage: int, pixels: bytes) -> None:
        self.images += pixels
        self.labels.append(label)
        self.usage.append(usage)
        self.ids.append(name)

    def reject(self, kind: str, where: str, why: str) -> None:
        self.faults[kind] += 1
        if len(self.listed) < MAX_LISTED:  # a file may have millions
            self.listed.append(f"{where}: {why}")
        if self.faults.total() > _MAX_FAULTS:
            raise UserError(
                f"More than {_MAX_FAULTS:,} faults, starting with {self.listed[0]}. These are not labelled faces."
            )


class _RowError(Exception):
    """A row or image cannot be used.

    Args:
        kind: category of the fault, for counting.
        why: description of the fault.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read_faces(store: Store, form: Form, skip_bad: bool) -> Faces:
    """Read the files of a form into memory.

    Args:
        store: the folder or archive.
        form: the files to read.
        skip_bad: drop unusable rows and images, with a note, instead of raising an error.

    Returns:
        Faces; their usage is TRAIN if the data do not name a split.

    Raises:
        UserError: no image is usable, or, without `skip_bad`, any is not.
    """
    gathered = _Gathered()
    if form.kind == "csv":
        official, notes = _read_csvs(store, form.paths, gathered)
    else:
        official, notes = _read_images(store, form.paths, gathered)

    if gathered.faults and not skip_bad:
        raise UserError(_format_faults(store.path, gathered.listed, gathered.faults.total()))
    if not gathered.labels:
        raise UserError(
            f"{store.path} has no usable images"
            + (f": all {gathered.faults.total():,} are bad." if gathered.faults else ".")
        )
    if gathered.faults:
        kinds = [f"{n} x {kind}" for kind, n in gathered.faults.items()]
        notes.append(f"data.skip_bad dropped {abbreviate(kinds, 20)}.")
    if gathered.converted:
        stretched = f" ({gathered.stretched:,} not square: stretched)" if gathered.stretched else ""
        notes.append(f"{gathered.converted:,} images were converted to grey 48x48{stretched}.")
    if gathered.truncated:
        ends = f"the missing ends were filled, as browsers do: {abbreviate(gathered.truncated, 3)}"
        notes.append(f"{len(gathered.truncated):,} JPEGs lack their last bytes; {ends}.")

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


def _format_faults(path: Path, listed: Sequence[str], total: int) -> str:
    if total == 1:
        return f"{listed[0]}.\nFix it in {path}, or set data.skip_bad=true to drop it."
    lines = [f"  {fault}" for fault in listed]
    if total > len(listed):
        lines.append(f"  and {total - len(listed):,} more")
    head = f"{total:,} faults in {path}:"
    return "\n".join([head, *lines, "Fix them, or set data.skip_bad=true to drop them."])


def _read_images(store: Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Decode the images at `paths`; return whether their splits are the official ones, and notes."""
    prefixes = {path: match[1].lower() for path in paths if (match := _PREFIX.match(leaf(path)))}
    official = len(prefixes) * 2 >= len(paths)
    in_split_folders = any(_split_folder(path) is not None for path in paths)
    _check_folders(store, paths, into)

    displaced = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, once per image
        for path in paths:
            label = emotion_index(leaf(parent(path)))
            if label is None:  # `_check_folders` rejected its folder
                continue
            try:
                if official:
                    usage = _usage_of_prefix(path, prefixes)
                    folder = _split_folder(path)
                    displaced += folder is not None and (folder == TRAIN) != (usage == TRAIN)
                else:
                    # Without split folders, load_faces cuts the other splits from TRAIN.
                    usage = _usage_of_folder(path) if in_split_folders else TRAIN
                into.add(path, label, usage, _decode(store, path, into))
            except _RowError as error:
                into.reject(error.kind, path, str(error))
    notes = []
    if displaced:
        notes.append(f"{displaced:,} images are in train/ or test/ contrary to their prefix; the prefix decides.")
    return official, notes


def _check_folders(store: Store, paths: Sequence[str], into: _Gathered) -> None:
    """Reject folders that are not classes, class folders without images, and duplicate names."""
    roots, filled = {parent(parent(path)) for path in paths}, {parent(path) for path in paths}
    unknown = Counter(folder for folder in map(parent, paths) if emotion_index(leaf(folder)) is None)
    for folder, count in sorted(unknown.items()):
        why = f"{leaf(folder)!r} is not one of {', '.join(EMOTIONS)} ({count:,} images)"
        into.reject(f"unknown class folder {leaf(folder)!r} ({count:,} images)", f"{folder}/", why)
    for folder in store.folders:
        if parent(folder) in roots and folder not in filled and emotion_index(leaf(folder)) is not None:
            into.reject("empty class folder", f"{folder}/", "contains no images")
    for path in sorted(set(store.repeated).intersection(paths)):
        into.reject("duplicate name", path, "occurs more than once in the archive")


def _split_folder(path: str) -> int | None:
    """Return the split named by the folder above a class folder, if any."""
    return _SPLIT_FOLDERS.get(leaf(parent(parent(path))).lower())


def _usage_of_prefix(path: str, prefixes: Mapping[str, str]) -> int:
    if path not in prefixes:
        raise _RowError(
            "name without a split",
            f"expected the prefix {'_, '.join(FER2013_SPLITS[:-1])}_ or {FER2013_SPLITS[-1]}_",
        )
    return _USAGES[prefixes[path]]


def _usage_of_folder(path: str) -> int:
    usage = _split_folder(path)
    if usage is None:
        raise _RowError("image outside the split folders", "not inside train/, val/ or test/")
    return usage


def _decode(store: Store, path: str, into: _Gathered) -> bytes:
    """Return the 2304 grey values of an image file; raise _RowError if it cannot be decoded."""
    if store.sizes[path] == 0:
        raise _RowError("empty file", "empty file (0 bytes)")
    if store.sizes[path] > MAX_IMAGE_BYTES:
        megabytes = store.sizes[path] / 2**20
        raise _RowError("oversized image", f"{megabytes:,.0f} MiB, above the limit of 50 MiB")
    try:
        with store.open(path) as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except _DAMAGED_MEMBER as error:
        raise _RowError("unreadable file", f"cannot be read ({error})") from error
    try:
        image = decode(io.BytesIO(content))
    except ImageError as error:
        raise _RowError(error.kind, str(error)) from error
    if is_truncated(image):
        into.truncated.append(path)
    if image.mode != "L" or image.size != (SIZE, SIZE):
        into.converted += 1
        into.stretched += image.width != image.height
        image = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.tobytes()


def _read_csvs(store: Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Parse fer2013.csv or its variants; return whether their splits are the official ones, and notes."""
    official, notes = True, []
    for position, path in enumerate(paths):
        if store.sizes[path] == 0:
            raise UserError(f"{path} in {store.path} is empty (0 bytes). Download it again.")
        try:
            with store.open(path) as binary:
                # Keep bytes that are not UTF-8: they become a fault of their row instead of ending the pass.
                text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
                with warnings.catch_warnings():
                    warnings.simplefilter("error", DeprecationWarning)  # see _parse_pixels
                    has_usage = _read_csv(leaf(path), _Lines(text), TEST if position else TRAIN, into)
        except _DAMAGED_MEMBER as error:
            raise UserError(f"{path} in {store.path} cannot be read ({error}). Download it again.") from error
        if has_usage is None:
            notes.append(f"{leaf(path)} has no labels (no emotion column) and was not used.")
        else:
            official &= has_usage
    return official, notes


class _Lines:
    """Lines for csv.reader, limited in length so that neither a line nor a row of many lines fills the memory."""

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
            raise csv.Error("row longer than 2^20 characters")
        return line


def _read_csv(name: str, lines: _Lines, default_usage: int, into: _Gathered) -> bool | None:
    """Gather the rows of a CSV; return whether it has a Usage column, or None if it has no emotion column."""
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
                raise _RowError("malformed row", f"expected {len(header)} columns, got {len(row)}")
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
    """Return the column names in lower case."""
    try:
        header = [column.strip().lower() for column in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{name}, line 1: {error}. Expected the columns emotion, pixels, Usage.") from error
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
            f"{name} has no column {' or '.join(missing)}: its first line starts with "
            f"{', '.join(map(repr, header[:MAX_LISTED]))[:300]}.{hint}"
        )


def _parse_emotion(text: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < NUM_CLASSES:
        raise _RowError("unknown emotion", f"expected emotion 0 to {NUM_CLASSES - 1}, got {text[:40]!r}")
    return label


def _parse_usage(text: str) -> int:
    usage = _USAGES.get(text.strip().lower())
    if usage is None:
        raise _RowError(
            "unknown Usage",
            f"expected Usage {', '.join(FER2013_SPLITS[:-1])} or {FER2013_SPLITS[-1]}, got {text[:40]!r}",
        )
    return usage


def _parse_pixels(text: str) -> bytes:
    """Return the 48x48 grey values in "70 80 82 ..."; raise _RowError if they are not valid."""
    try:
        # Seven times as fast as int() on each value; for invalid text numpy 1.26 only warns.
        values = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        wrong = next((word for word in text.split() if not re.fullmatch(r"\d+", word, re.ASCII)), text)
        raise _RowError("bad pixel", f"expected integers as pixels, got {wrong[:40]!r}") from None
    if len(values) != PIXELS:
        raise _RowError("wrong number of pixels", f"expected 48x48 = {PIXELS} pixels, got {len(values)}")
    if values.min() < 0 or values.max() > 255:
        wrong_value = values[(values < 0) | (values > 255)][0]
        raise _RowError("bad pixel", f"expected pixels from 0 to 255, got {wrong_value}")
    return values.astype(np.uint8).tobytes()


def _count_differences(labels: npt.NDArray[np.int64], usage: npt.NDArray[np.uint8]) -> list[str]:
    """Return a note on the differences from the published counts; an empty list if there are none."""
    differences = []
    for split, name in enumerate(FER2013_SPLITS):
        published = PUBLISHED_COUNTS[name]
        counts = np.bincount(labels[usage == split], minlength=NUM_CLASSES).tolist()
        different = [(e, a, b) for e, a, b in zip(EMOTIONS, counts, published, strict=True) if a != b]
        if not any(counts):
            differences.append(f"no {name} ({sum(published):,})")
        elif len(different) > 3:
            by_class = f"{' '.join(map(str, counts))} ({' '.join(map(str, published))})"
            differences.append(f"{name} {sum(counts):,} ({sum(published):,}), by class {by_class}")
        else:
            differences += [f"{name} {emotion} {a:,} ({b:,})" for emotion, a, b in different]
    if not differences:
        return []
    return [f"Image counts differ from the published ones (in brackets): {'; '.join(differences)}."]
