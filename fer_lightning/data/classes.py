"""Classes of a dataset: which folder names and labels mean which class, and the order of the classes.

The seven of FER-2013 are the default. Unless every name is to be one, an unknown name is never a class by itself,
because it may be misspelt.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from fer_lightning.data.faces import Faces, select_rows
from fer_lightning.emotions import EMOTIONS, canonical, spelling
from fer_lightning.errors import UserError, did_you_mean

# Name of a class set -> its classes in the order of their published numbers, and the first number.
# ferplus: the columns of fer2013new.csv (Barsoum et al. 2016, arXiv:1608.01041).
# rafdb: Li et al. 2017, "Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in
# the Wild"; the numbers are those of its basic emotions' label file.
PUBLISHED: dict[str, tuple[tuple[str, ...], int]] = {
    "fer2013": (EMOTIONS, 0),
    "ferplus": (("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt"), 0),
    "rafdb": (("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"), 1),
}
FOLDERS = "folders"
LEFT_OUT = ""  # the meaning of a name that data.rename maps to null
MAX_CLASSES = 100
MAX_NAME = 40  # characters, so that tables fit 80 columns
_FORBIDDEN = re.compile("[\x00-\x1f\x7f/,\ud800-\udfff]")  # a comma separates the classes in an exported network
# A missing value as pandas and spreadsheets write it, or a number that counts nothing.
_NO_NAME = re.compile(r"|nan?|n/a|null|none|\?|[-+.\d]+(e[-+]?\d+)?", re.IGNORECASE)
_EXPECTED = f"Expected {', '.join(PUBLISHED)}, {FOLDERS}, or a list of at least two names such as [happy,other]."


@dataclass(frozen=True, eq=False)
class ClassSet:
    """The classes of a dataset, with the names and numbers that mean them.

    Attributes:
        names: the classes in the order of the labels; empty if every name found in the data is a class.
        meanings: a name's `spelling`, or its canonical form -> class; LEFT_OUT if its images are not used.
        numbers: number -> class, for a label column and for class folders that have numbers as names.
        only_prefixed: class folders are read as numbers only if their images have FER-2013's own prefixes: datasets
            number the emotions differently, and nobody said whose numbers these are.
        optional: classes that are dropped from `names` if the data have no image of them.
        renamed: names in data.rename that are no classes of the set.
        key: part of the cache key; empty for the default.
    """

    names: tuple[str, ...]
    meanings: Mapping[str, str]
    numbers: Mapping[str, str]
    only_prefixed: bool = False
    optional: frozenset[str] = frozenset()
    renamed: tuple[str, ...] = ()
    key: str = ""

    @property
    def is_open(self) -> bool:
        """Whether every name found in the data is a class."""
        return not self.names

    def meaning(self, name: str) -> str | None:
        """Return the class that the name of a folder means; None if it is unknown."""
        return self.meanings.get(spelling(name), self.meanings.get(canonical(name)))

    def meaning_of_label(self, text: str) -> str | None:
        """Return the class that a value of a label column means, a name or a number; None if it is unknown."""
        name = label_name(text)
        found = self.meaning(name)
        found = self.numbers.get(name) if found is None else found
        is_name = name.isdecimal() or not _NO_NAME.fullmatch(name)
        return name if found is None and self.is_open and is_name else found

    def with_folders(self, folders: Iterable[str]) -> "ClassSet":
        """Return an open set with the names of these folders as classes, in natural order."""
        meanings = dict(self.meanings)
        for name in sorted(folders, reverse=True):  # of several spellings, lower case comes first
            meanings.setdefault(spelling(name), name)
        names = sorted(set(meanings.values()) - {LEFT_OUT}, key=_natural)
        return replace(self, names=tuple(names), meanings=meanings)

    def closed(self, found: Iterable[str]) -> "ClassSet":
        """Return the set for data in which these classes were found.

        Raises:
            UserError: fewer than two classes, or a name that cannot be one.
        """
        found = set(found) - {LEFT_OUT}
        names = tuple(sorted(found, key=_natural)) if self.is_open else self.names
        names = tuple(name for name in names if name in found or name not in self.optional)
        check_names(names, "The data")
        return replace(self, names=names)

    def check_renamed(self, found: Iterable[str]) -> None:
        """Raise UserError if data.rename has a name that is no class of the set and not among those found."""
        found = list(found)
        known = {*map(spelling, found), *map(canonical, found)}
        for name in self.renamed:
            if known.isdisjoint((spelling(name), canonical(name))):
                others = [other for other in (*self.names, *found) if other not in self.renamed]
                hint = did_you_mean(name, others)
                raise UserError(f"data.rename: the data have no class {name!r}.{hint} Correct it, or leave it out.")

    def describe_labels(self) -> str:
        """Return the labels that are read, for messages: "emotion 0 to 6 or its name"."""
        numbers = [number for number, name in self.numbers.items() if name in self.names]
        return f"emotion {numbers[0]} to {numbers[-1]} or its name" if numbers else "the name or number of a class"

    def nearest(self, name: str) -> str:
        """Return the class that an unknown name is probably meant as, or an empty string if none is close."""
        hint = did_you_mean(spelling(name), set(self.meanings) - set(map(spelling, self.renamed)))
        return hint.removeprefix(" Did you mean ").removesuffix("?")


def label_name(text: str) -> str:
    """Return a label without spaces, and a number without decimals: pandas writes "3.0" if any value is missing."""
    number = re.fullmatch(r"\s*\+?0*(\d+)(?:\.0*)?\s*", text, re.ASCII)
    return number[1] if number else text.strip()


def class_set(
    classes: str | Sequence[str | int] | ClassSet = "fer2013", rename: Mapping[str, str | None] | None = None
) -> ClassSet:
    """Return the classes that the settings data.classes and data.rename describe.

    Args:
        classes: a key of PUBLISHED, "folders", or the names of the classes in the order of their labels; a ClassSet
            is used as it is.
        rename: name of a class, folder or label -> the class that it means instead; None leaves its images out.

    Raises:
        UserError: a value of another form, a class that is named twice, or fewer than two classes.
    """
    if isinstance(classes, ClassSet):
        plain = classes
    else:
        base, first = _base(classes)
        numbered = not any(map(str.isdecimal, base))  # otherwise a number is the name of a class
        plain = ClassSet(
            names=base,
            meanings=_meanings(base),
            numbers={str(number): name for number, name in enumerate(base, start=first) if numbered},
            only_prefixed=classes == "fer2013",
            key="" if classes == "fer2013" else f"-{_digest(classes)}",
        )
    return _with_renamed(plain, rename) if rename else plain


def class_set_of(networks: Sequence[Sequence[str]]) -> ClassSet:
    """Return the classes for data that trained networks are evaluated on, if nothing else says which these are.

    The networks' own classes and all emotions of PUBLISHED are known, and those that occur are the data's. If the
    networks know emotions only, the data have all seven of FER-2013 in any case. Numbers are those of FER-2013 if
    its classes are the networks', and mean nothing otherwise.

    Args:
        networks: the classes of each network.
    """
    emotions = dict.fromkeys(name for names, _ in PUBLISHED.values() for name in names)
    own = dict.fromkeys(name for classes in networks for name in classes)
    known = set(map(canonical, own))
    names = (*own, *(name for name in emotions if name not in known))
    always = {name for name in names if known <= emotions.keys() and canonical(name) in EMOTIONS}
    numbered = all(tuple(map(canonical, classes)) == EMOTIONS for classes in networks)
    meanings = _meanings(names)
    return ClassSet(
        names=tuple(dict.fromkeys(meanings[spelling(name)] for name in names)),
        meanings=meanings,
        numbers={str(number): meanings[name] for number, name in enumerate(EMOTIONS) if numbered},
        only_prefixed=True,
        optional=frozenset(names) - always,
        key=f"-{_digest((names, len(always), numbered))}",
    )


def shared_classes(networks: Sequence[Sequence[str]], data: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that all networks and the data have, as the first network calls them, in its order.

    Raises:
        UserError: fewer than two.
    """
    matches = [_match(networks[0], classes) for classes in (*networks[1:], data)]
    shared = tuple(name for name in networks[0] if all(name in match for match in matches))
    if len(shared) < 2:
        raise UserError(
            f"The network has the classes {', '.join(networks[0])}, the data have {', '.join(data)}: there are no "
            "two in both. See data.classes and data.rename (--classes and --rename)."
        )
    return shared


def columns_of(shared: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the positions of `shared` classes in `classes`, which may spell them differently.

    Raises:
        UserError: a class is missing.
    """
    match = _match(shared, classes)
    if missing := [name for name in shared if name not in match]:
        raise UserError(f"{missing[0]!r} is none of the classes {', '.join(classes)}.")
    return [classes.index(match[name]) for name in shared]


def class_index(name: str, classes: Sequence[str]) -> int | None:
    """Return the position of a class that may be spelt differently or have another name; None if it is unknown."""
    match = _match([name], classes)
    return classes.index(match[name]) if name in match else None


def restrict(faces: Faces, classes: Sequence[str]) -> Faces:
    """Return the images of some classes, labelled by their position in `classes`, with a note on those left out.

    Args:
        faces: N faces.
        classes: some of their classes, in any order and spelling.
    """
    label_of = np.full(len(faces.classes), -1, np.int64)
    label_of[columns_of(classes, faces.classes)] = np.arange(len(classes))
    labels = label_of[faces.labels]
    counts = np.bincount(faces.labels, minlength=len(faces.classes)).tolist()
    dropped = [
        f"{n:,} of {name}" for name, n, at in zip(faces.classes, counts, label_of, strict=True) if at < 0 and n
    ]
    note = f"Images of classes that are not compared were left out: {', '.join(dropped)}."
    notes = (*faces.notes, note) if dropped else faces.notes
    part = replace(faces, labels=labels, whole=faces.whole or faces)
    return select_rows(part, labels >= 0, classes=tuple(classes), notes=notes)


def check_names(names: Sequence[str], where: str) -> None:
    """Raise UserError unless these are two or more distinct names of classes.

    Args:
        names: the classes.
        where: what has these names, for the message.
    """
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{where}: expected 2 to {MAX_CLASSES} classes, got {len(names)}"
            f"{f' ({names[0]})' if len(names) == 1 else ''}. See data.classes and data.rename."
        )
    spelt: dict[str, str] = {}
    for name in names:
        if not name.strip() or len(name) > MAX_NAME or _FORBIDDEN.search(name):
            raise UserError(
                f"{where}: {name[:MAX_NAME]!r} cannot be the name of a class: expected 1 to {MAX_NAME} characters "
                "of UTF-8 without slash and comma. Choose another one, for example with data.rename."
            )
        if (other := spelt.get(spelling(name))) is not None:
            raise UserError(
                f"{where}: {other!r} and {name!r} are the same class. Keep one, or rename with data.rename."
            )
        spelt[spelling(name)] = name


def _meanings(names: Iterable[str]) -> dict[str, str]:
    """Return spelling -> name, and canonical name -> name where no other of the names has the same.

    So "happiness" means the class "happy", but not if there is also a class "joy"; and "calm" and "neutral" may be
    two classes.
    """
    meanings: dict[str, str] = {}
    for name in names:
        meanings.setdefault(spelling(name), name)
    same = Counter(map(canonical, meanings.values()))
    return {canonical(name): name for name in meanings.values() if same[canonical(name)] == 1} | meanings


def _match(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Return name -> the one of `others` that means the same: first those spelt alike, then those left."""
    spelt = {spelling(other): other for other in others}
    match = {name: spelt[spelling(name)] for name in names if spelling(name) in spelt}
    ours = _meanings(name for name in names if name not in match)
    theirs = _meanings(other for other in others if other not in match.values())
    for form, name in ours.items():
        if canonical(form) in theirs and ours.get(canonical(form)) == name:
            match.setdefault(name, theirs[canonical(form)])
    return match


def _base(classes: str | Sequence[str | int]) -> tuple[tuple[str, ...], int]:
    """Return the names of a class set before data.rename, and their first number."""
    if isinstance(classes, str):
        if classes == FOLDERS:
            return (), 0
        if classes not in PUBLISHED:
            hint = did_you_mean(classes, (*PUBLISHED, FOLDERS))
            raise UserError(f"data.classes={classes}: unknown class set.{hint} {_EXPECTED}")
        return PUBLISHED[classes]
    if not isinstance(classes, Sequence) or not all(type(name) in (str, int) for name in classes):
        has_flags = isinstance(classes, Sequence) and any(isinstance(name, bool) for name in classes)
        quote = ' In YAML, write "no" and "yes" with quotes.' if has_flags else ""
        raise UserError(f"data.classes={classes}: {_EXPECTED}{quote}")
    names = tuple(str(name).strip() for name in classes)
    check_names(names, "data.classes")
    return names, 0


def _with_renamed(plain: ClassSet, rename: Mapping[str, str | None]) -> ClassSet:
    """Apply data.rename to a class set."""
    targets = _targets(plain, rename)
    others = [name for name in targets if name not in plain.names]
    new_names = [name for name in targets.values() if name]
    names = tuple(dict.fromkeys(name for name in (*(targets.get(n, n) for n in plain.names), *new_names) if name))
    if plain.names:
        check_names(names, "data.rename")
    meanings = {form: targets.get(name, name) for form, name in plain.meanings.items()}
    numbers = {number: targets.get(name, name) for number, name in plain.numbers.items()}
    for form, name in _meanings(new_names).items():
        meanings.setdefault(form, name)
    for old in others:
        if old.isdecimal() and numbers:
            numbers[old] = targets[old]
        else:
            meanings[spelling(old)] = targets[old]
            if plain.names:  # otherwise every spelling is a name of its own
                meanings.setdefault(canonical(old), targets[old])
    return replace(
        plain,
        names=names if plain.names else (),
        meanings=meanings,
        numbers=numbers,
        renamed=tuple(others),
        key=f"-{_digest((plain.key, names, sorted(targets.items())))}",
    )


def _targets(plain: ClassSet, rename: Mapping[str, str | None]) -> dict[str, str]:
    """Return what data.rename maps: a class of the set, or another name -> the class that it means."""
    targets = {}
    for old, new in _checked_pairs(rename):
        name = plain.meaning(old) or plain.numbers.get(old, old)
        other = plain.meaning(new) or plain.numbers.get(new, new)
        targets[name] = new if other == name else other  # {happy: joy} is a new name, not an alias
    if chained := [name for name in targets.values() if targets.get(name, name) != name]:
        raise UserError(f"data.rename: {chained[0]!r} is renamed itself. Give the final name for each.")
    return targets


def _checked_pairs(rename: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Yield each name of data.rename with the class that it means, LEFT_OUT for null."""
    if not isinstance(rename, Mapping):
        raise UserError(f"data.rename={rename}: expected a mapping such as {{contempt: null, fear: negative}}.")
    for old, new in rename.items():
        if new is None:
            yield str(old).strip(), LEFT_OUT
        elif type(new) in (str, int) and str(new).strip():
            yield str(old).strip(), str(new).strip()
        else:
            raise UserError(f"data.rename: {old}: {new!r} is no name of a class. Give a name, or null.")


def _digest(value: object) -> str:
    return blake2b(repr(value).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Return a sort key that puts "2" before "10" and ignores the case, except between names equal otherwise."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in parts), name
