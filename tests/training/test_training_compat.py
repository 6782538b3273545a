"""Private APIs of Lightning, torch and TensorBoard still work as used; each test covers one of them."""

import signal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fer_lightning.training import compat


class Linear(LightningModule):
    """A module with a single linear layer, which records the hooks it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.hooks: list[str] = []

    def __setattr__(self, name, value):
        if name == compat.HOOK_NAME and value:
            self.hooks.append(value)
        super().__setattr__(name, value)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=1)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **options)


def test_lightning_stores_the_current_hook_in_this_attribute():
    module = Linear()
    trainer().fit(module)
    assert "training_step" in module.hooks


def test_only_a_trainer_of_several_processes_starts_some():
    assert compat.starts_processes(trainer(devices=2, strategy="ddp"))
    assert not compat.starts_processes(trainer(devices=1))


@pytest.mark.parametrize(("strategy", "again"), [("ddp", True), ("ddp_spawn", False), ("auto", False)])
def test_only_ddp_starts_processes_by_running_the_program_again(strategy, again):
    assert compat.runs_program_again(trainer(devices=1, strategy=strategy).strategy) == again


@pytest.mark.parametrize("keep", [True, False])
def test_signal_handlers_are_kept(keep):
    run = trainer()
    if keep:
        compat.keep_signal_handlers(run)
    during_fit = []

    class Module(Linear):
        def on_train_start(self):
            during_fit.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    run.fit(Module())
    assert (during_fit == [before]) == keep


def test_average_of_lightnings_callback():
    averaging, module = WeightAveraging(), Linear()
    assert compat.averaged_model(averaging) is None
    run = trainer(callbacks=[averaging])
    assert compat.evaluated_module(run, module) is module
    run.fit(module)
    average = compat.averaged_model(averaging)
    assert compat.evaluated_module(run, module) is average.module
    assert int(average.n_averaged) > 0
    assert compat.latest_update(averaging) == 4
    compat.set_latest_update(averaging, 7)
    assert averaging.state_dict()["latest_update_step"] == 7


def test_tensors_are_interpolated_and_copied_together():
    averages, current = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.full((1,), 3.0)]
    compat.lerp_all_(averages, current, 0.25)
    assert [tensor.tolist() for tensor in averages] == [[0.25, 0.25], [1.5]]
    compat.copy_all_(averages, current)
    assert [tensor.tolist() for tensor in averages] == [[1.0, 1.0], [3.0]]


@pytest.mark.parametrize("patched", [True, False])
def test_lightning_clips_the_gradients_of_a_fused_optimizer_only_when_patched(patched):
    class Fused(Linear):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, fused=True)
            if patched:
                compat.let_lightning_unscale(optimizer)
            return optimizer

    run = trainer(gradient_clip_val=0.1, precision="bf16-mixed")
    if patched:
        run.fit(Fused())
    else:
        with pytest.raises(RuntimeError, match="gradient clipping"):
            run.fit(Fused())


def test_hyperparameters_reach_tensorboard_without_columns(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    compat.write_hparams(writer, {"optim.lr": 0.5, "model": "resnet"})
    writer.close()
    metadata = EventAccumulator(str(tmp_path)).Reload().SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    assert content.session_start_info.hparams["optim.lr"].number_value == 0.5
    assert content.session_start_info.hparams["model"].string_value == "resnet"
