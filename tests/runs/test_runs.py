"""Sweeps that are killed, shared between processes and repeated, with dummy runs; and the ranking of runs."""

import csv
import errno
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from project import ROOT

from fer_lightning.__main__ import main as command
from fer_lightning.config.cli import main
from fer_lightning.config.compose import to_yaml
from fer_lightning.config.schema import to_dict
from fer_lightning.errors import Stopped, UserError
from fer_lightning.files import write_json
from fer_lightning.runs import lock as lock_module
from fer_lightning.runs import ranking as runs
from fer_lightning.runs.folders import claim, run_folders, status
from fer_lightning.runs.lock import is_locked, lock
from fer_lightning.runs.sweep import begin_sweep

# A dummy run of three steps. Each step waits for a file named after the step and the run, or for the file "go".
# Every run appends a line to the file "started" when it starts.
SLOW_SWEEP = """
import sys, time
from pathlib import Path
from fer_lightning.config.cli import main
from fer_lightning.config.compose import to_yaml
from fer_lightning.config.schema import to_dict
from fer_lightning.files import write_atomically, write_json

def job(cfg, run_dir):
    with open("started", "a") as file:
        print(run_dir.name, cfg.seed, cfg.resume, file=file)
    for step in ("config", "checkpoint", "results"):
        while not (Path(f"{step}{run_dir.name}").exists() or Path("go").exists()):
            time.sleep(0.005)
        if step == "config":
            write_atomically(run_dir / "config.yaml", to_yaml(to_dict(cfg)))
        elif step == "checkpoint":
            write_atomically(run_dir / "checkpoints" / "last.ckpt", "")
        else:
            write_json(run_dir / "results.json", {"status": "finished", "command": "python train.py"})

sys.exit(main(job))
"""
SWEEP = ("-m", "name=s", "seed=5,6,7")


pytestmark = pytest.mark.usefixtures("own_folder")


def start():
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_SWEEP, *SWEEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def started():
    return Path("started").read_text().splitlines() if Path("started").exists() else []


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finish(run_dir):
    write_json(run_dir / "results.json", {"status": "finished", "command": "python train.py"})


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before config.yaml", "before a checkpoint", "before results.json"])
def test_a_sweep_killed_at_any_moment_is_resumed(moment):
    Path("config0").touch()
    Path("checkpoint0").touch()
    Path("results0").touch()
    if moment != "before config.yaml":
        Path("config1").touch()
    if moment == "before results.json":
        Path("checkpoint1").touch()
    step = {"before a checkpoint": "config.yaml", "before results.json": "checkpoints/last.ckpt"}.get(
        moment, ".lock"
    )
    with start() as process:
        wait_for(lambda: len(started()) == 2 and Path("runs/default/s/1", step).exists())
        process.kill()
    assert process.returncode == -signal.SIGKILL

    Path("go").touch()
    with start() as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "job 0: already finished, skipped\n" in output
    resumed = "runs/default/s/1" if moment == "before results.json" else None
    assert started() == ["0 5 None", "1 6 None", f"1 6 {resumed}", "2 7 None"]
    assert [status(folder) for folder in run_folders(Path("runs"))] == ["finished"] * 3


@pytest.mark.slow
def test_processes_share_a_sweep_and_complete_the_runs_of_a_killed_one():
    with start() as first:
        wait_for(lambda: len(started()) == 1)
        with start() as second:
            wait_for(lambda: len(started()) == 2)
            assert [status(Path("runs/default/s", str(n))) for n in (0, 1)] == ["running", "running"]
            first.kill()
            first.wait()
            Path("go").touch()
            output, _ = second.communicate(timeout=120)
    assert second.returncode == 0, output
    assert "job 0: running in another process, skipped\n" in output
    assert started() == ["0 5 None", "1 6 None", "2 7 None", "0 5 None"]
    assert "3 runs in runs/default/s" in output


def test_runs_in_other_processes_are_skipped(capsys):
    run_dir = Path("runs/default/s/1")
    run_dir.mkdir(parents=True)
    begin_sweep(run_dir.parent, ["seed=5,6,7"])
    done = []
    with claim(run_dir) as ours:
        assert ours
        assert main(lambda cfg, folder: (done.append(cfg.seed), finish(folder)), SWEEP) == 0
    assert done == [5, 7]
    assert "1 of 3 runs are still running in other processes." in capsys.readouterr().out


def test_a_failed_run_is_retried_by_the_next_command_only(capsys):
    tried = []

    def job(cfg, run_dir):
        tried.append(cfg.seed)
        if cfg.seed == 5:
            # Meanwhile, the next run fails in another process.
            write_json(run_dir.with_name("1") / "results.json", {"status": "failed", "command": "python train.py"})
            raise UserError("no luck")
        finish(run_dir)

    assert main(job, SWEEP) == 1
    assert tried == [5, 7]
    assert "2 of 3 runs failed" in capsys.readouterr().err
    assert json.loads(Path("runs/default/s/0/results.json").read_text())["error"] == "UserError: no luck"
    tried.clear()
    assert main(lambda cfg, run_dir: (tried.append(cfg.seed), finish(run_dir)), SWEEP) == 0
    assert tried == [5, 6]


@pytest.mark.slow
def test_a_signal_stops_the_whole_sweep():
    def job(cfg, run_dir):
        raise Stopped(signal.SIGTERM)

    assert main(job, SWEEP) == 143
    assert [status(folder) for folder in run_folders(Path("runs"))] == ["interrupted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seed=1,2", "augment=none"), "this one lacks augment=none,light and adds augment=none."),
        (("seed=1,2", "augment=none,light", "tta=mirror"), "this one adds tta=mirror."),
        (("seed=1,2",), "this one lacks augment=none,light."),
        (("augment=none,light", "seed=1,2"), "this one orders its settings differently."),
        (("seed=shuffle(1,2)",), "Leave out shuffle"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(arguments, message, capsys):
    begin_sweep(Path("runs/default/s"), ["seed=1,2", "augment=none,light"])
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert main(lambda cfg, run_dir: finish(run_dir), ("-m", "name=s", *arguments)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("arguments", [("name=s",), ("-m", "name=one", "seed=1,2")])
def test_a_run_cannot_use_a_sweeps_folder_nor_a_sweep_a_runs(arguments, capsys):
    begin_sweep(Path("runs/default/s"), ["seed=1,2"])
    finish(Path("runs/default/one"))
    assert main(lambda cfg, run_dir: finish(run_dir), arguments) == 1
    assert "already contains a run" in capsys.readouterr().err


def test_a_run_in_another_process_is_not_resumed(capsys):
    run_dir = Path("runs/default/a")

    def begin(cfg, folder):
        (folder / "config.yaml").write_text(to_yaml(to_dict(cfg)))

    assert main(begin, ("name=a",)) == 0
    with claim(run_dir):
        assert main(lambda cfg, folder: None, (f"resume={run_dir}",)) == 1
    assert "is in use by another process" in capsys.readouterr().err


def test_a_lock_is_released_when_its_process_is_killed(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    code = (
        "import sys, time; from pathlib import Path; from fer_lightning.runs.lock import lock\n"
        "with lock(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.readline()
        assert is_locked(path)
        with lock(path, wait=False) as ours:
            assert not ours
        process.kill()
        process.wait()
        assert not is_locked(path)
        with lock(path, wait=False) as ours:
            assert ours


def test_the_lock_for_windows_uses_msvcrt_like_flock(tmp_path, monkeypatch):
    """Tested with a stand-in for msvcrt that locks with flock; nothing here has run on Windows."""
    fcntl, calls = pytest.importorskip("fcntl"), []

    def locking(fd, mode, n_bytes):
        assert (os.lseek(fd, 0, os.SEEK_CUR), n_bytes) == (0, 1)
        try:
            fcntl.flock(fd, fcntl.LOCK_UN if mode == "unlock" else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "the byte is locked") from error
        calls.append(mode)

    fake = SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
    path = tmp_path / "lock"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "msvcrt", fake)
        patch.setattr(sys, "platform", "win32")
        windows = SimpleNamespace(**runpy.run_path(lock_module.__file__))
        assert not windows.is_locked(path)
        path.write_text("not empty, so that appending starts elsewhere")
        with windows.lock(path) as ours:
            assert ours
            assert windows.is_locked(path)
            with windows.lock(path, wait=False) as ours_too:
                assert not ours_too
        assert not windows.is_locked(path)
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            threading.Timer(0.3, fcntl.flock, (other, fcntl.LOCK_UN)).start()
            with windows.lock(path) as ours:  # waits for longer than the attempts of wait=False
                assert ours
    assert calls == ["lock", "unlock"] * 3


def some_run(folder, settings, accuracies, status="finished", **more):
    results = {
        "status": status,
        "error": None,
        "command": f"python train.py {settings}",
        "monitor": "accuracy/val",
        "val_split": "PublicTest",
        "split": "PrivateTest",
        "accuracy": 0.5 if status == "finished" else None,
        "train_seconds": 12.3,
        "history": [
            {"epoch": epoch, "val_accuracy": accuracy, "val_loss": 2 - accuracy, "train_loss": 1.0}
            for epoch, accuracy in enumerate(accuracies)
        ],
    }
    write_json(folder / "results.json", results | more)


def some_runs(folder):
    some_run(folder / "s/0", "a=1 b=1", [0.1, 0.4])
    some_run(folder / "s/1", "a=1 b=2", [0.6, 0.3])
    some_run(folder / "s/2", "a=1 b=3 c='x y'", [0.2, 0.5], status="interrupted")
    some_run(
        folder / "s/10", "a=1 b=4", [], status="failed", error="OutOfMemoryError: CUDA out of memory. " + "x" * 99
    )
    (folder / "s/11").mkdir()
    (folder / "s/11/command.txt").write_text("python train.py a=1 b=5\n")
    (folder / "s/11/.lock").touch()


def test_the_ranking_puts_the_best_first_and_shows_differing_settings(tmp_path):
    some_runs(tmp_path)
    ranked = runs.rank_runs(tmp_path)
    assert [run.name for run in ranked] == ["s/1", "s/2", "s/0", "s/10", "s/11"]
    assert ranked[1].settings == {"b": "3", "c": "x y"}
    text = runs.format_runs(tmp_path, ranked)
    title, *lines = text.split("\n\n")
    assert " ".join(title.split()) == f"5 runs in {tmp_path}, ranked by accuracy on PublicTest"
    rows = [line.split() for line in lines[0].splitlines()[2:]]
    assert rows[0] == ["s/1", "b=2", "60.00%", "50.00%", "0/2", "12", "finished"]
    assert rows[1][-3:] == ["1/2", "12", "interrupted"]
    assert rows[3] == ["s/10", "b=4", "-", "-", "-", "12", "failed"]
    assert rows[4] == ["s/11", "b=5", "-", "-", "-", "-", "interrupted"]
    assert len(lines) == 2  # no run has a checkpoint
    assert lines[1].startswith("s/10 failed: OutOfMemoryError: CUDA out of memory.")
    assert max(map(len, text.splitlines())) <= 80


def test_the_ranking_names_the_best_checkpoint_that_exists(tmp_path):
    some_runs(tmp_path)
    for name in ("s/10", "s/2", "s/0"):
        path = tmp_path / name / "checkpoints" / "best.ckpt"
        path.parent.mkdir()
        path.touch()
    text = runs.format_runs(tmp_path, runs.rank_runs(tmp_path))
    assert f"\n\nbest: {tmp_path}/s/2/checkpoints/best.ckpt\n" in text


def test_tags_stand_beside_the_settings(tmp_path, capsys):
    some_run(tmp_path / "a", "tags=[x,y] a=1", [0.1], tags=["x", "y"])
    some_run(tmp_path / "b", "a=2", [0.2])
    text = runs.format_runs(tmp_path, runs.rank_runs(tmp_path))
    rows = [line.split()[:3] for line in text.split("\n\n")[1].splitlines()[2:]]
    assert rows == [["b", "a=2", "20.00%"], ["a", "a=1", "tags=x,y"]]
    assert command(["runs", str(tmp_path), "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["name"], row["tags"]) for row in rows] == [("b", ""), ("a", "x, y")]


def test_runs_that_differ_only_in_seed_or_fold_are_averaged(tmp_path, capsys):
    def fold(name, settings, val_accuracy, n=2, **more):
        number = settings.partition("data.fold=")[2][:1]
        split = f"Training fold {number}/{n}"
        some_run(tmp_path / name, settings, [0.0, val_accuracy], **({"val_split": split} | more))

    fold("0", "lr=1 data.fold=0/2 seed=0", 0.4, accuracy=0.1)
    fold("1", "lr=1 data.fold=1/2 seed=0", 0.6, accuracy=0.3)
    fold("2", "lr=2 data.fold=0/2 seed=0", 0.5, accuracy=None)
    fold("3", "lr=2 data.fold=1/2 seed=1", 0.7, accuracy=None)
    fold("4", "lr=2 data.fold=1/2 seed=2", 0.9, accuracy=None)
    # None of these belongs to a group: another number of folds, no fold, alone, not finished.
    fold("5", "lr=1 data.fold=0/3 seed=0", 0.9, n=3)
    some_run(tmp_path / "6", "lr=1 seed=0", [0.9])
    some_run(tmp_path / "7", "lr=3 seed=0", [0.9])
    fold("8", "lr=1 data.fold=1/2 seed=3", 0.9, status="interrupted")
    ranked = runs.rank_runs(tmp_path)
    text = runs.format_runs(tmp_path, ranked)
    [table] = [part for part in text.split("\n\n") if part.startswith("mean")]
    assert [line.split("  ") for line in re.sub(" {2,}", "  ", table).splitlines() if "=" in line] == [
        ["lr=2 data.fold=K/2 seed=*", "70.00 ± 20.00%", "-", "3"],
        ["lr=1 data.fold=K/2 seed=0", "50.00 ± 14.14%", "20.00 ± 14.14%", "2"],
    ]
    assert max(map(len, text.splitlines())) <= 80
    title = " ".join(text.split("\n\n")[0].split())
    assert title.endswith("on PublicTest, Training fold K/2, Training fold K/3")

    assert command(["runs", str(tmp_path), "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert [entries[name]["group"] for name in "5678"] == [None] * 4
    for name in "01":
        entry = entries[name]
        assert (entry["group"], entry["group_runs"]) == ("lr=1 data.fold=K/2 seed=0", 2)
        assert (entry["best_mean"], entry["accuracy_mean"]) == pytest.approx((0.5, 0.2))
        assert (entry["best_std"], entry["accuracy_std"]) == pytest.approx((0.02**0.5, 0.02**0.5))
    assert command(["runs", str(tmp_path), "--csv"]) == 0
    rows = {row["name"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert float(rows["2"]["best_mean"]) == pytest.approx(0.7)
    assert (rows["2"]["accuracy_mean"], rows["7"]["best_mean"]) == ("", "")


def test_mean_and_standard_deviation_of_losses(tmp_path):
    some_run(tmp_path / "0", "a=1 seed=1", [0.1], monitor="loss/val")
    some_run(tmp_path / "1", "a=1 seed=2", [0.3], monitor="loss/val")
    some_run(tmp_path / "2", "a=2 seed=1", [0.6], monitor="loss/val")
    some_run(tmp_path / "3", "a=2", [0.6], monitor="loss/val")
    ranked = runs.rank_runs(tmp_path)
    lines = [line.split() for line in runs.format_runs(tmp_path, ranked).splitlines() if "seed=*" in line]
    assert lines == [
        ["a=2", "seed=*", "1.4000", "±", "0.0000", "50.00", "±", "0.00%", "2"],
        ["a=1", "seed=*", "1.8000", "±", "0.1414", "50.00", "±", "0.00%", "2"],
    ]


def test_the_command_prints_table_json_and_csv_and_plots(tmp_path, capsys):
    some_runs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert command(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == runs.format_runs(tmp_path, runs.rank_runs(tmp_path)) + "\n"
    assert sorted(tmp_path.rglob("*")) == before
    assert command(["runs", str(tmp_path), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)[0]
    assert (best["name"], best["best"], best["settings"], best["epochs"]) == ("s/1", 0.6, {"b": "2"}, 2)
    assert command(["runs", str(tmp_path), "--csv", "--plots"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["b"] for row in rows] == ["2", "3", "1", "4", "5"]
    assert rows[3]["error"].startswith("OutOfMemoryError")
    pictures = {path.name: Image.open(path).size for path in (tmp_path / "figures").iterdir()}
    assert pictures.keys() == {"history.png", "parallel.png", "importance.png"}
    assert min(min(size) for size in pictures.values()) > 200
    assert command(["runs", str(tmp_path / "s/11/nothing")]) == 1
    assert "no runs below" in capsys.readouterr().err


def test_importance_matches_a_manual_calculation():
    def one(best, **settings):
        return runs.Run("", "finished", None, [], settings, "val_accuracy", best, 0, [], None, None, None, None)

    # Group means 0.2 and 0.6 around 0.4, deviations of 0.1 within: sums of squares 0.16 between, 0.04 within.
    ranked = [one(0.1, a="x", c="1"), one(0.3, a="x", c="2"), one(0.5, a="y", c="1"), one(0.7, a="y", c="2")]
    shares = runs.importance([*ranked, one(None, a="z", c="9")])
    assert shares["a"] == pytest.approx(1 - (0.04 / 2) / (0.2 / 3))
    assert shares["c"] == 0.0
    # As many values as runs: numbers are binned into four groups, texts explain nothing.
    eight = [one(n // 2 / 10, lr=f"{n}e-3", text=f"t{n}") for n in range(8)]
    assert runs.importance(eight) == {"lr": 1.0, "text": 0.0}


def test_damaged_results_are_reported(capsys):
    assert main(lambda cfg, run_dir: finish(run_dir), SWEEP) == 0
    Path("runs/default/s/1/results.json").write_text("{")
    capsys.readouterr()
    assert main(lambda cfg, run_dir: pytest.fail("done"), SWEEP) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "runs/default/s/1/results.json is damaged" in line


def test_runs_with_the_loss_as_monitor_are_ranked_by_loss(tmp_path):
    some_run(tmp_path / "0", "a=1", [0.1, 0.4], monitor="loss/val")
    some_run(tmp_path / "1", "a=2", [0.6, 0.3], monitor="loss/val")
    first, second = runs.rank_runs(tmp_path)
    assert (first.name, first.metric, first.best, first.best_epoch) == ("1", "val_loss", 1.4, 0)
    assert (second.name, second.best, second.best_epoch) == ("0", 1.6, 1)
    assert "ranked by loss on PublicTest" in " ".join(runs.format_runs(Path("x"), [first, second]).split())


def test_long_settings_are_wrapped(tmp_path):
    for number in range(2):
        some_run(tmp_path / str(number), " ".join(f"model.setting{k}=value{number}" for k in range(9)), [0.5])
    text = runs.format_runs(Path("x"), runs.rank_runs(tmp_path))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("model.setting8=value1") == 1
