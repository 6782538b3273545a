"""Runs killed by SIGKILL and resumed: the weights and records of runs that were never interrupted, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_fer2013 import fake_faces, write_zip
from faults import (
    SMALL,
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
from project import ROOT

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")


def resume(folder, *arguments, code=0):
    assert main(job, [f"resume={folder}", *arguments]) == code


@pytest.mark.parametrize(
    ("minutes", "resumed_after"),
    [([], 7), (["checkpoint.every_n_minutes=1e-9"], 11)],
    ids=["epochs", "within an epoch"],
)
def test_a_run_killed_at_a_step_ends_as_one_never_killed(minutes, resumed_after, capsys):
    """SIGKILL in the second of three epochs of seven steps, in a process of its own."""
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
    ],
    ids=["validation within epochs", "validation across epochs", "accumulated gradients"],
)
def test_steps_that_are_special_are_places_to_go_on_from(settings, monkeypatch):
    settings = [*settings, "model.channels=[2]", "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=2"]
    run("name=never", *settings)
    for step in (3, 6):
        with_callback(monkeypatch, KilledAt(step))
        with pytest.raises(Killed):
            run(f"name={step}", *settings)
        resume(f"runs/default/{step}")
        assert differences(f"runs/default/{step}", "runs/default/never") == []


def test_a_run_goes_on_elsewhere_with_data_elsewhere_and_for_longer(monkeypatch, tmp_path):
    """The run's folder and its data were moved, and trainer.max_epochs is raised; the learning rate is constant."""
    archive = write_zip(tmp_path / "fer2013.zip", fake_faces())
    own = ["data=fer2013", "data.image_size=24", "data.batch_size=8", "model.channels=[2]", "callbacks=none"]
    own += ["logger=none", "trainer.accelerator=cpu", "trainer.enable_model_summary=false", "trainer.max_epochs=2"]
    assert main(job, [*own, f"data.path={archive}", "name=never"]) == 0
    with_callback(monkeypatch, KilledAt(3))
    with pytest.raises(Killed):
        main(
            job, [*own, f"data.path={archive}", "trainer.max_epochs=1", "checkpoint.every_n_minutes=1e-9", "name=a"]
        )
    assert str(ROOT).encode() not in Path("runs/default/a/config.yaml").read_bytes()
    moved, elsewhere = tmp_path / "moved", tmp_path / "data.zip"
    Path("runs/default/a").rename(moved)
    archive.rename(elsewhere)
    resume(moved, f"data.path={elsewhere}", "trainer.max_epochs=2")
    assert differences(moved, "runs/default/never") == []


def test_a_raised_number_of_epochs_stretches_the_schedule():
    run("name=a", "optim.schedule=cosine", "trainer.max_epochs=1", "stages=[fit]")
    resume("runs/default/a", "trainer.max_epochs=2")
    [first, second] = (epoch["lr"] for epoch in results_of("runs/default/a")["history"])
    assert first == pytest.approx(0.0, abs=1e-12)
    assert second == pytest.approx(0.0, abs=1e-12)
    state = torch.load("runs/default/a/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"]
    assert state[0]["last_epoch"] == 14


def test_an_epoch_goes_on_with_its_own_batches_only(monkeypatch, capsys):
    with_callback(monkeypatch, KilledAt(5))
    with pytest.raises(Killed):
        run("name=a", "checkpoint.every_n_minutes=1e-9")
    resume("runs/default/a", "data.batch_size=8", code=1)
    assert "was stopped in an epoch of 7 batches, but the epoch now has 14" in capsys.readouterr().err
    run("name=whole", "trainer.max_epochs=1", "stages=[fit]")
    resume("runs/default/whole", "data.batch_size=8", "trainer.max_epochs=2")


@pytest.mark.parametrize("argument", ["optim.lr=1e-4", "model.channels=[8,8]"])
def test_what_a_checkpoint_overrules_is_refused(argument, capsys):
    run("name=a", "trainer.max_epochs=1", "stages=[fit]")
    resume("runs/default/a", argument, code=1)
    assert "ckpt=runs/default/a/checkpoints/last.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_minutes_are_a_number_above_0(value, capsys, tmp_path):
    run(f"checkpoint.every_n_minutes={value}", code=1)
    assert "expected a number above 0, or null to disable" in capsys.readouterr().err
    run(f"checkpoint.every_n_minutes={value}", "stages=[test]", "ckpt=best", code=1)
    assert "is for a fit" in capsys.readouterr().err
    for other in ("often", "true"):
        run(f"checkpoint.every_n_minutes={other}", code=1)
        assert f"every_n_minutes={other}: expected a number." in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damaged", [["last.ckpt"], ["best.ckpt"], ["last.ckpt", "best.ckpt"]])
def test_a_checkpoint_cut_in_half_is_set_aside(damaged, capsys):
    run("name=never")
    run("name=a", "trainer.max_epochs=2")
    folder = Path("runs/default/a/checkpoints")
    for name in damaged:
        cut(folder / name)
    capsys.readouterr()
    resume("runs/default/a", "trainer.max_epochs=3")
    told = capsys.readouterr().out
    for name in damaged:
        assert f"{name} is damaged" in told.replace("\n", " ")
        assert (folder / f"{name}.damaged").exists()
    assert same(content("runs/default/a", "last.ckpt"), content("runs/default/never", "last.ckpt"))
    assert results_of("runs/default/a")["status"] == "finished"


@pytest.mark.parametrize("said", ["stages=[test]", "ckpt=best", "monitor=loss/val", "seed=3"])
def test_a_resumed_run_keeps_what_its_fit_was_about(said, capsys):
    run("name=a", "trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}
    resume("runs/default/a", said, code=1)
    assert "goes on with its own fit" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}


def test_a_resume_that_is_refused_changes_nothing(capsys):
    run("name=a", "trainer.max_epochs=1")
    folder = Path("runs/default/a")
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "command.txt", "results.json")}
    resume(folder, "trainer.max_epochs=2", "trainer.val_check_interval=99", code=1)
    assert before == {name: (folder / name).read_bytes() for name in before}
    resume(folder, "trainer.max_epochs=2")
    assert len(results_of(folder)["history"]) == 2


def test_a_finished_run_that_goes_on_and_is_killed_is_interrupted():
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


def test_a_run_does_not_go_on_with_other_data(capsys):
    run("name=a", "trainer.max_epochs=1")
    resume("runs/default/a", "trainer.max_epochs=2", "data.n_train=105", code=1)
    assert "was trained on other data" in capsys.readouterr().err
