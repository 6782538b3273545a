"""The moving average: computed by hand, and used in validation, test and checkpoints."""

from math import exp

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fer_lightning.callbacks.ema import EMA
from fer_lightning.data.augment import NoAugment
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.errors import UserError
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.training.module import EmotionClassifier
from fer_lightning.training.optim import build_optimizer

MODEL = {"name": "fer_model0", "channels": [4, 8]}


class Weights(Callback):
    """Callback that records the bias of the last layer after each step and in each validation."""

    def __init__(self):
        self.after_step = []
        self.in_validation = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after_step.append(pl_module.net.classifier.bias.detach().clone())

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.in_validation.append(pl_module.net.classifier.bias.detach().clone())


def fit(tmp_path, ema, epochs=2, batch_size=14, **options):
    torch.manual_seed(0)

    def optimizer(parameters, total_steps, steps_per_epoch):
        return build_optimizer(parameters, total_steps, steps_per_epoch, name="sgd", lr=0.1)

    module = EmotionClassifier(build_model(image_size=24, **MODEL), optimizer, InputSpec(24, 0.5, 0.5), MODEL)
    data = FaceDataModule(synthetic_faces(n_train=42, n_val=7, n_test=7), NoAugment(), batch_size, 24)
    weights = Weights()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[weights, ema, ModelCheckpoint(tmp_path, "last")],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer, module, data, weights


def averages(steps, decay):
    """Compute the average after each step; the first is a copy of the weights."""
    mean, means = None, []
    for n, weight in enumerate(steps):
        kept = min(decay, (1 + n) / (10 + n))
        mean = weight if mean is None else kept * mean + (1 - kept) * weight
        means.append(mean)
    return means


def test_average_is_as_computed_by_hand_and_is_validated_saved_and_tested(tmp_path):
    trainer, module, data, weights = fit(tmp_path, EMA(decay=0.3))
    expected = averages(weights.after_step, 0.3)
    assert len(expected) == 6
    torch.testing.assert_close(weights.in_validation, [expected[2], expected[5]])
    torch.testing.assert_close(module.net.classifier.bias.data, expected[-1])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["net.classifier.bias"], expected[-1])
    trainer.test(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
    torch.testing.assert_close(module.net.classifier.bias.data, expected[-1])


@pytest.mark.parametrize(("batch_size", "steps_per_epoch"), [(14, 3), (6, 7)])
def test_horizon_means_the_same_at_every_batch_size(batch_size, steps_per_epoch, tmp_path):
    *_, weights = fit(tmp_path, EMA(horizon_epochs=0.25), batch_size=batch_size)
    assert len(weights.after_step) == 2 * steps_per_epoch
    torch.testing.assert_close(
        weights.in_validation[-1], averages(weights.after_step, exp(-4 / steps_per_epoch))[-1]
    )


def test_steps_of_the_horizon_are_those_of_the_optimizer(tmp_path):
    *_, weights = fit(tmp_path, EMA(horizon_epochs=0.25), batch_size=7, accumulate_grad_batches=2)
    torch.testing.assert_close(weights.in_validation[-1], averages(weights.after_step[1::2], exp(-4 / 3))[-1])


def test_every_n_steps_adjusts_the_decay(tmp_path):
    *_, weights = fit(tmp_path, EMA(decay=0.3, every_n_steps=3))
    torch.testing.assert_close(weights.in_validation[0], weights.after_step[2])
    kept = min(0.3**3, 2 / 11)
    expected = kept * weights.after_step[2] + (1 - kept) * weights.after_step[5]
    torch.testing.assert_close(weights.in_validation[1], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon_epochs": 0.0}, r"callbacks\.ema\.horizon_epochs=0\.0: expected a number above 0\."),
        ({"decay": 1.0}, r"callbacks\.ema\.decay=1\.0: expected at least 0 and below 1\."),
        ({"every_n_steps": 0}, r"callbacks\.ema\.every_n_steps=0: expected at least 1\."),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        EMA(**options)
