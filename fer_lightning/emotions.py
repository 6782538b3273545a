"""The seven emotions of FER-2013: the only definition of their order, names, aliases and colours."""

import re

# Index = position, as in the ``emotion`` column of the original fer2013.csv (Goodfellow et al. 2013,
# "Challenges in Representation Learning"). Class folders in alphabetical order would swap 4, 5 and 6.
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
NUM_CLASSES = len(EMOTIONS)

# The palette of Okabe and Ito (2008), distinguishable with any colour vision.
COLOURS = {
    "angry": "#D55E00",
    "disgust": "#009E73",
    "fear": "#CC79A7",
    "happy": "#F0E442",
    "sad": "#0072B2",
    "surprise": "#E69F00",
    "neutral": "#7F7F7F",
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
}
_NUMBER = re.compile(r"\d+[\s_.-]+(?=\D)")  # before a class folder's name, as in "0_angry"


def emotion_index(name: str) -> int | None:
    """Return the index (0 to 6) of a class name or alias in any case ("Happy", "anger"), or None if unknown.

    A number before the name is ignored: datasets number the emotions differently, so only the name is certain.
    """
    name = _NUMBER.sub("", name.strip().lower(), count=1) if name[:1].isdigit() else name.strip().lower()
    name = _ALIASES.get(name, name)
    return EMOTIONS.index(name) if name in EMOTIONS else None
