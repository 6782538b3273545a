"""The measurement of test-time augmentation, and its published table."""

import json

import numpy as np
import pytest
import views
from fake_networks import ByHalf
from project import ROOT

from fer_lightning.data.faces import VAL
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.evaluation.statistics import mcnemar
from fer_lightning.inference.classifier import WEIGHTS, Classifier, pretrained_names
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import VIEWS, n_views

PAGE = (ROOT / "results/README.md").read_text(encoding="utf-8")
MEASURED = json.loads((ROOT / "results/views.json").read_text())["networks"]


def test_gains_are_counted_against_a_single_view():
    faces = synthetic_faces(n_train=7, n_val=70, n_test=7)
    rows = np.flatnonzero(faces.usage == VAL)
    clf = Classifier(ByHalf(), InputSpec(48, 0.5, 0.5), "cpu")
    report = views.measure(clf, faces)
    assert {tta: row["views"] for tta, row in report.items()} == {tta: n_views(tta) for tta in VIEWS}
    alone = clf.predict(faces.images[rows]).labels == faces.labels[rows]
    for tta, row in report.items():
        right = clf.predict(faces.images[rows], tta).labels == faces.labels[rows]
        gained, lost = int((right & ~alone).sum()), int((alone & ~right).sum())
        assert row["accuracy"] == pytest.approx(right.mean())
        assert (row["only_views_right"], row["only_one_view_right"]) == (gained, lost)
        assert row["p"] == mcnemar(gained, lost)
        middle, low, high = row["times_as_long"]
        assert 0 < low <= middle <= high
    assert report["mirror"]["only_one_view_right"] > 0  # faces of class 1
    assert report["none"]["times_as_long"] == [1, 1, 1]
    (_, first, *_) = views.rows_of({"half": report})
    mirror = report["mirror"]
    assert first[:4] == [
        "half, mirror",
        "2",
        f"{mirror['accuracy']:.2%}",
        f"{100 * (mirror['accuracy'] - report['none']['accuracy']):+.2f}",
    ]


@pytest.mark.parametrize("name", pretrained_names())
def test_the_published_measurement_agrees_with_the_cards_and_the_page(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    measured = MEASURED[name]
    assert list(measured) == list(VIEWS)
    for tta, row in measured.items():
        assert row["accuracy"] == card["tta"][tta]["PublicTest"]["accuracy"]
        gain = 100 * (row["accuracy"] - measured["none"]["accuracy"])
        times = "{:.1f} ({:.1f} to {:.1f})".format(*row["times_as_long"])
        bold = "**" if tta == card["own_tta"] else ""
        cells = [f"{bold}`{name}`{bold}", f"{bold}{tta}{bold}", str(row["views"]), times, f"{row['accuracy']:.2%}"]
        cells += ["", ""] if tta == "none" else [f"{gain:+.2f}", f"{row['p']:.2g}"]
        assert f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|" in PAGE


def test_what_the_page_says_about_the_views_repeats_its_files():
    page = " ".join(PAGE.split())
    others = [row for views in MEASURED.values() for tta, row in views.items() if tta != "none"]
    changing = [row["p"] for row in others if row["only_views_right"] or row["only_one_view_right"]]
    assert (len(changing), len(others)) == (10, 12)
    assert "Ten of the twelve sets change any prediction" in page
    assert f"Multiplied by ten, for as many comparisons, the lowest p is {10 * min(changing):.2f}" in page
    times = {round(views["shifts"]["times_as_long"][0]) for views in MEASURED.values()}
    assert f"a face takes {min(times)} to {max(times)} times as long" in page
    private = {
        name: [
            json.loads((WEIGHTS / f"{name}.json").read_text())["tta"][tta]["PrivateTest"]["accuracy"]
            for tta in ("ten_crop", "shifts")
        ]
        for name in pretrained_names()
    }
    best, ferplus = ("{:.2%} against {:.2%}".format(*private[name]) for name in ("best", "ferplus"))
    assert f"ahead of shifts for `best` ({best}) and `ferplus` ({ferplus}), behind for `tiny`" in page
    assert private["tiny"][0] < private["tiny"][1]
