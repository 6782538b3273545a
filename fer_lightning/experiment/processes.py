"""The further processes of a run on several devices: by which program they start, and how they end."""

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
    """Raises UserError where Lightning would start the run's further processes by another program than train.py."""
    if isinstance(trainer.strategy.cluster_environment, SLURMEnvironment):  # type: ignore[attr-defined]
        raise UserError(
            f"trainer.devices={trainer.num_devices}: Slurm's own tasks as the processes of a run are not provided "
            "for. Take trainer.devices=1, and hydra/launcher=submitit_slurm for many runs."
        )
    if compat.starts_processes(trainer) and sys.modules["__main__"].__spec__ is not None:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: only python train.py and fer-lightning train start the "
            "processes of a run, not hydra/launcher nor python -m. Take one of them without a launcher, or "
            "trainer.devices=1."
        )
    # Lightning's handler of SIGTERM broadcasts in the middle of whatever the processes exchange, and can wait for
    # ever. Ours ends this process, and with it the others.
    compat.keep_signal_handlers(trainer)


@contextmanager
def own_processes(trainer: Trainer) -> Iterator[None]:
    """Ends the processes that Lightning starts for a run, so that none is left and another run can follow."""
    before = set(os.environ)
    failed = True
    try:
        yield
        failed = False
    finally:
        procs: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        ended = list(procs)
        if failed:
            procs.clear()  # or Lightning's watch over them would kill this process for the death of one
        for process in ended:
            if failed:
                process.kill()
            process.wait()
        if jit_distributed_available():
            torch.distributed.destroy_process_group()
        # By these the next Trainer of this process would believe that its processes are there already.
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)
