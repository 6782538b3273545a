"""trainer=ddp on two real CPU processes gives the results of one process and leaves no process behind."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from project import ROOT
from watching import held, watched

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.augment import BatchAugment
from fer_lightning.models.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

# Every last batch is smaller than the others: 57 = 3 x 16 + 9, 21 = 2 x 8 + 5, and at test 35 = 4 x 8 + 3.
SETTINGS = (
    "data=synthetic",
    "data.n_train=57",
    "data.n_val=21",
    "data.n_test=14",
    "data.batch_size=16",
    "data.eval_batch_size=8",
    "model.channels=[4,8]",
    "optim.lr=1e-2",
    "tta=mirror",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.log_every_n_steps=1",
    "callbacks.watch._target_=watching.Watch",
)
SCORES = ("n", "accuracy", "macro_f1", "accuracy_leak_free", "n_leak_free", "accuracy_strict", "n_strict")


@dataclass(frozen=True)
class Runs:
    folder: Path  # holds the sweep two/0 and two/1, and in alone/ the same runs on one process
    output: str
    exit_code: int
    children: list[int]  # process ids that the second run had started
    resumed: "subprocess.CompletedProcess[str]"

    def run(self, name: str) -> Path:
        return self.folder / "runs/default" / name

    def results(self, name: str) -> dict:
        return json.loads((self.run(name) / "results.json").read_text())


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run a sweep of two runs on two processes each; the second run is stopped with SIGTERM and resumed."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux's /proc to list processes")
    folder = tmp_path_factory.mktemp("ddp")
    where = {
        "cwd": folder,
        "env": {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    command = [sys.executable, str(ROOT / "train.py")]
    (folder / "hold").write_text("1")
    sweep = ["-m", "name=two", "seed=0,1", *SETTINGS, "trainer=ddp", "trainer.devices=2"]
    with subprocess.Popen([*command, *sweep], **where) as process:
        children = children_of(held(process, folder))
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
    stopped = (folder / "runs/default/two/1/results.json").read_text()
    (folder / "hold").unlink()
    resumed = subprocess.run(
        [*command, "resume=runs/default/two/1", "callbacks.watch._target_=watching.Watch"], check=False, **where
    )
    (folder / "stopped.json").write_text(stopped)

    (folder / "alone").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "alone")
        patch.setattr(sys, "argv", ["train.py"])
        assert main(job, ["-m", "name=one", "seed=0,1", *SETTINGS]) == 0
    return Runs(folder, output, process.returncode, children, resumed)


def test_the_processes_share_the_batches_of_one_process(runs):
    one, two = watched(runs.folder / "alone", "0"), watched(runs.folder, "0")
    assert {(epoch, batch, rank) for epoch, batch, rank, _ in two} == {
        (epoch, batch, rank) for epoch in (0, 1) for batch in range(4) for rank in (0, 1)
    }
    for epoch in (0, 1):
        seen = torch.cat([part["index"] for (e, *_), part in two.items() if e == epoch])
        assert seen.sort().values.tolist() == list(range(57))
        assert [len(part["index"]) for (e, b, *_), part in two.items() if (e, b) == (epoch, 3)] == [5, 4]
    for (epoch, batch, *_), whole in one.items():
        shares = [part for (e, b, *_), part in two.items() if (e, b) == (epoch, batch)]
        index = torch.cat([share["index"] for share in shares])
        assert set(index.tolist()) == set(whole["index"].tolist())
        # Augmentation depends on the image, not on the process or the position in its batch.
        row = {image: n for n, image in enumerate(whole["index"].tolist())}
        images = torch.cat([share["images"] for share in shares])
        torch.testing.assert_close(images, whole["images"][[row[image] for image in index.tolist()]])


def test_the_first_image_of_each_process_is_augmented_differently(runs):
    first = [
        part["index"][:1] for (epoch, batch, *_), part in watched(runs.folder, "0").items() if not epoch + batch
    ]
    assert len(first) == 2
    face = torch.arange(48 * 48, dtype=torch.float32).view(1, 1, 48, 48).div(10).to(torch.uint8)
    augment = BatchAugment(rotation_deg=10.0)
    assert not torch.allclose(*(augment(face, index, 0, 0, 48) for index in first))


def test_training_gives_the_weights_and_metrics_of_one_process(runs):
    one, two = runs.results("../../alone/runs/default/one/0"), runs.results("two/0")
    for mine, theirs in zip(two["history"], one["history"], strict=True):
        assert mine["images"] == theirs["images"] == 57
        for key in ("train_loss", "val_loss"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4)
        for key in ("train_accuracy", "val_accuracy", "lr"):
            assert mine[key] == theirs[key]
    weights = [
        read_checkpoint(folder / "checkpoints/last.ckpt").state_dict
        for folder in (runs.run("two/0"), runs.folder / "alone/runs/default/one/0")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5)


def test_results_equal_those_of_one_process_testing_the_same_checkpoints(runs, monkeypatch):
    monkeypatch.chdir(runs.folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    two = runs.results("two/0")
    assert two["processes"] == 2
    for ckpt, splits in (("best", two["splits"]), ("last", two["last_epoch"])):
        path = f"ckpt=runs/default/two/0/checkpoints/{ckpt}.ckpt"
        test = ["stages=[test]", path, f"name={ckpt}", "callbacks=none", "logger=none"]
        assert main(job, [*(s for s in SETTINGS if "callbacks" not in s), *test]) == 0
        again = runs.results(ckpt)
        for name, scores in again["splits"].items():
            assert {key: splits[name][key] for key in SCORES} == {key: scores[key] for key in SCORES}
            assert splits[name]["loss"] == pytest.approx(scores["loss"])
        if ckpt == "best":
            assert again["per_class"] == two["per_class"]
            assert again["without_tta"]["test"]["accuracy"] == two["without_tta"]["test"]["accuracy"]


def test_everything_is_written_and_printed_once(runs):
    def files(folder):
        return sorted(
            re.sub(r"tfevents\.\d+\..*", "tfevents", str(path.relative_to(folder))) for path in folder.rglob("*")
        )

    assert files(runs.run("two/0")) == files(runs.folder / "alone/runs/default/one/0")
    lines = runs.output.splitlines()
    assert [line for line in lines if line.startswith("run: ")] == [
        f"run:      runs/default/two/{n}" for n in (0, 1)
    ]
    assert sum("2 processes share each batch" in line for line in lines) == 2
    # The second run was stopped in its second epoch.
    rows = [line.split()[0] for line in lines if re.match(r"epoch|    \d ", line)]
    assert rows == ["epoch", "0", "1", "epoch", "0"]
    assert lines.count("results: runs/default/two/0/results.json") == 1
    assert "Warning" not in runs.output


def test_sigterm_ends_every_process_and_leaves_results_marked_interrupted(runs):
    assert runs.exit_code == 143, runs.output
    assert "Traceback" not in runs.output
    stopped = json.loads((runs.folder / "stopped.json").read_text())
    assert stopped["status"] == "interrupted"
    assert [epoch["epoch"] for epoch in stopped["history"]] == [0]
    assert len(runs.children) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in runs.children)


def test_a_stopped_run_is_resumed_on_the_same_number_of_processes(runs):
    assert runs.resumed.returncode == 0, runs.resumed.stdout
    assert "2 processes share each batch" in runs.resumed.stdout
    one, two = runs.results("../../alone/runs/default/one/1"), runs.results("two/1")
    assert two["status"] == "finished"
    assert [epoch["train_loss"] for epoch in two["history"]] == pytest.approx(
        [epoch["train_loss"] for epoch in one["history"]], rel=1e-4
    )
    assert two["accuracy"] == one["accuracy"]


def test_a_bug_in_one_process_ends_the_run_and_shows_its_traceback(tmp_path):
    bug = ["callbacks.mine._target_=contributed.MyCallback", "callbacks.mine.where=second process"]
    settings = [setting for setting in SETTINGS if "callbacks" not in setting]
    failed = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings, *bug, "name=a", "trainer=ddp", "trainer.devices=2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert failed.returncode == 1
    assert "TypeError: unsupported operand: the bug" in failed.stderr
    assert json.loads((tmp_path / "runs/default/a/results.json").read_text())["status"] == "failed"
