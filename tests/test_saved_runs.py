"""A sweep, its runs and its checkpoints from version 0.1.0, before the package was restructured, still work.

``saved/sweep_0_1_0.zip`` contains the output of this command, killed in the second epoch of its second run::

    python train.py -m data=synthetic data.n_train=112 data.n_val=28 data.n_test=28 data.image_size=16 \\
        data.batch_size=8 model.channels=[4,4] optim=adamw optim.schedule=cosine callbacks=ema \\
        label_smoothing=0.1 trainer.max_epochs=4 trainer.accelerator=cpu trainer.precision=32-true seed=0,1 name=old

without figures and event files, and without last.ckpt of the finished run.
"""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import results_of

import fer_lightning
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.faces import TEST
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS

SAVED = Path(__file__).resolve().parent / "saved" / "sweep_0_1_0.zip"
OLD = Path("runs/default/old")

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(autouse=True)
def _unpacked(own_folder):
    OLD.mkdir(parents=True)
    shutil.unpack_archive(SAVED, OLD)


def settings(run_dir):
    """Return the settings of the command that started a run."""
    return shlex.split((run_dir / "command.txt").read_text())[2:]


def test_an_old_sweep_is_resumed(capsys):
    before = results_of(OLD / "0")
    swept = [setting for setting in settings(OLD / "1") if not setting.startswith("seed=")]
    assert main(job, ["-m", *swept, "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert "job 0: already finished, skipped" in out
    assert "resumed:  from last.ckpt, after step 14\n" in out
    assert results_of(OLD / "0") == before
    resumed = results_of(OLD / "1")
    assert (resumed["status"], resumed["seed"], len(resumed["history"])) == ("finished", 1, 4)
    assert f"{resumed['history'][0]['train_loss']:.4f}" == "2.0606"  # the value printed by version 0.1.0


def test_an_old_run_is_resumed_with_changed_settings(capsys):
    run_dir = OLD / "1"
    assert main(job, [f"resume={run_dir}", "data.eval_batch_size=7", "trainer.max_epochs=3"]) == 0
    assert "resumed:  from last.ckpt, after step 14\n" in capsys.readouterr().out
    assert len(results_of(run_dir)["history"]) == 3


def test_an_old_checkpoint_gives_the_same_scores():
    before, best = results_of(OLD / "0"), OLD / "0" / "checkpoints" / "best.ckpt"
    faces = synthetic_faces(n_train=112, n_val=28, n_test=28, seed=0)
    tested = faces.usage == TEST
    prediction = fer_lightning.load_checkpoint(best, "cpu").predict(faces.images[tested])
    assert np.mean(prediction.labels == faces.labels[tested]) == before["accuracy"]

    own = [
        text for text in settings(OLD / "0") if text.partition("=")[0] not in ("optim", "name", "optim.schedule")
    ]
    assert main(job, [*own, "stages=[test]", f"ckpt={best}", "name=test"]) == 0
    after = results_of("runs/default/test")
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert after["accuracy"] == before["accuracy"]
    assert (after["val_split"], after["parameters"]) == ("validation", before["parameters"])


def form(content):
    """Return the structure of a JSON value: ordered keys, strings, and the types of numbers."""
    if isinstance(content, dict):
        return [(key, form(value)) for key, value in content.items()]
    if isinstance(content, list):
        return [form(value) for value in content]
    return content if isinstance(content, str | bool | None) else type(content).__name__


def test_results_json_keeps_its_structure_and_numbers():
    before = results_of(OLD / "0")
    own = [text for text in settings(OLD / "0") if text != "name=old"]
    assert main(job, [*own, "name=new"]) == 0
    after = results_of("runs/default/new")
    assert after["command"] == before["command"].replace("name=old", "name=new")
    assert after["versions"].pop("fer-lightning") == fer_lightning.__version__  # version 0.1.0 did not record it
    assert (after.pop("classes"), after.pop("labels")) == (list(EMOTIONS), "fer2013")  # nor these
    assert (after.pop("ckpt"), after.pop("tags"), after.pop("start")) == ([], [], None)
    for scores in (after, *after["splits"].values(), *after["last_epoch"].values()):
        assert scores.pop("accuracy_strict") is not None
        assert 0 < scores.pop("n_strict") <= scores["n_leak_free"]
    for results in (before, after):  # these depend on the command, machine and time
        results |= {"command": None, "git_commit": None, "hardware": None, "versions": list(results["versions"])}
    assert form(after) == form(before)
    for one, other in zip(before["history"], after["history"], strict=True):
        assert other == pytest.approx(one | {"seconds": other["seconds"]}, rel=1e-3)
    assert after["splits"]["test"]["loss"] == pytest.approx(before["splits"]["test"]["loss"], rel=1e-3)
