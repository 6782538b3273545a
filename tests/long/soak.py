"""Whether a long run, and many runs in one process, leave anything behind.

    python tests/long/soak.py --out results/reliability/soak.json

Starts train.py twice with small drawn data: once for 200 epochs, once for a sweep of 50 runs. A callback notes at
the end of every epoch, after a garbage collection, what the process holds: resident memory, open files, threads,
live figures and tensors, warning filters and log handlers. A tenth of the way in everything has been imported and
allocated once; from there to the end all of it should be flat, but for the configurations that Hydra keeps until a
sweep is over, 0.15 MiB each. Linux only. Cost: about 15 minutes on one core.
"""

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from fer_lightning.files import write_json  # noqa: E402 (found beside tests/)
from fer_lightning.text import format_table  # noqa: E402 (found beside tests/)

SETTINGS = (
    "experiment=demo",
    "data.n_train=560",
    "data.n_val=140",
    "data.n_test=140",
    "model.channels=[8,16]",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
)
MAY_GROW_MIB = 32.0  # resident memory; everything else may not grow at all


class Sampler(Callback):
    """Appends a line of JSON on what the process holds to a file, at the end of every epoch."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(held()) + "\n")


def held() -> dict[str, float]:
    """What this process holds right now, after a garbage collection."""
    import torch
    from matplotlib.figure import Figure

    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]  # not isinstance, which would wake lazy proxies
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers"))]
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "figures": sum(issubclass(kind, Figure) for kind in kinds),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "objects": len(kinds),
        "warning_filters": len(warnings.filters),
        "log_handlers": sum(len(one.handlers) for one in loggers),
    }


def soak(*arguments: str) -> list[dict[str, float]]:
    """What a process of train.py with these settings held, epoch by epoch."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        probe = ("+callbacks.soak._target_=soak.Sampler", f"+callbacks.soak.path={samples}")
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *SETTINGS, *arguments, *probe],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            sys.exit(f"train.py {' '.join(arguments)} failed with exit code {done.returncode}")
        return [json.loads(line) for line in samples.read_text().splitlines()]


def growth(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each quantity its value a tenth of the way in and at the end, and its peak."""
    early = samples[len(samples) // 10]
    return {
        name: {
            "at_a_tenth": early[name],
            "at_the_end": samples[-1][name],
            "peak": max(sample[name] for sample in samples),
        }
        for name in early
    }


def is_flat(grown: dict[str, dict[str, float]]) -> bool:
    """Whether only what may grow did."""
    left = dict(grown)
    memory = left.pop("memory_mib")
    left.pop("objects")  # caches of small things; what they weigh is in the memory
    return memory["at_the_end"] - memory["at_a_tenth"] <= MAY_GROW_MIB and all(
        one["at_the_end"] <= one["at_a_tenth"] for one in left.values()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="of the long run; default %(default)s")
    parser.add_argument("--runs", type=int, default=50, help="of the sweep; default %(default)s")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write the numbers as JSON")
    args = parser.parse_args()

    parts = {
        "epochs": (args.epochs, ("name=soak", f"trainer.max_epochs={args.epochs}")),
        "runs": (
            args.runs,
            ("-m", "name=soak", "trainer.max_epochs=1", "seed=" + ",".join(map(str, range(args.runs)))),
        ),
    }
    found: dict[str, Any] = {"settings": SETTINGS, "may_grow_mib": MAY_GROW_MIB}
    flat = True
    for name, (count, arguments) in parts.items():
        samples = soak(*arguments)
        assert len(samples) == count, (len(samples), count)
        grown = growth(samples)
        flat &= is_flat(grown)
        memory = [round(sample["memory_mib"], 1) for sample in samples]
        found[name] = {"count": count, "flat": is_flat(grown), "growth": grown, "memory_mib": memory}
        rows = [
            [what, *(f"{one[when]:.0f}" for when in ("at_a_tenth", "at_the_end", "peak"))]
            for what, one in grown.items()
        ]
        print(f"\n{count} {name}: {'flat' if is_flat(grown) else 'GROWS'}\n")
        print(format_table(["held by the process", "at a tenth", "at the end", "peak"], rows), flush=True)
    if args.out:
        write_json(args.out, found)
        print(f"\nwritten: {args.out}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
