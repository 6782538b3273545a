"""Lightning's Trainer on devices that need no GPU: they know where a tensor is and have nothing to read from it.

On "meta" a whole training step runs, its backward pass too, with optimizers that are not fused. PyTorch refuses to
read a tensor there (``.item()``, ``.tolist()``, ``.cpu()``, a tensor in an ``if``), for which the host would wait
for a GPU. `OneDevice` refuses what is copied from the host, which waits too; ``torch.tensor(..., device=...)``
alone escapes it, and is left to tests/test_gpu.py. Under FakeTensorMode the device is called "cuda", and all but a
backward pass runs.
"""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loops import evaluation_loop, fit_loop
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fer_lightning import hardware


class _Accelerator(CPUAccelerator):
    def setup_device(self, device):
        pass  # any


class _Strategy(SingleDeviceStrategy):
    def teardown(self):
        pass  # the weights cannot come back to the CPU


class Enough(Exception):
    """Ends a fit or a test before its first read of the device, which an epoch's end may do."""


class OneDevice(TorchDispatchMode):
    """From the end of the first training step on, an operation on tensors of several devices is an error."""

    active = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.active:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            if len({tensor.device.type for tensor in tensors}) > 1:
                raise RuntimeError(f"{func} copies between the host and the device")
        return out


class Stop(Callback):
    """Raises Enough after so many training steps, or after so many batches of validation or test."""

    def __init__(self, after, one_device=None):
        self.after = after
        self.one_device = one_device

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.one_device is not None:
            self.one_device.active = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.after:
            raise Enough

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.after:
            raise Enough

    on_test_batch_end = on_validation_batch_end


def trainer_on(device, monkeypatch, *callbacks, after=2, one_device=None, **options):
    """A Trainer whose data and network are on the device, and who stops after so many batches."""
    # It is a GPU to the data module, and Lightning need not ask it for the number of batches.
    monkeypatch.setattr(hardware, "has_room", lambda device, n_bytes: True)
    for loop in (fit_loop, evaluation_loop):
        monkeypatch.setattr(loop, "has_len_all_ranks", lambda *_: True)
    module_of = torch.get_device_module
    monkeypatch.setattr(
        torch,
        "get_device_module",  # that of "meta" has no generator
        lambda device=None: torch.default_generator if str(device) == "meta" else module_of(device),
    )
    return Trainer(
        max_epochs=1,
        strategy=_Strategy(device=torch.device(device), accelerator=_Accelerator()),
        callbacks=[Stop(after, one_device), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
