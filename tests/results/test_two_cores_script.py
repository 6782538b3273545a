"""results/two_cores.sh: its commands compose, each uses what earlier ones wrote, and a failure ends it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

from fer_lightning.config.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")


def script(project, *settings, **env):
    """Run the script of a project folder."""
    return subprocess.run(
        ["bash", str(project / "results/two_cores.sh"), *settings],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def plan(project=ROOT, *settings):
    """Return the commands that the script would run."""
    done = script(project, *settings, PLAN="1")
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_command_composes_and_uses_only_what_earlier_ones_wrote():
    composed = []

    def compose(cfg, run_dir):
        composed.append((run_dir, cfg))
        (run_dir / "results.json").write_text('{"status": "finished", "history": []}')
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints/best.ckpt").touch()

    def used(words):
        values = [word.split("=", 1)[1] for word in words if word.startswith(("ckpt=", "distill.ckpt="))]
        if words[1].endswith("choose_ensemble.py"):
            values = [",".join(words[2 : words.index("--out")])]
        return [Path(ckpt) for value in values for ckpt in value.strip("[]").split(",")]

    tested = []
    for command in plan(ROOT, "trainer.log_every_n_steps=7"):
        assert all(ckpt.exists() for ckpt in used(command)), command
        if command[1] == "results/choose_ensemble.py":
            assert not tested
            continue
        assert command[:3] == ["python", "train.py", "-m"]
        assert main(compose, command[2:]) == 0
        if "stages=[test]" in command:
            tested.append(command)
        else:
            assert not tested, "PrivateTest is used last"
            assert "stages=[fit]" in command
    names = [str(run_dir.parent.relative_to("runs")) for run_dir, _ in composed]
    assert {name: names.count(name) for name in names} == {
        "best/two-cores-round-1": 2,
        "best/two-cores-round-2-0": 1,
        "best/two-cores-round-2-1": 1,
        "fast_70/two-cores": 3,
        "tiny/two-cores": 2,
        "best_cpu/two-cores": 10,
        **{f"default/two-cores-{name}": 1 for name in ("best-0", "best-1", "tiny-0", "tiny-1", "ensemble")},
    }
    for name, (_, cfg) in zip(names, composed, strict=True):
        assert (cfg.trainer["log_every_n_steps"] == 7) == (not name.startswith("default")), name


# Replaces Python: notes its arguments, fails where FAIL says, and writes the choice of the ensemble.
PYTHON = """#!/usr/bin/env bash
[ "$1" != -c ] || exec "$PYTHON" "$@"
echo "$*" >> "$STARTED"
[ -z "$FAIL" ] || [[ "$*" != *"$FAIL"* ]] || exit 1
if [ "$1" = results/choose_ensemble.py ]; then
    mkdir -p runs
    echo '{"chosen": {"ckpt": ["a.ckpt", "b.ckpt"], "tta": "mirror"}}' > "${!#}"
fi
"""


@pytest.fixture
def project(tmp_path):
    """Return a folder with the script, and PYTHON in place of Python."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(PYTHON)
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "project/results").mkdir(parents=True)
    shutil.copy(ROOT / "results/two_cores.sh", tmp_path / "project/results")
    return tmp_path / "project"


def start(project, fail=""):
    """Run the script and return its exit code and the commands that it started."""
    started = project / "started"
    started.write_text("")
    path = f"{project.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = script(project, PATH=path, PYTHON=sys.executable, STARTED=str(started), FAIL=fail)
    return done.returncode, started.read_text().splitlines()


def test_a_failure_ends_the_script_and_the_next_run_goes_on(project):
    code, started = start(project, fail="experiment=fast_70")
    assert (code, len(started)) == (1, 4)
    code, started = start(project)
    assert code == 0
    [distill] = [command for command in started if "experiment=tiny" in command]
    assert "distill.ckpt=[a.ckpt,b.ckpt]" in distill
    assert started[-1].endswith("ckpt=[a.ckpt,b.ckpt] tta=mirror")
    # The choice stays: `tiny` is trained on it.
    code, again = start(project)
    assert again == [command for command in started if "choose_ensemble" not in command]
