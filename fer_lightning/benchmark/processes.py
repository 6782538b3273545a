"""Run the benchmark's contenders in turns, each in its own process.

Neither this module nor commands/benchmark.py may import torch before all measurements are done: Linux counts the
memory of the parent process towards the peak of its children.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fer_lightning.errors import UserError
from fer_lightning.files import Json

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MIB = 2**20

Measure = Callable[[], Json]
Turns = dict[str, list[Json]]  # contender -> its numbers in each turn


@dataclass(frozen=True)
class Bench:
    """The settings of a benchmark, shared by all sections.

    Attributes:
        work: temporary folder for the cache, images and run folders.
        data: zip, tar, CSV or folder.
        settings: overrides of train.py.
        repeats: number of turns.
        steps: training steps per epoch.
        threads: threads of each contender; None for torch's default.
        compile: whether the floor also tries torch.compile.
        machine: the result of contenders.describe.
    """

    work: Path
    data: str
    settings: tuple[str, ...] = ()
    repeats: int = 5
    steps: int = 0
    threads: int | None = None
    compile: bool = False
    machine: Json = field(default_factory=dict)

    @property
    def images(self) -> Path:
        """The folder of JPEGs, in train/<emotion>/, validation/<emotion>/ and test/<emotion>/."""
        return self.work / "images"


@dataclass(frozen=True)
class Finished:
    """A process that succeeded.

    Attributes:
        stdout: its output.
        folder: its working directory.
        started_at: start time, seconds since 1970.
        peak_mib: peak resident memory.
    """

    stdout: str
    folder: Path
    started_at: float
    peak_mib: float


def run(bench: Bench, command: Sequence[str], threads: int | None = None) -> Finished:
    """Run Python in a new empty folder.

    Args:
        bench: the benchmark's settings.
        command: arguments of the Python interpreter.
        threads: number of threads; None for the benchmark's.

    Raises:
        UserError: the process failed; with its error message.
    """
    folder = Path(tempfile.mkdtemp(dir=bench.work))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "FER2013_PATH": bench.data,
        "XDG_CACHE_HOME": str(bench.work / "cache"),
    }
    if threads or bench.threads:
        environment["OMP_NUM_THREADS"] = str(threads or bench.threads)
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        started_at = time.time()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=stdout, stderr=stderr
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)  # unlike Popen.wait, reports the memory
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        output = (folder / "stderr").read_text().strip()
        user_error = re.search(r"^error: (.*)", output, re.DOTALL | re.MULTILINE)
        reason = user_error[1] if user_error else output.rpartition("\n")[2] or f"exit code {process.returncode}"
        raise UserError(f"{reason}\n(from python {shlex.join(command)})")
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished((folder / "stdout").read_text(), folder, started_at, peak_bytes / MIB)


def contender(bench: Bench, name: str, *settings: str, threads: int | None = None, **arguments: Any) -> Measure:
    """Return a measurement by a function of contenders.py.

    Args:
        bench: the benchmark's settings.
        name: name of the function.
        settings: overrides of train.py on top of the recipe.
        threads: number of threads; None for the benchmark's.
        arguments: keyword arguments of the function.
    """

    def measure() -> Json:
        recipe = ["experiment=baseline", *bench.settings, *settings]
        command = ["-m", "fer_lightning.benchmark.contenders", name, json.dumps(arguments), *recipe]
        finished = run(bench, command, threads)
        numbers: Json = json.loads(finished.stdout.splitlines()[-1])
        return numbers

    return measure


def train(bench: Bench, *settings: str) -> Measure:
    """Return a measurement of train.py, with these overrides on top of the recipe.

    Its numbers are images_per_second, first_step_seconds, peak_mib and peak_gpu_mib.
    """
    probe = ("callbacks.probe._target_=fer_lightning.benchmark.probe.Probe", "callbacks.probe.path=probe.json")
    recipe = ("experiment=baseline", "name=run", *bench.settings, *settings, *probe)

    def measure() -> Json:
        finished = run(bench, ["-m", "fer_lightning", "train", *recipe])
        probed = json.loads((finished.folder / "probe.json").read_text())
        results = json.loads((finished.folder / "runs" / "baseline" / "run" / "results.json").read_text())
        return {
            "images_per_second": results["images_per_second"],
            "first_step_seconds": probed["first_step_at"] - finished.started_at,
            "peak_mib": finished.peak_mib,
            "peak_gpu_mib": probed["peak_gpu_bytes"] / MIB,
        }

    return measure


def plain(bench: Bench, epochs: int, steps: int) -> Measure:
    """Return a measurement of plain_script.py with the recipe's network.

    Its numbers are images_per_second, the median over the epochs after the first if there are any, and peak_mib.

    Raises:
        UserError: a network that the script does not train.
    """
    machine, model = bench.machine, bench.machine["model"]
    if model["name"] != "fer_model0":
        raise UserError(f"model={model['name']}: the plain script only trains fer_model0. Leave model unset.")
    options = {key: machine[key] for key in ("device", "batch_size", "image_size")}
    options |= {"epochs": epochs, "steps": steps} | ({"workers": bench.threads} if bench.threads else {})
    command = ["-m", "fer_lightning.benchmark.plain_script", str(bench.images / "train")]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]

    def measure() -> Json:
        finished = run(bench, [*command, "--channels", *map(str, model["channels"])])
        rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", finished.stdout)]
        return {"images_per_second": median(rates[1:] or rates), "peak_mib": finished.peak_mib}

    return measure


def imports(bench: Bench) -> Measure:
    """Return a measurement of importing torch and lightning alone: seconds from process start, and peak_mib."""

    def measure() -> Json:
        finished = run(bench, ["-c", "import torch, lightning, time; print(time.time())"])
        return {"seconds": float(finished.stdout) - finished.started_at, "peak_mib": finished.peak_mib}

    return measure


def take_turns(bench: Bench, contenders: Mapping[str, Measure]) -> Turns:
    """Measure every contender once per turn, so that a slow period of the machine affects all of them."""
    turns: Turns = {name: [] for name in contenders}
    for turn in range(1, bench.repeats + 1):
        for name, measure in contenders.items():
            print(f"  {turn}/{bench.repeats} {name}", file=sys.stderr, flush=True)
            turns[name].append(measure())
    return turns
