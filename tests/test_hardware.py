"""Settings for the machine have the intended effect."""

import platform
import subprocess
import sys

import pytest

FRESH_PAGES = """
import resource, sys, torch
from fer_lightning import hardware
if sys.argv[1] == "keep":
    hardware.keep_freed_memory()
def step():
    return [torch.ones(16, 2**20) for _ in range(2)]  # 64 MiB each
for _ in range(12):  # until the heap has a gap that fits an aligned block
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="applies to glibc only")
def test_freed_memory_is_reused():
    def fresh_mib(how):
        done = subprocess.run(
            [sys.executable, "-c", FRESH_PAGES, how], capture_output=True, text=True, check=True, timeout=120
        )
        return float(done.stdout)

    assert fresh_mib("keep") < 4
    assert fresh_mib("default") >= 64  # otherwise the line above would prove nothing
