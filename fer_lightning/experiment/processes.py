"""Check and clean up the processes that Lightning starts for a run on several devices."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from torchmetrics.metric import jit_distributed_available

from fer_lightning.errors import UserError
from fer_lightning.training import compat


def prepare_processes(trainer: Trainer) -> None:
    """Check that train.py starts the run's other processes, and keep Lightning from handling signals.

    Raises:
        UserError: the processes would be Slurm tasks, or Lightning would start them with another program.
    """
    if isinstance(trainer.strategy.cluster_environment, SLURMEnvironment):  # type: ignore[attr-defined]
        raise UserError(
            f"trainer.devices={trainer.num_devices}: a run cannot span several Slurm tasks. Set trainer.devices=1, "
            "with hydra/launcher=submitit_slurm for many runs."
        )
    if compat.starts_processes(trainer) and sys.modules["__main__"].__spec__ is not None:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: only python train.py and fer-lightning train can start the "
            "processes of a run. Use one of them without hydra/launcher, or set trainer.devices=1."
        )
    # Lightning's SIGTERM handler broadcasts to the other processes, which hangs if it interrupts another collective
    # operation. Ours ends this process, and with it the others.
    compat.keep_signal_handlers(trainer)


@contextmanager
def managed_processes(trainer: Trainer) -> Iterator[None]:
    """End the processes that Lightning started for the run at the end of the block, so that another can follow.

    They are killed if the block raises, and waited for otherwise.
    """
    before = set(os.environ)
    failed = True
    try:
        yield
        failed = False
    finally:
        procs: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        children = list(procs)
        if failed:
            procs.clear()  # otherwise Lightning's monitor thread kills this process when one of them dies
        for process in children:
            if failed:
                process.kill()
            process.wait()
        if jit_distributed_available():
            torch.distributed.destroy_process_group()
        # With these set, the next Trainer in this process would assume that its processes are already running.
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)
