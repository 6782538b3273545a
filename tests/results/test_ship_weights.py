"""Shipped networks: small, loadable by name, and exactly as accurate as their card states."""

import json
import re
import sys

import numpy as np
import pytest
import ship_weights
import torch

import fer_lightning
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
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
    chosen = {tta: scores["validation"]["accuracy"] for tta, scores in shipped["tta"].items()}
    assert list(chosen) == list(VIEWS)
    assert shipped["own_tta"] == clf.own_tta
    assert chosen[clf.own_tta] == max(chosen.values())


def test_of_equal_views_the_first_is_a_networks_own():
    class Constant(torch.nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 7)

    clf = Classifier(Constant(), InputSpec(48, 0.5, 0.5), "cpu")
    assert ship_weights.card(clf, synthetic_faces(**DATA))["own_tta"] == "none"


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
