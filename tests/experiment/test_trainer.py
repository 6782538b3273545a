"""Settings of the machine either suit it or are refused before anything is written."""

from types import SimpleNamespace

import pytest
from faults import results_of, run
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy

from fer_lightning.environment import TORCHRUN_PROCESSES
from fer_lightning.errors import UserError
from fer_lightning.experiment import trainer as trainer_module
from fer_lightning.experiment.processes import prepare_processes
from fer_lightning.experiment.trainer import resolve_trainer_arguments

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn is not supported. Use auto, single_device or"),
        (["trainer.strategy=ddp_fork", "trainer.devices=2"], "trainer.strategy=ddp_fork is not supported"),
        (["trainer.strategy=ddp_notebook"], "trainer.strategy=ddp_notebook is not supported"),
        (["trainer.strategy=fsdp"], "requires a GPU accelerator"),
        (["trainer.strategy=nonsense"], "invalid strategy name: `strategy='nonsense'`"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu"),
        (["trainer.accelerator=hpu"], "invalid accelerator name: `accelerator='hpu'`"),
        (["trainer.max_steps=abc"], "trainer.max_steps=abc"),  # Lightning's message names no argument
        (["trainer.devices=0"], "`Trainer(devices=0)` value is not a valid input"),
        (["trainer.devices=[]"], "`Trainer(devices=[])` value is not a valid input"),
        (["trainer.devices=999"], "trainer.devices=999: this machine has"),
        (["trainer.devices=2", "data.batch_size=1"], "2 processes cannot share a batch of 1"),
        (["trainer.devices=2", "data.eval_batch_size=1"], "2 processes cannot share a batch of 1"),
        (["trainer.devices=2", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=true: not available on CPU"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: a run uses one machine"),
        (["trainer.precision=transformer-engine"], "trainer.precision=transformer-engine"),
        (["trainer.plugins=bitsandbytes"], "trainer.plugins=bitsandbytes: expected objects"),
        (["trainer.callbacks=[early_stopping]"], "trainer.callbacks=[early_stopping]: expected objects"),
    ],
)
def test_settings_that_this_machine_cannot_follow_are_refused(arguments, message, capsys, tmp_path):
    run("name=a", *arguments, code=1)
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_strategy_that_splits_the_network_is_refused():
    trainer = SimpleNamespace(num_nodes=1, strategy=FSDPStrategy())  # Lightning builds it for a GPU only
    with pytest.raises(UserError, match=r"trainer\.strategy=fsdp is not supported"):
        prepare_processes(trainer, {"strategy": "fsdp"})


@pytest.mark.parametrize("kind", ["cuda", "mps", "gpu"])
def test_a_missing_gpu_is_named(kind, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    run(f"trainer.accelerator={kind}", code=1)
    assert capsys.readouterr().err.startswith(f"error: trainer.accelerator={kind}: PyTorch")
    assert list(tmp_path.iterdir()) == []


def test_a_slurm_job_does_not_change_a_run(monkeypatch):
    """A job of submitit, whose variables no command prepares: Lightning would take the tasks for the processes."""
    for name, value in {
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_module.make_trainer(False, [], None, {"devices": 2, "accelerator": "cpu"})
    assert (trainer.world_size, trainer.global_rank) == (2, 0)


def test_torchruns_number_of_processes_is_the_number_of_devices(monkeypatch):
    automatic = {"accelerator": "cpu", "devices": "auto", "precision": "32-true", "enable_progress_bar": False}
    assert resolve_trainer_arguments(automatic)[0]["devices"] == "auto"
    monkeypatch.setenv(TORCHRUN_PROCESSES, "2")
    assert resolve_trainer_arguments(automatic)[0]["devices"] == 2


def test_variables_that_lightning_would_take_for_arguments_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    run("name=a", code=1)
    assert "PL_TRAINER_LIMIT_TRAIN_BATCHES=1: Lightning would change the run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_our_callbacks_and_plugins_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(trainer_module, "Trainer", lambda **settings: made.append(settings) or Trainer(**settings))
    run("name=a", "trainer.max_epochs=1", "trainer.plugins=[]", "trainer.callbacks=null")
    assert [type(plugin).__name__ for plugin in made[0]["plugins"]] == [
        "AtomicCheckpointIO",
        "LightningEnvironment",
    ]
    assert len(results_of("runs/default/a")["history"]) == 1


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_every_callback_works_in_every_type_of_number(precision):
    run(
        "name=a",
        "trainer.max_epochs=1",
        f"trainer.precision={precision}",
        "callbacks=[default,ema,grad_cam,projector]",
        "logger=tensorboard",
    )
    assert results_of("runs/default/a")["status"] == "finished"
    run("name=b", "stages=[test]", "ckpt=runs/default/a/checkpoints/best.ckpt", "trainer.precision=32-true")
    assert results_of("runs/default/b")["n"] == 14


def test_the_record_names_the_precision_that_is_used(recwarn):
    run("name=a", "trainer.max_epochs=1", "trainer.precision=16-mixed")
    assert "precision bf16-mixed (16-mixed is not available on CPU)" in results_of("runs/default/a")["hardware"]
    assert not [warning for warning in recwarn if "AMP" in str(warning.message)]
