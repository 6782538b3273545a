"""Check that a long run, and many runs in one process, do not leak resources.

    python tests/long/soak.py --out results/reliability/soak.json

Starts train.py twice with small synthetic data: once for 200 epochs, once for a sweep of 50 runs. At the end of
every epoch, after a garbage collection, a callback records the resources of the process: resident memory, open
files, threads, live figures and tensors, warning filters and log handlers. After a tenth of the time everything
has been imported and allocated once; from then on the numbers should not grow, except for the configurations that
Hydra keeps until a sweep ends, 0.15 MiB each. Linux only. Takes about 15 minutes on one core.
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

from fer_lightning.files import write_json  # noqa: E402 (needs the path above)
from fer_lightning.text import format_table  # noqa: E402 (needs the path above)

SETTINGS = (
    "experiment=demo",
    "data.n_train=560",
    "data.n_val=140",
    "data.n_test=140",
    "model.channels=[8,16]",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
)
MAY_GROW_MIB = 32.0  # limit for resident memory; nothing else may grow


class Sampler(Callback):
    """Callback that appends the resources of the process to a file at the end of every epoch, as a line of JSON."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(resources()) + "\n")


def resources() -> dict[str, float]:
    """Return the resources that this process holds after a garbage collection."""
    import torch
    from matplotlib.figure import Figure

    gc.collect()
    kinds = [type(item) for item in gc.get_objects()]  # isinstance would load lazy proxies
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    loggers = [
        logging.root,
        *(item for item in logging.root.manager.loggerDict.values() if hasattr(item, "handlers")),
    ]
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "figures": sum(issubclass(kind, Figure) for kind in kinds),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "objects": len(kinds),
        "warning_filters": len(warnings.filters),
        "log_handlers": sum(len(logger.handlers) for logger in loggers),
    }


def soak(*arguments: str) -> list[dict[str, float]]:
    """Run train.py with these settings, and return its resources after each epoch."""
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
    """Return the value of each resource at a tenth of the samples and at the end, and its peak."""
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
    """Return whether memory grew within its limit and nothing else grew."""
    others = dict(grown)
    memory = others.pop("memory_mib")
    others.pop("objects")  # includes caches of small objects, whose size counts as memory
    return memory["at_the_end"] - memory["at_a_tenth"] <= MAY_GROW_MIB and all(
        values["at_the_end"] <= values["at_a_tenth"] for values in others.values()
    )


def main() -> int:
    """Do both experiments, print their tables, and return 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the long run; default %(default)s")
    parser.add_argument("--runs", type=int, default=50, help="runs of the sweep; default %(default)s")
    parser.add_argument("--out", type=Path, metavar="PATH", help="JSON file to write")
    args = parser.parse_args()

    parts = {
        "epochs": (args.epochs, ("name=soak", f"trainer.max_epochs={args.epochs}")),
        "runs": (
            args.runs,
            ("-m", "name=soak", "trainer.max_epochs=1", "seed=" + ",".join(map(str, range(args.runs)))),
        ),
    }
    report: dict[str, Any] = {"settings": SETTINGS, "may_grow_mib": MAY_GROW_MIB}
    flat = True
    for name, (count, arguments) in parts.items():
        samples = soak(*arguments)
        assert len(samples) == count, (len(samples), count)
        grown = growth(samples)
        flat &= is_flat(grown)
        memory = [round(sample["memory_mib"], 1) for sample in samples]
        report[name] = {"count": count, "flat": is_flat(grown), "growth": grown, "memory_mib": memory}
        rows = [
            [resource, *(f"{values[key]:.0f}" for key in ("at_a_tenth", "at_the_end", "peak"))]
            for resource, values in grown.items()
        ]
        print(f"\n{count} {name}: {'flat' if is_flat(grown) else 'GROWS'}\n")
        print(format_table(["held by the process", "at a tenth", "at the end", "peak"], rows), flush=True)
    if args.out:
        write_json(args.out, report)
        print(f"\nwritten: {args.out}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
