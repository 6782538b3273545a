"""Sweeps run in separate processes by joblib, and by submitit, which is preempted the way Slurm does it."""

import json
import os
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
from project import ROOT
from watching import held, watched

from fer_lightning.config import overrides
from fer_lightning.config.cli import main
from fer_lightning.config.compose import CONF_DIR, Conf, build, to_plain

# A program like train.py without the slow parts.
PROGRAM = """
import json, os, sys
from fer_lightning.config.cli import main
from fer_lightning.errors import UserError

def job(cfg, run_dir):
    if cfg.seed == 1:
        raise UserError("seed=1 is bad luck.")
    results = {"status": "finished", "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    (run_dir / "output.json").write_text(json.dumps(results))
    (run_dir / "results.json").write_text(json.dumps(results | {"command": "", "history": []}))

sys.exit(main(job))
"""


def start(folder, *command, threads="1"):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={name: value for name, value in environment.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_joblib_runs_a_sweep_in_other_processes_and_a_failed_run_shows_in_the_exit_code(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["program.py", "-m", "hydra/launcher=joblib", "name=s", "seed=0,1,2"]
    with start(tmp_path, *command, threads="") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 1, out + err
    outputs = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/default/s/*/output.json")
    }
    assert outputs.keys() == {"0", "2"}
    assert process.pid not in {run["process"] for run in outputs.values()}
    assert {run["threads"] for run in outputs.values()} == {str(max(os.cpu_count() // 2, 1))}
    assert err.splitlines()[-2:] == [
        "error: seed=1 is bad luck.",
        "error: 1 of 3 runs failed; repeat the command to retry them.",
    ]
    assert "1 failed: UserError: seed=1 is bad luck." in out
    assert "Traceback" not in err
    assert "Warning" not in err


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_resumes_from_its_last_checkpoint(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = (
        "data=synthetic",
        "data.n_train=35",
        "data.n_val=7",
        "data.n_test=7",
        "data.batch_size=16",
        "model.channels=[2]",
        "callbacks=none",
        "logger=none",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "callbacks.watch._target_=watching.Watch",
    )
    (tmp_path / "hold").write_text("0")
    with start(
        tmp_path, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_local", "name=s", "seed=0", *settings
    ) as process:
        first = held(process, tmp_path)
        (tmp_path / "hold").unlink()
        os.kill(first, signal.SIGUSR2)  # as Slurm does near the time limit or before preemption
        out, err = process.communicate(timeout=600)
    log = "".join(path.read_text() for path in tmp_path.glob("runs/default/s/.submitit/*/*_log.*"))
    assert process.returncode == 0, out + err + log
    assert log.count("Starting with JobEnvironment") == 2
    results = json.loads((tmp_path / "runs/default/s/0/results.json").read_text())
    assert results["status"] == "finished"
    assert [epoch["epoch"] for epoch in results["history"]] == [0, 1]
    # The first process trained the first epoch; the requeued one trained only the second.
    [second] = {process for *_, process in watched(tmp_path, "0")} - {first}
    assert {epoch for epoch, *_, process in watched(tmp_path, "0") if process == second} == {1}
    assert "1 run in runs/default/s" in out


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        assert main(lambda cfg, run_dir: pytest.fail("the job ran"), arguments) == 1
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "hydra/launcher=jobib"], "hydra/launcher=jobib does not exist. Did you mean joblib?"),
        (["-m", "hydra/laucher=joblib"], "hydra/laucher does not exist. Did you mean hydra/launcher?"),
        (["hydra/launcher=submitit_slurm"], "hydra/launcher= applies to sweeps only. Add -m"),
        (["sweep=widths"], "sweep= needs -m. Add -m"),
        (["-m", "seed=0,1", "--cfg", "job"], "--cfg and --info show a single run. Leave out -m"),
    ],
)
def test_mistakes_about_launchers_are_reported(arguments, message, refused):
    assert message in refused(*arguments)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_reported_with_a_remedy(launcher, refused, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(overrides, "import_module", missing)
    error = refused("-m", f"hydra/launcher={launcher}", "seed=0,1")
    assert f'hydra/launcher={launcher} is not installed: pip install -e ".[launchers]"' in error


def test_missing_slurm_is_reported(refused, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    assert "hydra/launcher=submitit_slurm: srun is not on the PATH" in refused(
        "-m", "hydra/launcher=submitit_slurm", "seed=0,1"
    )


@pytest.mark.parametrize("launcher", [path.stem for path in sorted(CONF_DIR.glob("hydra/launcher/*.yaml"))])
def test_every_launcher_accepts_its_configuration(launcher, monkeypatch, tmp_path):
    plugin = pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    assert plugin.__version__ == "1.2.0"
    monkeypatch.chdir(tmp_path)
    cfg = Conf().compose([f"hydra/launcher={launcher}", "hydra.sweep.dir=runs/x"])
    built = build(to_plain(cfg.hydra.launcher))
    assert type(built).__module__.startswith("hydra_plugins.")


def test_only_train_py_starts_several_processes(monkeypatch, tmp_path, capsys):
    from fer_lightning.commands.train import job

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    # Pretend to be a worker of joblib or submitit, however pytest was started.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("worker", None))
    settings = ["data=synthetic", "data.n_train=14", "data.n_val=7", "data.n_test=7"]
    assert main(job, [*settings, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: trainer.devices=2: only python train.py and fer-lightning train can start")
    assert list(tmp_path.iterdir()) == []
