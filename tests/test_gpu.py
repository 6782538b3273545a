"""A GPU gives the CPU's results: train, resume, sweep, predict, export. `pytest -m gpu` runs the GPU variants.

Each test also runs on the CPU and compares it with itself, so that the test is known to work when a GPU is at hand.
"""

import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_fer2013 import fake_faces, write_folder
from faults import STATEFUL, Killed, KilledAt, differences, results_of, run, with_callback
from lightning.pytorch import Callback
from PIL import Image
from project import ROOT

from fer_lightning.__main__ import main as command
from fer_lightning.benchmark import contenders
from fer_lightning.commands.train import job
from fer_lightning.config import cli as config
from fer_lightning.config.cli import main
from fer_lightning.config.compose import CONF_DIR, build
from fer_lightning.data import datamodule
from fer_lightning.data.philox import permutation, words
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.inference.classifier import Classifier, load_pretrained, pretrained_names
from fer_lightning.inference.export import FORMATS, export, load_exported
from fer_lightning.inference.grad_cam import grad_cam
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import VIEWS

EMA = "callbacks.ema._target_=fer_lightning.callbacks.ema.EMA"

pytestmark = pytest.mark.usefixtures("own_folder")


def on(device):
    """Return the override that trains on the device."""
    return f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return request.param


@pytest.fixture(scope="module")
def faces():
    return synthetic_faces(n_train=64, n_val=7, n_test=7)


def test_random_numbers_equal_those_of_the_cpu_bit_for_bit(device):
    index = torch.arange(5000)
    assert torch.equal(words(3, 7, index.to(device), 3, 0).cpu(), words(3, 7, index, 3, 0))
    assert torch.equal(permutation(3, 7, 5000, device).cpu(), permutation(3, 7, 5000))


@pytest.mark.parametrize("augment", ["baseline", "light", "strong", "none", "torchvision"])
def test_augmented_faces_match_those_of_the_cpu(augment, device, faces):
    augmentation = build(yaml.safe_load((CONF_DIR / f"augment/{augment}.yaml").read_text()))
    images, index = torch.from_numpy(faces.images).unsqueeze(1), torch.arange(len(faces))
    for size in (48, 128):
        got = augmentation(images.to(device), index.to(device), 0, 1, size)
        assert got.device.type == device
        # torchvision rounds to whole grey levels, and rounding errors can move an edge to the next pixel.
        different = (got.cpu() - augmentation(images, index, 0, 1, size)).abs() > 2e-3
        assert different.float().mean() < (2e-2 if augment == "torchvision" else 1e-4)


def test_run_gets_the_results_of_the_cpu(device):
    settings = [
        "trainer.precision=32-true",
        "callbacks.ema._target_=fer_lightning.callbacks.ema.EMA",
        "tta=shifts",
    ]
    run("name=cpu", *settings)
    run("name=device", *settings, on(device))
    expected, got = results_of("runs/default/cpu"), results_of("runs/default/device")
    assert got["status"] == "finished"
    if device == "cuda":
        assert torch.cuda.get_device_name() in got["hardware"]
    for epoch, on_cpu in zip(got["history"], expected["history"], strict=True):
        for key in ("train_loss", "val_loss"):
            assert epoch[key] == pytest.approx(on_cpu[key], rel=2e-2)  # TF32 in convolutions
        assert (epoch["images"], epoch["lr"]) == (on_cpu["images"], on_cpu["lr"])
    for name, scores in expected["last_epoch"].items():  # not the best epoch, which may differ
        assert got["last_epoch"][name]["loss"] == pytest.approx(scores["loss"], rel=5e-2)


@pytest.mark.slow
def test_automatic_settings_learn(device, tmp_path):
    """Train with precision=auto, which is bf16 on a GPU, with figures, TensorBoard and a teacher."""
    drawing = ["callbacks=grad_cam", "logger=tensorboard", "trainer.log_every_n_steps=2"]
    run("name=teacher", on(device), *drawing, "trainer.max_epochs=6", "optim.lr=1e-2")
    results = results_of("runs/default/teacher")
    if device == "cuda":
        assert "bf16-mixed" in results["hardware"]
    assert results["history"][-1]["train_loss"] < 0.8 * results["history"][0]["train_loss"]
    assert len(list(Path("runs/default/teacher/figures").glob("*.png"))) > 4
    teacher = "distill.ckpt=runs/default/teacher/checkpoints/best.ckpt"
    run("name=student", on(device), teacher, "distill.tta=mirror", "data.augment_epochs=1", "trainer.max_epochs=2")
    assert results_of("runs/default/student")["status"] == "finished"


class NoSync(Callback):
    """Callback that raises when the host waits, from the end of the second step to the start of the last."""

    def __init__(self, device):
        self.device = device
        self.steps = 0

    def mode(self, mode):
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == trainer.num_training_batches - 1:
            self.mode("default")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        if batch_idx == 1:
            self.mode("error")


def test_training_steps_never_wait_for_the_gpu(device, monkeypatch):
    monkeypatch.setattr(datamodule, "GPU_GROUP_PIXELS", 2 * 16 * 24**2)  # two batches: several groups an epoch
    run("name=teacher", "trainer.max_epochs=1", "stages=[fit]")
    watch = NoSync(device)
    with_callback(monkeypatch, watch)
    teacher = ["distill.ckpt=runs/default/teacher/checkpoints/best.ckpt", "data.augment_epochs=1"]
    try:
        run("name=a", on(device), "augment=strong", *STATEFUL, *teacher, EMA, "trainer.gradient_clip_val=1")
    finally:
        watch.mode("default")
    assert watch.steps == 3 * 7


def test_killed_run_resumes_bit_for_bit(device, monkeypatch):
    settings = [*STATEFUL, on(device), "trainer.deterministic=true", "checkpoint.every_n_minutes=1e-9"]
    settings += [EMA, "trainer.max_epochs=2"]
    run("name=never", *settings)
    with_callback(monkeypatch, KilledAt(11))
    with pytest.raises(Killed):
        run("name=stopped", *settings)
    assert main(job, ["resume=runs/default/stopped"]) == 0
    assert differences("runs/default/stopped", "runs/default/never") == []
    torch.use_deterministic_algorithms(False)  # Lightning leaves it on


@pytest.mark.slow
def test_sweep_frees_the_memory_of_its_runs(device, capsys):
    allocated = []

    def measure():
        gc.collect()
        allocated.append(torch.cuda.memory_allocated() if device == "cuda" else 0)

    for seeds in ("0", "0,1"):
        run("-m", f"name=s{len(seeds)}", f"seed={seeds}", on(device), "trainer.max_epochs=1")
        measure()
    assert "2 runs in runs/default/s3" in capsys.readouterr().out
    assert allocated[1] <= allocated[0] + 2**17  # the dataset of one run is 340 kB


@pytest.mark.slow
def test_ddp_with_one_device(device):
    settings = ["trainer=ddp", "trainer.devices=1", on(device), "trainer.max_epochs=1", "data=synthetic"]
    settings += ["data.n_train=35", "data.n_val=7", "data.n_test=7", "model.channels=[2]", "callbacks=none"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings, "name=a", "logger=none"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},  # packages may lie anywhere
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert results_of("runs/default/a")["status"] == "finished"


@pytest.mark.parametrize("tta", VIEWS)
def test_predictions_match_those_of_the_cpu(tta, device, faces):
    for name in pretrained_names():
        expected = load_pretrained(name, "cpu").predict(faces.images[:5], tta=tta).probabilities
        got = load_pretrained(name, device).predict(faces.images[:5], tta=tta, batch_size=3).probabilities
        np.testing.assert_allclose(got, expected, atol=1e-2)  # TF32 in convolutions


def test_predict_command(device, faces, capsys):
    Image.fromarray(faces.images[0]).save("face.png")
    assert command(["predict", "--json", "--device", device, "face.png"]) == 0
    [photo] = json.loads(capsys.readouterr().out)
    assert len(photo["faces"]) == 1
    assert sum(photo["faces"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def classifier(device):
    torch.manual_seed(0)
    net = build_model("small_vgg", image_size=24, channels=[4, 8])
    return Classifier(net, InputSpec(24, 0.4, 0.3), device)


def test_grad_cam_matches_that_of_the_cpu(device, faces):
    emotions = [0, 3] * 8
    got, expected = (grad_cam(classifier(where), faces.images[:16], emotions) for where in (device, "cpu"))
    np.testing.assert_allclose(got, expected, atol=2e-2)


@pytest.mark.parametrize("file_format", FORMATS)
def test_exported_network_runs_on_the_cpu(file_format, device, faces):
    if file_format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    probabilities = load_exported(export(classifier(device), file_format), file_format)(faces.images[:, None])
    np.testing.assert_allclose(probabilities, classifier("cpu").predict(faces.images).probabilities, atol=1e-4)


RECIPE = ("experiment=baseline", "data.image_size=16", "data.batch_size=4", "model.channels=[2,3]")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("describe", {}),
        ("augmentation", {"batch_size": 8, "device": "cuda"}),
        ("pipeline", {}),
        ("raw_loop", {"steps": 4}),
        ("bare_trainer", {"steps": 4}),
        (
            "floor",
            {
                "modes": [
                    "bf16-mixed channels_last eager",
                    "bf16-mixed channels_last eager captured",
                    "32-true contiguous eager captured",
                ],
                "steps": 4,
            },
        ),
        ("captured_loop", {"steps": 8, "k": 3}),
        ("inference", {"batch_size": 8}),
    ],
)
@pytest.mark.parametrize("optim", ["adam", "sgd"])
def test_contenders_of_the_benchmark_return_results(name, arguments, optim, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FER2013_PATH", str(write_folder(tmp_path / "images", fake_faces())))
    monkeypatch.setattr(contenders, "SECONDS", 0.01)
    settings = [*RECIPE, on("cuda"), f"optim={optim}"]
    assert config.main(partial(contenders._job, name, arguments), settings) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(value > 0 for value in result.values() if isinstance(value, float))
    assert name != "describe" or result["device"] == "cuda"


class OutOfMemory(Callback):
    def on_train_start(self, trainer, pl_module):
        raise torch.OutOfMemoryError("out of memory")


def test_out_of_memory_is_a_one_line_error(device, capsys, monkeypatch):
    """Allocate a 120 GB activation on a GPU; on the CPU the error is simulated."""
    settings = [on(device)]
    if device == "cuda":
        settings += ["model=resnet", "model.channels=[512]", "model.blocks=1", "trainer.precision=bf16-mixed"]
        settings += ["data.batch_size=112", "data.image_size=1024"]
    else:
        with_callback(monkeypatch, OutOfMemory())
    run("name=a", *settings, code=1)
    error = capsys.readouterr().err
    assert "error: Out of memory: " in error
    assert "Lower data.batch_size" in error
    assert "Traceback" not in error
