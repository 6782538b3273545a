"""Lightning's Trainer on fake devices, which track where a tensor is but hold no data; no GPU is needed.

On "meta" a whole training step runs, including the backward pass, with optimizers that are not fused. PyTorch
raises when a tensor there is read (``.item()``, ``.tolist()``, ``.cpu()``, a tensor in an ``if``), which would make
the host wait for a GPU. `OneDevice` raises on copies from the host, which wait too. It misses only
``torch.tensor(..., device=...)``, which tests/test_gpu.py covers. Under FakeTensorMode the device is called "cuda",
and everything but a backward pass runs.
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
        pass  # accept any device


class _Strategy(SingleDeviceStrategy):
    def teardown(self):
        pass  # weights on a fake device cannot be moved back to the CPU


class StopEarly(Exception):
    """Ends a fit or a test before the end of the epoch, which may read from the device."""


class OneDevice(TorchDispatchMode):
    """Raises on operations that mix tensors of several devices, once the first training step has ended."""

    active = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.active:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            if len({tensor.device.type for tensor in tensors}) > 1:
                raise RuntimeError(f"{func} copies between the host and the device")
        return out


class StopAfter(Callback):
    """Raises StopEarly after a number of training steps, or of batches of validation or test."""

    def __init__(self, after, one_device=None):
        self.after = after
        self.one_device = one_device

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.one_device is not None:
            self.one_device.active = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.after:
            raise StopEarly

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.after:
            raise StopEarly

    on_test_batch_end = on_validation_batch_end


def trainer_on(device, monkeypatch, *callbacks, after=2, one_device=None, **options):
    """Build a Trainer that puts data and network on the device and stops after `after` batches."""
    # The data module treats the device as a GPU, and Lightning must not read the number of batches from it.
    monkeypatch.setattr(hardware, "has_room", lambda device, n_bytes: True)
    for loop in (fit_loop, evaluation_loop):
        monkeypatch.setattr(loop, "has_len_all_ranks", lambda *_: True)
    module_of = torch.get_device_module
    monkeypatch.setattr(
        torch,
        "get_device_module",  # the module of "meta" has no generator
        lambda device=None: torch.default_generator if str(device) == "meta" else module_of(device),
    )
    return Trainer(
        max_epochs=1,
        strategy=_Strategy(device=torch.device(device), accelerator=_Accelerator()),
        callbacks=[StopAfter(after, one_device), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
