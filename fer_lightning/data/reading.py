"""Read CSVs and images into arrays in one pass, and report all their faults together."""

import csv
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.archives import DAMAGED_MEMBER
from fer_lightning.data.classes import FOLDERS, LEFT_OUT, ClassSet, class_set
from fer_lightning.data.csvs import read_csvs
from fer_lightning.data.faces import FER2013_SPLITS, GENERIC_SPLITS, SIZE, TRAIN, UNNAMED, VAL, Faces, fingerprint
from fer_lightning.data.gathering import Gathered, RowError, format_faults
from fer_lightning.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, ImageError, decode, is_truncated
from fer_lightning.data.layout import Form, Layout, Named
from fer_lightning.data.splits import fer2013_claim, path_claims, usages
from fer_lightning.data.stores import Store, abbreviate, leaf, parent, refuse_repeated, suffix
from fer_lightning.data.votes import EMOTIONS as VOTED_EMOTIONS
from fer_lightning.data.votes import parse_line
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError

# Published number of images by split and class, in the order of EMOTIONS; the counts in fer2013.csv agree.
PUBLISHED_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}


def read_faces(store: Store, form: Form, classes: ClassSet, skip_bad: bool) -> Faces:
    """Read the files of a form into memory.

    Args:
        store: the folder or archive.
        form: the files to read.
        classes: the classes that labels may mean; those of the form's layout, if it has one.
        skip_bad: drop unusable rows and images, with a note, instead of raising an error.

    Returns:
        Faces; their usage is UNNAMED if neither the data nor the name of the store calls them train, validation or
        test.

    Raises:
        UserError: names of splits contradict each other, no image is usable, or, without `skip_bad`, any is not.
    """
    gathered = Gathered()
    all_names = classes.is_open
    if form.voted:
        classes, found = class_set("ferplus"), set[str]()
        official, notes = _read_voted(store, form.paths, gathered)
    elif form.layout is None:
        official, found, notes = read_csvs(store, form.paths, classes, gathered)
    else:
        classes, found = form.layout.classes, form.layout.folder_names()
        official, notes = _read_images(form.layout, gathered)

    classes.check_renamed(found)
    notes += _check(gathered, store.path, classes, skip_bad)
    names = classes.closed(gathered.labels).names
    images = np.frombuffer(gathered.images, np.uint8).reshape(-1, SIZE, SIZE)
    label_of = {name: at for at, name in enumerate(names)}
    labels = np.array([label_of[name] for name in gathered.labels], np.int64)
    usage = _name_splits(np.array(gathered.usage, np.uint8), store, official)
    counts = np.stack([np.bincount(labels[usage == split], minlength=len(names)) for split in range(3)])
    if official and names == EMOTIONS and not classes.key:
        notes += _count_differences(counts)
    else:
        notes += _describe_missing(names, labels, counts, all_names, store)
    return Faces(
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(gathered.ids),
        dataset="FER-2013" if official else "folder",
        source=str(store.path),
        fingerprint=fingerprint(images, labels, usage),
        split_names=FER2013_SPLITS if official else GENERIC_SPLITS,
        classes=names,
        notes=tuple(notes),
        votes=np.array(gathered.votes, np.uint8) if form.voted else None,
    )


def _name_splits(usage: npt.NDArray[np.uint8], store: Store, official: bool) -> npt.NDArray[np.uint8]:
    """Return the splits with what the name of the store calls images that are called nothing otherwise."""
    called = usages(store.claims)
    if called and (usage == UNNAMED).all():
        return np.full_like(usage, called.pop())
    if called and store.path.is_file() and not (called | ({VAL} if official else set())) & set(usage.tolist()):
        raise UserError(
            f"{store.path} is called {' and '.join(sorted(store.claims))}, but nothing inside is. "
            "Nothing was guessed: rename it, or what is inside."
        )
    return usage


def _describe_missing(
    names: Sequence[str],
    labels: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    all_names: bool,
    store: Store,
) -> list[str]:
    """Return notes on classes without images, and on those without images for training.

    Args:
        names: the C classes.
        labels: int64 (N,).
        counts: int64 (3, C), by split and class.
        all_names: every name in the data is a class.
        store: the folder or archive.

    Raises:
        UserError: a class has images, but none for training, and `all_names`: its name may be misspelt.
    """
    found = set(labels.tolist())
    missing = [name for at, name in enumerate(names) if at not in found]
    notes = [f"No images of: {', '.join(missing)}."] if missing else []
    untrained = [name for name, column in zip(names, counts.T, strict=True) if column.any() and not column[TRAIN]]
    if untrained and counts[TRAIN].any():
        if all_names:
            raise UserError(
                f"data.classes={FOLDERS}: {store.path} has no training images of {abbreviate(untrained)}. If a "
                "name is misspelt, correct it; data.rename={NAME: null} leaves a class out."
            )
        notes.append(f"No training images of: {', '.join(untrained)}.")
    return notes


def _check_dropped_classes(gathered: Gathered, path: Path) -> None:
    """Raise UserError if most of the images, or all classes but one, would be dropped as unknown classes."""
    kept, dropped = len(gathered.labels), gathered.of_unknown
    if kept and dropped and (dropped > kept or len(set(gathered.labels)) == 1):
        names = abbreviate(sorted(set(gathered.unknown)), 5)
        first = gathered.unknown[0] if gathered.unknown[0].isalnum() else f'"{gathered.unknown[0]}"'
        raise UserError(
            f"{path}: {dropped:,} of {kept + dropped:,} images are of unknown classes ({names}). data.skip_bad "
            f"drops damaged images, not most of the data. If these are classes, see data.classes (--classes); "
            f"'data.rename={{{first}: null}}' leaves one out."
        )


def _check(gathered: Gathered, path: Path, classes: ClassSet, skip_bad: bool) -> list[str]:
    """Return notes on what was dropped or converted; raise UserError if that is not allowed or nothing is left."""
    total = gathered.faults.total()
    if total and not skip_bad:
        hint = ""
        if name := next(filter(None, gathered.unknown), ""):
            near = classes.nearest(name)
            meant = f" Did you mean {near}?" if near else ""
            does = "reads it so" if near else "leaves such images out"
            hint = (
                f"\n{name!r} is no class.{meant} If it is one, see data.classes (--classes); "
                f"data.rename={{{name}: {near or 'null'}}} (--rename {name}={near}) {does}."
            )
        raise UserError(format_faults(path, gathered.listed, total, hint))
    _check_dropped_classes(gathered, path)
    if not gathered.labels:
        raise UserError(f"{path} has no usable images" + (f": all {total:,} are bad." if total else "."))
    notes = []
    if total:
        kinds = [f"{n} x {kind}" for kind, n in gathered.faults.items()]
        notes.append(f"data.skip_bad dropped {abbreviate(kinds, 20)}.")
    if gathered.left_out:
        notes.append(f"data.rename left out {gathered.left_out:,} images.")
    if gathered.converted:
        stretched = f" ({gathered.stretched:,} not square: stretched)" if gathered.stretched else ""
        notes.append(f"{gathered.converted:,} images were converted to grey 48x48{stretched}.")
    if gathered.truncated:
        ends = f"the missing ends were filled, as browsers do: {abbreviate(gathered.truncated, 3)}"
        notes.append(f"JPEGs that lack their last bytes: {len(gathered.truncated):,}; {ends}.")
    return notes


def _read_images(layout: Layout, into: Gathered) -> tuple[bool, list[str]]:
    """Decode the images of a layout; return whether their splits are the official ones, and notes."""
    copies = layout.copies()
    named = {
        path: layout.name(path) for path in layout.paths if path not in copies and not layout.unknown_class(path)
    }
    layout.check_one_dataset(named)
    _check_copies(layout.store, copies)
    _check_folders(layout, into)
    prefixed = {path for path in named if fer2013_claim(leaf(path))}
    official = bool(named) and len(prefixed) * 2 >= len(named)
    any_split = any(name.usage is not None for name in named.values())

    own = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, once per image
        for path, name in named.items():
            try:
                label, usage = _label(layout, path, name), _usage(name, official, any_split)
                if label == LEFT_OUT:
                    into.left_out += 1
                else:
                    into.add(path, label, usage, _decode(layout.store, path, into))
                    own += official and path not in prefixed
            except RowError as error:
                into.reject(error.kind, path, str(error))
    notes = []
    if own:
        notes.append(f"{own:,} images without a prefix of FER-2013 are in the split that their folder names.")
    if copies:
        copy, original = next(iter(copies.items()))
        notes.append(f"{len(copies):,} images of doubled folders were read once: {copy} is a copy of {original}.")
    return official, notes


def _read_voted(store: Store, paths: Sequence[str], into: Gathered) -> tuple[bool, list[str]]:
    """Read the images that FER+'s own lists of votes name; return whether the lists name splits, and notes.

    A line of ``FER2013Train/label.csv`` is the name of an image in the same folder, a box around the face, which is
    the whole image and may be missing, and the votes.
    """
    refuse_repeated(store, paths)
    images = {path for path in paths if suffix(path) in IMAGE_SUFFIXES}
    list_of = _lists_by_split(store, [path for path in paths if path not in images])
    listed: set[str] = set()
    repeated = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, once per image
        for usage, path in list_of.items():
            for line, row in _lines(store, path):
                try:
                    name, votes = _votes(row)
                    image = "/".join(filter(None, (parent(path), name)))
                    if image in listed:  # FER+ has two rows for four of its names, and so one image for both
                        repeated += 1
                        continue
                    listed.add(image)
                    if image not in images:
                        raise RowError("missing image", f"{name[:40]!r} is not in the same folder")
                    label = VOTED_EMOTIONS[int(np.argmax(votes[: len(VOTED_EMOTIONS)]))]
                    into.add(image, label, usage, _decode(store, image, into))
                    into.votes.append(votes)
                except RowError as error:
                    into.reject(error.kind, f"{path}, line {line}", str(error))
    notes = []
    if repeated:
        notes.append(f"{repeated:,} lines of the lists of votes name an image again; the first one was read.")
    if unlisted := len(images - listed):
        notes.append(f"{unlisted:,} images that are in no list of votes were not read.")
    return UNNAMED not in list_of, notes


def _lists_by_split(store: Store, paths: Iterable[str]) -> dict[int, str]:
    """Return the list of votes of each split, which is UNNAMED if there is only one."""
    list_of: dict[int, str] = {}
    for path in paths:
        if (other := list_of.setdefault(_usage_of_list(store, path), path)) != path:
            raise UserError(f"{store.path} has {other} and {path} for one split. Give the path of one dataset.")
    if UNNAMED in list_of and len(list_of) > 1:
        named = [path for usage, path in list_of.items() if usage != UNNAMED]
        raise UserError(
            f"{store.path} has {list_of[UNNAMED]}, which no folder gives a split, beside {abbreviate(named)}. "
            "Give the path of one dataset."
        )
    return list_of


def _usage_of_list(store: Store, path: str) -> int:
    called = usages(path_claims(path))
    if len(called) > 1:
        raise UserError(
            f"{path} in {store.path} is called {' and '.join(sorted(path_claims(path)))} by its folders."
        )
    return next(iter(called), UNNAMED)


def _lines(store: Store, path: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a list of votes with their line numbers, without empty ones."""
    try:
        with store.open(path) as file:
            text = file.read(MAX_IMAGE_BYTES).decode("utf-8-sig")
        rows = csv.reader(text.splitlines(), strict=True)
        return [(rows.line_num, row) for row in rows if row]
    except (*DAMAGED_MEMBER, ValueError, csv.Error) as error:  # ValueError: not UTF-8
        raise UserError(f"{path} in {store.path} cannot be read ({error}). Download it again.") from error


def _votes(row: Sequence[str]) -> tuple[str, list[int]]:
    try:
        return parse_line(row)
    except ValueError:
        raise RowError(
            "malformed row", f"expected a name, a box and ten votes, got {','.join(row)[:60]!r}"
        ) from None


def _label(layout: Layout, path: str, name: Named) -> str:
    if name.label is None:
        raise RowError("two class folders", "its folders name two classes")
    if layout.numbered and layout.classes.only_prefixed and not fer2013_claim(leaf(path)):
        raise RowError(
            "number as class folder",
            "numbers are not guessed at in files without a prefix of FER-2013: rename the class folder",
        )
    return name.label


def _usage(name: Named, official: bool, any_split: bool) -> int:
    if name.usage is not None:
        return name.usage
    if official:
        raise RowError(
            "name without a split",
            f"expected the prefix {'_, '.join(FER2013_SPLITS[:-1])}_ or {FER2013_SPLITS[-1]}_",
        )
    if any_split:
        raise RowError("image outside the split folders", "not inside train/, val/ or test/")
    return UNNAMED


def _check_copies(store: Store, copies: dict[str, str]) -> None:
    """Raise UserError if the images of a doubled folder differ from those that have the same names."""
    for copy, original in copies.items():
        try:
            with store.open(copy) as one, store.open(original) as other:
                same = one.read(MAX_IMAGE_BYTES) == other.read(MAX_IMAGE_BYTES)
        except DAMAGED_MEMBER as error:
            raise UserError(f"{copy} in {store.path} cannot be read ({error}).") from error
        if not same:
            raise UserError(
                f"{store.path} contains {copy} and {original}, two different images in folders of the same name. "
                "Nothing was guessed: give the path of one of the folders."
            )


def _check_folders(layout: Layout, into: Gathered) -> None:
    """Reject folders that are not classes, class folders without images, and duplicate names."""
    unknown = Counter(folder for path in layout.paths if (folder := layout.unknown_class(path)))
    for folder, count in sorted(unknown.items()):
        classes = layout.classes.names
        into.unknown.append(leaf(folder))
        into.of_unknown += count
        why = f"{leaf(folder)!r} is not one of {abbreviate(classes, 10)} ({count:,} images)"
        into.reject(f"unknown class folder {leaf(folder)!r} ({count:,} images)", f"{folder}/", why)
    for folder in layout.empty_class_folders():
        into.reject("empty class folder", f"{folder}/", "contains no images")
    for path in sorted(set(layout.store.repeated).intersection(layout.paths)):
        into.reject("duplicate name", path, "occurs more than once in the archive")


def _decode(store: Store, path: str, into: Gathered) -> bytes:
    """Return the 2304 grey values of an image file; raise RowError if it cannot be decoded."""
    if store.sizes[path] == 0:
        raise RowError("empty file", "empty file (0 bytes)")
    if store.sizes[path] > MAX_IMAGE_BYTES:
        megabytes = store.sizes[path] / 2**20
        raise RowError("oversized image", f"{megabytes:,.0f} MiB, above the limit of 50 MiB")
    try:
        with store.open(path) as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except DAMAGED_MEMBER as error:
        raise RowError("unreadable file", f"cannot be read ({error})") from error
    try:
        image = decode(io.BytesIO(content))
    except ImageError as error:
        raise RowError(error.kind, str(error)) from error
    if is_truncated(image):
        into.truncated.append(path)
    if image.mode != "L" or image.size != (SIZE, SIZE):
        into.converted += 1
        into.stretched += image.width != image.height
        image = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.tobytes()


def _count_differences(by_split: npt.NDArray[np.int64]) -> list[str]:
    """Return a note on the differences of counts (3, 7) from the published ones; an empty list without any."""
    differences = []
    for name, counts in zip(FER2013_SPLITS, by_split.tolist(), strict=True):
        published = PUBLISHED_COUNTS[name]
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
