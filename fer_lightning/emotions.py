"""Names of emotions: the classes of FER-2013 and their order, other names for the same emotion, and colours."""

import re
import unicodedata
from collections.abc import Sequence

# Index = position, as in the ``emotion`` column of the original fer2013.csv (Goodfellow et al. 2013,
# "Challenges in Representation Learning"). Class folders in alphabetical order would swap 4, 5 and 6.
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

# The palette of Okabe and Ito (2008), distinguishable with any colour vision.
_COLOURS = {
    "angry": "#D55E00",
    "disgust": "#009E73",
    "fear": "#CC79A7",
    "happy": "#F0E442",
    "sad": "#0072B2",
    "surprise": "#E69F00",
    "neutral": "#7F7F7F",
    "contempt": "#56B4E9",
}

_ALIASES = {
    "anger": "angry",
    "disgusted": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "suprise": "surprise",  # a misspelling found in several mirrors of the dataset
    "calm": "neutral",
    "neutrality": "neutral",
    "contemptuous": "contempt",
}
_NUMBER = re.compile(r"\d+[\s_.-]+(?=\D)")  # before a class folder's name, as in "0_angry"


def spelling(name: str) -> str:
    """Return a class name in lower case, with accents in the same form on every system."""
    return unicodedata.normalize("NFC", name).strip().lower()


def canonical(name: str) -> str:
    """Return a class name in the form that is equal for all its names: "Happiness" and "3_happy" are "happy".

    A number before an emotion is ignored: datasets number them differently, so only the name is certain. Of a name
    that is no emotion, only the spelling is made equal.
    """
    name = spelling(name)
    word = _NUMBER.sub("", name, count=1) if name[:1].isdigit() else name
    return _ALIASES.get(word, word if word in _COLOURS else name)


def emotion_index(name: str) -> int | None:
    """Return the index of a class of FER-2013 by its name or an alias in any case, or None if it is not one."""
    name = canonical(name)
    return EMOTIONS.index(name) if name in EMOTIONS else None


def colours(classes: Sequence[str]) -> list[str]:
    """Return a colour for each class, as hex digits: an emotion has its own, other classes take turns."""
    palette = list(_COLOURS.values())
    return [_COLOURS.get(canonical(name), palette[at % len(palette)]) for at, name in enumerate(classes)]
