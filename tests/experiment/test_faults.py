"""Real faults in the middle of a run: the message, the files that remain, and that the run can be resumed."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fake_fer2013 import fake_faces, write_zip
from faults import content, differences, results_of, run, same, with_callback
from lightning.pytorch import Callback
from project import ROOT, SMALL

from fer_lightning import files
from fer_lightning.commands.train import job
from fer_lightning.config import cli as config
from fer_lightning.config.cli import main
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.experiment import job as job_module
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.training.module import EmotionClassifier

pytestmark = pytest.mark.usefixtures("own_folder")


def error_line(capsys):
    """Return the only line on stderr."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    [line] = error.splitlines()
    assert line.startswith("error: ")
    return line


class At(Callback):
    """Callback that acts at the end of an epoch's training, before the checkpoints are written."""

    def __init__(self, epoch, act):
        self.epoch = epoch
        self.act = act

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.act()


def mount(folder, *options):
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def mounted(folder, *options):
    """Mount a tmpfs on a new folder."""
    folder.mkdir()
    try:
        done = mount(folder, *options)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if done.returncode:
        pytest.skip(f"needs permission to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave):
    """Fill the disk, except for `leave` bytes."""
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


@pytest.mark.parametrize("leave", [0, 64 * 1024], ids=["full to the last byte", "room for results.json"])
def test_a_full_disk_keeps_the_last_checkpoint(leave, capsys, monkeypatch, tmp_path):
    run("name=never", "model.channels=[8,16]")
    whole = content("runs/default/never", "last.ckpt")
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "size=4m"):
        monkeypatch.chdir(disk)
        with_callback(monkeypatch, At(1, lambda: fill(disk, leave)))
        capsys.readouterr()
        run("name=a", "model.channels=[8,16]", "logger=tensorboard", code=1)
        line = error_line(capsys)
        assert "runs/default/a cannot be written: No space left on device" in line
        assert line.endswith("continue with resume=runs/default/a.")
        folder = Path("runs/default/a")
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert read_checkpoint(folder / "checkpoints/last.ckpt").epoch == 0
        if leave:
            assert results_of(folder)["status"] == "failed"
            assert results_of(folder)["error"] == "OSError: [Errno 28] No space left on device"
        (disk / "filler").unlink()
        assert main(job, ["resume=runs/default/a"]) == 0
        assert same(content(folder, "last.ckpt"), whole)
        assert results_of(folder)["status"] == "finished"


def test_a_folder_that_turns_read_only(capsys, monkeypatch, tmp_path):
    disk, checkpoints = tmp_path / "disk", Path("runs/default/a/checkpoints")
    with mounted(disk):
        monkeypatch.chdir(disk)
        with_callback(monkeypatch, At(1, lambda: mount(checkpoints, "-o", "ro")))
        run("name=a", code=1)
        assert "runs/default/a cannot be written: Read-only file system" in error_line(capsys)
        assert results_of("runs/default/a")["status"] == "failed"
        subprocess.run(["umount", str(checkpoints)], check=True)
        assert read_checkpoint(checkpoints / "last.ckpt").epoch == 0

        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert main(job, ["resume=runs/default/a"]) == 1
        assert "runs/default/a cannot be written" in error_line(capsys)
        run("name=b", code=1)
        assert "runs/default/b cannot be created: " in error_line(capsys)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert main(job, ["resume=runs/default/a"]) == 0


def test_nan_stops_the_fit_and_keeps_the_last_finite_weights(capsys, monkeypatch):
    transfer = FaceDataModule.on_after_batch_transfer
    batches = []

    def poisoned(self, batch, dataloader_idx):
        batch = transfer(self, batch, dataloader_idx)
        if self.trainer.training:
            batches.append(batch)
            if len(batches) == 7 + 4:
                batch["images"] = batch["images"] * float("nan")
        return batch

    monkeypatch.setattr(FaceDataModule, "on_after_batch_transfer", poisoned)
    run("name=a", "trainer.log_every_n_steps=2", "checkpoint.every_n_minutes=1e-9", code=1)
    line = error_line(capsys)
    assert "The loss of step 4 of 7 in epoch 1 is NaN or infinite" in line
    assert "optim.lr" in line
    assert len(batches) == 7 + 5  # the next batch is fetched, but not trained on
    results = results_of("runs/default/a")
    assert results["status"] == "failed"
    assert results["error"].startswith("UserError: The loss of step 4 of 7 in epoch 1")
    assert [epoch["epoch"] for epoch in results["history"]] == [0]
    last = read_checkpoint("runs/default/a/checkpoints/last.ckpt")
    assert last.global_step == 7 + 3
    assert all(value.isfinite().all() for value in last.state_dict.values())


def test_weights_that_diverge_in_the_last_step_are_not_saved(capsys, monkeypatch):
    class Spoil(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 14:
                next(pl_module.parameters()).data[:] = float("inf")

    for settings in (["name=validated"], ["name=not", "trainer.limit_val_batches=0"]):
        with_callback(monkeypatch, Spoil())
        run(*settings, code=1)
        assert " in epoch 1 is NaN or infinite" in error_line(capsys)
        path = Path("runs/default") / settings[0].removeprefix("name=") / "checkpoints/last.ckpt"
        assert read_checkpoint(path).epoch == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_names_the_settings_to_lower(error, capsys, monkeypatch):
    def step(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(EmotionClassifier, "training_step", step)
    run("name=a", code=1)
    line = error_line(capsys)
    assert str(error).splitlines()[0] in line
    for name in ("data.batch_size", "model.channels", "trainer.precision"):
        assert name in line
    assert results_of("runs/default/a")["status"] == "failed"


def test_data_may_be_deleted_while_a_run_trains_on_them(monkeypatch, tmp_path):
    archive = write_zip(tmp_path / "fer2013.zip", fake_faces())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [setting for setting in SMALL if not setting.startswith("data")]
    settings += ["data=fer2013", f"data.path={archive}", "data.image_size=24", "data.batch_size=8"]
    assert main(job, [*settings, "name=never"]) == 0

    def delete():
        archive.unlink()
        shutil.rmtree(tmp_path / "cache")

    with_callback(monkeypatch, At(0, delete))
    assert main(job, [*settings, "name=a"]) == 0
    assert differences("runs/default/a", "runs/default/never") == []


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


class Signal(Callback):
    def __init__(self, hook, signum):
        def send(trainer, *_):
            signal.raise_signal(signum)

        setattr(self, hook, send)


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize(
    "hook",
    ["on_fit_start", "on_train_batch_end", "on_validation_batch_end", "on_test_batch_end", "on_predict_batch_end"],
)
def test_a_signal_during_training_validation_or_test(hook, signum, code, monkeypatch, capsys):
    with_callback(monkeypatch, Signal(hook, signum))
    run("name=a", "trainer.max_epochs=1", code=code)
    assert capsys.readouterr().err == f"stopped by {signum.name}\n"
    results = results_of("runs/default/a")
    assert results["status"] == "interrupted"
    assert results["error"] is None
    assert len(results["history"]) == int("test" in hook or "predict" in hook)


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("name", ["config.yaml", "best.ckpt", "last.ckpt", "results.json"])
def test_a_signal_while_a_file_is_written(name, signum, code, monkeypatch):
    """Further signals arrive while the first one is handled."""
    replace, sent = os.replace, []

    def slow(temporary, path):
        if Path(path).name == name and not sent:
            sent.append(signum)
            signal.raise_signal(signum)
        if Path(path).name == "results.json":
            for each, _ in SIGNALS if sent else ():
                signal.raise_signal(each)
        replace(temporary, path)

    monkeypatch.setattr(files.os, "replace", slow)
    run("name=a", "trainer.max_epochs=1", code=code)
    folder = Path("runs/default/a")
    assert results_of(folder)["status"] == "interrupted"
    assert {path.name for path in folder.rglob(".*")} <= {".lock"}
    assert (folder / "checkpoints/last.ckpt").exists() == (name == "results.json")
    monkeypatch.setattr(files.os, "replace", replace)
    if name != "config.yaml":
        assert main(job, [f"resume={folder}"]) == 0
        assert results_of(folder)["status"] == "finished"


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_before_the_run_started_leaves_no_files(signum, code, monkeypatch, tmp_path):
    monkeypatch.setattr(job_module, "build_model", lambda **_: signal.raise_signal(signum))
    run("name=a", code=code)
    assert list(tmp_path.iterdir()) == []


def test_a_running_run_cannot_be_resumed(monkeypatch, capsys):
    def second():
        assert main(job, ["resume=runs/default/a"]) == 1

    with_callback(monkeypatch, At(0, second))
    run("name=a", "trainer.max_epochs=1")
    assert "runs/default/a is in use" in error_line(capsys)
    assert results_of("runs/default/a")["status"] == "finished"


def test_one_of_two_runs_that_start_at_the_same_time_is_refused():
    code = (
        "import sys; from fer_lightning.config.cli import main\n"
        "def job(cfg, run_dir):\n"
        "    (run_dir / 'config.yaml').write_text('seed: 0'); print('in', flush=True); sys.stdin.read()\n"
        "sys.exit(main(job, ['name=a']))"
    )
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    # The refused process exits, which closes its output; the other one waits for the end of its input.
    outputs = [process.stdout.readline() for process in both]
    errors = [process.communicate()[1] for process in both]
    assert sorted(outputs) == ["", "in\n"]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sum("runs/default/a is in use" in error or "already contains a run" in error for error in errors) == 1


def test_a_run_created_while_waiting_for_the_lock_is_kept(trained, monkeypatch, capsys):
    trained("stages=[fit]")
    monkeypatch.setattr(config, "_choose_folder", lambda overrides, multirun: Path("runs/default/a"))
    run("name=a", code=1)
    assert "already contains a run" in error_line(capsys)


def test_testing_a_truncated_checkpoint_prints_one_line(trained, capsys):
    trained("stages=[fit]")
    path = Path("runs/default/a/checkpoints/best.ckpt")
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        run("name=b", "stages=[test]", f"ckpt={path}", code=1)
        assert f"ckpt={path} is" in error_line(capsys)
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(path)
