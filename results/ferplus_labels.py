"""Compare FER-2013's labels and the mistakes of `best` with FER+'s votes, and write ferplus_labels.json.

``python results/ferplus_labels.py`` takes half a minute on 2 cores. The votes are found beside the data or
downloaded.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

import fer_lightning
from fer_lightning.data.faces import TEST, Faces
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.ferplus import join
from fer_lightning.data.votes import EMOTIONS, find_votes, majority, read_votes
from fer_lightning.files import Json, write_json

FILE = Path(__file__).with_suffix(".json")

NO_MAJORITY, NO_EMOTION, NO_VOTES = "no majority", "unknown or no face", "without votes"


def crowd_labels(faces: Faces) -> npt.NDArray[np.str_]:
    """Return what most of the ten people said about each image, str (N,): an emotion, or why there is none."""
    votes = read_votes(find_votes(None, Path(faces.source), download=True))
    rows = join(faces, votes)
    names = np.array([*EMOTIONS, NO_EMOTION, NO_EMOTION, NO_MAJORITY])
    return np.where(rows < 0, NO_VOTES, names[majority(votes.counts[rows])])


def by_class(labels: npt.NDArray[np.str_], crowd: npt.NDArray[np.str_], classes: tuple[str, ...]) -> Json:
    """Count what the crowd says about the images of each class, most frequent first."""
    counts = {}
    for name in (*classes, "all"):
        chosen = (labels == name) | (name == "all")
        said, n = np.unique(crowd[chosen], return_counts=True)
        ranked = sorted(zip(n.tolist(), said.tolist(), strict=True), reverse=True)
        counts[name] = {
            "n": int(chosen.sum()),
            "same": int((labels == crowd)[chosen].sum()),
            "crowd": {emotion: count for count, emotion in ranked},
        }
    return counts


def mistakes(
    labels: npt.NDArray[np.str_],
    answers: npt.NDArray[np.str_],
    crowd: npt.NDArray[np.str_],
    classes: tuple[str, ...],
) -> Json:
    """Count whom the crowd agrees with where a network's answer differs from the label, by the label's class."""
    wrong = labels != answers
    emotion = np.isin(crowd, EMOTIONS)
    cases = {
        "the label": crowd == labels,
        "the network": crowd == answers,
        "neither": emotion & (crowd != labels) & (crowd != answers),
        "undecided": ~emotion,
    }
    rows = {name: wrong & ((labels == name) | (name == "all")) for name in (*classes, "all")}
    return {
        name: {"mistakes": int(mask.sum()), **{case: int((mask & one).sum()) for case, one in cases.items()}}
        for name, mask in rows.items()
    }


def main() -> None:
    """Count, and write the numbers."""
    faces = load_faces()
    crowd = crowd_labels(faces)
    labels = np.array(faces.classes)[faces.labels]
    held_out = faces.usage == TEST
    clf = fer_lightning.load_pretrained("best", "cpu")
    answers = np.array(clf.classes)[clf.predict(faces.images[held_out]).labels]
    write_json(
        FILE,
        {
            "data_fingerprint": faces.fingerprint,
            "all": by_class(labels, crowd, faces.classes),
            "PrivateTest": by_class(labels[held_out], crowd[held_out], faces.classes),
            "mistakes_of_best": mistakes(labels[held_out], answers, crowd[held_out], faces.classes),
            "accuracy_of_best": float((labels[held_out] == answers).mean()),
        },
    )


if __name__ == "__main__":
    main()
