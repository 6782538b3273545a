"""Small runs of train.py, and faults for tests to cause in them."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from project import SMALL

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.experiment import job as job_module

# Components with a state: momentum, a schedule with warm-up, dropout and batch norm.
STATEFUL = [
    "model=resnet",
    "model.channels=[4,8]",
    "model.blocks=1",
    "model.dropout=0.5",
    "mix.mixup_alpha=0.4",
    "optim=sgd",
    "label_smoothing=0.1",
]


def run(*arguments: str, code: int = 0) -> None:
    """Do a small run in this process, and check that its exit code is `code`."""
    assert main(job, [*SMALL, *arguments]) == code


class Kill(Callback):
    """Callback that kills the process with SIGKILL after a step, once.

    Args:
        path: file that holds the global step and optionally a delay in seconds. It is removed before the kill;
            without it, nothing happens.
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
    """Raised in place of a kill. Not an Exception, so that nothing more is written."""


class KilledAt(Callback):
    """Callback that raises `Killed` after a step, to simulate a kill within this process."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def kill_at(path: str | Path) -> list[str]:
    """Return the overrides of train.py that add the callback `Kill`."""
    return ["callbacks.kill._target_=faults.Kill", f"callbacks.kill.path={path}"]


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """Add a callback to the next run in this process, before the callbacks that write checkpoints."""
    make = job_module.make_trainer

    def made(logger: Any, callbacks: list[Callback], *rest: Any) -> Trainer:
        monkeypatch.setattr(job_module, "make_trainer", make)
        return make(logger, [callback, *callbacks], *rest)

    monkeypatch.setattr(job_module, "make_trainer", made)


def content(folder: str | Path, name: str) -> dict[str, Any]:
    """Return a checkpoint without the parts that may differ: paths, durations and progress counters."""
    checkpoint = torch.load(Path(folder) / "checkpoints" / name, weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "epoch")
    return {key: checkpoint[key] for key in (*kept, "global_step") if key in checkpoint}


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal bit for bit, including tensors within dicts and lists."""
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


def outcome(folder: str | Path) -> tuple[Any, Any]:
    """Return the history and results of a run, without durations and what identifies the run."""
    results = results_of(folder)
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in results["history"]]
    kept = ("status", "error", "accuracy", "loss", "splits", "last_epoch", "best_epoch", "per_class")
    return history, {key: results[key] for key in kept}


def differences(folder: str | Path, other: str | Path) -> list[str]:
    """Return the names of the files that differ between two finished runs."""
    differing = [] if outcome(folder) == outcome(other) else ["results.json"]
    return differing + [
        name for name in ("last.ckpt", "best.ckpt") if not same(content(folder, name), content(other, name))
    ]
