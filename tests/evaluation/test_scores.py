"""Scores checked by hand, and the tables of results.json."""

import math

import numpy as np
import pytest
import torch

from fer_lightning.data.faces import GENERIC_SPLITS, TEST, TRAIN, Faces
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS, colours, emotion_index
from fer_lightning.evaluation.report import format_results
from fer_lightning.evaluation.scores import Predictions, score, score_classes, score_splits


def one_hot(predicted, logit=4.0):
    return torch.nn.functional.one_hot(torch.tensor(predicted), 7).float() * logit


def test_score_by_hand():
    labels = torch.tensor([0, 0, 3, 3])
    scores = score(one_hot([0, 3, 3, 3]), labels)
    assert scores["n"] == 4
    assert scores["accuracy"] == 0.75
    # Two classes occur: F1 of angry 2/3, of happy 4/5.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    log_sum = math.log(math.exp(4) + 6)
    assert scores["loss"] == pytest.approx((3 * (log_sum - 4) + log_sum) / 4)
    assert score(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))["accuracy"] is None


def test_score_classes_by_hand():
    classes = score_classes(one_hot([0, 3, 3, 3]), torch.tensor([0, 0, 3, 3]), EMOTIONS)
    assert list(classes) == list(EMOTIONS)
    assert classes["angry"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "n": 2})
    assert classes["happy"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "n": 2})
    assert classes["fear"]["n"] == 0


def test_class_order_is_canonical():
    assert [
        emotion_index(name) for name in ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    ] == [*range(7)]
    assert [emotion_index(name) for name in ("Anger", " HAPPY ", "sadness", "surprised")] == [0, 3, 4, 5]
    assert emotion_index("contempt") is None
    assert len(set(colours((*EMOTIONS, "contempt")))) == 8
    assert colours(("joy", "x")) == [colours(EMOTIONS)[3], colours(EMOTIONS)[1]]


def some_results(accuracy=0.6138, **more):
    of_split = {
        "n": 7178,
        "accuracy": accuracy,
        "macro_f1": 0.5,
        "loss": 1.0379,
        "accuracy_leak_free": 0.61,
        "n_leak_free": 6610,
        "accuracy_strict": 0.59,
        "n_strict": 5300,
    }
    splits = dict.fromkeys(("PublicTest", "PrivateTest", "PublicTest+PrivateTest"), of_split)
    return {
        "status": "finished",
        "stages": ["fit", "test"],
        "command": "python train.py a=1",
        "dataset": "FER-2013",
        "split": "PublicTest+PrivateTest",
        "val_split": "PublicTest",
        **of_split,
        "splits": splits,
        "tta": "none",
        "without_tta": None,
        "members": None,
        "last_epoch": splits,
        "best_epoch": 19,
        "per_class": {name: {"precision": 0.5, "recall": 1.0, "f1": 0.66, "n": 111} for name in EMOTIONS},
        "train_seconds": 12.3,
        "history": [{"epoch": 0, "val_accuracy": accuracy / 2}, {"epoch": 1, "val_accuracy": accuracy}],
        **more,
    }


def test_final_tables_fit_80_columns_and_name_every_split():
    text = format_results(some_results())
    assert max(map(len, text.splitlines())) <= 80
    for expected in (
        "PublicTest+PrivateTest (last)",
        "61.38%",
        "61.00%",
        "59.00%",
        "surprise",
        "(n = 7178): 61.38%",
    ):
        assert expected in text
    assert ["PublicTest", "7178", "6610", "5300"] in [line.split() for line in text.splitlines()]
    text = format_results(some_results(tta="ten_crop", without_tta=some_results(0.6)["splits"]))
    assert text.endswith("61.38%, tta=ten_crop\n60.00% with tta=none")
    assert max(map(len, text.splitlines())) <= 80


def test_final_tables_have_a_row_per_ensemble_member():
    paths = [
        f"runs/best/{name}/checkpoints/best.ckpt" for name in ("seed0", "seed1", "with-a-name-beyond-27-letters")
    ]
    members = [
        {"ckpt": path, "splits": some_results(accuracy)["splits"]}
        for path, accuracy in zip(paths, (0.7, 0.71, 0.72), strict=True)
    ]
    text = format_results(some_results(0.74, members=members, best_epoch=None, last_epoch=None, stages=["test"]))
    _, _, table, *_, headline = text.split("\n\n")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [(row[:-5], row[-5]) for row in rows] == [
        (["1", "seed0"], "70.00%"),
        (["2", "seed1"], "71.00%"),
        (["3", "th-a-name-beyond-27-letters"], "72.00%"),
        (["ensemble"], "74.00%"),
    ]
    assert "PrivateTest (ckpts)" in text
    assert headline.endswith("74.00%, ensemble of 3")
    assert max(map(len, text.splitlines())) <= 80


def test_untested_split_has_no_scores():
    empty = torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)
    assert score(*empty) == {"n": 0, "accuracy": None, "macro_f1": None, "loss": None}
    for scores in score_classes(*empty, EMOTIONS).values():
        assert scores == {"precision": None, "recall": None, "f1": None, "n": 0}


def test_strict_scores_leave_out_near_copies_in_other_splits():
    images = synthetic_faces(n_train=3, n_val=0, n_test=0).images
    mirrored = images[1, :, ::-1]
    faces = Faces(
        images=np.stack([images[0], images[1], images[0], mirrored, images[2]]),
        labels=np.array([0, 1, 0, 1, 2]),
        usage=np.array([TRAIN, TRAIN, TEST, TEST, TEST], np.uint8),
        ids=list("abcde"),
        dataset="folder",
        source="here",
        fingerprint="",
        split_names=GENERIC_SPLITS,
    )
    logits = torch.eye(7)[[0, 0, 2]]  # right on the copy, wrong on the mirrored one, right on the last
    scores = score_splits(Predictions(torch.tensor([2, 3, 4]), logits, torch.tensor([0, 1, 2])), faces)["test"]
    assert (scores["n"], scores["accuracy"]) == (3, pytest.approx(2 / 3))
    assert (scores["n_leak_free"], scores["accuracy_leak_free"]) == (2, 0.5)
    assert (scores["n_strict"], scores["accuracy_strict"]) == (1, 1.0)
