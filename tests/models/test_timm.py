"""Networks of timm, with weights laid where huggingface_hub looks for them. They start processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT, SMALL

import fer_lightning
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.errors import UserError
from fer_lightning.inference.grad_cam import grad_cam
from fer_lightning.models import EXPECTED_INPUTS, build_model
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.models.transfer import last_layer
from fer_lightning.training.optim import parameter_groups

pytestmark = pytest.mark.slow
timm = pytest.importorskip("timm", reason='pip install -e ".[timm]"')

OPTIONS = [text for text in SMALL if not text.startswith(("model.", "data.image_size", "trainer.max_epochs"))]


def train(*settings, home):
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *OPTIONS, "trainer.max_epochs=1", *settings],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def colour():
    torch.manual_seed(3)
    return timm.create_model("test_resnet").eval()


@pytest.fixture
def home(tmp_path, colour):
    """Return a folder for HF_HOME with the weights of a network, as huggingface_hub caches them."""
    from safetensors.torch import save_file

    repository = tmp_path / "home" / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(colour.state_dict(), snapshot / "model.safetensors")
    return tmp_path / "home"


def test_a_run_starts_from_timms_weights_and_its_checkpoint_needs_none(own_folder, home, colour):
    chosen = ["model=timm", "model.architecture=test_resnet.r160_in1k", "model.pretrained=true"]
    done = train(*chosen, "name=a", "finetune.freeze_epochs=1", home=home)
    assert done.returncode == 0, done.stderr
    assert "weights:  start from model.pretrained=true, all but the last layer\n" in done.stdout
    assert "160x160 px" in done.stdout
    checkpoint = read_checkpoint("runs/default/a/checkpoints/last.ckpt")
    assert checkpoint.model == {"name": "timm", "architecture": "test_resnet.r160_in1k"}
    assert (checkpoint.inputs.mean, checkpoint.inputs.std) == (0.5, 0.5)
    expected = {f"net.{name}": value for name, value in colour.state_dict().items() if not name.startswith("fc.")}
    expected["net.conv1.0.weight"] = expected["net.conv1.0.weight"].sum(dim=1, keepdim=True)
    for name, value in expected.items():
        torch.testing.assert_close(checkpoint.state_dict[name], value)
    shutil.rmtree(home)
    done = train("stages=[test]", "ckpt=runs/default/a", "name=b", home=home)
    assert done.returncode == 0, done.stderr
    classifier = fer_lightning.load_checkpoint("runs/default/a/checkpoints/last.ckpt")
    faces = synthetic_faces(n_train=3, n_val=0, n_test=0).images
    labels = classifier.predict(faces).labels
    assert grad_cam(classifier, faces, labels.tolist()).shape[0] == 3


def test_a_missing_download_is_one_line_and_nothing_is_written(own_folder, tmp_path):
    done = train("model=timm", "model.architecture=test_resnet", "model.pretrained=true", home=tmp_path / "none")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: model.pretrained=true: the weights are not in huggingface_hub's cache, and the")
    assert "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors elsewhere" in line
    assert "or leave model.pretrained out" in line
    assert not list(Path("runs").rglob("*.*"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_weights(tmp_path, colour, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"own{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(colour.state_dict(), path)
    net = build_model("timm", 64, 3, architecture="test_resnet", weights=str(path)).eval()
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(
        net.forward_features(images), colour.forward_features(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4
    )
    assert last_layer(net, 3) == ("fc",)


def test_a_file_for_a_network_without_weights_of_timms(tmp_path):
    colour = timm.create_model("resnet50_mlp").state_dict()
    torch.save(colour, tmp_path / "own.pth")
    net = build_model("timm", 64, 3, architecture="resnet50_mlp", weights=str(tmp_path / "own.pth"))
    unlike = {name for name, value in net.state_dict().items() if not torch.equal(value, colour[name])}
    assert unlike == {"stem.conv1.conv.weight", "head.fc.weight", "head.fc.bias"}
    assert EXPECTED_INPUTS["timm"]({"architecture": "resnet50_mlp", "pretrained": False}) is None


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("test_vit", ("head",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),  # two, which it averages
        ("repvit_m0_9", ("head",)),  # a layer of layers
    ],
)
def test_timm_names_the_last_layer(architecture, expected):
    net = build_model("timm", 224, 3, architecture=architecture)
    assert last_layer(net, 3) == expected
    [weights, _] = parameter_groups(net, 3, 0.1)
    names = {name for name, value in net.named_parameters() if any(value is weight for weight in weights["params"])}
    assert {name.partition(".")[0] for name in names} == set(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet81"}, "does not exist in timm. Did you mean resnet18?"),
        ({"architecture": "hf-hub:someone/else"}, "model.architecture=hf-hub:someone/else does not exist in timm."),
        ({"architecture": "resnet18.a9_in1k"}, "timm has no weights a9_in1k of resnet18. Choose from a1_in1k, "),
        ({"architecture": "coatnet_0_224", "pretrained": True}, "timm has no pretrained weights for it"),
        ({"architecture": "test_resnet", "weights": "own.pth"}, "own.pth holds the weights of another network (it"),
        (
            {"architecture": "test_vit", "weights": "own.pth", "image_size": 96},
            "Choose the network and the data.im",
        ),
        ({"architecture": "test_vit", "weights": "nan.pth", "image_size": 160}, "nan.pth has weights that are NaN"),
        (
            {"architecture": "test_vit", "weights": "own.pth", "pretrained": True},
            "are both initial weights. Leave one.",
        ),
        ({"architecture": "test_vit", "weights": "DEFAULT"}, "timm's own weights are model.pretrained=true."),
        ({"architecture": "test_vit", "image_size": 50}, "choose another data.image_size"),
    ],
)
def test_what_timm_does_not_have_is_one_line(own_folder, options, message):
    weights = timm.create_model("test_vit").state_dict()
    torch.save(weights, "own.pth")
    torch.save(weights | {"cls_token": weights["cls_token"] / 0}, "nan.pth")
    with pytest.raises(UserError) as error:
        build_model("timm", **{"image_size": 224, "n_classes": 3, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
