"""A callback for runs in separate processes: records what each trained on, and can hold one until a signal."""

import os
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.nn.modules.batchnorm import _BatchNorm


class Watch(Callback):
    """Callback that writes each training batch to ``watched/<run>/<epoch>-<batch>-<rank>-<process>.pt``.

    Batch norm keeps its initial statistics, because on a CPU each process would normalise with its own share of the
    batch. A run whose name is in the file ``hold`` writes its process id to ``held`` in its second epoch and waits
    to be stopped.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        run = Path(trainer.default_root_dir).name
        folder = Path("watched") / run
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{trainer.current_epoch}-{batch_idx}-{trainer.global_rank}-{os.getpid()}.pt"
        torch.save({key: part.clone() for key, part in batch.items()}, folder / name)
        hold = Path("hold")
        reached = trainer.is_global_zero and (trainer.current_epoch, batch_idx) == (1, 1)
        if reached and hold.exists() and hold.read_text() == run:
            Path("held").write_text(str(os.getpid()))
            time.sleep(300)
            raise AssertionError("nobody stopped this process")


def held(command, folder: Path) -> int:
    """Wait until a process of `command`, started in `folder`, holds, and return its id."""
    file = folder / "held"
    while not (file.exists() and file.read_text()):
        assert command.poll() is None, f"the command ended before it held: {command.communicate()}"
        time.sleep(0.05)
    return int(file.read_text())


def watched(folder: Path, run: str) -> dict[tuple[int, int, int, int], dict[str, torch.Tensor]]:
    """Return a run's batches by (epoch, batch, rank, process)."""
    return {
        tuple(map(int, path.stem.split("-"))): torch.load(path, weights_only=True)
        for path in sorted((folder / "watched" / run).glob("*.pt"))
    }
