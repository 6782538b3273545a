"""Class and split of each image file, from the names of its folders and its own.

Any number of folders may lie above the class folder (``images/train/happy/1.jpg``) or below it
(``happy/train/1.jpg``, ``happy/person3/1.jpg``). Whatever a name calls an image, the image is that; contradictory
names are refused.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.data.splits import fer2013_claim, name_claims, prefix_claim, usages
from fer_lightning.data.stores import Store, abbreviate, leaf, parent, suffix
from fer_lightning.emotions import EMOTIONS, emotion_index
from fer_lightning.errors import UserError

Parts = tuple[str, ...]

_NUMBERS = {str(label): label for label in range(len(EMOTIONS))}  # the labels of fer2013.csv as class folders


@dataclass(frozen=True)
class Place:
    """What the folders of an image say about it.

    Attributes:
        label: index into emotions.EMOTIONS; None outside class folders and where two different classes are named.
        class_at: position of the class folder among the folders; None outside class folders.
        claims: what the folders call the images; see splits.
        root: folders above the first that names a class or a split, so those of the whole dataset.
        split: the folders that name the split, without the class; None if none does.
        group: the first folder below the class that names no split: a person or a clip; None if there is none.
    """

    label: int | None
    class_at: int | None
    claims: frozenset[str]
    root: str
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Named:
    """What the names say about one image: its label, its split if any is named, and where that is said."""

    label: int | None
    usage: int | None
    place: Place


def without_doubles(parts: Iterable[str]) -> Parts:
    """Return the folders of a path with adjacent equal ones merged: unpacking tools create ``images/images/``."""
    return tuple(name for name, _ in groupby(parts))


@lru_cache(maxsize=2**16)
def read_place(folder: str, numbered: bool) -> Place:
    """Interpret the path of a folder.

    Args:
        folder: its path inside the store.
        numbered: the class folders are named 0 to 6, like the labels of fer2013.csv.
    """
    parts = without_doubles(folder.split("/")) if folder else ()
    labels = [_NUMBERS.get(part) if numbered else emotion_index(part) for part in parts]
    called = [
        frozenset() if label is not None else name_claims(part) for label, part in zip(labels, parts, strict=True)
    ]
    class_at = _first(label is not None for label in labels)
    split_at = _first(map(bool, called))
    top = min(at for at in (class_at, split_at, len(parts)) if at is not None)
    split = group = None
    if split_at is not None:
        above = class_at is None or split_at < class_at
        split = "/".join(parts[: split_at + 1] if above else (*parts[:top], "*", parts[split_at]))
    if class_at is not None:
        below = range(class_at + 1, len(parts))
        group = next((parts[at] for at in below if not called[at] and labels[at] is None), None)
    known = {label for label in labels if label is not None}
    return Place(
        label=known.pop() if len(known) == 1 else None,
        class_at=class_at,
        claims=frozenset().union(*called),
        root="/".join(parts[:top]),
        split=split,
        group=group,
    )


def _first(flags: Iterable[bool]) -> int | None:
    return next((at for at, flag in enumerate(flags) if flag), None)


class Layout:
    """The image files of a store, interpreted by their names.

    Args:
        store: the folder or archive.

    Attributes:
        paths: the images to read, sorted: those in class folders, and in folders next to class folders, which are
            an error if there is no such emotion.
        ignored: images elsewhere, and other files in class folders, sorted.
        numbered: the class folders are named 0 to 6, and the files like those of FER-2013, so the numbers are its
            labels. Numbers are not guessed at otherwise: datasets number the emotions differently.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        files = sorted(store.sizes)
        self.numbered = all(read_place(folder, False).class_at is None for folder in store.folders) and any(
            leaf(parent(path)) in _NUMBERS and fer2013_claim(leaf(path)) for path in files
        )
        # Folders that contain a class folder, as merged parts: what else lies in them should be a class too.
        self._roots = {parts for folder in store.folders if (parts := self._above_class(folder)) is not None}
        self.paths: list[str] = []
        self.ignored: list[str] = []
        for path in files:
            is_image = suffix(path) in IMAGE_SUFFIXES
            inside = self._place(parent(path)).class_at is not None or self.unknown_class(path) is not None
            if inside and is_image:
                self.paths.append(path)
            elif inside or is_image:
                self.ignored.append(path)

    def _place(self, folder: str) -> Place:
        return read_place(folder, self.numbered)

    def _above_class(self, folder: str) -> Parts | None:
        class_at = self._place(folder).class_at
        return None if class_at is None else without_doubles(folder.split("/"))[:class_at]

    def unknown_class(self, path: str) -> str | None:
        """Return the folder next to class folders that an image lies in, if its name is no emotion."""
        folder = parent(path)
        if not folder or self._place(folder).class_at is not None:
            return None
        parts = without_doubles(folder.split("/"))
        for at, part in enumerate(parts):
            below = parts[: at + 1]
            contains_classes = any(root[: at + 1] == below for root in self._roots)
            if parts[:at] in self._roots and not name_claims(part) and not contains_classes:
                return "/".join(below)
        return None

    def name(self, path: str) -> Named:
        """Return what the names of an image and its folders say.

        Raises:
            UserError: they contradict each other.
        """
        place = self._place(parent(path))
        claim = prefix_claim(leaf(path))
        found = usages(place.claims if claim is None else {*place.claims, claim})
        if len(found) > 1:
            sources = {"its name": {claim} if claim else set(), "its folders": place.claims}
            said = [f"{' and '.join(sorted(claims))} by {source}" for source, claims in sources.items() if claims]
            raise UserError(
                f"{path} in {self.store.path} is called {', and '.join(said)}. Nothing was guessed: move or rename "
                "such files so that one split is named."
            )
        return Named(place.label, next(iter(found), None), place)

    def splits(self) -> frozenset[int]:
        """Return the values of Faces.usage that names call some of the images."""
        folders = {parent(path) for path in self.paths}
        claims = {claim for path in self.paths if (claim := prefix_claim(leaf(path))) is not None}
        return frozenset(usages(claims.union(*(self._place(folder).claims for folder in folders))))

    def empty_class_folders(self) -> list[str]:
        """Return the class folders next to filled ones that contain no images."""
        filled = {folder for path in self.paths for folder in _and_above(parent(path))}
        roots = {self._above_class(folder) for folder in filled}
        return [
            folder
            for folder in self.store.folders
            if folder not in filled
            and without_doubles(folder.split("/"))[:-1] in roots
            and emotion_index(leaf(folder)) is not None
        ]

    def check_one_dataset(self, named: Collection[Named]) -> None:
        """Raise UserError if the images belong to several datasets, or a split has several folders.

        Pooling them would mix what their names keep apart: a second copy, the folds of a cross-validation, or an
        augmented copy of the training images.
        """
        roots = Counter(name.place.root for name in named)
        if len(roots) > 1:
            listed = abbreviate(f"{root or '.'}/ ({count:,} images)" for root, count in sorted(roots.items()))
            raise UserError(
                f"{self.store.path} contains several datasets, which are not mixed: {listed}. "
                "Give the path of one, or name its folders train, val and test."
            )
        places: dict[int, set[str]] = {}
        for name in named:
            if name.usage is not None and name.place.split is not None:
                places.setdefault(name.usage, set()).add(name.place.split)
        for folders in places.values():
            if len(folders) > 1:
                listed = abbreviate(f"{folder}/" for folder in sorted(folders))
                raise UserError(
                    f"{self.store.path} has several folders for one split, which are not mixed: {listed}. "
                    "Keep one, or put their images together."
                )

    def copies(self) -> dict[str, str]:
        """Return the images of doubled folders: {"images/images/a.jpg": "images/a.jpg"} if both exist."""
        kept: dict[Parts, str] = {}
        copies = {}
        for path in sorted(self.paths, key=lambda path: (path.count("/"), path)):
            first = kept.setdefault((*without_doubles(parent(path).split("/")), leaf(path)), path)
            if first != path:
                copies[path] = first
        return copies


def _and_above(folder: str) -> list[str]:
    """Return a folder and all folders above it."""
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def group_of(path: str) -> str | None:
    """Return the person or clip that an image belongs to: the folder below its class folder, in lower case."""
    group = read_place(parent(path), False).group
    return None if group is None else group.lower()
