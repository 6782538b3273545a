"""Shipped networks: small, loadable by name, and exactly as accurate as their card states."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import ship_weights
import torch
from fake_networks import ByHalf

import fer_lightning
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.faces import TEST, TRAIN, VAL
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.errors import UserError
from fer_lightning.evaluation.evaluate import held_out_predictions
from fer_lightning.evaluation.scores import score_splits
from fer_lightning.inference.classifier import WEIGHTS, Classifier, pretrained_names
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import VIEWS

DATA = {"n_train": 28, "n_val": 7, "n_test": 14}
MEBIBYTES = 2**20


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(ship_weights, "WEIGHTS", tmp_path)
    data = ("data=synthetic", *(f"data.{key}={n}" for key, n in DATA.items()))
    options = ("trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none")
    assert main(job, ["name=a", "model.channels=[4,8]", *options, *data]) == 0
    return tmp_path / "runs/default/a"


def test_shipping_the_network_of_a_run(run_dir, tmp_path):
    faces = synthetic_faces(**DATA)
    shipped = ship_weights.ship(run_dir, "mine", faces)
    assert json.loads((tmp_path / "mine.json").read_text()) == shipped
    content = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert "optimizer_states" not in content
    for name, tensor in content["state_dict"].items():
        expected = torch.float16 if tensor.ndim > 1 else torch.int64 if "num_batches" in name else torch.float32
        assert tensor.dtype == expected, name
    clf = fer_lightning.load_checkpoint(tmp_path / "mine.pt", "cpu")
    accuracy = (clf.predict(faces.images[-14:], tta="mirror").labels == faces.labels[-14:]).mean()
    assert shipped["tta"]["mirror"]["test"]["accuracy"] == pytest.approx(accuracy)
    assert shipped["parameters"] == sum(p.numel() for p in clf.net.parameters())


@pytest.mark.parametrize(
    ("brighter_left", "labels", "own_tta"),
    [
        ({VAL: False, TEST: True}, {VAL: 0, TEST: 1}, "mirror"),
        ({VAL: False, TEST: False}, {VAL: 1, TEST: 0}, "none"),  # the test split, which prefers mirror, has no say
        ({VAL: True, TEST: True}, {VAL: 0, TEST: 0}, "none"),  # of equal ones, the first
    ],
)
def test_the_validation_split_chooses_a_networks_own_views(brighter_left, labels, own_tta):
    drawn = synthetic_faces(**DATA)
    images, truth = np.zeros_like(drawn.images), np.array(drawn.labels)
    for usage, left in brighter_left.items():
        images[drawn.usage == usage, :, slice(0, 24) if left else slice(24, 48)] = 200
        truth[drawn.usage == usage] = labels[usage]
    faces = replace(drawn, images=images, labels=truth)
    clf = Classifier(ByHalf(), InputSpec(48, 0.5, 0.5), "cpu")
    assert ship_weights.card(clf, faces)["own_tta"] == own_tta


def test_weights_name_the_views_of_their_card_and_are_not_written_before_it(run_dir, tmp_path, monkeypatch):
    def failing(clf, faces):
        raise UserError("no scores")

    monkeypatch.setattr(ship_weights, "card", failing)
    with pytest.raises(UserError, match="no scores"):
        ship_weights.ship(run_dir, "mine", synthetic_faces(**DATA))
    assert not (tmp_path / "mine.pt").exists()
    monkeypatch.setattr(ship_weights, "card", lambda clf, faces: {"own_tta": "zooms"})
    ship_weights.ship(run_dir, "mine", synthetic_faces(**DATA))
    assert fer_lightning.load_checkpoint(tmp_path / "mine.pt", "cpu").own_tta == "zooms"


def test_without_a_validation_split_a_network_has_one_view(run_dir):
    faces = synthetic_faces(**DATA)
    faces = replace(faces, usage=np.where(faces.usage == VAL, TRAIN, faces.usage).astype(np.uint8))
    assert ship_weights.ship(run_dir, "mine", faces)["own_tta"] == "none"


def test_the_command_prints_the_scores_of_the_network(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fer_lightning.data.fer2013.load_faces", lambda *_, **__: synthetic_faces(**DATA))
    assert ship_weights.main([str(run_dir), "mine"]) == 0
    assert re.search(r"tta=shifts: validation [\d.]+%, test [\d.]+%", capsys.readouterr().out)
    assert ship_weights.main([str(tmp_path / "nowhere"), "mine"]) == 1
    assert "best.ckpt cannot be read: No such file or directory" in capsys.readouterr().err


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match=r"unknown pretrained network 'bets'\. Did you mean best"):
        fer_lightning.load_pretrained("bets")


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 12 * MEBIBYTES
    assert "best" in pretrained_names()


@pytest.mark.parametrize("name", pretrained_names())
def test_a_shipped_network_predicts(name):
    clf = fer_lightning.load_pretrained(name, device="cpu")
    predictions = clf.predict(np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8))
    assert predictions.probabilities.shape == (3, len(clf.classes))
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-5)
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in clf.net.parameters())
    public = {tta: scores["PublicTest"]["accuracy"] for tta, scores in card["tta"].items()}
    assert list(public) == list(VIEWS)
    assert card["own_tta"] == clf.own_tta == max(public, key=public.__getitem__)


@pytest.mark.parametrize("name", pretrained_names())
def test_a_shipped_network_scores_what_its_card_states(name, real_data, request):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    labels = card.get("labels", "fer2013")
    votes = request.getfixturevalue("real_votes") if labels == "ferplus" else None
    faces = load_faces(real_data, labels=labels, ferplus=votes)
    clf = fer_lightning.load_pretrained(name, device="cpu")
    for tta in ("none", "mirror"):
        scores = score_splits(held_out_predictions(clf, faces, tta), faces)["PrivateTest"]
        noted = card["tta"][tta]["PrivateTest"]
        for key in ("n", "accuracy", "n_leak_free", "accuracy_leak_free", "n_strict", "accuracy_strict"):
            assert scores[key] == noted[key], (tta, key)
