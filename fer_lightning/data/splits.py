"""Names of splits: the words in a Usage column or in the name of a folder or file that call images train or test.

What a name calls an image is a "claim". All the claims on an image must agree, or the data are refused. Two names
do not count: that of a folder of folders of several splits, and that of the given path if anything inside is named.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from fer_lightning.data.faces import FER2013_SPLITS, TEST, TRAIN, VAL
from fer_lightning.emotions import emotion_index

# Claim -> the split that it means. FER-2013 has two test sets; PublicTest selects the best epoch.
_USAGE_OF = {"train": TRAIN, "validation": VAL, "test": TEST, "public test": VAL, "private test": TEST}
# All the words that are read in a Usage column, in any case, with or without a separator ("public_test").
USAGE_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("public", "publictest"), "public test"),
    **dict.fromkeys(("private", "privatetest"), "private test"),
}
# In a name, "public" or "private" alone says nothing about a split.
_NAME_WORDS = {word: claim for word, claim in USAGE_WORDS.items() if not word.startswith("p")}
# Words that may follow without a separator ("trainset"), or be part of the name of a whole split ("test_faces").
_FILLERS = r"set|data|dataset|images?|imgs?|pics?|pictures?|faces?|folder|dir|split|samples?"
_SPLIT_WORD = re.compile(rf"({'|'.join(sorted(_NAME_WORDS, key=len, reverse=True))})(?:{_FILLERS})?")
_FILLER = re.compile(
    rf"(?:{_FILLERS}|fer|raf|db|ck|plus|afew|sfew|jaffe|affectnet|kaggle|v|my|own|our|new|final|small|full|clean|raw"
    r"|cropped|aligned|photos?|facial|emotions?|expressions?|public|private|person|subject|subj|actor|clip|session"
    r"|frame|seq|id|s|p|\d+)+"
)
_SUFFIXES = re.compile(r"(?:\.(?:zip|tar|gz|tgz|bz2|tbz2|xz|txz|csv|tsv))+$", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # "FER2013TestSet" -> FER 2013 Test Set
_FER2013_PREFIX = re.compile(rf"({'|'.join(FER2013_SPLITS)})_", re.IGNORECASE)  # "Training_3908.jpg", on Kaggle


def usages(claims: Iterable[str]) -> set[int]:
    """Return the splits that claims mean together: one if they agree, none without claims.

    The Kaggle folder's test/ holds PublicTest and PrivateTest, so "test" agrees with "public test".
    """
    claims = set(claims)
    if "public test" in claims:
        claims.discard("test")
    return {_USAGE_OF[claim] for claim in claims}


def usage_claim(text: str) -> str | None:
    """Return what a value of a Usage column calls its row, or None if it is not one of USAGE_WORDS."""
    return USAGE_WORDS.get(re.sub(r"[\s_-]", "", text).lower())


@lru_cache(maxsize=2**16)
def name_claims(name: str) -> frozenset[str]:
    """Return what the name of a folder or a file calls the images inside.

    A name with several claims ("train_test_split") is that of a folder for several splits, and calls them nothing.
    """
    found = set()
    squeezed = re.sub(r"[\s_-]", "", name).lower()
    for kind in ("public", "private"):
        if f"{kind}test" in squeezed:
            found.add(f"{kind} test")
    if not found:
        words = {*_words(name), *_words(name.lower())}  # "TrainData" has two words, "TESTset" one
        found = {_NAME_WORDS[match[1]] for word in words if (match := _SPLIT_WORD.fullmatch(word))}
    return frozenset(found if len(usages(found)) == 1 else ())


def path_claims(path: str) -> frozenset[str]:
    """Return what the folders and the name of a file inside a dataset call what it contains."""
    return frozenset().union(*map(name_claims, path.split("/")))


def dataset_claims(name: str, meaning: Callable[[str], object] = emotion_index) -> frozenset[str]:
    """Return what the name of a whole dataset or of an image calls it.

    The words may come in any sentence here, so only a name that is about the split counts: "test_faces" and
    "kdef_test.zip" are test sets, "test_of_my_camera" is not.

    Args:
        name: the name of a file or folder.
        meaning: returns None for a word that is no class.
    """
    name = _SUFFIXES.sub("", name)
    if any(meaning(word) is not None for word in _words(name) if _SPLIT_WORD.fullmatch(word)):
        return frozenset()  # the word is the name of a class
    about_split = not name_claims(name).isdisjoint(("public test", "private test"))  # words for nothing else
    for words in (_words(name), _words(name.lower())):  # "KdefTest" has two words, "TESTset" one
        rest = [word for word in words if not _FILLER.fullmatch(word) and meaning(word) is None]
        about_split |= all(map(_SPLIT_WORD.fullmatch, rest)) or _SPLIT_WORD.fullmatch(rest[-1]) is not None
    return name_claims(name) if about_split else frozenset()


def is_split_word(name: str) -> bool:
    """Return whether a name is a split's word and nothing else: "test", "Training"."""
    return name.lower() in _NAME_WORDS


def fer2013_claim(file_name: str) -> str | None:
    """Return what FER-2013's own prefix calls an image: "public test" for "PublicTest_17.jpg"."""
    match = _FER2013_PREFIX.match(file_name)
    return usage_claim(match[1]) if match else None


def image_claims(file_name: str, meaning: Callable[[str], object] = emotion_index) -> frozenset[str]:
    """Return what the name of an image calls it: "test" for "test_0001_aligned.jpg", as RAF-DB's are named.

    Args:
        file_name: the name of the image file.
        meaning: see `dataset_claims`.
    """
    claim = fer2013_claim(file_name)
    if claim is not None:
        return frozenset((claim,))
    return dataset_claims(file_name.rpartition(".")[0], meaning)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
