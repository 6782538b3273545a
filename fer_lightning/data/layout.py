"""Class and split of each image file, from the names of its folders and its own.

Any number of folders may lie above the class folder (``images/train/happy/1.jpg``) or below it
(``happy/train/1.jpg``, ``happy/person3/1.jpg``). Whatever a name calls an image, the image is that; contradictory
names are refused. See splits for the words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, groupby, takewhile

from fer_lightning.data.classes import FOLDERS, ClassSet
from fer_lightning.data.faces import FER2013_SPLITS
from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.data.splits import image_claims, name_claims, usages
from fer_lightning.data.stores import Store, abbreviate, leaf, parent, suffix
from fer_lightning.errors import UserError

Parts = tuple[str, ...]

_PREFIXES = tuple(f"{name}_" for name in FER2013_SPLITS)
_FOLD = re.compile(r"(?:fold|cv|kfold|split|k)[\s_-]*\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """What the folders of an image say about it.

    Attributes:
        label: class, LEFT_OUT if it is not used; None outside class folders and where two classes are named.
        class_at: position of the class folder among the folders; None outside class folders.
        claims: what the folders call the images; see splits.
        root: folders above the first that names a class or a split, so those of the whole dataset.
        split: the folders that name the split, without the class; None if none does.
        groups: the folders below the class that name no split: persons or clips.
    """

    label: str | None
    class_at: int | None
    claims: frozenset[str]
    root: str
    split: str | None
    groups: Parts


@dataclass(frozen=True)
class Named:
    """What the names say about one image: its class, its split if any is named, and where that is said."""

    label: str | None
    usage: int | None
    place: Place


def without_doubles(folder: str) -> Parts:
    """Return the parts of a folder's path, adjacent equal ones merged: unpacking tools write ``images/images/``."""
    return tuple(name for name, _ in groupby(folder.split("/"))) if folder else ()


@lru_cache(maxsize=2**16)
def read_place(
    folder: str, classes: ClassSet, numbered: bool = False, containers: frozenset[Parts] = frozenset()
) -> Place:
    """Interpret the path of a folder.

    Args:
        folder: its path inside the store.
        classes: the classes that folders may name.
        numbered: the names of the class folders are numbers.
        containers: folders whose own name says nothing, because they contain folders of several splits.
    """
    parts = without_doubles(folder)
    labels = list(map(classes.numbers.get if numbered else classes.meaning, parts))
    called = [
        name_claims(part) if labels[at] is None and parts[: at + 1] not in containers else frozenset()
        for at, part in enumerate(parts)
    ]
    class_at = _first(label is not None for label in labels)
    split_at = _first(map(bool, called))
    top = min(at for at in (class_at, split_at, len(parts)) if at is not None)
    split: str | None = None
    if split_at is not None:
        above = class_at is None or split_at < class_at
        split = "/".join(parts[: split_at + 1] if above else (*parts[:top], "*", parts[split_at].lower()))
    known = set(labels) - {None}
    plain = [label is None and not claims for label, claims in zip(labels, called, strict=True)]
    below = len(parts) if class_at is None else class_at + 1
    return Place(
        label=known.pop() if len(known) == 1 else None,
        class_at=class_at,
        claims=frozenset().union(*called),
        root="/".join(parts[:top]),
        split=split,
        groups=tuple(compress(parts[below:], plain[below:])),
    )


def _first(flags: Iterable[bool]) -> int | None:
    return next((at for at, flag in enumerate(flags) if flag), None)


class Layout:
    """The image files of a store, interpreted by their names.

    Args:
        store: the folder or archive.
        classes: the classes that folders may name.

    Attributes:
        classes: the same; if every name was to be a class, the folders' names.
        paths: the images to read, sorted: those in class folders, and in folders next to class folders, which are
            an error if there is no such class.
        ignored: images elsewhere, and other files in class folders, sorted.
        numbered: the names of the class folders are numbers.
    """

    def __init__(self, store: Store, classes: ClassSet) -> None:
        self.store = store
        files = sorted(store.sizes)
        images = [path for path in files if suffix(path) in IMAGE_SUFFIXES]
        self.classes = classes.with_folders(_find_class_folders(store, images)) if classes.is_open else classes
        self.numbered = self._is_numbered(images)
        self._containers = _containers(store.folders, self.classes)
        # Folders that contain a class folder, as merged parts: what else lies in them should be a class too.
        self._roots = {parts for folder in store.folders if (parts := self._above_class(folder)) is not None}
        self._above_roots = {root[:count] for root in self._roots for count in range(len(root) + 1)}
        self._unknown: dict[str, str | None] = {}
        self.paths: list[str] = []
        self.ignored: list[str] = []
        for path in files:
            is_image = suffix(path) in IMAGE_SUFFIXES
            inside = self._place(parent(path)).class_at is not None or self.unknown_class(path) is not None
            if inside and is_image:
                self.paths.append(path)
            elif inside or is_image:
                self.ignored.append(path)

    def _is_numbered(self, images: Iterable[str]) -> bool:
        if any(read_place(folder, self.classes).class_at is not None for folder in self.store.folders):
            return False
        return any(
            not self.classes.numbers.keys().isdisjoint(without_doubles(parent(path)))
            and (leaf(path).startswith(_PREFIXES) or not self.classes.only_prefixed)
            for path in images
        )

    def _place(self, folder: str) -> Place:
        return read_place(folder, self.classes, self.numbered, self._containers)

    def _above_class(self, folder: str) -> Parts | None:
        class_at = self._place(folder).class_at
        return None if class_at is None else without_doubles(folder)[:class_at]

    def unknown_class(self, path: str) -> str | None:
        """Return the folder next to class folders that an image lies in, if its name is no class."""
        folder = parent(path)
        if folder not in self._unknown:
            self._unknown[folder] = self._find_unknown_class(folder)
        return self._unknown[folder]

    def _find_unknown_class(self, folder: str) -> str | None:
        if not folder or self._place(folder).class_at is not None:
            return None
        parts = without_doubles(folder)
        for at, part in enumerate(parts):
            if parts[:at] in self._roots and parts[: at + 1] not in self._above_roots:
                # "test" may hold images without labels, but "happy_test" beside "happy" is no split by itself.
                names_class = any(self.classes.meaning(word) is not None for word in re.split(r"[\W_]", part))
                return "/".join(parts[: at + 1]) if names_class or not name_claims(part) else None
        return None

    def name(self, path: str) -> Named:
        """Return what the names of an image and its folders say.

        Raises:
            UserError: they contradict each other.
        """
        place = self._place(parent(path))
        own = image_claims(leaf(path), self.classes.meaning)
        found = usages(place.claims | own)
        if len(found) > 1:
            sources = {"its name": own, "its folders": place.claims}
            said = [f"{' and '.join(sorted(claims))} by {source}" for source, claims in sources.items() if claims]
            raise UserError(
                f"{path} in {self.store.path} is called {', and '.join(said)}. Nothing was guessed: move or rename "
                "such files so that one split is named."
            )
        return Named(place.label, next(iter(found), None), place)

    def folder_names(self) -> set[str]:
        """Return the names of all folders in the store."""
        return {part for folder in self.store.folders for part in folder.split("/")}

    def splits(self) -> frozenset[int]:
        """Return the values of Faces.usage that names call some of the images."""
        folders = {parent(path) for path in self.paths}
        claims = frozenset().union(*(image_claims(leaf(path), self.classes.meaning) for path in self.paths))
        return frozenset(usages(claims.union(*(self._place(folder).claims for folder in folders))))

    def empty_class_folders(self) -> list[str]:
        """Return the class folders next to filled ones that contain no images."""
        filled = {folder for path in self.paths for folder in _and_above(parent(path))}
        roots = {self._above_class(folder) for folder in filled}
        return [
            folder
            for folder in self.store.folders
            if folder not in filled
            and without_doubles(folder)[:-1] in roots
            and self.classes.meaning(leaf(folder)) is not None
        ]

    def check_one_dataset(self, named: Mapping[str, Named]) -> None:
        """Raise UserError if the images belong to several datasets, or a split has several folders.

        Pooling them would mix what their names keep apart: a second copy, the folds of a cross-validation, or an
        augmented copy of the training images.

        Args:
            named: the names of each image by its path, without the copies in doubled folders.
        """
        if listed := _datasets(named):
            raise UserError(
                f"{self.store.path} contains several datasets, which are not mixed: {abbreviate(listed)}. "
                "Give the path of one, or name its folders train, val and test."
            )
        folders: dict[int, set[str]] = {}
        for name in named.values():
            if name.usage is not None and name.place.split is not None:
                folders.setdefault(name.usage, set()).add(name.place.split)
        if several := [f"{folder}/" for found in folders.values() if len(found) > 1 for folder in sorted(found)]:
            raise UserError(
                f"{self.store.path} has several folders for one split, which are not mixed: {abbreviate(several)}. "
                "Keep one, or put their images together."
            )

    def copies(self) -> dict[str, str]:
        """Return the images of doubled folders: {"images/images/a.jpg": "images/a.jpg"} if both exist."""
        kept: dict[Parts, str] = {}
        copies = {}
        for path in sorted(self.paths, key=lambda path: (path.count("/"), path)):
            first = kept.setdefault((*without_doubles(parent(path)), leaf(path)), path)
            if first != path:
                copies[path] = first
        return copies


@dataclass(frozen=True)
class Form:
    """The files to read from a store.

    Attributes:
        paths: the files, in the order in which they are read.
        layout: what the names say about them, if they are images in class folders; None for CSVs.
        notes: what the user should know about the choice of files.
        voted: the paths are FER+'s lists of votes and the images in the same folders.
    """

    paths: tuple[str, ...]
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    voted: bool = False

    @property
    def has_images(self) -> bool:
        """Whether some of the files are images."""
        return self.layout is not None or self.voted


def _datasets(named: Mapping[str, Named]) -> list[str]:
    """Describe the datasets that the images belong to; an empty list if it is one."""
    roots = Counter(name.place.root for name in named.values())
    if len(roots) > 1:
        return [f"{root or '.'}/ ({count:,} images)" for root, count in sorted(roots.items())]
    folders = sorted({parent(path) for path in named})
    folds = sorted({part for folder in folders for part in folder.split("/") if _FOLD.fullmatch(part)})
    if len(folds) > 1:
        return folds
    merged = {folder: "/".join(without_doubles(folder)) for folder in folders}
    return [f"{folder}/ and {merged[folder]}/" for folder in folders if folder != merged[folder] in merged]


def _and_above(folder: str) -> list[str]:
    """Return a folder and all folders above it."""
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _find_class_folders(store: Store, images: Iterable[str]) -> set[str]:
    """Return the names of the folders that hold images, without those that only name splits or the whole dataset.

    Raises:
        UserError: some folders with images are not beside the others, or are named like a split.
    """
    inner = {}  # folder -> its parts that name no split
    for folder in {parent(path) for path in images}:
        inner[folder] = [part for part in without_doubles(folder) if not name_claims(part)]
    if not any(inner.values()):
        return set()
    levels = zip(*filter(None, inner.values()), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    above = min(shared, max(map(len, inner.values())) - 1)
    wrong = [
        folder for folder, parts in inner.items() if len(parts) > above + 1 or (len(parts) <= above and folder)
    ]
    if wrong:
        raise UserError(
            f"data.classes={FOLDERS}: in {store.path}, {abbreviate(sorted(wrong), 3)} "
            f"{'is' if len(wrong) == 1 else 'are'} not beside the other folders with images, so it is not certain "
            "which folders are classes. List the classes, for example data.classes=[happy,other]."
        )
    return {parts[above] for parts in inner.values() if len(parts) == above + 1}


def _containers(folders: Iterable[str], classes: ClassSet) -> frozenset[Parts]:
    """Return the folders that contain folders of several splits, as merged parts."""
    below: dict[Parts, set[int]] = {}
    for folder in folders:
        parts = without_doubles(folder)
        class_at = _first(classes.meaning(part) is not None for part in parts)
        for at in range(1, len(parts) if class_at is None else class_at):
            below.setdefault(parts[:at], set()).update(usages(name_claims(parts[at])))
    for parts in sorted(below, key=len, reverse=True):
        below.setdefault(parts[:-1], set()).update(below[parts])
    return frozenset(parts for parts, found in below.items() if len(found) > 1)


def groups_of(path: str, classes: ClassSet) -> Parts:
    """Return the persons or clips that an image belongs to: the folders below its class folder, in lower case."""
    place = read_place(parent(path), classes)
    place = read_place(parent(path), classes, numbered=True) if place.class_at is None else place
    return tuple(group.lower() for group in place.groups)
