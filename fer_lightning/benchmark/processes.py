"""The benchmark's contenders, each in a process of its own, taking turns.

Nothing here, nor in commands/benchmark.py until its measuring is over, imports torch: Linux counts the memory of
the process that starts another into that other's peak.
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
Turns = dict[str, list[Json]]  # contender -> what it came to, turn by turn


@dataclass(frozen=True)
class Bench:
    """What every section is given."""

    work: Path  # temporary folder: cache, images, run folders
    data: str  # zip, folder or CSV
    settings: tuple[str, ...] = ()  # overrides of train.py
    repeats: int = 5
    steps: int = 0  # training steps of an epoch
    threads: int | None = None  # None: as many as torch takes by itself
    compile: bool = False  # whether the floor may use torch.compile
    machine: Json = field(default_factory=dict)  # what contenders.describe says

    @property
    def images(self) -> Path:
        """JPEGs in train/<emotion>/, validation/<emotion>/ and test/<emotion>/."""
        return self.work / "images"


@dataclass(frozen=True)
class Finished:
    """A process that did its work."""

    stdout: str
    folder: Path  # where it ran
    started_at: float  # seconds since 1970
    peak_mib: float  # resident memory at its largest


def run(bench: Bench, command: Sequence[str], threads: int | None = None) -> Finished:
    """Runs Python with these arguments, in an empty folder, with so many threads or the benchmark's.

    Raises:
        UserError: it failed; with what it said of that.
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
            _, status, usage = os.wait4(process.pid, 0)  # Popen.wait tells nothing of memory
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = (folder / "stderr").read_text().strip()
        told = re.search(r"^error: (.*)", said, re.DOTALL | re.MULTILINE)  # how a UserError of its own begins
        why = told[1] if told else said.rpartition("\n")[2] or f"exit code {process.returncode}"
        raise UserError(f"{why}\n(from python {shlex.join(command)})")
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished((folder / "stdout").read_text(), folder, started_at, peak_bytes / MIB)


def contender(bench: Bench, name: str, *settings: str, threads: int | None = None, **arguments: Any) -> Measure:
    """The function of that name in contenders.py, for the recipe with these further settings."""

    def measure() -> Json:
        recipe = ["experiment=baseline", *bench.settings, *settings]
        command = ["-m", "fer_lightning.benchmark.contenders", name, json.dumps(arguments), *recipe]
        finished = run(bench, command, threads)
        answer: Json = json.loads(finished.stdout.splitlines()[-1])
        return answer

    return measure


def train(bench: Bench, *settings: str) -> Measure:
    """train.py with these further settings: images_per_second, first_step_seconds, peak_mib, peak_gpu_mib."""
    probe = ("callbacks.probe._target_=fer_lightning.benchmark.contenders.Probe", "callbacks.probe.path=probe.json")
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
    """plain_script.py on the recipe's network: images_per_second, without the first epoch; peak_mib."""
    machine, model = bench.machine, bench.machine["model"]
    if model["name"] != "fer_model0":
        raise UserError(f"model={model['name']}: the plain script trains fer_model0 only; leave it at that.")
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
    """What torch and lightning take before any of our code: seconds from process start; peak_mib."""

    def measure() -> Json:
        finished = run(bench, ["-c", "import torch, lightning, time; print(time.time())"])
        return {"seconds": float(finished.stdout) - finished.started_at, "peak_mib": finished.peak_mib}

    return measure


def take_turns(bench: Bench, contenders: Mapping[str, Measure]) -> Turns:
    """Every contender once, then every contender again, as often as the benchmark repeats."""
    turns: Turns = {name: [] for name in contenders}
    for turn in range(1, bench.repeats + 1):
        for name, measure in contenders.items():
            print(f"  {turn}/{bench.repeats} {name}", file=sys.stderr, flush=True)
            turns[name].append(measure())
    return turns
