"""What is fastest and safe on this machine."""

import ctypes
import os
import platform

import torch

from fer_lightning.errors import UserError

# Of /proc/cpuinfo: instructions that multiply bfloat16. Without them bf16 is emulated and several times slower.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def accelerator(asked: str) -> str:
    """What Lightning's ``accelerator`` stands for here, "cuda", "mps" or "cpu" among others.

    Raises:
        UserError: "gpu" on a machine without one.
    """
    if asked not in ("auto", "gpu"):
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    if asked == "gpu":
        raise UserError(
            f"trainer.accelerator=gpu: PyTorch {torch.__version__} finds no GPU. Take trainer.accelerator=cpu, "
            "or install a driver and a build of PyTorch for the GPU."
        )
    return "cpu"


def choose_precision(kind: str) -> tuple[str, str]:
    """Lightning's ``precision`` for an accelerator, and why, for people to read."""
    if kind == "cuda" and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU multiplies bfloat16"
        return "32-true", "the GPU does not multiply bfloat16"
    if kind == "cpu":
        if any(flag in _cpu_flags() for flag in _BF16_FLAGS):
            return "bf16-mixed", "the CPU multiplies bfloat16"
        return "32-true", "the CPU does not multiply bfloat16"
    return "32-true", f"bfloat16 on {kind} has not been measured"


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass  # not Linux
    return set()


def keep_freed_memory() -> None:
    """Lets glibc's malloc reuse the memory of large tensors in this process, instead of returning it to the system.

    By default each step's activations go back to the system and come again as fresh pages to be cleared, tens of
    thousands a step on a CPU. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_max, 0)  # by itself it would trim at the default threshold, which is slower than either
    mallopt(trim_threshold, 2**31 - 1)


def has_room(device: torch.device, n_bytes: int) -> bool:
    """Return whether a dataset of this size may stay in a GPU's own memory: a quarter of what is free at most.

    False for all but CUDA devices: Apple's GPUs share the host's memory.
    """
    if device.type != "cuda":
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= free_bytes / 4


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch ran out of memory, on a GPU or, where it has no exception for that, on a CPU."""
    return any(text in str(error) for text in ("out of memory", "can't allocate memory"))


def prepare_cublas() -> None:
    """Choose the workspace by which cuBLAS is deterministic, which PyTorch's own default equals in size.

    PyTorch looks for it once, at the first matrix product of the process. Lightning chooses it for
    ``trainer.deterministic=true`` alone, which can come later: in the second run of a sweep.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def describe(kind: str) -> str:
    """The machine in a few words, e.g. "2 x Intel(R) Xeon(R) Processor @ 2.80GHz"."""
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} x {_cpu_name()}" + (" (MPS)" if kind == "mps" else "")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
