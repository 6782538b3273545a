"""Choose the accelerator, precision and memory settings that are fastest and safe on this machine."""

import ctypes
import os
import platform

import torch

from fer_lightning.errors import UserError

# Flags in /proc/cpuinfo of CPUs that multiply bfloat16. Others emulate bf16, which is several times slower.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def accelerator(requested: str) -> str:
    """Return the accelerator that Lightning's ``accelerator`` setting selects on this machine.

    Args:
        requested: "auto" or "gpu", which become "cuda", "mps" or "cpu"; any other name is returned unchanged.

    Raises:
        UserError: "gpu" on a machine without a GPU.
    """
    if requested not in ("auto", "gpu"):
        return requested
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    if requested == "gpu":
        raise _no_gpu(requested, "GPU")
    return "cpu"


def check_gpu(kind: str) -> None:
    """Raise UserError if an accelerator is a GPU of a kind that this machine lacks."""
    modules = {"cuda": torch.cuda, "mps": torch.backends.mps}
    if kind in modules and not modules[kind].is_available():
        raise _no_gpu(kind, f"{kind.upper()} GPU")


def _no_gpu(requested: str, lacking: str) -> UserError:
    return UserError(
        f"trainer.accelerator={requested}: PyTorch {torch.__version__} finds no {lacking}. "
        "Use trainer.accelerator=cpu, or install a GPU driver and a build of PyTorch for it."
    )


def choose_precision(kind: str) -> tuple[str, str]:
    """Return Lightning's ``precision`` for an accelerator, and the reason as text."""
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
    """Make glibc's malloc reuse the memory of large tensors in this process instead of returning it to the system.

    By default each training step on a CPU returns its activations to the system and gets them back as tens of
    thousands of fresh pages, which the kernel has to zero. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_max, 0)  # slower than the default unless the trim threshold is raised too
    mallopt(trim_threshold, 2**31 - 1)


def has_room(device: torch.device, n_bytes: int) -> bool:
    """Return whether a dataset of this size may be kept in GPU memory: it takes at most a quarter of what is free.

    Always False for devices other than CUDA; Apple GPUs share the host's memory.
    """
    if device.type != "cuda":
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= free_bytes / 4


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch ran out of memory on a GPU or a CPU, recognised by the message."""
    return any(text in str(error) for text in ("out of memory", "can't allocate memory"))


def prepare_cublas() -> None:
    """Set the workspace size that makes cuBLAS deterministic; it equals PyTorch's default in size.

    PyTorch reads the variable once, at the first matrix product of the process. Lightning sets it only for
    ``trainer.deterministic=true``, which may come too late, e.g. in the second run of a sweep.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def describe(kind: str) -> str:
    """Return a short description of the machine, e.g. "2 x Intel(R) Xeon(R) Processor @ 2.80GHz"."""
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{count_cores()} x {_cpu_name()}" + (" (MPS)" if kind == "mps" else "")


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
