"""Check and clean up the processes that Lightning starts for a run on several devices."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torchmetrics.metric import jit_distributed_available

from fer_lightning import hardware
from fer_lightning.environment import TORCHRUN_PROCESSES
from fer_lightning.errors import UserError
from fer_lightning.training import compat


def prepare_processes(trainer: Trainer, arguments: Mapping[str, Any]) -> None:
    """Check that train.py can start the run's other processes, and keep Lightning from handling signals.

    Args:
        trainer: the run's trainer.
        arguments: the arguments that it was built with.

    Raises:
        UserError: the run would need several machines, a strategy other than those of one device and of DDP,
            processes that another program starts, another number of processes than torchrun was asked for, or a
            feature that CPUs lack.
    """
    if trainer.num_nodes > 1:
        raise UserError(f"trainer.num_nodes={trainer.num_nodes}: a run uses one machine. Leave it at 1.")
    is_ddp = isinstance(trainer.strategy, DDPStrategy) and compat.runs_program_again(trainer.strategy)
    if not is_ddp and not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UserError(
            f"trainer.strategy={arguments.get('strategy')} is not supported. Use auto, single_device or ddp: "
            "train.py starts the processes of a run itself, and each of them holds the whole network."
        )
    if (n := os.environ.get(TORCHRUN_PROCESSES)) and trainer.world_size != int(n):
        raise UserError(
            f"trainer.devices={trainer.num_devices}, but torchrun was asked for {n} processes. Set "
            f"trainer.devices={n}, or leave out torchrun: train.py starts the processes of a run itself."
        )
    if trainer.world_size == 1:
        return
    if trainer.strategy.root_device.type == "cpu":
        most = max(hardware.count_cores(), 4)  # four, to try it on a small machine
        if trainer.world_size > most:
            raise UserError(
                f"trainer.devices={trainer.num_devices}: this machine has {hardware.count_cores()} CPU cores for "
                f"these processes. Set trainer.devices={most} or less."
            )
        if arguments.get("sync_batchnorm"):
            raise UserError("trainer.sync_batchnorm=true: not available on CPU. Leave it at auto.")
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

    They are killed if the block raises, and waited for otherwise. After a RuntimeError they have some seconds to
    end: it may be the lost connection to a process that failed, which has yet to print the cause.
    """
    before = set(os.environ)
    failed, grace_seconds = True, 0.0
    try:
        yield
        failed = False
    except RuntimeError:
        grace_seconds = 5.0
        raise
    finally:
        procs: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        children = list(procs)
        if failed:
            procs.clear()  # otherwise Lightning's monitor thread kills this process when one of them dies
        deadline = time.monotonic() + grace_seconds
        for process in children:
            if failed:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                process.kill()
            process.wait()
        if jit_distributed_available():
            torch.distributed.destroy_process_group()
        # With these set, the next Trainer in this process would assume that its processes are already running.
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)
