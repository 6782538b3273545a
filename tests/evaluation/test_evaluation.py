"""Statistics checked by hand, and the evaluation of a network with known predictions."""

import base64
import inspect
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_fer2013 import fake_faces, without_prefixes, write_folder, write_zip
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from fer_lightning.__main__ import main
from fer_lightning.config.compose import CONF_DIR
from fer_lightning.data.faces import TEST, TRAIN, VAL
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.evaluation.corruptions import CORRUPTIONS
from fer_lightning.evaluation.evaluate import evaluate, to_json
from fer_lightning.evaluation.page import evaluation_page
from fer_lightning.evaluation.report import format_evaluation
from fer_lightning.evaluation.scores import confident_mistakes
from fer_lightning.evaluation.statistics import calibration, fit_temperature, mcnemar, wilson_interval
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec


@pytest.mark.parametrize(
    ("hits", "n", "interval"),
    [
        (5, 10, [0.2366, 0.7634]),  # (5 + z²/2 -+ z sqrt(2.5 + z²/4)) / (10 + z²) with z² = 3.8415
        (0, 10, [0.0, 0.2775]),  # z² / (10 + z²)
        (10, 10, [0.7225, 1.0]),
        (2203, 3589, [0.5978, 0.6296]),
        (0, 0, [0.0, 1.0]),
    ],
)
def test_wilson_interval_by_hand(hits, n, interval):
    assert wilson_interval(hits, n) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 7, 10 / 256),  # first example of the paper, 0.0391: (2 (1 + 8) - 8) / 256
        (7, 1, 10 / 256),
        (0, 3, 1 / 8),  # 2 / 8 - 1 / 8
        (2, 2, 1 - 6 / 32),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == p


def test_mcnemar_approaches_the_normal_distribution():
    n, difference = 40_000, 400  # two standard deviations
    p = mcnemar((n - difference) // 2, (n + difference) // 2)
    assert p == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=1e-3)


def sure(emotion: int, probability: float) -> list[float]:
    """Return logits with `probability` for `emotion` and the rest shared equally among the others."""
    return [math.log(probability if i == emotion else (1 - probability) / 6) for i in range(7)]


def test_calibration_by_hand():
    logits = torch.tensor([sure(0, 0.9), sure(1, 0.9), sure(2, 0.91), sure(3, 0.5)])
    report = calibration(logits, torch.tensor([0, 1, 6, 3]))
    # The bin up to 14/15 holds 0.9, 0.9 and 0.91: mean confidence 0.90333, two of three right. 0.5 is right.
    assert report["ece"] == pytest.approx(3 / 4 * (0.90333 - 2 / 3) + 1 / 4 * 0.5, abs=1e-5)
    assert report["loss"] == pytest.approx(-(2 * math.log(0.9) + math.log(0.015) + math.log(0.5)) / 4, abs=1e-5)
    filled = {i: row for i, row in enumerate(report["bins"]) if row["n"]}
    assert {i: row["n"] for i, row in filled.items()} == {7: 1, 13: 3}
    assert filled[13] == pytest.approx(
        {"from": 13 / 15, "to": 14 / 15, "n": 3, "confidence": 0.903333, "accuracy": 2 / 3}
    )
    assert report["bins"][0] == {"from": 0, "to": 1 / 15, "n": 0, "confidence": None, "accuracy": None}


def test_calibration_agrees_with_torchmetrics():
    draw = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(500, 7, generator=draw), torch.randint(0, 7, (500,), generator=draw)
    expected = multiclass_calibration_error(logits.softmax(dim=1), labels, 7, n_bins=15, norm="l1")
    assert calibration(logits, labels)["ece"] == pytest.approx(expected.item(), abs=1e-5)


def test_temperature_by_hand():
    """Check predictions with odds of 3^k to 1 that are right in 3 of 4 cases: calibrated odds of 3 need T = k."""
    for k in (0.5, 1, 3):
        logits = torch.full((4, 7), -1000.0)
        logits[:, 0], logits[:, 1] = k * math.log(3), 0
        temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        assert temperature == pytest.approx(k, rel=1e-6)
    # All right and all wrong: the lower and the upper bound of T.
    assert fit_temperature(logits, torch.zeros(4, dtype=torch.long)) == pytest.approx(1 / 20)
    assert fit_temperature(logits, torch.ones(4, dtype=torch.long)) == pytest.approx(20)


def test_temperature_minimises_the_loss():
    draw = torch.Generator().manual_seed(0)
    logits, labels = 5 * torch.randn(300, 7, generator=draw), torch.randint(0, 7, (300,), generator=draw)
    labels[:150] = logits[:150].argmax(dim=1)
    temperature = fit_temperature(logits, labels)
    at = {factor: calibration(logits / (temperature * factor), labels)["loss"] for factor in (0.98, 1, 1.02)}
    assert min(at, key=at.__getitem__) == 1


def test_mistakes_are_sorted_by_confidence():
    probabilities = torch.tensor([sure(0, 0.5), sure(1, 0.9), sure(2, 0.8), sure(3, 0.99)]).exp()
    assert confident_mistakes(np.array([6, 6, 6, 3]), probabilities.numpy()).tolist() == [1, 2, 0]


class ByCorner(torch.nn.Module):
    """Predict the class from the brightness of the upper left corner, in seven steps from black to white."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        step = (images[:, 0, :8, :8].mean(dim=(1, 2)) * 6.999).floor().clamp(0, 6).long()
        return 3 * torch.nn.functional.one_hot(step, 7).float()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Return 2 images of each class per split, with the label in the corner except for one test image."""
    folder = tmp_path_factory.mktemp("data")
    loaded = load_faces(write_zip(folder / "fer2013.zip", fake_faces()), cache_dir=folder / "cache")
    images = np.array(loaded.images)
    images[:, :8, :8] = ((loaded.labels + 0.5) * 255 / 7).astype(np.uint8)[:, None, None]
    test = np.flatnonzero(loaded.usage == TEST)
    images[test[0], :8, :8] = 255  # predicted as neutral
    images[test[1]] = images[np.flatnonzero((loaded.usage == TRAIN) & (loaded.labels == loaded.labels[test[1]]))[0]]
    return replace(loaded, images=images)


@pytest.fixture(scope="module")
def clf():
    return Classifier(ByCorner(), InputSpec(48, 0.0, 1.0), "cpu")


@pytest.fixture(scope="module")
def evaluation(faces, clf):
    net = build_model("fer_model0", 48, channels=[4, 4, 4])
    return evaluate(
        "corner", clf, faces, lambda line: None, against=("other", Classifier(net, InputSpec(48, 0, 1)))
    )


@pytest.fixture(scope="module")
def report(evaluation):
    return json.loads(json.dumps(to_json(evaluation), allow_nan=False))


def test_scores_of_known_predictions(faces, report):
    test = np.flatnonzero(faces.usage == TEST)
    label = EMOTIONS[faces.labels[test[0]]]
    assert (report["split"], report["n"], report["accuracy"]) == ("PrivateTest", 14, 13 / 14)
    assert report["accuracy_95"] == wilson_interval(13, 14)
    assert (report["n_leak_free"], report["accuracy_leak_free"]) == (13, 12 / 13)
    assert report["accuracy_leak_free_95"] == wilson_interval(12, 13)
    assert (report["n_strict"], report["accuracy_strict"]) == (13, 12 / 13)
    assert report["accuracy_strict_95"] == wilson_interval(12, 13)
    assert report["splits"]["PublicTest"]["accuracy"] == 1
    assert report["per_class"][label]["recall"] == 0.5
    assert report["per_class"]["neutral"] == pytest.approx(
        {"precision": 2 / 3, "recall": 1, "f1": 0.8, "n": 2, "average_precision": 2 / 3}
    )
    assert np.array(report["confusion"])[EMOTIONS.index(label), 6] == 1
    assert np.trace(report["confusion"]) == 13
    confidence = math.exp(3) / (math.exp(3) + 6)
    assert report["n_mistakes"] == 1
    assert report["mistakes"] == [
        {
            "id": faces.ids[test[0]],
            "label": label,
            "predicted": "neutral",
            "confidence": pytest.approx(confidence),
            "leak_free": True,
        }
    ]


def test_calibration_before_and_after(report):
    confidence = math.exp(3) / (math.exp(3) + 6)
    assert report["calibration"]["before"]["ece"] == pytest.approx(13 / 14 - confidence, abs=1e-6)
    assert report["calibration"]["fitted_on"] == "PublicTest"
    assert report["calibration"]["temperature"] == pytest.approx(1 / 20)  # all of PublicTest is right
    assert report["calibration"]["after"]["ece"] == pytest.approx(1 / 14, abs=1e-6)


def test_robustness_of_known_predictions(report):
    robustness = report["robustness"]
    assert {name: row["strengths"] for name, row in robustness.items()} == {
        name: list(corruption.strengths) for name, corruption in CORRUPTIONS.items()
    }
    # A step is 1/7 wide: 0.05 stays within it; 0.15 leaves it, except at the ends, where values are clipped.
    assert robustness["brightness"]["accuracy"][0] == 13 / 14
    assert robustness["brightness"]["accuracy"][2] < 0.5
    assert robustness["brightness"]["mean_accuracy"] == pytest.approx(np.mean(robustness["brightness"]["accuracy"]))
    every = [accuracy for row in robustness.values() for accuracy in row["accuracy"]]
    assert report["mean_corrupted_accuracy"] == pytest.approx(np.mean(every))


def test_comparison_counts_pairs(evaluation, report, faces):
    rows = faces.usage == TEST
    right = evaluation.other_predictions.logits.argmax(dim=1).numpy()[
        faces.usage[evaluation.other_predictions.index] == TEST
    ]
    right = right == faces.labels[rows]
    corner_right = np.array([i != 0 for i in range(14)])
    row = report["comparison"]["all"]
    assert report["comparison"]["against"] == "other"
    assert (row["only_this_right"], row["only_other_right"]) == (
        (corner_right & ~right).sum(),
        (right & ~corner_right).sum(),
    )
    assert row["p"] == mcnemar(row["only_this_right"], row["only_other_right"])
    assert report["comparison"]["leak_free"]["n"] == report["comparison"]["strict"]["n"] == 13


def test_text_fits_80_columns(report):
    report = report | {"source": "fer2013.zip", "with_own_tta": {"tta": "ten_crop", "splits": report["splits"]}}
    text = format_evaluation(report)
    assert max(len(line) for line in text.splitlines() if not line.startswith("note: ")) <= 80
    for expected in ("92.86% [68.5, 98.7]", "92.31% [66.7, 98.6]", "divided by 0.050", "neutral"):
        assert expected in text


def test_the_accuracy_with_own_views_stands_beside_that_with_none(faces):
    clf = Classifier(ByCorner(), InputSpec(48, 0.0, 1.0), "cpu", own_tta="mirror")
    lines: list[str] = []
    evaluation = evaluate("corner", clf, faces, lines.append)
    report = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert "corner: the same with tta=mirror, 2 views of each (--tta none leaves it out)" in lines
    assert (report["tta"], report["accuracy"], report["with_own_tta"]["tta"]) == ("none", 13 / 14, "mirror")
    mirrored = to_json(evaluate("corner", clf, faces, lambda line: None, "mirror"))
    assert (mirrored["tta"], mirrored["with_own_tta"]) == ("mirror", None)
    assert report["with_own_tta"]["splits"] == mirrored["splits"]
    assert mirrored["accuracy"] < 13 / 14  # the mirror image has another corner
    low, high = (100 * bound for bound in mirrored["accuracy_95"])
    row = f"92.86% [68.5, 98.7]  {mirrored['accuracy']:.2%} [{low:.1f}, {high:.1f}]"
    assert re.search(rf"PrivateTest +14 +{re.escape(row)}", format_evaluation(report))
    page = evaluation_page(evaluation, report)
    assert "tta=mirror [95%]" in page
    assert "the mean prediction for 2 views of each image" in page
    assert f"{mirrored['accuracy']:.2%} [{low:.1f}, {high:.1f}]" in page
    few = replace(faces, usage=np.where(faces.labels < 2, faces.usage, 0).astype(np.uint8))
    assert evaluate("corner", clf.restricted_to(EMOTIONS[::-1]), few, lambda line: None).own_tta == "mirror"
    alone = evaluate("corner", clf, faces, lambda line: None, "none")
    assert alone.own_predictions is to_json(alone)["with_own_tta"] is None


def test_page_is_self_contained_and_complete(evaluation, report, faces):
    text = evaluation_page(evaluation, report)
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", text) == []
    assert "<script" not in text
    for expected in ("Accuracy on PrivateTest: <b>92.86%</b> of 14 images", "McNemar", "Guo et al. 2017", "Wilson"):
        assert expected in text
    assert text.count('<img class="chart') == 4
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        for content in re.findall(r"data:image/png;base64,([^\"]+)", text)
    ]
    test = np.flatnonzero(faces.usage == TEST)
    np.testing.assert_array_equal(pictures[-1], faces.images[test[0]])  # the only mistake
    assert all(picture.shape == (48, 6 * 48) for picture in pictures[-8:-1])  # strips of corruptions


def test_missing_classes_have_no_average_precision(faces, clf):
    few = replace(faces, usage=np.where(faces.labels < 2, faces.usage, 0).astype(np.uint8))
    evaluation = evaluate("corner", clf, few, lambda line: None)
    report = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert report["per_class"]["fear"]["average_precision"] is None
    assert report["comparison"] is None
    assert "-" in format_evaluation(report)
    assert "Comparison" not in evaluation_page(evaluation, report)


@pytest.mark.parametrize(
    ("val_split", "expected"),
    [
        (None, None),
        ("validation", None),
        ("PublicTest", "selected on PublicTest have optimistic scores"),
        ("PublicTest+PrivateTest", "selected on PublicTest+PrivateTest have optimistic scores"),
    ],
)
def test_selection_on_a_held_out_split_is_noted(faces, val_split, expected):
    clf = Classifier(ByCorner(), InputSpec(48, 0.0, 1.0), "cpu", val_split)
    report = to_json(evaluate("corner", clf, faces, lambda line: None))
    assert report["val_split"] == val_split
    assert [expected in note for note in report["notes"] if "selected" in note] == [True] * (expected is not None)
    assert format_evaluation(report).count("note: weights selected") == (expected is not None)
    others = to_json(evaluate("corner", clf, replace(faces, dataset="folder"), lambda line: None))
    assert not any("selected" in note for note in others["notes"])  # a different split of the same name


def test_no_temperature_without_a_validation_split(faces, clf):
    evaluation = evaluate(
        "corner", clf, replace(faces, usage=np.where(faces.usage == VAL, 0, faces.usage)), lambda _: None
    )
    report = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert (report["calibration"]["temperature"], report["calibration"]["after"]) == (None, None)
    assert "No validation split" in format_evaluation(report)
    assert "No validation split" in evaluation_page(evaluation, report)
    with pytest.raises(UserError, match="no test images"):
        evaluate("corner", clf, replace(faces, usage=np.zeros_like(faces.usage)), lambda line: None)


# The command


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = build_model("fer_model0", 48, channels=[4, 4, 4])
    ours = {
        "image_size": 48,
        "mean": 0.5,
        "std": 0.5,
        "classes": EMOTIONS,
        "model": {"name": "fer_model0", "channels": [4, 4, 4]},
    }
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 0, "global_step": 1, "fer_lightning": ours, "state_dict": weights}, "a.ckpt")
    return "a.ckpt"


def test_command_writes_the_requested_files(checkpoint, capsys):
    write_folder(Path("faces"), without_prefixes(fake_faces((20, 0, 0)), split_folders=False))
    command = ["evaluate", checkpoint, "--data", "faces", "--report", "a.html", "--json", "to/a.json"]
    assert main([*command, "--against", checkpoint, "--tta", "mirror"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("written: a.html\nwritten: to/a.json\n")
    assert "note: No split is named, so all 140 images are tested" in out
    assert len([line for line in err.splitlines() if line.split(":")[0] in CORRUPTIONS]) == 7
    report = json.loads(Path("to/a.json").read_text())
    assert (report["network"], report["dataset"], report["split"], report["tta"]) == (
        checkpoint,
        "folder",
        "test",
        "mirror",
    )
    assert report["comparison"]["all"] == {
        "n": 140,
        "both_right": round(report["accuracy"] * 140),
        "only_this_right": 0,
        "only_other_right": 0,
        "p": 1.0,
    }
    assert Path("a.html").read_text().startswith("<!doctype html>")


def test_the_faces_of_the_demo_can_be_evaluated(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("fer_lightning.data.synthetic.synthetic_faces", lambda: synthetic_faces(70, 14, 21))
    assert main(["evaluate", checkpoint, "--data", "synthetic", "--json", "a.json"]) == 0
    report = json.loads(Path("a.json").read_text())
    assert (report["dataset"], report["split"], report["n"]) == ("synthetic", "test", 21)
    # The demo's sizes, so that a run of experiment=demo and evaluate agree.
    source = yaml.safe_load((CONF_DIR / "data" / "synthetic.yaml").read_text())["source"]
    defaults = inspect.signature(synthetic_faces).parameters
    assert {name: defaults[name].default for name in ("n_train", "n_val", "n_test", "seed")} == {
        name: source[name] for name in ("n_train", "n_val", "n_test", "seed")
    }


def test_a_run_that_is_tested_with_views_is_evaluated_with_them_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["data.n_train=28", "data.n_val=7", "data.n_test=14", "trainer.max_epochs=1", "model.channels=[4,8]"]
    quiet = ["callbacks=none", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    assert main(["train", "name=a", "data=synthetic", "tta=mirror", *small, *quiet]) == 0
    monkeypatch.setattr("fer_lightning.data.synthetic.synthetic_faces", lambda: synthetic_faces(28, 7, 14))
    command = ["evaluate", "runs/default/a", "--data", "synthetic", "--json", "a.json"]
    assert main([*command, "--device", "cpu"]) == 0
    assert "tta=mirror [95%]" in capsys.readouterr().out
    results, report = (
        json.loads(Path("runs/default/a/results.json").read_text()),
        json.loads(Path("a.json").read_text()),
    )
    assert report["tta"] == "none"
    own = report["with_own_tta"]["splits"]["test"]
    assert own["n"] == results["n"] == 14
    assert (own["accuracy"], own["loss"]) == pytest.approx((results["accuracy"], results["loss"]), rel=1e-4)
    assert main([*command, "--tta", "none"]) == 0
    assert "tta=mirror" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.ckpt"], "ckpt=nowhere.ckpt cannot be read: No such file"),
        (["a.ckpt", "--ckpt", "b.ckpt"], "CKPT: not allowed with --ckpt or --model"),
        (["a.ckpt", "--model", "tiny"], "CKPT: not allowed with --ckpt or --model"),
        (["a.ckpt", "--tta", "miror"], "tta=miror does not exist. Did you mean mirror?"),
        (["a.ckpt", "--tta", ""], "tta= does not exist."),
        (["a.ckpt", "--against", "nowhere.ckpt"], "ckpt=nowhere.ckpt cannot be read"),
        (["--ckpt", "a.ckpt"], "FER-2013 was not found"),
        (
            ["a.ckpt", "--data", "synthetic", "--skip-bad"],
            "--data synthetic: the classes of drawn faces are fixed.",
        ),
        (["a.ckpt"], "FER-2013 was not found"),
    ],
)
def test_invalid_arguments_are_reported(arguments, expected, checkpoint, capsys):
    assert main(["evaluate", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
