"""Small but complete runs of train.py: their files, how they resume and how they stop."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_fer2013 import fake_faces, write_ferplus_folders, write_zip
from faults import results_of, run
from project import ROOT, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_lightning.__main__ import main as command
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.config.compose import CONF_DIR
from fer_lightning.data.augment import normalise, resize
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.faces import TEST
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.data.votes import COLUMNS
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.experiment.plan import input_settings
from fer_lightning.inference.classifier import WEIGHTS
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.training.module import EmotionClassifier, classifier_from

pytestmark = pytest.mark.usefixtures("own_folder")


def weights_of(folder, name="last.ckpt"):
    return read_checkpoint(Path(folder) / "checkpoints" / name).state_dict


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_files_and_results_of_a_run(capsys):
    run("name=first", "trainer.max_epochs=2", "experiment=demo", "callbacks=default", "logger=tensorboard")
    folder = Path("runs/demo/first")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert files - events - {"hparams.yaml"} == {
        ".lock",
        "config.yaml",
        "command.txt",
        "results.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/predictions_val.png",
        "figures/training_faces.png",
        "figures/predictions_test.png",
        "figures/most_confident_mistakes.png",
        "figures/confusion_val.png",
        "figures/confusion_test.png",
    }
    assert "max_epochs: 2" in (folder / "config.yaml").read_text()
    assert (folder / "command.txt").read_text().startswith("python train.py ")

    results = results_of(folder)
    assert results["status"] == "finished"
    assert (results["experiment"], results["dataset"], results["split"], results["n"]) == (
        "demo",
        "synthetic",
        "test",
        14,
    )
    assert set(results["per_class"]) == set(EMOTIONS)
    assert {name: scores["n"] for name, scores in results["splits"].items()} == {
        "validation": 21,
        "test": 14,
        "validation+test": 35,
    }
    assert results["accuracy"] == results["splits"]["test"]["accuracy"]
    assert results["last_epoch"].keys() == results["splits"].keys()
    assert [epoch["epoch"] for epoch in results["history"]] == [0, 1]
    best = max(results["history"], key=lambda epoch: epoch["val_accuracy"])
    assert results["splits"]["validation"]["accuracy"] == pytest.approx(best["val_accuracy"])
    assert results["last_epoch"]["validation"]["accuracy"] == pytest.approx(results["history"][-1]["val_accuracy"])
    assert results["best_epoch"] == read_checkpoint(folder / "checkpoints/best.ckpt").epoch
    assert results["parameters"] == sum(
        p.numel() for p in classifier_from(read_checkpoint(folder / "checkpoints/best.ckpt")).net.parameters()
    )
    assert results["total_seconds"] > results["train_seconds"] > 0
    out = capsys.readouterr().out
    assert max(map(len, out.split("\n\n", 1)[1].splitlines())) <= 80
    assert f"test (n = 14): {results['accuracy']:.2%}" in out

    shown = EventAccumulator(str(folder)).Reload().Tags()
    assert {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "recall/happy", "lr"} <= set(
        shown["scalars"]
    )
    assert {"accuracy/test", "accuracy/best_val"} <= set(shown["scalars"])
    assert {"predictions/grid", "scores/confusion_val", "scores/confusion_test"} <= set(shown["images"])


def test_the_seed_determines_the_result():
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(f"name={name}", f"seed={seed}", "trainer.max_epochs=1")
    assert same_weights(weights_of("runs/default/a"), weights_of("runs/default/b"))
    assert not same_weights(weights_of("runs/default/a"), weights_of("runs/default/c"))
    assert results_of("runs/default/a")["accuracy"] == results_of("runs/default/b")["accuracy"]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one():
    """A separate process gets SIGTERM in the middle of an epoch, as from a scheduler."""
    arguments = [*SMALL, "data.n_train=1400", "logger=tensorboard"]
    assert main(job, [*arguments, "name=never"]) == 0
    folder = Path("runs/default/stopped")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "name=stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        while not (folder / "checkpoints/last.ckpt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    stopped = results_of(folder)
    assert stopped["status"] == "interrupted"
    assert 1 <= len(stopped["history"]) < 3

    assert main(job, [f"resume={folder}"]) == 0
    finished, never = results_of(folder), results_of("runs/default/never")
    assert finished["status"] == "finished"
    assert same_weights(weights_of(folder), weights_of("runs/default/never"))
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "epoch"):
        assert [epoch[key] for epoch in finished["history"]] == [epoch[key] for epoch in never["history"]]
    assert (finished["accuracy"], finished["best_epoch"]) == (never["accuracy"], never["best_epoch"])
    # No epoch appears twice in TensorBoard. The last point before the stop may be missing, because Lightning writes
    # it after the checkpoint, and the signal can arrive in between; results.json has it.
    steps = [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss/train")]
    assert steps in ([0, 1, 2], [1, 2], [0, 2])


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer.max_epochs=-1", "trainer.max_steps=6"],
        ["trainer.limit_val_batches=0", "trainer.max_epochs=1"],
        ["trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
        ["trainer.fast_dev_run=true"],
        ["trainer.fast_dev_run=true", "callbacks=projector"],
        ["trainer.logger=false", "trainer.max_epochs=1"],
    ],
)
def test_unusual_arguments_of_the_trainer(arguments):
    run("name=a", "logger=tensorboard", *arguments)
    assert results_of("runs/default/a")["status"] == "finished"


def test_more_batches_between_validations_than_an_epoch_has(capsys):
    run("name=a", "trainer.val_check_interval=5000", code=1)
    error = capsys.readouterr().err
    assert "`val_check_interval` (5000)" in error
    assert "training batches (7)" in error
    assert "Traceback" not in error
    assert results_of("runs/default/a")["status"] == "failed"


def test_a_value_error_in_our_own_code_is_not_a_user_error(monkeypatch):
    def broken(self):
        raise ValueError("a bug")

    monkeypatch.setattr(FaceDataModule, "train_dataloader", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("name=a")
    assert results_of("runs/default/a")["error"] == "ValueError: a bug"


def test_resume_can_raise_the_number_of_epochs(trained):
    trained()
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0
    assert [epoch["epoch"] for epoch in results_of("runs/default/a")["history"]] == [0, 1]


def test_a_run_older_than_a_setting_gets_its_default(trained):
    trained("stages=[fit]")
    path = Path("runs/default/a/config.yaml")
    settings = path.read_text()
    newer = "checkpoint:\n  every_n_minutes: null\n"
    assert newer in settings
    path.write_text(settings.replace(newer, ""))
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0
    assert len(results_of("runs/default/a")["history"]) == 2


def test_a_moved_run_keeps_its_best_epoch(trained, monkeypatch):
    trained("stages=[fit]")
    moved = Path("elsewhere").resolve() / "b"
    moved.parent.mkdir()
    Path("runs/default/a").rename(moved)
    log = EmotionClassifier.log_at_epoch

    def worse(self, metrics):
        log(self, {**metrics, "accuracy/val": -1.0} if "accuracy/val" in metrics else metrics)

    monkeypatch.setattr(EmotionClassifier, "log_at_epoch", worse)
    assert main(job, [f"resume={moved}", "trainer.max_epochs=2", "stages=[fit,test]"]) == 0
    results = results_of(moved)
    assert [epoch["epoch"] for epoch in results["history"]] == [0, 1]
    assert results["best_epoch"] == 0
    states = torch.load(moved / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert str(Path("runs/default/a")) not in str(states)
    # The state has the key of Lightning's ModelCheckpoint, so that runs that used that class can be resumed.
    assert sum(key.startswith("ModelCheckpoint{") for key in states) == 2


@pytest.mark.parametrize(
    "argument",
    ["model=fer_model0", "trainer.max_epoch=3", "data.batch_size=x", "~callbacks", "trainer.max_epochs=2,3"],
)
def test_resume_refuses_what_it_cannot_change(trained, argument, capsys):
    trained("stages=[fit]")
    assert main(job, ["resume=runs/default/a", argument]) == 1
    assert argument.split("=")[0].removeprefix("~") in capsys.readouterr().err


UNNAMED = [setting for setting in SMALL if not setting.startswith(("model.", "data.image_size"))]


def test_a_test_only_run_uses_the_network_and_input_of_the_checkpoint(capsys):
    run("name=a", "trainer.max_epochs=1", "data.image_size=32", "model.channels=[3,5]")
    ckpt = "runs/default/a/checkpoints/best.ckpt"
    assert main(job, [*UNNAMED, "name=again", "stages=[test]", f"ckpt={ckpt}"]) == 0
    first, again = results_of("runs/default/a"), results_of("runs/default/again")
    assert (first["ckpt"], again["ckpt"]) == ([], [ckpt])
    for key in ("accuracy", "loss", "per_class", "splits", "parameters"):
        assert first[key] == again[key]
    assert again["history"] == []
    out = capsys.readouterr().out
    assert "32x32 px" in out
    assert "selected on validation (by the checkpoint's own run), tested on test\n" in out
    assert "optimistic" not in out


def test_a_fit_from_a_checkpoint_has_its_network_and_input_whatever_the_experiment_says(capsys):
    arguments = ["experiment=best_cpu", *UNNAMED, "trainer.max_epochs=1", "ckpt=tiny", "optim.lr=1e-9", "tta=none"]
    assert main(job, [*arguments, "name=a"]) == 0
    folder = Path("runs/best_cpu/a")
    results = results_of(folder)
    card = json.loads((WEIGHTS / "tiny.json").read_text())
    assert (results["ckpt"], results["parameters"]) == (["tiny"], card["parameters"])
    assert "weights:  start from tiny\n" in capsys.readouterr().out
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    start = read_checkpoint(WEIGHTS / "tiny.pt")
    assert saved["model"] == start.model
    assert {key: saved["data"][key] for key in ("image_size", "mean", "std")} == input_settings(start)
    end = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert (end.model, end.inputs) == (start.model, start.inputs)
    for name, weight in start.state_dict.items():  # at this learning rate only the batch statistics move
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(end.state_dict[name], weight.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["data.image_size=64"], "data.image_size=64 contradicts ckpt="),
        (["data.std=0.5"], "which was trained with data.std=0.25. Leave it out"),
        (["model=resnet"], "which was trained with model=small_vgg."),
        (["model=resnet", "stages=[test]"], "which was trained with model=small_vgg."),
        (["model=small_vgg", "model.channels=[4,6,8,8]"], "holds the network {'name': 'small_vgg'"),
        (["model=small_vgg", "model.mirrored=false", "stages=[test]"], "trained with model.mirrored=true."),
        (["data.image_size=64", "stages=[test]", "ckpt=[tiny,best]"], "trained with data.image_size=48."),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_refused(named, message, capsys, tmp_path):
    assert main(job, [*UNNAMED, "ckpt=tiny", *named]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


def test_settings_that_agree_with_the_checkpoint_and_its_other_options_are_allowed():
    run("model=resnet", "model.blocks=1", "name=a", "trainer.max_epochs=1", "stages=[fit]")
    ckpt = "runs/default/a/checkpoints/last.ckpt"
    run("model=resnet", "model.dropout=0.25", f"ckpt={ckpt}", "name=b", "trainer.max_epochs=1", "stages=[fit]")
    model = read_checkpoint("runs/default/b/checkpoints/last.ckpt").model
    assert model == read_checkpoint(ckpt).model | {"dropout": 0.25}


def test_a_failed_run_without_a_checkpoint_gives_its_name_to_the_next(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(FaceDataModule, "train_dataloader", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("name=a", "logger=tensorboard")
    folder = Path("runs/default/a")
    assert results_of(folder)["status"] == "failed"
    for notes in (folder / "notes.txt", folder / "mine/config.yaml"):
        notes.parent.mkdir(exist_ok=True)
        notes.write_text("mine")
        run("name=a", code=1)
        assert "already contains a run" in capsys.readouterr().err
        notes.unlink()
    run("name=a", "-m", "seed=0,1", code=1)
    assert "already contains a run" in capsys.readouterr().err
    run("name=a", "trainer.max_epochs=1")
    assert "note:     replaces the run in runs/default/a, which ended before its first" in capsys.readouterr().out
    assert results_of(folder)["status"] == "finished"
    assert list(folder.glob("events.*")) == []
    run("name=a", code=1)


def test_a_failed_run_with_a_checkpoint_keeps_its_name(trained):
    trained("stages=[fit]")
    results = results_of("runs/default/a")
    Path("runs/default/a/results.json").write_text(json.dumps(results | {"status": "failed"}))
    run("name=a", code=1)
    assert Path("runs/default/a/checkpoints/last.ckpt").exists()


def test_lightning_warns_of_a_logging_interval_that_no_epoch_reaches():
    with pytest.warns(UserWarning, match="smaller than the logging interval"):
        run("name=a", "logger=tensorboard", "trainer.max_epochs=1", "stages=[fit]")


def test_a_test_only_run_reports_the_split_that_selected_the_checkpoint(capsys):
    run("name=a", "trainer.max_epochs=1", "data.split=kaggle_folder", "stages=[fit]")
    capsys.readouterr()
    path = Path("runs/default/a/checkpoints/best.ckpt")
    run("name=again", "stages=[test]", f"ckpt={path}")
    again = results_of("runs/default/again")
    assert (again["val_split"], again["split"]) == ("validation+test", "test")
    out = capsys.readouterr().out
    assert "selected on validation+test (by the checkpoint's own run), tested on test\n" in out
    assert "note: weights selected on test have optimistic scores on it\n" in out

    content = torch.load(path, weights_only=True)
    del content["fer_lightning"]["val_split"]  # as in checkpoints from before it was recorded
    torch.save(content, path)
    run("name=old", "stages=[test]", f"ckpt={path}")
    assert results_of("runs/default/old")["val_split"] is None
    assert "selected on" not in capsys.readouterr().out


def test_an_ensemble_is_the_mean_of_its_members_probabilities(capsys):
    few = ("trainer.max_epochs=1", "stages=[fit]", "trainer.precision=32-true")
    run("name=a", *few, "data.image_size=32", "model.channels=[3,5]")
    run("name=b", *few, "seed=1", "data.mean=0.4", "data.split=kaggle_folder")
    a, b = (f"runs/default/{name}/checkpoints/best.ckpt" for name in "ab")
    test = ("stages=[test]", "tta=mirror", "trainer.precision=32-true")
    assert main(job, [*UNNAMED, "name=only_a", *test, f"ckpt=[{a}]"]) == 0
    assert main(job, [*UNNAMED, "name=only_b", *test, f"ckpt={b}"]) == 0
    capsys.readouterr()
    assert main(job, [*UNNAMED, "name=both", *test, f"ckpt=[{a},{b}]", "logger=tensorboard"]) == 0
    both, *singles = (results_of(f"runs/default/{name}") for name in ("both", "only_a", "only_b"))
    assert [single["members"] for single in singles] == [None, None]
    assert [member["ckpt"] for member in both["members"]] == [a, b]
    assert [member["splits"] for member in both["members"]] == [single["splits"] for single in singles]
    assert both["parameters"] == sum(single["parameters"] for single in singles)

    faces = synthetic_faces(n_train=112, n_val=21, n_test=14)
    rows = faces.usage == TEST
    images, labels = torch.from_numpy(faces.images[rows]).unsqueeze(1), torch.from_numpy(faces.labels[rows])
    plain, mirrored = [], []
    for path in (a, b):
        module = classifier_from(read_checkpoint(path))
        spec = module.inputs
        inputs = normalise(resize(images, spec.image_size), spec.mean, spec.std)
        with torch.no_grad():
            plain.append(module(inputs).softmax(dim=1))
            mirrored.append(module(inputs.flip(-1)).softmax(dim=1))
    for scores, probabilities in ((both, plain + mirrored), (both["without_tta"]["test"], plain)):
        mean = torch.stack(probabilities).mean(dim=0)
        assert scores["loss"] == pytest.approx(-mean.log()[range(14), labels].mean().item(), rel=1e-4)
        assert scores["accuracy"] == (mean.argmax(dim=1) == labels).double().mean().item()

    assert both["val_split"] == "validation+test"
    out = capsys.readouterr().out
    assert "note: the members were selected on different splits: validation, validation+test\n" in out
    assert "note: weights selected on test have optimistic scores on it\n" in out
    assert "32x32 px" in out
    assert "24x24 px" in out
    assert EventAccumulator("runs/default/both").Reload().Tags()["tensors"]  # the run's texts


def test_runs_in_one_process_leave_no_threads_or_open_files():
    held = []

    def counted(cfg, run_dir):
        job(cfg, run_dir)
        held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))

    sweep = ("-m", "name=s", "trainer.max_epochs=1", "seed=0,1,2", "callbacks=default", "logger=tensorboard")
    assert main(counted, [*SMALL, *sweep]) == 0
    assert len(held) == 3
    assert held[0] == held[1] == held[2]


def test_a_sweep_ranks_its_runs_and_survives_a_failed_one(capsys):
    run(
        "-m",
        "name=s",
        "trainer.max_epochs=1",
        "model.channels=[4,8],[4,0]",
        "augment=none,baseline",
        code=1,
    )
    out, err = capsys.readouterr()
    assert err.count("error: The network fer_model0 cannot be built with channels=[4, 0]") == 2
    assert "Traceback" not in err
    assert err.endswith("error: 2 of 4 runs failed; repeat the command to retry them.\n")
    assert "4 runs in runs/default/s, ranked by accuracy on validation" in out
    for n in (2, 3):
        assert f"{n} failed: UserError: The network fer_model0 cannot be built with channels=[4, 0]\n  at 24" in out
    runs = [results_of(f"runs/default/s/{n}") for n in range(4)]
    assert [run["status"] for run in runs] == ["finished", "finished", "failed", "failed"]
    assert runs[2]["error"].startswith("UserError: The network fer_model0 cannot be built with channels=[4, 0]")


@pytest.mark.slow
def test_a_killed_sweep_is_resumed_by_the_same_command(capsys):
    """SIGKILL in the middle of the second of three runs; repeating the command completes the sweep."""
    arguments = [*SMALL, "data.n_train=700", "logger=tensorboard", "stages=[fit]"]
    arguments += ["-m", "name=s", "seed=0,1,2"]
    folder = Path("runs/default/s")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        while not (folder / "1/checkpoints/last.ckpt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "1/results.json").exists()
    done, events = (folder / "0/results.json").read_bytes(), set(folder.glob("0/events.*"))

    assert main(job, arguments) == 0
    assert "job 0: already finished, skipped" in capsys.readouterr().out
    assert (folder / "0/results.json").read_bytes() == done
    assert [len(results_of(folder / str(n))["history"]) for n in range(3)] == [3, 3, 3]
    assert set(folder.glob("0/events.*")) == events
    # No epoch appears twice. The first point may be lost if the kill came between its checkpoint and the flush.
    steps = [event.step for event in EventAccumulator(str(folder / "1")).Reload().Scalars("loss/train")]
    assert steps in ([0, 1, 2], [1, 2])


def test_a_bug_in_one_run_of_a_sweep_is_recorded_and_the_others_continue(monkeypatch, capsys):
    original = FaceDataModule.train_dataloader

    def broken(self):
        if self.seed == 0:
            raise RuntimeError("out of luck\nand of memory")
        return original(self)

    arguments = (
        "-m",
        "name=s",
        "seed=0,1",
        "trainer.max_epochs=1",
        "stages=[fit]",
    )
    with monkeypatch.context() as patch:
        patch.setattr(FaceDataModule, "train_dataloader", broken)
        run(*arguments, code=1)
    failed, finished = (results_of(f"runs/default/s/{n}") for n in (0, 1))
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: out of luck")
    assert (finished["status"], finished["error"]) == ("finished", None)
    assert "RuntimeError: out of luck" in capsys.readouterr().err

    run(*arguments)
    assert results_of("runs/default/s/0")["status"] == "finished"
    assert "job 1: already finished, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["monitor=accuracy"], "monitor=accuracy is not a metric. Did you mean accuracy/"),
        (["stages=[tets]"], "stages=['tets']: expected fit, test or both, e.g. stages=[fit,test]."),
        (["stages=[test]"], "stages=[test]: no checkpoint to test. Set ckpt="),
        (["ckpt=nowhere.ckpt"], "nowhere.ckpt cannot be read: No such file"),
        (["ckpt=3"], "ckpt=3 cannot be read: No such file or directory."),
        (["stages=[test]", "ckpt=[]"], "stages=[test]: no checkpoint to test. Set ckpt="),
        (["stages=[test]", "ckpt=[nowhere.ckpt,b.ckpt]"], "nowhere.ckpt cannot be read"),
        (["ckpt=[a.ckpt,b.ckpt]"], "ckpt=[a.ckpt,b.ckpt]: an ensemble can only be tested. Add stages=[test]."),
        (["trainer.accelerator=quantum"], "Trainer rejected its arguments"),
        (["trainer.precision=7"], "Trainer rejected its arguments"),
        (["data=fer2013", "data.path=nowhere.zip"], "nowhere.zip does not exist"),
        (["optim.name=adamm"], "optim.name=adamm"),
        (["optim=sgd", "optim.momentum=0"], "optim.name=sgd cannot be built with"),
        (["seed=-1"], "seed=-1: expected a number from 0 to 4294967295."),
    ],
)
def test_a_user_error_prints_one_message_and_leaves_no_files(arguments, message, capsys, tmp_path):
    settings = [setting for setting in SMALL if not (arguments[0] == "data=fer2013" and setting.startswith("data"))]
    assert main(job, [*settings, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.rglob("*")) == []


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_checkpoint_cannot_run_code_and_invalid_ones_are_refused(trained, tmp_path):
    trained("stages=[fit]")
    whole = Path("runs/default/a/checkpoints/best.ckpt").read_bytes()
    content = torch.load("runs/default/a/checkpoints/best.ckpt", weights_only=True)  # needs no pickled classes
    assert content["fer_lightning"]["classes"] == list(EMOTIONS)

    def with_classes(classes):
        return {**content, "fer_lightning": {**content["fer_lightning"], "classes": classes}}

    cases = {
        "bomb.ckpt": (Bomb(), "could run code"),
        "other.ckpt": ({"state_dict": {}}, "not written by this project"),
        "twice.ckpt": (with_classes(["angry", "Angry"]), "'angry' and 'Angry' are the same class"),
        "many.ckpt": (with_classes([str(number) for number in range(101)]), "expected 2 to 100 classes, got 101"),
        "numbers.ckpt": (with_classes([1, 2]), "classes: expected strings"),
    }
    for name, (bad, message) in cases.items():
        torch.save(bad, tmp_path / name)
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / name)
    for name, data in (("cut.ckpt", whole[: len(whole) // 2]), ("empty.ckpt", b""), ("text.ckpt", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    torch.save(
        with_classes(sorted(EMOTIONS)), tmp_path / "order.ckpt"
    )  # of a network with the classes in that order
    assert main(job, [*SMALL, "stages=[test]", f"ckpt={tmp_path / 'order.ckpt'}", "name=b"]) == 1


# Every option in conf/, so that new files are tested automatically. Experiments and sweeps have tests below.
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF_DIR.glob("*/*.yaml"))
    if path.parent.name not in ("experiment", "sweep", "ablation", "debug")
    and path.stem not in ("wandb", "mlflow", "timm")  # their tests are slow ones
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_runs(choice, monkeypatch, tmp_path):
    archive = tmp_path / "fer2013.zip"
    write_zip(archive, fake_faces())
    monkeypatch.setenv("FER2013_PATH", str(archive))
    group = choice.partition("=")[0]
    few = [setting for setting in SMALL if group not in ("data", "model") or not setting.startswith(group)]
    if group == "callbacks":  # some of them draw for TensorBoard
        few.append("logger=tensorboard")
    once = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu")
    assert main(job, [*few, choice, "name=a", *once]) == 0
    assert results_of("runs/default/a")["status"] == "finished"


@pytest.mark.parametrize("ablation", [path.stem for path in sorted(CONF_DIR.glob("ablation/*.yaml"))])
def test_every_ablation_runs(ablation):
    once = ("name=a", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert main(job, [*SMALL, "experiment=fast", f"ablation={ablation}", *once]) == 0
    assert results_of("runs/fast/a")["status"] == "finished"


def test_debug_one_batch_goes_through_all_stages():
    assert main(job, [*SMALL, "debug=one_batch", "logger=tensorboard", "data.eval_batch_size=7", "name=a"]) == 0
    results = results_of("runs/default/a")
    assert (results["status"], len(results["history"]), results["history"][0]["images"]) == ("finished", 1, 16)
    assert results["splits"]["validation"]["n"] == 7
    files = {path.name for path in Path("runs/default/a").rglob("*")}
    assert files == {".lock", "config.yaml", "command.txt", "results.json"}


def test_debug_overfit_learns_two_batches_by_heart():
    assert main(job, [*SMALL, "debug=overfit", "trainer.max_epochs=40", "name=a"]) == 0
    history = results_of("runs/default/a")["history"]
    assert (history[-1]["train_accuracy"], history[-1]["images"]) == (1.0, 32)


def test_debug_profiler_shows_where_the_time_went(monkeypatch):
    shown = []
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.profilers.profiler"), "handle", shown.append)
    settings = [setting for setting in SMALL if "max_epochs" not in setting]
    assert main(job, [*settings, "debug=profiler", "name=a"]) == 0
    assert len(results_of("runs/default/a")["history"]) == 1
    [table] = [record.getMessage() for record in shown]
    assert "[Strategy]SingleDeviceStrategy.training_step" in table


def test_early_stopping_ends_the_fit_and_says_so(capsys):
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.max_epochs=30")
    run(*stop, "name=a", "optim.schedule=cosine")
    history = results_of("runs/default/a")["history"]
    best = max(history, key=lambda epoch: epoch["val_accuracy"])  # the first of them
    assert history[-1]["epoch"] == best["epoch"] + 2 < 29
    out = capsys.readouterr().out
    note = "note:     stopped after 2 validations without a better accuracy/val than"
    assert f"{note}\n          {best['val_accuracy']:.4f}; the learning rate was " in out
    assert len(note) <= 80


def test_a_resumed_run_that_had_stopped_early_does_not_go_on():
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "trainer.max_epochs=30")
    run(*stop, "name=a", "stages=[fit]")
    before = results_of("runs/default/a")["history"]
    assert main(job, ["resume=runs/default/a"]) == 0
    assert results_of("runs/default/a")["history"] == before
    assert main(job, ["resume=runs/default/a", "callbacks.early_stopping.patience=3"]) == 0
    assert len(results_of("runs/default/a")["history"]) > len(before)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("monitor=accuracy/vall", "callbacks.early_stopping.monitor=accuracy/vall is not a metric. Did you mean"),
        ("patience=0", "callbacks.early_stopping.patience=0: expected at least 1"),
    ],
)
def test_wrong_settings_of_early_stopping_are_one_line(setting, message, capsys):
    run("callbacks=early_stopping", f"callbacks.early_stopping.{setting}", "name=a", code=1)
    assert message in capsys.readouterr().err


def test_a_missing_gpu_prints_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    settings = [setting for setting in SMALL if setting != "trainer.accelerator=cpu"]
    assert main(job, [*settings, "trainer=gpu"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: trainer.accelerator=gpu: ")
    assert "trainer.accelerator=cpu" in line
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("experiment", [path.stem for path in sorted(CONF_DIR.glob("experiment/*.yaml"))])
def test_every_experiment_runs_on_files_in_the_format_of_fer2013(experiment, tmp_path):
    archive = tmp_path / "fer2013.zip"
    write_zip(archive, fake_faces())
    data = [] if experiment == "demo" else [f"data.path={archive}"]
    if experiment == "ferplus":
        faces = fake_faces()
        votes = [[8 * (name == EMOTIONS[face.label]) for name in COLUMNS] for face in faces]
        data = [f"data.path={write_ferplus_folders(tmp_path / 'ferplus', faces, votes)}"]
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu"]
    if experiment in ("tiny", "best_cpu_distilled"):  # the teacher has an input of 48 px
        few.append("distill.ckpt=tiny")
    elif experiment != "finetune":  # its start has an input of 48 px, too
        few.append("data.image_size=16")
    if experiment == "demo":
        few += ["data.n_train=64", "data.n_val=7", "data.n_test=7"]
    assert main(job, [f"experiment={experiment}", "name=a", *data, *few]) == 0
    results = results_of(f"runs/{experiment}/a")
    assert results["status"] == "finished"
    assert results["labels"] == ("ferplus" if experiment == "ferplus" else "fer2013")
    if experiment == "baseline":
        assert results["split"] == results["val_split"] == "PublicTest+PrivateTest"
        assert np.isfinite(results["loss"])


@pytest.mark.parametrize("experiment", [path.stem for path in sorted(CONF_DIR.glob("experiment/*.yaml"))])
def test_callbacks_none_removes_the_callbacks_of_an_experiment(experiment):
    composed = []
    arguments = [f"experiment={experiment}", "callbacks=none", "name=a"]
    assert main(lambda cfg, run_dir: composed.append(cfg.callbacks), arguments) == 0
    assert composed == [{}]


# optuna.yaml has its own tests in test_search.py.
SWEEPS = [path.stem for path in sorted(CONF_DIR.glob("sweep/*.yaml")) if path.stem != "optuna"]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes(sweep):
    jobs = []

    def composed(cfg, run_dir):
        jobs.append(cfg.overrides)
        (run_dir / "results.json").write_text('{"status": "finished", "history": []}')

    assert main(composed, ["-m", f"sweep={sweep}"]) == 0
    assert len(jobs) > 1


def test_real_data_has_the_published_counts(real_data):
    arguments = (
        "trainer.max_epochs=1",
        "data.image_size=24",
        "model.channels=[4,8]",
        "trainer.limit_train_batches=20",
    )
    assert main(job, [f"data.path={real_data}", "name=a", "trainer.accelerator=cpu", *arguments]) == 0
    results = results_of("runs/default/a")
    assert {name: (scores["n"], scores["n_leak_free"]) for name, scores in results["splits"].items()} == {
        "PublicTest": (3589, 3283),
        "PrivateTest": (3589, 3275),
        "PublicTest+PrivateTest": (7178, 6610),
    }
    assert results["val_split"] == "PublicTest"
    assert results["split"] == "PrivateTest"
    assert (results["n_leak_free"], results["n_strict"]) == (3275, 2628)


def test_the_folder_of_a_run_or_a_sweep_stands_for_its_best_checkpoint(capsys):
    run("-m", "name=s", "seed=0,1", "trainer.max_epochs=1")
    best = max((0, 1), key=lambda job: results_of(f"runs/default/s/{job}")["history"][0]["val_accuracy"])
    expected = f"runs/default/s/{best}/checkpoints/best.ckpt"
    capsys.readouterr()
    assert main(job, [*UNNAMED, "stages=[test]", "ckpt=runs/default/s", "name=test"]) == 0
    assert f"runs/default/s: taking {expected}, the best of 2 runs (accuracy " in capsys.readouterr().err
    assert results_of("runs/default/test")["ckpt"] == [expected]
    assert yaml.safe_load(Path("runs/default/test/config.yaml").read_text())["ckpt"] == expected
    assert main(job, [*UNNAMED, "ckpt=runs/default/s/1", "distill.ckpt=[runs/default/s,best]", "name=fit"]) == 0
    assert results_of("runs/default/fit")["ckpt"] == ["runs/default/s/1/checkpoints/best.ckpt"]
    assert command(["evaluate", "runs/default/s", "--data", "synthetic", "--against", "runs/default/s/0"]) == 0
    capsys.readouterr()
    Path("empty").mkdir()
    assert main(job, [*UNNAMED, "stages=[test]", "ckpt=empty", "name=none"]) == 1
    assert "ckpt=empty: no run in this folder has finished an epoch" in capsys.readouterr().err
