"""Pretrained weights: torchvision's by name and from files, the input that they expect, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as vision

from fer_lightning.errors import UserError
from fer_lightning.models import EXPECTED_INPUTS, MODELS, build_model
from fer_lightning.models.transfer import last_layer

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture(scope="module")
def colour():
    """Return a network as torchvision has it: three colours, 1,000 classes."""
    torch.manual_seed(3)
    return vision.squeezenet1_1().eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the folder where torchvision looks for downloaded weights; it is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def squeezenet(weights, n_classes=3, image_size=64, architecture="squeezenet1_1"):
    return build_model("torchvision", image_size, n_classes, architecture=architecture, weights=str(weights))


def features(net, images):
    with torch.no_grad():
        return net.eval().features(images)


def is_pretrained(net, colour):
    images = torch.rand(2, 1, 64, 64)
    same = torch.allclose(features(net, images), features(colour, images.expand(-1, 3, -1, -1)), atol=1e-4)
    return same and net(images).shape[1] == 3


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT"])
def test_downloaded_weights_are_found_by_name(hub, colour, name):
    torch.save(colour.state_dict(), hub / SQUEEZENET)
    assert is_pretrained(squeezenet(name), colour)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
    ],
    ids=["state dict", "checkpoint", "DataParallel"],
)
def test_a_file_of_weights(tmp_path, colour, wrapped):
    torch.save(wrapped(colour.state_dict()), tmp_path / "own.pth")
    assert is_pretrained(squeezenet(tmp_path / "own.pth"), colour)


def test_a_file_of_grey_weights_with_these_classes_keeps_all_but_the_last_layer(tmp_path):
    grey = build_model("torchvision", 64, 3, architecture="squeezenet1_1")
    torch.save(grey.state_dict(), tmp_path / "own.pth")
    net = squeezenet(tmp_path / "own.pth")
    same = {name for name, value in net.state_dict().items() if torch.equal(value, grey.state_dict()[name])}
    assert net.state_dict().keys() - same == {"classifier.1.weight"}  # its bias starts at 0 in both


@pytest.mark.parametrize(
    ("architecture", "file"),
    [("googlenet", "googlenet-1378be20.pth"), ("densenet121", "densenet121-a639ec97.pth")],
)
def test_published_files_whose_names_differ_from_the_network(hub, architecture, file):
    """GoogLeNet's has auxiliary classifiers, and DenseNet's layers were called norm.1 when it was saved."""
    torch.manual_seed(0)
    colour = getattr(vision, architecture)(**({"init_weights": False} if architecture == "googlenet" else {}))
    old = re.compile(r"(denselayer\d+\.)(norm|conv)(\d)\.")
    published = {old.sub(r"\1\2.\3.", name): value for name, value in colour.state_dict().items()}
    assert published.keys() != build_model("torchvision", 64, architecture=architecture).state_dict().keys()
    torch.save(published, hub / file)
    net = squeezenet("DEFAULT", architecture=architecture)
    name = {"googlenet": "inception5b.branch1.conv", "densenet121": "features.denseblock4.denselayer16.conv2"}
    weight = f"{name[architecture]}.weight"
    assert torch.equal(net.state_dict()[weight], colour.state_dict()[weight])


def test_published_files_of_older_batch_norms(hub):
    """Those of ResNet were saved before batch norm counted its batches."""
    torch.manual_seed(0)
    colour = vision.resnet18()
    published = {n: value for n, value in colour.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(published, hub / "resnet18-f37072fd.pth")
    net = squeezenet("DEFAULT", architecture="resnet18")
    assert torch.equal(net.layer4[1].bn2.running_var, colour.layer4[1].bn2.running_var)
    assert net.bn1.num_batches_tracked == 0


def test_a_missing_download_is_one_line_with_three_ways_out(hub):
    with pytest.raises(UserError) as error:
        squeezenet("DEFAULT")
    message = str(error.value)
    assert message.startswith(f"model.weights=DEFAULT: the weights are not in {hub}, and the download failed (")
    assert "Connect to the internet and try again;" in message
    assert f"or download https://download.pytorch.org/models/{SQUEEZENET} elsewhere and set" in message
    assert "or leave model.weights out, to start from random weights." in message
    assert "\n" not in message
    assert list(hub.iterdir()) == []


def nan_weights():
    weights = vision.squeezenet1_1().state_dict()
    weights["features.0.bias"][0] = np.nan
    return weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"half a file", "is damaged or not a file of weights (its format is unknown)"),
        (b"", "is damaged or not a file of weights (it ends early)"),
        (lambda: {"features.0.weight": Path()}, "was not loaded: it is damaged, or holds more than weights"),
        ({"fer_lightning": {}, "state_dict": {}}, "is a checkpoint of this project. Start from it with ckpt="),
        ({"epoch": 3}, "holds no weights"),
        ({}, "holds no weights"),
        (nan_weights, "has weights that are NaN or infinite"),
        (lambda: vision.squeezenet1_0().state_dict(), "holds the weights of another network ("),
        (lambda: vision.shufflenet_v2_x0_5().state_dict(), "holds the weights of another network ("),
    ],
    ids=[
        "damaged",
        "empty file",
        "code",
        "of this project",
        "no weights",
        "empty",
        "nan",
        "another size",
        "another family",
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, content, message):
    path = tmp_path / "own.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content() if callable(content) else content, path)
    with pytest.raises(UserError) as error:
        squeezenet(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"model.weights={path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            "DEFALT",
            "squeezenet1_1 has no such weights. Did you mean DEFAULT? Choose from IMAGENET1K_V1, DEFAULT, or",
        ),
        ("./none.pth", "model.weights=./none.pth: none.pth cannot be read: No such file or directory."),
        (".", ". cannot be read: Is a directory."),
        ("", "model.weights=: squeezenet1_1 has no such weights."),
        ("ResNet34_Weights.DEFAULT", "model.weights=ResNet34_Weights.DEFAULT: squeezenet1_1 has no such weights."),
    ],
)
def test_weights_that_do_not_exist(weights, message):
    with pytest.raises(UserError) as error:
        squeezenet(weights)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("resnet18", (224, 0.449, 0.226)),
        ("efficientnet_v2_s", (384, 0.449, 0.226)),
        ("vit_b_16", (224, 0.449, 0.226)),
    ],
)
def test_the_input_that_weights_expect(architecture, expected):
    found = EXPECTED_INPUTS["torchvision"]({"architecture": architecture, "weights": "DEFAULT"})
    assert (found.image_size, round(found.mean, 3), round(found.std, 3)) == expected


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"timm"}))
def test_the_last_layer_of_every_network_computes_the_logits(name):
    options = {"torchvision": {"architecture": "mobilenet_v3_small"}}.get(name, {})
    net = build_model(name, 48, 5, **options)
    [name] = last_layer(net, 5)
    layer = net.get_submodule(name)
    outputs = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = net.eval()(torch.rand(2, 1, 48, 48))
    assert torch.equal(outputs[0], logits)


def test_a_network_that_registers_its_last_layer_first_is_refused():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.body = nn.Linear(4, 8)

    with pytest.raises(UserError, match="Backwards: the layer that is registered last, body, does not"):
        last_layer(Backwards(), 3)
    with pytest.raises(UserError, match="Flatten: the layer that is registered last does not"):
        last_layer(nn.Flatten(), 3)
