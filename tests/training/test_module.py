"""Networks and the module: metrics computed by hand, the learning rate of each step, and a fit that learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer

from fer_lightning.data.augment import NoAugment
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.faces import Faces
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.training.module import EmotionClassifier, logged_metrics
from fer_lightning.training.optim import build_optimizer, lr_factor

MODEL = {"name": "fer_model0", "channels": [4, 8]}


def classifier(image_size=48, class_weights=None, **optim):
    def optimizer(parameters, total_steps, steps_per_epoch):
        return build_optimizer(parameters, total_steps, steps_per_epoch, **optim)

    net = build_model(image_size=image_size, **MODEL)
    inputs = InputSpec(image_size, 0.5, 0.5)
    return EmotionClassifier(net, optimizer, inputs, MODEL, class_weights=class_weights)


def fit(module, data, *callbacks, epochs=1, **options):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def faces() -> Faces:
    return synthetic_faces(n_train=70, n_val=21, n_test=14)


def test_fer_model0_has_the_layers_and_parameters_of_the_baseline():
    net = build_model("fer_model0", image_size=128, channels=[16, 32, 64])
    assert net(torch.zeros(2, 1, 128, 128)).shape == (2, 7)
    names = [type(layer).__name__ for layer in net.features]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3
    assert net.classifier.in_features == 64 * 16 * 16
    convolutions = 9 * (16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    norms = 2 * 2 * (16 + 32 + 64)
    assert sum(p.numel() for p in net.parameters()) == convolutions + norms + 64 * 16 * 16 * 7 + 7


@pytest.mark.parametrize(("stem_stride", "sides"), [(2, (24, 12, 6, 3)), (1, (48, 24, 12, 6))])
def test_small_vgg_halves_the_image_at_every_stage_and_accepts_any_size(stem_stride, sides):
    net = build_model("small_vgg", image_size=48, channels=[16, 32, 64, 128], stem_stride=stem_stride)
    shapes = []
    for layer in net.features:
        layer.register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert net(torch.zeros(2, 1, 48, 48)).shape == (2, 7)
    assert [shape for n, shape in enumerate(shapes) if n in (2, 9, 16, 23)] == [
        (width, side, side) for width, side in zip((16, 32, 64, 128), sides, strict=True)
    ]
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mirrored_filters_halve_the_parameters_and_give_a_face_and_its_mirror_image_the_same_logits(
    memory_format, stem_stride
):
    options = {"image_size": 48, "channels": [8, 8, 12, 16], "residual": True, "stem_stride": stem_stride}
    plain, mirrored = (build_model("small_vgg", **options, mirrored=value) for value in (False, True))
    for of_plain, of_mirrored in zip(plain.modules(), mirrored.modules(), strict=True):
        sizes = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in (of_plain, of_mirrored)]
        assert sizes == [sizes[0], sizes[0] // 2] or isinstance(of_plain, torch.nn.Linear)
    for norm in mirrored.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0  # evaluation uses the statistics of the last batch
            torch.nn.init.uniform_(norm.weight)
            torch.nn.init.uniform_(norm.bias)
    mirrored.to(memory_format=memory_format)
    faces = torch.rand(64, 1, 48, 48)
    upside_down, mirror_image, trained = (mirrored(images) for images in (faces.flip(2), faces.flip(3), faces))
    evaluated = mirrored.eval()(faces)
    assert torch.allclose(mirror_image, trained, atol=1e-5)
    assert torch.allclose(mirrored(faces.flip(3)), evaluated, atol=1e-5)
    assert torch.allclose(evaluated, trained, atol=1e-2)  # running variance is unbiased
    assert not torch.allclose(upside_down, trained, atol=2e-2)


def test_resnet_halves_the_image_at_each_stage_and_starts_as_its_shortcuts():
    net = build_model("resnet", image_size=48, channels=[4, 6, 8], blocks=2).eval()
    images = torch.randn(2, 1, 48, 48)
    x, sides = images, []
    for layer in net.features:
        x = layer(x)
        sides.append((x.shape[1], x.shape[-1]))
    assert sides[3:] == [(4, 48), (4, 48), (6, 24), (6, 24), (8, 12), (8, 12)]
    assert net(images).shape == (2, 7)
    for block in net.features[3:]:
        x = torch.rand(2, block.conv1.in_channels, 12, 12)
        torch.testing.assert_close(block(x), block.shortcut(x).relu())
    strided = build_model("resnet", image_size=48, channels=[4, 6], blocks=1, stem_stride=2)
    assert strided.features(images).shape == (2, 6, 12, 12)


def test_resnet_drops_features_only_in_training():
    net = build_model("resnet", image_size=12, channels=[8], blocks=1, dropout=0.5)
    assert net.eval()(torch.ones(1, 1, 12, 12)).equal(net(torch.ones(1, 1, 12, 12)))
    net.features.eval()
    net.dropout.train()
    torch.manual_seed(0)
    first, second = net(torch.ones(1, 1, 12, 12)), net(torch.ones(1, 1, 12, 12))
    assert not first.equal(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet", "channels": [4], "blocks": 0}, "blocks=0: expected 1 to 100"),
        ({"name": "resnet", "channels": [4] * 9}, "channels: 128 px cannot be halved 8 times"),
        ({"name": "small_vgg", "channels": []}, "channels: expected at least one width"),
        ({"name": "small_vgg", "channels": [4] * 8}, "channels: 128 px cannot be halved 8 times"),
        ({"name": "small_vgg", "channels": [4, 3], "mirrored": True}, "mirrored=true: expected even channels"),
        ({"name": "small_vgg", "stem_stride": 3}, "stem_stride=3: expected 1 or 2"),
        (
            {"name": "small_vgg", "channels": [4, 4], "mirrored": True, "image_size": 46},
            "mirrored=true: expected even channels and an image_size divisible by 4",
        ),
        ({"name": "fer_modle0"}, "model=fer_modle0: unknown network. Did you mean fer_model0?"),
        ({"name": "fer_model0", "widths": [3]}, "widths"),
        ({"name": "fer_model0", "channels": []}, "channels: expected at least one width"),
        ({"name": "fer_model0", "channels": [4] * 9}, "channels: 128 px cannot be halved 9 times"),
    ],
)
def test_invalid_options_of_a_network_are_an_error_with_the_reason(options, message):
    with pytest.raises(UserError) as error:
        build_model(**({"image_size": 128} | options))
    assert message in str(error.value)


def test_training_metrics_are_exact(faces):
    """The epoch's loss is a mean over images, although its last batch is smaller."""
    record = {}

    class Recorder(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses = record.setdefault("losses", [])
            losses.append((outputs["loss"].item(), len(batch["labels"])))

    module = classifier()
    trainer = fit(module, FaceDataModule(faces, NoAugment(), batch_size=32, image_size=48), Recorder())
    assert [n for _, n in record["losses"]] == [32, 32, 6]
    expected = sum(loss * n for loss, n in record["losses"]) / 70
    assert trainer.callback_metrics["loss/train"].item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_multiply_the_loss_of_each_image(faces):
    weights = torch.linspace(0.4, 1.6, 7)
    torch.manual_seed(0)
    module = classifier(lr=1e-12, class_weights=weights)
    assert "class_weights" not in module.state_dict()
    start = {name: value.clone() for name, value in module.net.state_dict().items()}
    data = FaceDataModule(faces, NoAugment(), batch_size=70, eval_batch_size=35, image_size=48)
    trainer = fit(module, data)
    net = classifier().net
    net.load_state_dict(start)
    images = torch.from_numpy(faces.images[:70]).unsqueeze(1) / 255 * 2 - 1
    labels = torch.from_numpy(faces.labels[:70])
    losses = torch.nn.functional.cross_entropy(net.train()(images), labels, reduction="none")
    expected = (losses * weights[labels]).mean().item()
    assert trainer.callback_metrics["loss/train"].item() == pytest.approx(expected, rel=1e-4)
    plain = classifier(lr=1e-12)
    plain.net.load_state_dict(start)
    assert fit(plain, data).callback_metrics["loss/val"] == trainer.callback_metrics["loss/val"]


def test_soft_targets_take_the_place_of_labels_in_the_training_loss_only(faces):
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.ones(7), len(faces)).astype(np.float32)
    batch_sizes = {"batch_size": 70, "eval_batch_size": 35, "image_size": 48}
    torch.manual_seed(0)
    module = classifier(lr=1e-12)
    weights = {name: value.clone() for name, value in module.net.state_dict().items()}
    trainer = fit(module, FaceDataModule(replace(faces, targets=targets), NoAugment(), **batch_sizes))
    net = classifier().net
    net.load_state_dict(weights)
    images = torch.from_numpy(faces.images[:70]).unsqueeze(1) / 255 * 2 - 1
    expected = -(torch.from_numpy(targets[:70]) * net.train()(images).log_softmax(dim=1)).sum(dim=1).mean()
    assert trainer.callback_metrics["loss/train"].item() == pytest.approx(expected.item(), rel=1e-4)
    plain = classifier(lr=1e-12)
    plain.net.load_state_dict(weights)
    of_labels = fit(plain, FaceDataModule(faces, NoAugment(), **batch_sizes)).callback_metrics
    assert of_labels["loss/train"] != trainer.callback_metrics["loss/train"]
    assert of_labels["loss/val"] == trainer.callback_metrics["loss/val"]


def test_log_every_n_steps_1_logs_every_step(faces, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    written = []
    logger.log_metrics = lambda metrics, step=None: written.append((step, metrics))
    module = classifier()
    Trainer(
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=FaceDataModule(faces, NoAugment(), batch_size=32, image_size=48))
    steps = [(step, metrics) for step, metrics in written if "step/loss" in metrics]
    assert [step for step, _ in steps] == [1, 2, 3]
    epoch = next(metrics for _, metrics in written if "loss/train" in metrics)
    mean = sum(metrics["step/loss"] * n for (_, metrics), n in zip(steps, (32, 32, 6), strict=True)) / 70
    assert epoch["loss/train"] == pytest.approx(mean, rel=1e-5)
    correct = sum(metrics["step/accuracy"] * n for (_, metrics), n in zip(steps, (32, 32, 6), strict=True))
    assert epoch["accuracy/train"] == pytest.approx(correct / 70)


def test_validation_metrics_match_a_computation_by_hand(faces):
    module = classifier()
    data = FaceDataModule(faces, NoAugment(), batch_size=32, image_size=48, eval_batch_size=8)
    trainer = fit(module, data)
    held_out = module.held_out
    assert held_out is not None
    assert held_out.index.tolist() == data.rows(data.val_usages).tolist()
    assert torch.equal(held_out.labels, torch.from_numpy(faces.labels[held_out.index]))
    predicted = held_out.logits.argmax(dim=1)
    metrics = trainer.callback_metrics
    assert metrics["accuracy/val"] == pytest.approx((predicted == held_out.labels).float().mean().item())
    assert metrics["loss/val"].item() == pytest.approx(
        F.cross_entropy(held_out.logits, held_out.labels).item(), rel=1e-5
    )
    f1 = []
    for label, emotion in enumerate(EMOTIONS):
        true_positives = ((predicted == label) & (held_out.labels == label)).sum().item()
        recall = true_positives / (held_out.labels == label).sum().item()
        precision = true_positives / max(1, (predicted == label).sum().item())
        assert metrics[f"recall/{emotion}"].item() == pytest.approx(recall)
        assert metrics[f"precision/{emotion}"].item() == pytest.approx(precision)
        f1.append(2 * precision * recall / (precision + recall) if true_positives else 0.0)
    assert metrics["macro_f1/val"].item() == pytest.approx(sum(f1) / 7, rel=1e-5)
    assert set(logged_metrics(EMOTIONS)) == {name for name in metrics if name != "step"}


def test_overfits_14_images(faces):
    few = synthetic_faces(n_train=14, n_val=7, n_test=7)
    module = classifier(lr=1e-2)
    trainer = fit(module, FaceDataModule(few, NoAugment(), batch_size=14, image_size=48), epochs=40)
    assert trainer.callback_metrics["accuracy/train"] == 1.0
    assert trainer.callback_metrics["loss/train"] < 0.1


def test_channels_last_gives_the_same_logits(faces):
    torch.manual_seed(0)
    net = build_model(image_size=48, **MODEL)
    images = torch.randn(4, 1, 48, 48)
    spec = InputSpec(48, 0.5, 0.5)
    plain = EmotionClassifier(net, None, spec, MODEL).eval()(images)
    torch.testing.assert_close(EmotionClassifier(net, None, spec, MODEL, channels_last=True).eval()(images), plain)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 1 / 20),
        ("constant", 13, 14 / 20),
        ("constant", 19, 1.0),
        ("constant", 99, 1.0),
        ("cosine", 13, 14 / 20),
        ("cosine", 20, 1.0),
        ("cosine", 60, 0.5),
        ("cosine", 99, 0.5 * (1 + math.cos(math.pi * 79 / 80))),
    ],
)
def test_learning_rate_at_a_step(schedule, step, expected):
    assert lr_factor(step, total_steps=100, warmup_steps=20, schedule=schedule) == pytest.approx(expected)
    optimizer, scheduler = build_optimizer(
        [torch.nn.Parameter(torch.zeros(1))], 100, 10, lr=0.5, schedule=schedule, warmup_epochs=2
    )
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "adamm"},
            "optim.name=adamm: unknown optimizer. Did you mean adam? Choose from adam, adamw, sgd.",
        ),
        ({"schedule": "linear"}, "optim.schedule=linear: unknown schedule. Choose from constant, cosine."),
        ({"lr": 0}, "optim.lr=0: expected a number above 0"),
        ({"weight_decay": -1}, "optim.weight_decay=-1"),
    ],
)
def test_invalid_options_of_an_optimizer_are_an_error_with_the_reason(options, message):
    with pytest.raises(UserError) as error:
        build_optimizer([torch.nn.Parameter(torch.zeros(1))], 10, 1, **options)
    assert message in str(error.value)


def test_gradients_are_clipped_with_a_fused_optimizer_in_bf16(faces):
    module = classifier(name="sgd", lr=1.0)
    before = torch.cat([weight.detach().clone().flatten() for weight in module.parameters()])
    fit(module, FaceDataModule(faces, NoAugment(), 70, 48), precision="bf16-mixed", gradient_clip_val=1e-3)
    after = torch.cat([weight.detach().flatten() for weight in module.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)  # one step of lr 1


def fitted_weights(faces, channels_last=False, fused=True, precision="32-true"):
    torch.manual_seed(0)

    def optimizer(parameters, total_steps, steps_per_epoch):
        return build_optimizer(parameters, total_steps, steps_per_epoch, lr=1e-3, fused=fused)

    net = build_model(image_size=48, **MODEL)
    module = EmotionClassifier(net, optimizer, InputSpec(48, 0.5, 0.5), MODEL, channels_last)
    fit(module, FaceDataModule(faces, NoAugment(), 35, 48), precision=precision)
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


@pytest.mark.parametrize(
    ("fast", "tolerance"),
    # Two steps of Adam move a weight by up to 2e-3; bfloat16 has 8 bits.
    [({"channels_last": True}, 1e-5), ({"fused": True}, 1e-5), ({"precision": "bf16-mixed"}, 1e-3)],
)
def test_fast_settings_train_the_same_weights(faces, fast, tolerance):
    plain = {"channels_last": False, "fused": False, "precision": "32-true"}
    difference = fitted_weights(faces, **(plain | fast)) - fitted_weights(faces, **plain)
    assert difference.abs().mean() < tolerance
