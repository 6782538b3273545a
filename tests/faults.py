"""Faults that the tests cause in runs of train.py, and small runs to cause them in."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.experiment import job as job_module

SMALL = [
    "data=synthetic",
    "data.n_train=112",
    "data.n_val=21",
    "data.n_test=14",
    "data.batch_size=16",
    "data.image_size=24",
    "model.channels=[4,8]",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.max_epochs=3",
    "logger=none",
    "callbacks=none",
]
# With what has a state: momentum, a schedule with warm-up, dropout, batch norm. Averaged weights go beside these.
STATEFUL = [
    "model=resnet",
    "model.channels=[4,8]",
    "model.blocks=1",
    "model.dropout=0.5",
    "optim=sgd",
    "label_smoothing=0.1",
]


def run(*arguments: str, code: int = 0) -> None:
    """A small run in this process, which is to end with `code`."""
    assert main(job, [*SMALL, *arguments]) == code


class Kill(Callback):
    """Kills the process by SIGKILL at a step: once, for the file that names it is taken away first.

    Args:
        path: of the file, with the number of steps done and, where wanted, a delay in seconds; where there is none,
            nothing happens.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.path.exists():
            return
        step, *delay = self.path.read_text().split()
        if trainer.global_step == int(step):
            self.path.unlink()
            if delay:
                threading.Timer(float(delay[0]), os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)


class Killed(BaseException):
    """As after a kill, nothing more is written."""


class KilledAt(Callback):
    """What `Kill` does, without a process of its own."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def kill_at(path: str | Path) -> list[str]:
    """The settings of train.py that put `Kill` among the callbacks."""
    return ["callbacks.kill._target_=faults.Kill", f"callbacks.kill.path={path}"]


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """Puts the callback into the next run of this process, before those that write checkpoints."""
    make = job_module.make_trainer

    def made(logger: Any, callbacks: list[Callback], *rest: Any) -> Trainer:
        monkeypatch.setattr(job_module, "make_trainer", make)
        return make(logger, [callback, *callbacks], *rest)

    monkeypatch.setattr(job_module, "make_trainer", made)


def content(folder: str | Path, name: str) -> dict[str, Any]:
    """A checkpoint without what may differ: paths, seconds and Lightning's counts for progress bars."""
    checkpoint = torch.load(Path(folder) / "checkpoints" / name, weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "epoch")
    return {key: checkpoint[key] for key in (*kept, "global_step") if key in checkpoint}


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, tensors within dicts and lists included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def results_of(folder: str | Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((Path(folder) / "results.json").read_text())
    return results


def told(folder: str | Path) -> tuple[Any, Any]:
    """results.json without seconds and what tells one run from another."""
    results = results_of(folder)
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in results["history"]]
    kept = ("status", "error", "accuracy", "loss", "splits", "last_epoch", "best_epoch", "per_class")
    return history, {key: results[key] for key in kept}


def differences(folder: str | Path, other: str | Path) -> list[str]:
    """Which of what two finished runs left differs."""
    found = [] if told(folder) == told(other) else ["results.json"]
    return found + [
        name for name in ("last.ckpt", "best.ckpt") if not same(content(folder, name), content(other, name))
    ]
