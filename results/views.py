"""Measure what each test-time augmentation costs and gains on the networks that ship, and write views.json.

``python results/views.py`` predicts PublicTest, the split that chooses, in five turns. Each predicts a fifth of the
images with every set of views, so that its times are comparable. FER+'s votes are found beside the data or
downloaded.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

import fer_lightning
from fer_lightning import hardware
from fer_lightning.data.faces import VAL, Faces
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.evaluation.statistics import mcnemar
from fer_lightning.experiment.record import git_commit, versions
from fer_lightning.files import Json, write_json
from fer_lightning.inference.classifier import Classifier, pretrained_names
from fer_lightning.models.tta import VIEWS, n_views
from fer_lightning.text import format_table

FILE = Path(__file__).with_suffix(".json")
TURNS = 5


def measure(clf: Classifier, faces: Faces) -> Json:
    """Time every set of views on the validation split, and compare its accuracy with that of a single view.

    Returns:
        key of VIEWS -> {"views", "accuracy", "only_views_right", "only_one_view_right", "p", "images_per_second",
        "times_as_long"}. The middle three are McNemar's test against "none"; the last is the median, lowest and
        highest ratio of the turns' times.
    """
    rows = np.flatnonzero(faces.usage == VAL)
    right: dict[str, list[np.ndarray]] = {tta: [] for tta in VIEWS}
    seconds: dict[str, list[float]] = {tta: [] for tta in VIEWS}
    clf.predict(faces.images[rows[:256]])  # warm up
    for part in np.array_split(rows, TURNS):
        for tta in VIEWS:
            start = perf_counter()
            labels = clf.predict(faces.images[part], tta).labels
            seconds[tta].append((perf_counter() - start) / len(part))
            right[tta].append(labels == faces.labels[part])
    alone = np.concatenate(right["none"])
    report: Json = {}
    for tta in VIEWS:
        ours = np.concatenate(right[tta])
        gained, lost = int((ours & ~alone).sum()), int((alone & ~ours).sum())
        ratios = [one / none for one, none in zip(seconds[tta], seconds["none"], strict=True)]
        report[tta] = {
            "views": n_views(tta),
            "accuracy": float(ours.mean()),
            "only_views_right": gained,
            "only_one_view_right": lost,
            "p": mcnemar(gained, lost),
            "images_per_second": 1 / median(seconds[tta]),
            "times_as_long": [median(ratios), min(ratios), max(ratios)],
        }
    return report


def rows_of(networks: Mapping[str, Json]) -> list[list[str]]:
    """Return the rows of the printed table: name, views, accuracy, gain in points, p, images/s, time."""
    return [
        [
            f"{name}, {tta}",
            str(row["views"]),
            f"{row['accuracy']:.2%}",
            f"{100 * (row['accuracy'] - views['none']['accuracy']):+.2f}",
            f"{row['p']:.2g}",
            f"{row['images_per_second']:,.0f}",
            "{:.1f} ({:.1f} to {:.1f})".format(*row["times_as_long"]),
        ]
        for name, views in networks.items()
        for tta, row in views.items()
    ]


def main() -> None:
    """Measure all networks that ship, print the table and write views.json."""
    own, crowd = load_faces(download=False), load_faces(labels="ferplus")
    networks = {}
    for name in pretrained_names():
        clf = fer_lightning.load_pretrained(name, "cpu")
        networks[name] = measure(clf, own if clf.classes == own.classes else crowd)
        print(f"{name} done", flush=True)
    header = ["network, tta", "views", own.split_names[VAL], "gain", "p", "images/s", "times as long"]
    print(format_table(header, rows_of(networks)))
    report = {
        "command": "python results/views.py",
        "git_commit": git_commit(),
        "hardware": f"{hardware.describe('cpu')}; {torch.get_num_threads()} threads, float32",
        "versions": versions(),
        "split": own.split_names[VAL],
        "n": {"fer2013": int((own.usage == VAL).sum()), "ferplus": int((crowd.usage == VAL).sum())},
        "networks": networks,
    }
    write_json(FILE, report)


if __name__ == "__main__":
    main()
