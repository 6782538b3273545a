"""results/gpu.sh: its commands compose, failures and timeouts do not stop it, and its results are copied."""

import json
import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import scripts
import torch
from faults import run
from project import ROOT

from fer_lightning.benchmark.sections import SECTIONS
from fer_lightning.config.cli import main
from fer_lightning.models.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("own_folder")


def plan(call, *settings):
    """Return the commands that a call would run."""
    return scripts.plan("gpu.sh", call, os.path.abspath("out"), *settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "runs"),
    [
        ("check", {"best/gpu-throughput": 6, "fast/gpu": 5}),
        ("benchmark", {"best/gpu-compiled": 1}),
        ("teachers", {"best/gpu": 1, "best/gpu-48px": 1, "best_cpu/gpu-wide": 1}),
        ("student", {"best/gpu-student": 1, "tiny/gpu-tiny": 1, "default": 1}),
        (
            "rest",
            {f"baseline/gpu-{name}-{seed}": 1 for name in ("16-32-128", "32-64-128") for seed in range(3)}
            | {"best/gpu-1": 1, "best/gpu-2": 1},
        ),
    ],
)
def test_every_command_composes(call, runs):
    composed = []

    def compose(cfg, run_dir):
        composed.append(run_dir)
        assert cfg.trainer["log_every_n_steps"] == 7
        (run_dir / "results.json").write_text('{"status": "finished", "history": []}')

    for command in plan(call, "trainer.log_every_n_steps=7"):
        if command[:2] == ["python", "train.py"]:
            # The script does not pass training settings to the ensemble.
            extra = [] if "-m" in command else ["trainer.log_every_n_steps=7"]
            assert main(compose, [*command[2:], *extra]) == 0
        else:
            assert command[:3] == ["python", "-m", "pytest"] or command[4] in SECTIONS
    parents = [str(run_dir.parent.relative_to("runs")) for run_dir in composed]
    assert {parent: parents.count(parent) for parent in parents} == runs


def test_the_student_uses_the_checkpoints_of_the_trained_teachers():
    *students, ensemble = plan("student")
    [teachers] = {
        word.removeprefix("distill.ckpt=")
        for words in students
        for word in words
        if word.startswith("distill.ckpt=")
    }
    assert f"ckpt={teachers}" in ensemble
    trained = {
        f"runs/{experiment}/{name}/0/checkpoints/best.ckpt"
        for experiment, name in (("best", "gpu"), ("best", "gpu-48px"), ("best_cpu", "gpu-wide"))
    }
    assert set(teachers.strip("[]").split(",")) == trained


def test_an_invalid_call_prints_the_usage():
    done = subprocess.run(["bash", str(ROOT / "results/gpu.sh"), "chekc", "out"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "results/gpu.sh check OUT" in done.stderr
    assert not Path("out").exists()


# Replaces Python: a part of the benchmark and a training fail, and two others take long.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$STARTED"
while [ $# -gt 1 ] && [ "$1" != --out ]; do words="$words $1"; shift; done
case "$words" in
    *gpu_results*) echo "the table" ;;
    *"benchmark data"*) echo '{"sections": {}}' > "$2"; exit 1 ;;
    *"benchmark training"*) echo '{"sections": {"training": {}}}' > "$2" ;;
    *"name=gpu-wide"*) echo "error: no luck"; exit 1 ;;
    *"name=gpu-compiled"* | *"name=gpu-48px"*) exec sleep 60 ;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """Return a function that runs the script in a copy of the project, with PYTHON in place of Python."""
    start = scripts.with_fake_python("gpu.sh", PYTHON, tmp_path)

    def run_script(call, budget_s):
        done, started = start(call, str(tmp_path / "out"), BUDGET_S=str(budget_s))
        return done, [line for line in started if "gpu_results" not in line]

    return run_script


def test_failed_and_timed_out_commands_do_not_stop_others_and_are_repeated(call, tmp_path):
    done, started = call("benchmark", budget_s=3)
    assert done.returncode == 1
    assert len(started) == 3
    assert done.stdout.endswith("the table\nOut of time: run the same command again.\n")
    log = (tmp_path / "out/benchmark.log").read_text()
    assert [line.split()[3] for line in log.splitlines() if "exit code" in line] == ["0", "1", "124"]
    # The part of the benchmark that succeeded is not repeated.
    done, again = call("benchmark", budget_s=3)
    assert again == [line for line in started if "benchmark training" not in line]


def test_trainings_side_by_side_are_all_waited_for(call, tmp_path):
    done, started = call("teachers", budget_s=3)
    assert done.returncode == 1
    assert len(started) == 3
    assert done.stdout.endswith("the table\nOut of time: run the same command again.\n")
    log = (tmp_path / "out/teachers.log").read_text().splitlines()
    assert "gpu-wide: error: no luck" in log
    ends = sorted(" ".join(line.split()[:5]) for line in log if "exit code" in line)
    assert ends == ["gpu-48px: --- exit code 124", "gpu-wide: --- exit code 1", "gpu: --- exit code 0"]


def test_a_call_without_time_left_starts_nothing_and_reports_it(call):
    done, started = call("check", budget_s=0)
    assert (done.returncode, started) == (3, [])
    assert "no time left for: python -m pytest" in done.stdout


def test_a_run_that_failed_early_is_in_the_table(monkeypatch, capsys):
    folder = Path("runs/best/gpu-student/0")
    folder.mkdir(parents=True)
    Path("out").mkdir()
    failed = {"command": "x", "history": [], "status": "failed", "error": "UserError: no such file"}
    (folder / "results.json").write_text(json.dumps(failed))
    monkeypatch.setattr(sys, "argv", ["gpu_results.py", "out"])
    runpy.run_path(str(ROOT / "results/gpu_results.py"), run_name="__main__")
    assert "best/gpu-student/0  failed" in capsys.readouterr().out
    assert Path("out/runs.tar.gz").exists()


def test_results_are_copied_to_the_output_folder(monkeypatch, capsys):
    run("-m", "experiment=best_cpu", "name=gpu-a", "seed=0", "trainer.max_epochs=1", "tta=mirror")
    Path("runs/gpu-data.json").write_text("{}")
    Path("out").mkdir()
    monkeypatch.setattr(sys, "argv", ["gpu_results.py", "out"])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "results/gpu_results.py"), run_name="__main__")
    table = capsys.readouterr().out
    results = json.loads(Path("runs/best_cpu/gpu-a/0/results.json").read_text())
    assert "best_cpu/gpu-a/0" in table
    assert f"{results['splits']['test']['accuracy']:.2%}" in table
    with tarfile.open("out/runs.tar.gz") as archive:
        assert sorted(archive.getnames()) == [
            *(f"runs/best_cpu/gpu-a/0/{name}" for name in ("command.txt", "config.yaml", "results.json")),
            "runs/gpu-data.json",
        ]
    shipped = read_checkpoint("out/best_cpu-gpu-a-0.pt").state_dict
    for name, weight in read_checkpoint("runs/best_cpu/gpu-a/0/checkpoints/best.ckpt").state_dict.items():
        torch.testing.assert_close(shipped[name].to(weight.dtype), weight, atol=1e-3, rtol=1e-3)
