"""A wheel, used in an empty folder, has the same commands, configurations and plugins as a clone."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from project import ROOT

pytestmark = pytest.mark.slow

FEW = ["data.n_train=112", "data.n_val=14", "data.n_test=14", "data.image_size=16", "model.channels=[4]"]
ONCE = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build a wheel from a clean copy of the project, and return the folder that it is installed in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    left_over = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("fer_lightning", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=left_over)
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", source / "dist", source], check=True)
    [wheel] = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    return target


@pytest.fixture
def command(installed, tmp_path):
    """Return a function that runs fer-lightning from the wheel in an empty folder and returns its output."""

    def run(*arguments):
        program = (
            f"import sys, fer_lightning; assert fer_lightning.__file__.startswith({str(installed)!r})\n"
            "from fer_lightning.__main__ import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": str(installed)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_folder_of_the_package_is_in_the_wheel(installed):
    rooms = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("fer_lightning/**/*.py")
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == rooms | {"fer_lightning.conf", "hydra_plugins"}
    files = {path.relative_to(ROOT / "conf") for path in ROOT.glob("conf/**/*.yaml")}
    assert {path.relative_to(installed / "fer_lightning/conf") for path in installed.glob("**/*.yaml")} == files
    read = ("data/kaggle_rows.npz", "weights/best.pt", "weights/tiny.json", "inference/demo.html")
    for name in ("py.typed", *read, "inference/demo_schema.json"):
        assert (installed / "fer_lightning" / name).is_file()
    assert {path.name for path in installed.iterdir()} - {"bin"} <= {
        "fer_lightning",
        "hydra_plugins",
        *(path.name for path in installed.glob("*.dist-info")),
    }


def test_a_wheel_trains_a_network(command, tmp_path):
    assert "results: runs/demo/a/results.json" in command("train", "experiment=demo", "name=a", *FEW, *ONCE)
    assert (tmp_path / "runs/demo/a/checkpoints/best.ckpt").is_file()
    assert "best" in command("runs", "runs")


def test_a_wheel_runs_a_search(command):
    pytest.importorskip("optuna")
    search = ["-m", "sweep=optuna", "optim.lr=1e-3,1e-2", "hydra.sweeper.n_trials=1", "name=s", "stages=[fit]"]
    assert "1 run in runs/demo/s" in command("train", "experiment=demo", *search, *FEW, *ONCE)


def test_a_wheel_installs_completions(command):
    assert "complete" in command("train", "-sc", "install=bash")
