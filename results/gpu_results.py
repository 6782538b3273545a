"""What the runs of results/gpu.sh came to: a table on stdout, and files in a folder that can leave the machine.

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

KEPT = ("results.json", "config.yaml", "command.txt")  # of each run


def row(folder: Path, results: dict[str, Any]) -> list[str]:
    """Name, state, epochs, accuracies with the run's views, and speed; of a run that failed early what there is."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--since", type=float, default=0, help="only weights written since then, seconds of 1970")
    args = parser.parse_args()
    found = sorted(Path("runs").glob("*/gpu*/**/results.json"))
    with tarfile.open(args.folder / "runs.tar.gz", "w:gz") as archive:
        kept = [path.with_name(name) for path in found for name in KEPT]
        for path in (*Path("runs").glob("gpu-*.json"), *(path for path in kept if path.exists())):
            archive.add(path)
    for path in found:
        best = path.parent / "checkpoints" / "best.ckpt"
        if path.parts[1] in ("best", "best_cpu") and best.exists() and best.stat().st_mtime >= args.since:
            weights = halved(torch.load(best, map_location="cpu", weights_only=True))
            torch.save(weights, args.folder / f"{'-'.join(path.parts[1:-1])}.pt")
    columns = ["run", "state", "epochs", "Public", "Private", "fit, s", "images/s"]
    print(format_table(columns, [row(path.parent, json.loads(path.read_text())) for path in found]))


if __name__ == "__main__":
    main()
