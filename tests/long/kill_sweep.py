"""Kill the processes of a sweep at random moments, and check that no run is lost or repeated.

Two processes at a time work on a grid of seeds, then on a search with Optuna. They are repeatedly killed with
SIGKILL at a random moment, from start-up to the end of a run, and restarted with the same command. At the end,
every run must have finished with each epoch once, no results.json may have changed after its status was
"finished", and every epoch of the grid must have the numbers of an undisturbed sweep. The runs take seconds, on
synthetic faces and the CPU.

    python tests/long/kill_sweep.py --kills 20 --out results/reliability/kill_sweep.json

Each kill takes about ten seconds on two idle cores.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from project import SMALL  # noqa: E402

from fer_lightning.files import write_json  # noqa: E402
from fer_lightning.runs.folders import read_results, run_folders, status  # noqa: E402
from fer_lightning.text import format_table  # noqa: E402

EPOCHS = 4
SETTINGS = [
    *SMALL,
    "data.n_train=280",
    "data.n_val=70",
    "data.image_size=128",
    f"trainer.max_epochs={EPOCHS}",
    "logger=tensorboard",
]
KEPT = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "images",
)  # without durations


def main() -> int:
    """Run both experiments, print a table, and return 1 if runs were lost, repeated or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="kills for each kind of sweep; default %(default)s")
    parser.add_argument("--runs", type=int, default=8, help="runs of each sweep; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments; default %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    seeds = ",".join(map(str, range(args.runs)))
    kinds = {
        "grid": [f"seed={seeds}"],
        "search": ["sweep=optuna", "optim.lr=tag(log,interval(1e-5,1e-1))", f"hydra.sweeper.n_trials={args.runs}"],
    }
    outcomes = {}
    for kind, settings in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            outcomes[kind] = disturb(Path(folder), settings, args.kills, random.Random(args.seed))
            if kind == "grid":
                compare(Path(folder), settings, outcomes[kind])
        print(kind, outcomes[kind], file=sys.stderr, flush=True)
    columns = list(outcomes["grid"])
    rows = [[kind, *(str(row.get(key, "-")) for key in columns)] for kind, row in outcomes.items()]
    print(format_table(["", *columns], rows))
    if args.out:
        write_json(args.out, {"kills_each": args.kills, "seed": args.seed, **outcomes})
    return (
        1
        if any(row[key] for row in outcomes.values() for key in ("lost", "twice", "different") if key in row)
        else 0
    )


def start(folder: Path, settings: list[str], name: str = "s") -> subprocess.Popen[bytes]:
    """Start the sweep's command, and append its output to a file."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"name={name}", *SETTINGS, *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def disturb(folder: Path, settings: list[str], kills: int, moments: random.Random) -> dict[str, Any]:
    """Run a sweep in two processes that are killed and restarted, then let the sweep finish.

    Returns:
        The number of runs, of kills, of kills during a run, and of runs that were "lost" or done "twice".
    """
    sweep = folder / "runs/default/s"
    started = time.monotonic()
    finished: dict[str, bytes] = {}
    twice = in_a_run = done = 0

    def count_repeated() -> None:
        nonlocal twice
        for run_dir in run_folders(sweep):
            if (read_results(run_dir) or {}).get("status") in ("finished", "pruned"):
                content = (run_dir / "results.json").read_bytes()
                twice += finished.setdefault(run_dir.name, content) != content

    processes: list[subprocess.Popen[bytes]] = []
    while done < kills:
        processes = [process for process in processes if process.poll() is None]
        while len(processes) < 2:
            processes.append(start(folder, settings))
        if moments.random() < 0.8:  # the others are killed during start-up
            while not any(status(run_dir) == "running" for run_dir in run_folders(sweep)):
                if all(process.poll() is not None for process in processes):
                    break
                time.sleep(0.01)
        time.sleep(moments.uniform(0, 2.5))
        before = sum(status(run_dir) == "running" for run_dir in run_folders(sweep))
        victim = processes.pop(moments.randrange(2))
        alive = victim.poll() is None
        victim.kill()
        victim.wait()
        count_repeated()
        in_a_run += before > sum(status(run_dir) == "running" for run_dir in run_folders(sweep))
        done += 1
        if not alive and all(process.poll() is not None for process in processes):
            break  # the sweep finished before the last kill
    for process in processes:
        process.wait()
    code = start(folder, settings).wait()
    count_repeated()
    results = [read_results(run_dir) or {} for run_dir in run_folders(sweep)]
    complete = sum(
        run.get("status") in ("finished", "pruned")
        and [epoch["epoch"] for epoch in run["history"]] == list(range(len(run["history"])))
        and (run["status"] == "pruned" or len(run["history"]) == EPOCHS)
        for run in results
    )
    requested = (
        len(settings[0].split(",")) if settings[0].startswith("seed") else int(settings[-1].partition("=")[2])
    )
    return {
        "runs": len(results),
        "kills": done,
        "in a run": in_a_run,
        "exit code": code,
        "lost": abs(requested - complete),
        "twice": twice,
        "seconds": round(time.monotonic() - started),
    }


def compare(folder: Path, settings: list[str], outcome: dict[str, Any]) -> None:
    """Add to `outcome` the number of runs that are "different" from those of an undisturbed sweep."""
    start(folder, settings, name="undisturbed").wait()

    def numbers(name: str) -> dict[str, Any]:
        folders = run_folders(folder / "runs/default" / name)
        results = {run_dir.name: json.loads((run_dir / "results.json").read_text()) for run_dir in folders}
        return {
            number: ([[epoch[key] for key in KEPT] for epoch in run["history"]], run["splits"], run["best_epoch"])
            for number, run in results.items()
        }

    disturbed, undisturbed = numbers("s"), numbers("undisturbed")
    outcome["different"] = sum(disturbed.get(number) != run for number, run in undisturbed.items())


if __name__ == "__main__":
    sys.exit(main())
