"""Kill a run with SIGKILL at random steps, resume it until it finishes, and compare it with an uninterrupted run.

    python tests/long/kill_run.py --kills 20 --out results/reliability/kill_run.json

Shows that nothing is lost: the final weights, optimizer state, averaged weights and results.json, except for its
durations, equal those of the uninterrupted run bit for bit. Each kill comes at a random step or up to `--late`
seconds after it, during validation, drawing or the writing of checkpoints. Each kill takes about 10 seconds, a
process start.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults import STATEFUL, differences, kill_at  # noqa: E402
from project import SMALL  # noqa: E402

from fer_lightning.files import write_json  # noqa: E402
from fer_lightning.text import format_table  # noqa: E402

SETTINGS = [*SMALL, *STATEFUL, "callbacks=ema", "logger=tensorboard"]
STEPS_PER_EPOCH = 7
MODES = {"an epoch": [], "every step": ["checkpoint.every_n_minutes=1e-9"]}


def train(*settings: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    """Run the experiment for both ways of saving, print a table, and return 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills for each checkpoint interval (default: 20)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each run, of 7 steps each (default: 6)")
    parser.add_argument("--late", type=float, default=0.1, help="longest delay of a kill in seconds (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the steps and delays (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    out = args.out and args.out.absolute()
    draw = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for mode, saving in MODES.items():
            settings = [*SETTINGS, *saving, f"trainer.max_epochs={args.epochs}"]
            never = Path("runs/default") / f"{mode.replace(' ', '_')}_never"
            train(*settings, f"name={never.name}").check_returncode()
            started, runs, kills, different = time.perf_counter(), 0, 0, 0
            while kills < args.kills:
                run = never.with_name(f"{mode.replace(' ', '_')}_{runs}")
                runs += 1
                while True:
                    # If the step is already done, or the delay ends after the run, the run finishes.
                    step = draw.randint(1, STEPS_PER_EPOCH * args.epochs)
                    Path("kill").write_text(f"{step} {draw.random() * args.late}" if kills < args.kills else "0")
                    begin = [*settings, f"name={run.name}", *kill_at(Path("kill").absolute())]
                    done = (
                        train(f"resume={run}", "callbacks.kill._target_=faults.Kill")
                        if run.exists()
                        else train(*begin)
                    )
                    if done.returncode == 0:
                        break
                    if done.returncode != -signal.SIGKILL:
                        print(done.stdout, done.stderr, file=sys.stderr)
                        return 1
                    kills += 1
                differing = differences(run, never)
                different += bool(differing)
                print(f"{run.name}: {kills} kills so far, different: {', '.join(differing) or 'none'}", flush=True)
            rows.append(
                {
                    "saved": mode,
                    "kills": kills,
                    "runs": runs,
                    "runs_that_differ": different,
                    "seconds": time.perf_counter() - started,
                }
            )
    columns = ["saved", "kills", "runs", "runs_that_differ"]
    print(format_table(columns, [[str(row[column]) for column in columns] for row in rows]))
    if out:
        write_json(out, {"command": " ".join(sys.argv), "seed": args.seed, "modes": rows})
    return int(any(row["runs_that_differ"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
