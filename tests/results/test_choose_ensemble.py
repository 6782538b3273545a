"""The choice of an ensemble's members and views on PublicTest."""

import json
import shlex
from pathlib import Path

import choose_ensemble
import pytest
import torch
from fake_fer2013 import fake_faces, write_zip
from project import SMALL

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.evaluation.scores import Predictions
from fer_lightning.models.tta import VIEWS


def sure(*labels, share):
    """Return log-probabilities of three classes: `share` for each label and the rest for the class after it."""
    return torch.stack(
        [share * torch.eye(3)[label] + (1 - share) * torch.eye(3)[(label + 1) % 3] for label in labels]
    ).log()


def test_every_subset_is_scored_with_every_set_of_views():
    logits = {
        "a": dict.fromkeys(VIEWS, sure(0, 1, 0, 0, share=0.6)),
        "b": dict.fromkeys(VIEWS, sure(1, 1, 2, 2, share=0.9)),
        "c": dict.fromkeys(VIEWS, sure(1, 0, 0, 0, share=1.0)),
    }
    logits["a"]["shifts"] = torch.cat([sure(0, share=0.9), sure(1, 0, 0, share=0.6)])
    logits["b"]["shifts"] = torch.cat([sure(1, share=0.6), sure(1, 2, 2, share=0.9)])
    index, labels = torch.arange(4), torch.tensor([0, 1, 2, 2])
    members = {
        ckpt: {tta: Predictions(index, values, labels) for tta, values in sets.items()}
        for ckpt, sets in logits.items()
    }
    ranking = choose_ensemble.rank(members)
    assert len(ranking) == (2**3 - 1) * len(VIEWS)
    accuracy = {(*row["ckpt"], row["tta"]): row["accuracy"] for row in ranking}
    assert (accuracy["a", "none"], accuracy["b", "none"], accuracy["c", "none"]) == (0.5, 0.75, 0)
    assert (accuracy["a", "b", "none"], accuracy["a", "b", "c", "none"]) == (0.75, 0.25)
    # The mean of probabilities, not a vote: b is less sure of its only mistake than a is of the truth.
    assert ranking[0] == {"ckpt": ["a", "b"], "tta": "shifts", "accuracy": 1.0}
    # Of equals, the one with fewer members, then the first of VIEWS.
    assert ranking[1] == {"ckpt": ["b"], "tta": "none", "accuracy": 0.75}
    assert [row["accuracy"] for row in ranking] == sorted(accuracy.values(), reverse=True)


@pytest.mark.usefixtures("own_folder")
def test_networks_are_scored_as_in_their_training(tmp_path, capsys):
    data = str(write_zip(tmp_path / "fer2013.zip", fake_faces((6, 5, 1))))
    settings = [setting for setting in SMALL if not setting.startswith("data")]
    settings += [
        "data=fer2013",
        f"data.path={data}",
        "data.batch_size=16",
        "data.image_size=24",
        "trainer.max_epochs=1",
    ]
    assert main(job, [*settings, "-m", "name=s", "seed=0,1", "stages=[fit]"]) == 0
    ckpts = [f"runs/default/s/{seed}/checkpoints/best.ckpt" for seed in (0, 1)]
    assert choose_ensemble.main([*ckpts, ckpts[0], "--data", data, "--out", "new/choice.json"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    report = json.loads(Path("new/choice.json").read_text())
    assert (report["split"], report["n"]) == ("PublicTest", 35)
    alone = {row["ckpt"][0]: row["accuracy"] for row in report["alone"] if row["tta"] == "none"}
    histories = [json.loads((Path(ckpt).parents[1] / "results.json").read_text())["history"] for ckpt in ckpts]
    expected = {ckpt: epoch["val_accuracy"] for ckpt, [epoch] in zip(ckpts, histories, strict=True)}
    assert alone == pytest.approx(expected)
    # The printed command tests the chosen members.
    assert command[:2] == ["python", "train.py"]
    assert main(job, [*command[2:], "name=e", "trainer.accelerator=cpu", "logger=none"]) == 0
    results = json.loads(Path("runs/default/e/results.json").read_text())
    chosen = report["chosen"]
    names = results["ckpt"] if isinstance(results["ckpt"], list) else [results["ckpt"]]
    assert (names, results["tta"]) == (chosen["ckpt"], chosen["tta"])
    assert results["splits"]["PublicTest"]["accuracy"] == pytest.approx(chosen["accuracy"])


@pytest.mark.usefixtures("own_folder")
def test_a_network_of_other_data_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choose_ensemble, "predict", None)
    assert main(job, [*SMALL, "name=s", "stages=[fit]", "trainer.max_epochs=1"]) == 0
    data = write_zip(tmp_path / "fer2013.zip", fake_faces())
    ckpt = "runs/default/s/checkpoints/best.ckpt"
    assert choose_ensemble.main([ckpt, "--data", str(data), "--out", "choice.json"]) == 1
    assert f"error: {ckpt} was trained on other data or another split" in capsys.readouterr().err
    assert choose_ensemble.main([ckpt, "missing.ckpt", "--data", str(data), "--out", "choice.json"]) == 1
    assert "missing.ckpt" in capsys.readouterr().err
    assert not Path("choice.json").exists()
