"""Kills a run by SIGKILL at random steps, resumes it until it finishes, and compares it with one never killed.

    python tests/long/kill_run.py --kills 20 --out results/reliability/kill_run.json

Shows that nothing is lost: at the end the weights, the optimizer's state, the averaged weights and results.json,
but for its seconds, are those of the run that was never killed, bit for bit. Every kill falls into a random step or
up to `--late` seconds after it, where validation, drawing and writing checkpoints are. Takes a process start, about
10 seconds, for each kill.
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

from faults import SMALL, STATEFUL, differences, kill_at  # noqa: E402

from fer_lightning.files import write_json  # noqa: E402
from fer_lightning.text import format_table  # noqa: E402

SETTINGS = [*SMALL, *STATEFUL, "callbacks=ema", "logger=tensorboard"]
STEPS_AN_EPOCH = 7
MODES = {"an epoch": [], "every step": ["checkpoint.every_n_minutes=1e-9"]}


def train(*settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each way of saving (default: 20)")
    parser.add_argument("--epochs", type=int, default=6, help="of every run, each of 7 steps (default: 6)")
    parser.add_argument("--late", type=float, default=0.1, help="longest delay of a kill in seconds (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the steps and delays (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
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
            begun, runs, kills, different = time.perf_counter(), 0, 0, 0
            while kills < args.kills:
                run = never.with_name(f"{mode.replace(' ', '_')}_{runs}")
                runs += 1
                while True:
                    # Where the step lies behind already, or the delay beyond the end, the run finishes.
                    step = draw.randint(1, STEPS_AN_EPOCH * args.epochs)
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
                lost = differences(run, never)
                different += bool(lost)
                print(f"{run.name}: {kills} kills so far, different: {', '.join(lost) or 'nothing'}", flush=True)
            rows.append(
                {
                    "saved": mode,
                    "kills": kills,
                    "runs": runs,
                    "runs_that_differ": different,
                    "seconds": time.perf_counter() - begun,
                }
            )
    columns = ["saved", "kills", "runs", "runs_that_differ"]
    print(format_table(columns, [[str(row[column]) for column in columns] for row in rows]))
    if out:
        write_json(out, {"command": " ".join(sys.argv), "seed": args.seed, "modes": rows})
    return int(any(row["runs_that_differ"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
