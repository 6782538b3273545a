"""Device placement without a GPU: no tensor stays on the CPU, and training steps never wait for the device."""

from functools import partial

import pytest
import torch
import yaml
from fake_gpu import OneDevice, StopEarly, trainer_on
from lightning.pytorch import Callback
from torch._subclasses import FakeTensorMode

from fer_lightning.callbacks.ema import EMA
from fer_lightning.config.compose import CONF_DIR, build
from fer_lightning.data import datamodule
from fer_lightning.data.augment import TorchvisionAugment
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import VIEWS
from fer_lightning.training.distillation import InputAdapter, Teacher
from fer_lightning.training.module import EmotionClassifier
from fer_lightning.training.optim import build_optimizer
from fer_lightning.training.soft_targets import SoftTargetStore

NETWORKS = {
    "fer_model0": {"channels": [4, 8]},
    "small_vgg": {"channels": [4, 8, 12]},
    "small_vgg residual": {"channels": [4, 8, 12], "residual": True},
    "small_vgg mirrored": {"channels": [4, 8, 12], "mirrored": True},
    "resnet": {"channels": [4, 8], "blocks": 1, "dropout": 0.5},
    "torchvision": {"architecture": "resnet18"},
}
INPUTS = InputSpec(32, 0.5, 0.25)
AUGMENTS = [path.stem for path in sorted(CONF_DIR.glob("augment/*.yaml"))]


@pytest.fixture(scope="module")
def faces():
    return synthetic_faces(n_train=40, n_val=21, n_test=14)


def augmentation(name):
    return build(yaml.safe_load((CONF_DIR / f"augment/{name}.yaml").read_text()))


def network(name):
    options = NETWORKS[name]
    return build_model(name.partition(" ")[0], image_size=INPUTS.image_size, **options)


def data_of(faces, augment="strong"):
    # Five training batches, in groups of two.
    return FaceDataModule(faces, augmentation(augment), 8, INPUTS.image_size, eval_batch_size=8, mixup_alpha=0.4)


def module_of(name, optim="adam", teacher=None, **options):
    model = {"name": name.partition(" ")[0], **NETWORKS[name]}
    optimizer = partial(build_optimizer, name=optim, schedule="cosine", warmup_epochs=0.1)
    return EmotionClassifier(network(name), optimizer, INPUTS, model, teacher=teacher, **options)


def test_every_network_of_conf_is_tested():
    known = {path.stem for path in CONF_DIR.glob("model/*.yaml")}
    assert {name.partition(" ")[0] for name in NETWORKS} == known - {"timm"}  # an extra that the tests do not need


def fit(monkeypatch, faces, module, *callbacks, augment="strong", **options):
    """Run four training steps, stopping before the epoch's last one, which reads the loss."""
    # Several groups per epoch, so that gathering one happens during the steps too.
    monkeypatch.setattr(datamodule, "GPU_GROUP_PIXELS", 2 * 8 * 48**2)
    data = data_of(faces, augment)
    steps = []

    class RecordStep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert {part.device.type for part in batch.values()} == {"meta"}
            assert outputs["loss"].device.type == "meta"
            steps.append(batch_idx)

    one_device = OneDevice()
    trainer = trainer_on("meta", monkeypatch, *callbacks, RecordStep(), after=4, one_device=one_device, **options)
    with one_device, pytest.raises(StopEarly):
        trainer.fit(module, datamodule=data)
    assert steps == [0, 1, 2, 3]
    assert {parameter.grad.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_step_reads_nothing_from_the_device(name, channels_last, faces, monkeypatch):
    fit(monkeypatch, faces, module_of(name, channels_last=channels_last, label_smoothing=0.1))


@pytest.mark.parametrize("optim", ["adam", "adamw", "sgd"])
def test_optimizer_step_with_ema_and_clipping_reads_nothing_from_the_device(optim, faces, monkeypatch):
    fit(monkeypatch, faces, module_of("fer_model0", optim), EMA(), gradient_clip_val=1.0)


@pytest.mark.parametrize("tta", ["none", "mirror"])
@pytest.mark.parametrize("is_stored", [False, True])
def test_teacher_reads_nothing_from_the_device(is_stored, tta, faces, monkeypatch):
    other = build_model("fer_model0", image_size=48, **NETWORKS["fer_model0"])
    nets = [network("small_vgg"), InputAdapter(other, InputSpec(48, 0.5, 0.5), INPUTS)]
    store = SoftTargetStore(2, 7, "", torch.arange(40), None) if is_stored else None
    teacher = Teacher(nets, tta=tta, store=store)
    fit(monkeypatch, faces, module_of("small_vgg", teacher=teacher), EMA(every_n_steps=2))


@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_reads_nothing_from_the_device(augment, faces, monkeypatch):
    if isinstance(augmentation(augment), TorchvisionAugment):
        pytest.skip("augments image by image, with seeds read on the host")
    fit(monkeypatch, faces, module_of("fer_model0"), augment=augment)


@pytest.mark.parametrize(
    "read",
    [
        lambda loss: loss.item(),
        lambda loss: loss.tolist(),
        lambda loss: loss.cpu(),
        lambda loss: bool(loss > 0),
        lambda loss: loss + torch.ones(3),
        lambda loss: loss + torch.ones(3).to(loss.device),
    ],
    ids=["item", "tolist", "cpu", "if", "a tensor on the CPU", "a copy to the device"],
)
def test_reads_and_copies_are_detected(read, faces, monkeypatch):
    """Show that the tests above would fail."""

    class Read(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            read(outputs["loss"].detach())

    one_device = OneDevice()
    trainer, module = (
        trainer_on("meta", monkeypatch, Read(), after=4, one_device=one_device),
        module_of("fer_model0"),
    )
    with one_device, pytest.raises((RuntimeError, NotImplementedError)):
        trainer.fit(module, datamodule=data_of(faces))


def fake_cuda():
    """Return a context in which "cuda" needs no GPU; tensors created before count as on the CPU."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_validation_leaves_nothing_on_the_cpu(name, faces, monkeypatch):
    module = module_of(name)
    with fake_cuda(), pytest.raises(StopEarly):
        trainer_on("cuda", monkeypatch).validate(module, datamodule=data_of(faces))
    assert {part.device.type for output in module._outputs for part in output} == {"cuda"}


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_test_leaves_nothing_on_the_cpu(name, tta, faces, monkeypatch):
    module = module_of(name, tta=tta)
    with fake_cuda(), pytest.raises(StopEarly):
        trainer_on("cuda", monkeypatch).test(module, datamodule=data_of(faces))
    assert {part.device.type for output in module._outputs for part in output} == {"cuda"}
    assert [len(output[1]) for output in module._outputs] == [8, 8]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_leaves_nothing_on_the_cpu(augment):
    if isinstance(augmentation(augment), TorchvisionAugment):
        pytest.skip("augments image by image, with seeds read on the host")
    with fake_cuda():
        images = torch.zeros(40, 1, 48, 48, dtype=torch.uint8, device="cuda")
        index = torch.zeros(40, dtype=torch.int64, device="cuda")
        out = augmentation(augment)(images, index, 0, 3, 128)
    assert (out.device.type, out.dtype, out.shape) == ("cuda", torch.float32, (40, 1, 128, 128))


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_leaves_nothing_on_the_cpu(name, tta, faces):
    net = network(name)
    with fake_cuda():
        clf = Classifier(net, INPUTS, "cuda")
        assert clf.net_input(faces.images).device.type == "cuda"
        # It fails only at the end, where the probabilities are read.
        with pytest.raises(RuntimeError, match=r"\.numpy\(\)"):
            clf.predict(faces.images, tta=tta, batch_size=32)
