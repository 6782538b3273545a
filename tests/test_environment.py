"""Commands start alike everywhere: what launchers, notebooks and earlier jobs set is understood or removed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, SMALL

from fer_lightning import environment
from fer_lightning.errors import UserError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}
# A shell in a job of four tasks, opened by salloc or by srun --pty.
SLURM_SHELL = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PTY_PORT": "34889", "SLURM_PROCID": "0"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "", None])
def test_figures_need_no_window(backend):
    variables = {} if backend is None else {"MPLBACKEND": backend}
    environment.choose_backend(variables)
    assert variables == {"MPLBACKEND": "agg"}


def test_a_notebooks_own_process_keeps_its_backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    variables = {"MPLBACKEND": "inline"}
    environment.choose_backend(variables)
    assert variables == {"MPLBACKEND": "inline"}


@pytest.mark.parametrize(
    "left_over",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "abc"},
        {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "abc"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"},
        {"SLURM_PROCID": "1"},
        {"JSM_NAMESPACE_RANK": "1"},
        {"TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_ranks_of_an_earlier_job_are_removed(left_over):
    variables = dict(left_over)
    assert environment.prepare_training(variables)
    assert variables == {}


@pytest.mark.parametrize(
    "job",
    [
        SLURM_SHELL,
        {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},  # an older salloc, which starts no step
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"},  # sbatch without srun
        {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_SIZE": "1"},
    ],
)
def test_a_job_on_a_cluster_with_one_process_runs(job):
    assert environment.prepare_training(dict(job))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (SRUN | {"SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS=2: srun started 2 processes"),
        (
            SRUN | {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"},
            "SLURM_STEP_NUM_TASKS=2: srun started 2 processes",
        ),
        (SLURM_SHELL | SRUN | {"SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS=2: srun started 2 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: mpirun started 2 processes"),
        ({"PMI_SIZE": "3"}, "set trainer=ddp trainer.devices=3"),
        ({"JSM_NAMESPACE_SIZE": "2"}, "jsrun started 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE=2 and RANK or LOCAL_RANK=1: this would be one of several"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "RANK or LOCAL_RANK=1"),
        (TORCHRUN | {"WORLD_SIZE": "4"}, "torchrun started 4 processes, 2 of them on this machine"),
    ],
)
def test_several_processes_of_a_launcher_are_refused(variables, message):
    with pytest.raises(UserError, match=message):
        environment.prepare_training(dict(variables))


def test_the_first_process_of_torchrun_does_the_run(capsys):
    variables = dict(TORCHRUN)
    assert environment.prepare_training(variables)
    assert variables[environment.TORCHRUN_PROCESSES] == "2"
    assert not variables.keys() & {*TORCHRUN} - {"LOCAL_WORLD_SIZE"}
    assert environment.prepare_training(variables)  # fer-lightning train does this twice
    assert variables[environment.TORCHRUN_PROCESSES] == "2"
    assert not environment.prepare_training(TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"})
    assert capsys.readouterr().out.startswith("note:     process 1 of torchrun ends here")


def test_a_process_that_belongs_to_a_run_keeps_its_rank():
    of_a_run = {environment.RUN_OF: "1:runs/a", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1234"}
    variables = dict(of_a_run)
    assert environment.prepare_training(variables)
    assert variables == of_a_run


def start(folder: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    where = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **where, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


DRAWN = [*SMALL, "name=a", "trainer.max_epochs=1", "callbacks=default"]


@pytest.mark.slow
def test_training_in_a_notebooks_child_process_and_a_slurm_shell(tmp_path):
    backend = "module://no_such_package.backend_inline"
    done = start(tmp_path, str(ROOT / "train.py"), *DRAWN, MPLBACKEND=backend, RANK="1", **SLURM_SHELL)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/default/a/figures/*.png"))


def history(folder: Path) -> tuple[int, list[tuple[float, float]]]:
    results = json.loads((folder / "runs/default/a/results.json").read_text())
    assert results["status"] == "finished"
    return results["processes"], [(epoch["train_loss"], epoch["val_loss"]) for epoch in results["history"]]


@pytest.mark.slow
def test_torchrun_gives_the_run_that_train_py_gives(tmp_path):
    train = [str(ROOT / "train.py"), *SMALL, "name=a", "trainer=ddp", "trainer.accelerator=cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name in ("alone", "launched", "refused"):
        (tmp_path / name).mkdir()
    done = [
        start(tmp_path / "alone", *train, "trainer.devices=2"),
        start(
            tmp_path / "launched", *torchrun, *train
        ),  # trainer=ddp takes as many devices as torchrun has processes
    ]
    assert [process.returncode for process in done] == [0, 0], done
    assert history(tmp_path / "launched") == history(tmp_path / "alone")
    assert history(tmp_path / "alone")[0] == 2

    refused = start(tmp_path / "refused", *torchrun, *train, "trainer.devices=1")
    assert refused.returncode == 1
    assert [line for line in refused.stderr.splitlines() if line.startswith("error: ")] == [
        "error: trainer.devices=1, but torchrun was asked for 2 processes. Set trainer.devices=2, or leave out "
        "torchrun: train.py starts the processes of a run itself."
    ]
    assert not list((tmp_path / "refused").iterdir())
