"""Runs that are killed and resumed end with the weights and records of uninterrupted runs, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_fer2013 import fake_faces, write_zip
from faults import (
    STATEFUL,
    Killed,
    KilledAt,
    content,
    differences,
    kill_at,
    results_of,
    run,
    same,
    with_callback,
)
from project import ROOT, SMALL

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")


def resume(folder, *arguments, code=0):
    assert main(job, [f"resume={folder}", *arguments]) == code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "resumed_after"),
    [([], 7), (["checkpoint.every_n_minutes=1e-9"], 11)],
    ids=["epochs", "within an epoch"],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(minutes, resumed_after, capsys):
    """A separate process gets SIGKILL in the second of three epochs of seven steps."""
    settings = [*STATEFUL, "callbacks.ema._target_=fer_lightning.callbacks.ema.EMA", *minutes]
    run("name=never", *settings)
    Path("step").write_text("12")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *SMALL, *settings, "name=killed", *kill_at(Path("step"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
    )
    folder = Path("runs/default/killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "results.json").exists()
    capsys.readouterr()
    resume(folder, "callbacks.kill._target_=faults.Kill")
    assert f"resumed:  from last.ckpt, after step {resumed_after}\n" in capsys.readouterr().out
    assert differences(folder, "runs/default/never") == []
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.val_check_interval=4"],
        ["trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=null", "monitor=loss/val"],
        ["trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=2", "logger=tensorboard"],
        ["data.sampler=balanced", "data.class_weights=[1,2,3,4,5,6,7]"],
    ],
    ids=["validation within epochs", "validation across epochs", "accumulated gradients", "balanced classes"],
)
def test_resuming_at_steps_with_validation_or_accumulation(settings, monkeypatch):
    settings = [*settings, "model.channels=[2]", "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=2"]
    run("name=never", *settings)
    for step in (3, 6):
        with_callback(monkeypatch, KilledAt(step))
        with pytest.raises(Killed):
            run(f"name={step}", *settings)
        resume(f"runs/default/{step}")
        assert differences(f"runs/default/{step}", "runs/default/never") == []


def test_a_moved_run_resumes_with_moved_data_and_more_epochs(monkeypatch, tmp_path):
    """The learning rate is constant, so that a raised trainer.max_epochs does not change the first epochs."""
    archive = write_zip(tmp_path / "fer2013.zip", fake_faces())
    settings = ["data=fer2013", "data.image_size=24", "data.batch_size=8", "model.channels=[2]", "callbacks=none"]
    settings += ["logger=none", "trainer.accelerator=cpu", "trainer.enable_model_summary=false"]
    settings += ["trainer.max_epochs=2"]
    assert main(job, [*settings, f"data.path={archive}", "name=never"]) == 0
    with_callback(monkeypatch, KilledAt(3))
    short = ["trainer.max_epochs=1", "checkpoint.every_n_minutes=1e-9"]
    with pytest.raises(Killed):
        main(job, [*settings, f"data.path={archive}", *short, "name=a"])
    assert str(ROOT).encode() not in Path("runs/default/a/config.yaml").read_bytes()
    moved, elsewhere = tmp_path / "moved", tmp_path / "data.zip"
    Path("runs/default/a").rename(moved)
    archive.rename(elsewhere)
    resume(moved, f"data.path={elsewhere}", "trainer.max_epochs=2")
    assert differences(moved, "runs/default/never") == []


def test_raising_the_number_of_epochs_extends_the_schedule():
    run("name=a", "optim.schedule=cosine", "trainer.max_epochs=1", "stages=[fit]")
    resume("runs/default/a", "trainer.max_epochs=2")
    [first, second] = (epoch["lr"] for epoch in results_of("runs/default/a")["history"])
    assert first == pytest.approx(0.0, abs=1e-12)
    assert second == pytest.approx(0.0, abs=1e-12)
    state = torch.load("runs/default/a/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"]
    assert state[0]["last_epoch"] == 14


def test_an_epoch_cannot_be_resumed_with_another_batch_size(monkeypatch, capsys):
    with_callback(monkeypatch, KilledAt(5))
    with pytest.raises(Killed):
        run("name=a", "checkpoint.every_n_minutes=1e-9")
    resume("runs/default/a", "data.batch_size=8", code=1)
    assert "was stopped in an epoch of 7 batches, but the epoch now has 14" in capsys.readouterr().err
    run("name=whole", "trainer.max_epochs=1", "stages=[fit]")
    resume("runs/default/whole", "data.batch_size=8", "trainer.max_epochs=2")


@pytest.mark.parametrize("argument", ["optim.lr=1e-4", "model.channels=[8,8]"])
def test_settings_fixed_by_the_checkpoint_cannot_be_changed(trained, argument, capsys):
    trained("stages=[fit]")
    resume("runs/default/a", argument, code=1)
    assert "ckpt=runs/default/a/checkpoints/last.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_every_n_minutes_must_be_positive(value, capsys, tmp_path):
    run(f"checkpoint.every_n_minutes={value}", code=1)
    assert "expected a number above 0, or null to disable" in capsys.readouterr().err
    run(f"checkpoint.every_n_minutes={value}", "stages=[test]", "ckpt=best", code=1)
    assert ": only a fit uses it. Leave it at null." in capsys.readouterr().err
    for other in ("often", "true"):
        run(f"checkpoint.every_n_minutes={other}", code=1)
        assert f"every_n_minutes={other}: expected a number or null." in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damaged", [["last.ckpt"], ["best.ckpt"], ["last.ckpt", "best.ckpt"]])
def test_a_truncated_checkpoint_is_renamed_and_skipped(damaged, capsys):
    run("name=never")
    run("name=a", "trainer.max_epochs=2")
    folder = Path("runs/default/a/checkpoints")
    for name in damaged:
        truncate(folder / name)
    capsys.readouterr()
    resume("runs/default/a", "trainer.max_epochs=3")
    output = capsys.readouterr().out
    for name in damaged:
        path = folder / name
        assert f"note:     renamed to {path}.damaged: ckpt={path} is damaged" in output.replace("\n", " ")
        assert (folder / f"{name}.damaged").exists()
    assert same(content("runs/default/a", "last.ckpt"), content("runs/default/never", "last.ckpt"))
    assert results_of("runs/default/a")["status"] == "finished"


@pytest.mark.parametrize("setting", ["stages=[test]", "ckpt=best", "monitor=loss/val", "seed=3"])
def test_a_resumed_run_refuses_settings_of_another_fit(trained, setting, capsys):
    trained()
    before = {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}
    resume("runs/default/a", setting, code=1)
    assert "a resumed run continues its fit" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}


def test_a_refused_resume_changes_no_files(trained, capsys):
    trained()
    folder = Path("runs/default/a")
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "command.txt", "results.json")}
    resume(folder, "trainer.max_epochs=2", "trainer.val_check_interval=99", code=1)
    assert before == {name: (folder / name).read_bytes() for name in before}
    resume(folder, "trainer.max_epochs=2")
    assert len(results_of(folder)["history"]) == 2


def test_a_finished_run_that_is_extended_and_killed_is_interrupted():
    run("name=a", "trainer.max_epochs=1", *kill_at(Path("step")))
    folder = Path("runs/default/a")
    Path("step").write_text("12")
    arguments = [f"resume={folder}", "trainer.max_epochs=3", "callbacks.kill._target_=faults.Kill"]
    command = [sys.executable, ROOT / "train.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert results_of(folder)["status"] == "interrupted"
    resume(folder, "callbacks.kill._target_=faults.Kill")
    assert len(results_of(folder)["history"]) == 3


def test_a_run_cannot_be_resumed_with_other_data(trained, capsys):
    trained()
    resume("runs/default/a", "trainer.max_epochs=2", "data.n_train=105", code=1)
    message = capsys.readouterr().err
    assert "resume: this run was trained on different data than" in message
    assert "Set data.path and the other data settings as they were." in message
