"""Summarise the runs of results/gpu.sh: print a table and collect the files worth keeping in a folder.

python results/gpu_results.py FOLDER [--since SECONDS]
"""

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from ship_weights import halved  # beside this file

from fer_lightning.text import format_table, percent

KEPT = ("results.json", "config.yaml", "command.txt")  # files kept of each run


def row(folder: Path, results: dict[str, Any]) -> list[str]:
    """Return a table row: name, status, epochs, accuracies with the run's test-time augmentation, time and speed.

    Missing values of a run that failed early are "-".
    """
    splits = list((results.get("splits") or {}).values())  # PublicTest, PrivateTest, both together
    seconds, rate = results.get("train_seconds"), results.get("images_per_second")
    return [
        str(folder.relative_to("runs")),
        results["status"],
        str(len(results["history"])),
        *(percent(scores["accuracy"]) for scores in splits[:2] or [{"accuracy": None}] * 2),
        f"{seconds:.0f}" if seconds else "-",
        f"{rate:,.0f}" if rate else "-",
    ]


def main() -> None:
    """Archive the runs, export the best weights of tested runs in half precision and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--since", type=float, default=0, help="export only weights written since this Unix time")
    args = parser.parse_args()
    results = sorted(Path("runs").glob("*/gpu*/**/results.json"))
    with tarfile.open(args.folder / "runs.tar.gz", "w:gz") as archive:
        kept = [path.with_name(name) for path in results for name in KEPT]
        for path in (*Path("runs").glob("gpu-*.json"), *(path for path in kept if path.exists())):
            archive.add(path)
    for path in results:
        best = path.parent / "checkpoints" / "best.ckpt"
        is_tested = path.parts[1] in ("best", "best_cpu", "tiny") and json.loads(path.read_text()).get("splits")
        if is_tested and best.exists() and best.stat().st_mtime >= args.since:
            weights = halved(torch.load(best, map_location="cpu", weights_only=True))
            torch.save(weights, args.folder / f"{'-'.join(path.parts[1:-1])}.pt")
    columns = ["run", "status", "epochs", "Public", "Private", "fit, s", "images/s"]
    print(format_table(columns, [row(path.parent, json.loads(path.read_text())) for path in results]))


if __name__ == "__main__":
    main()
