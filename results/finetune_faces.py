"""Write a small dataset of three classes from FER-2013, to measure what a pretrained start is worth.

``python results/finetune_faces.py FOLDER --seed 0`` writes 200 faces of PublicTest, drawn at random, to
FOLDER/train/, and those of PrivateTest without an exact or near copy in any other split to FOLDER/test/, each in
positive/ (happy), negative/ (angry, disgust, fear, sad) or neutral/. Surprise, which can be either, is left out.
``--test PublicTest`` tests on the rest of PublicTest instead, to choose settings on. It prints what the shipped
network `best` reaches on the test without fine-tuning, its probabilities added up by class.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import fer_lightning
from fer_lightning.data.faces import TEST, VAL, first_copies
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.near_copies import copied_among, copied_elsewhere, near_copies
from fer_lightning.emotions import EMOTIONS

CLASSES = ("negative", "neutral", "positive")
CLASS_OF = {"happy": "positive", "neutral": "neutral", "surprise": None}  # all others are negative
N_TRAIN = 200


def main() -> None:
    """Write the folder, and print the accuracy of `best` as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", choices=("PublicTest", "PrivateTest"), default="PrivateTest")
    arguments = parser.parse_args()

    faces, split = load_faces(), VAL if arguments.test == "PublicTest" else TEST
    names = [CLASS_OF.get(emotion, "negative") for emotion in EMOTIONS]
    used = np.array([name is not None for name in names])[faces.labels]
    candidates = np.flatnonzero(used & (faces.usage == VAL))
    train = np.zeros(len(faces), bool)
    train[np.random.default_rng(arguments.seed).choice(candidates, N_TRAIN, replace=False)] = True
    near = near_copies(faces)
    copied = copied_elsewhere(faces, (split,), near) | copied_among(train, first_copies(faces), near)
    test = used & (faces.usage == split) & ~train & ~copied

    for part, chosen in (("train", train), ("test", test)):
        for name in CLASSES:
            (arguments.folder / part / name).mkdir(parents=True)
        for row in np.flatnonzero(chosen).tolist():
            path = arguments.folder / part / names[faces.labels[row]] / f"{row}.png"
            Image.fromarray(faces.images[row]).save(path)

    by_class = np.array([[name == column for column in CLASSES] for name in names], np.float32)
    network = fer_lightning.load_pretrained("best")
    probabilities = network.predict(faces.images[test], tta="mirror").probabilities @ by_class
    right = probabilities.argmax(axis=1) == by_class.argmax(axis=1)[faces.labels[test]]
    print(f"{arguments.folder}: {train.sum()} training faces; best as it is: {right.mean():.2%} of {len(right):,}")


if __name__ == "__main__":
    main()
