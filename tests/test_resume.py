"""Runs killed by SIGKILL and resumed: the weights and records of runs that were never interrupted, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import kill_at
from lightning.pytorch import Callback

from fer_lightning import experiment
from fer_lightning.callbacks.checkpoints import TimedCheckpoint
from fer_lightning.checkpoint import read_checkpoint
from fer_lightning.config import main
from train import job

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "data=synthetic",
    "data.n_train=112",
    "data.n_val=21",
    "data.n_test=14",
    "data.batch_size=16",
    "data.image_size=24",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.max_epochs=3",
    "logger=none",
    "callbacks=none",
]
# Everything that has a state: momentum, a schedule with warm-up, averaged weights, dropout, batch norm.
STATEFUL = [
    "model=resnet",
    "model.channels=[4,8]",
    "model.blocks=1",
    "model.dropout=0.5",
    "optim=sgd",
    "label_smoothing=0.1",
    "+callbacks.ema._target_=fer_lightning.callbacks.ema.EMA",
]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def run(*arguments, code=0):
    assert main(job, [*SMALL, *arguments]) == code


def resume(folder, *arguments, code=0):
    assert main(job, [f"resume={folder}", *arguments]) == code


def content(folder, name):
    """A checkpoint without what may differ: paths, seconds and Lightning's counts for progress bars."""
    checkpoint = torch.load(Path(folder) / "checkpoints" / name, weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "epoch")
    return {key: checkpoint[key] for key in (*kept, "global_step") if key in checkpoint}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def results_of(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def told(folder):
    """results.json without seconds and what tells one run from another."""
    results = results_of(folder)
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in results["history"]]
    kept = ("status", "error", "accuracy", "loss", "splits", "last_epoch", "best_epoch", "per_class")
    return history, {key: results[key] for key in kept}


def assert_same_end(folder, other):
    assert told(folder) == told(other)
    for name in ("last.ckpt", "best.ckpt"):
        assert same(content(folder, name), content(other, name))


@pytest.mark.parametrize(
    ("minutes", "resumed_after"),
    [([], 7), (["checkpoint.every_n_minutes=1e-9"], 11)],
    ids=["epochs", "within an epoch"],
)
def test_a_run_killed_at_a_step_ends_as_one_never_killed(minutes, resumed_after, capsys):
    """SIGKILL in the second of three epochs of seven steps, in a process of its own."""
    run("name=never", *STATEFUL, *minutes)
    Path("step").write_text("12")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *SMALL, *STATEFUL, *minutes, "name=killed", *kill_at(Path("step"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
    )
    folder = Path("runs/default/killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "results.json").exists()
    capsys.readouterr()
    resume(folder)
    assert f"resumed:  from last.ckpt, after step {resumed_after}\n" in capsys.readouterr().out
    assert_same_end(folder, "runs/default/never")
    assert [path.name for path in folder.glob("checkpoints/*")] != []
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


class Interrupt(Callback):
    """What a kill leaves, without a process of its own: nothing is done after this step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


class Killed(BaseException):
    pass


def stop_at(monkeypatch, step):
    """The next run ends as if killed after so many steps."""
    make = experiment.make_trainer

    def made(logger, callbacks, *rest):
        monkeypatch.setattr(experiment, "make_trainer", make)
        return make(logger, [*callbacks, Interrupt(step)], *rest)

    monkeypatch.setattr(experiment, "make_trainer", made)


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.val_check_interval=2"],
        ["trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=null", "monitor=loss/val"],
        ["trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=2", "logger=tensorboard"],
    ],
    ids=["validation within epochs", "validation across epochs", "accumulated gradients"],
)
def test_every_step_of_an_epoch_is_a_place_to_go_on_from(settings, step, monkeypatch):
    settings = [*settings, "model.channels=[2]", "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=2"]
    run("name=never", *settings)
    stop_at(monkeypatch, step)
    with pytest.raises(Killed):
        run("name=a", *settings)
    resume("runs/default/a")
    assert_same_end("runs/default/a", "runs/default/never")
