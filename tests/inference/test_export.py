"""Exported networks give the same probabilities as PyTorch, for any number and size of faces."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_fer2013 import fake_faces, write_zip

from fer_lightning.__main__ import main
from fer_lightning.commands.export import configure
from fer_lightning.data.faces import TRAIN
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference import export as export_module
from fer_lightning.inference.classifier import Classifier, load_checkpoint
from fer_lightning.inference.export import FORMATS, export, largest_difference, load_exported, metadata, quantise
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec

INPUTS = InputSpec(image_size=24, mean=0.4, std=0.3)
MODEL = {"name": "small_vgg", "channels": [4, 8]}


def require(file_format: str) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxscript", reason='pip install -e ".[export]"')
        pytest.importorskip("onnxruntime", reason='pip install -e ".[export]"')


def network(image_size: int = INPUTS.image_size, **model) -> Classifier:
    """Build a network with random weights and batch-norm statistics, so that no two faces get equal outputs."""
    torch.manual_seed(0)
    net = build_model(image_size=image_size, **(model or MODEL))
    with torch.no_grad():
        net(torch.randn(64, 1, image_size, image_size))  # in training mode, to set the statistics
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor *= 0.1 + torch.rand_like(tensor) / 10
    return Classifier(net, InputSpec(image_size, INPUTS.mean, INPUTS.std), "cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrored"])
def clf(request) -> Classifier:
    return network(name="small_vgg", channels=[8, 16] if request.param else [4, 8], mirrored=request.param)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return synthetic_faces(n_train=0, n_val=0, n_test=14).images


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, clf) -> tuple[bytes, str]:
    require(request.param)
    return export(clf, request.param), request.param


def test_probabilities_equal_the_classifiers(clf, faces, exported):
    run = load_exported(*exported)
    expected = clf.predict(faces).probabilities
    assert expected.std(axis=0).max() > 0.01  # the predictions differ between faces
    probabilities = run(faces[:, None])
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (14, 7))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(run(faces[:1, None]), expected[:1], atol=1e-5)
    assert largest_difference(run, clf, faces) < 1e-5


@pytest.mark.parametrize("size", [(24, 24), (20, 20), (97, 60), (200, 300)])
def test_faces_of_other_sizes_are_resized_like_in_the_classifier(clf, exported, size):
    crops = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    np.testing.assert_allclose(
        load_exported(*exported)(crops[:, None]), clf.predict(crops).probabilities, atol=1e-5
    )


def test_the_file_describes_its_inputs_and_outputs(clf, exported):
    content, file_format = exported
    properties = metadata(INPUTS)
    assert properties["classes"].split(",") == list(EMOTIONS)
    assert (properties["image_size"], properties["mean"], properties["std"]) == ("24", "0.4", "0.3")
    if file_format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content)
        assert properties.items() <= session.get_modelmeta().custom_metadata_map.items()
        [source], [output] = session.get_inputs(), session.get_outputs()
        assert (source.name, source.shape, source.type) == ("faces", ["N", 1, "H", "W"], "tensor(uint8)")
        assert (output.name, output.shape, output.type) == ("probabilities", ["N", 7], "tensor(float)")
    else:
        with zipfile.ZipFile(export_module.BytesIO(content)) as archive:
            [name] = [name for name in archive.namelist() if Path(name).name == "metadata.json"]
            assert json.loads(archive.read(name)) == properties


def test_exporting_does_not_change_the_classifier(clf, recwarn):
    before = {name: tensor.clone() for name, tensor in clf.net.state_dict().items()}
    load_exported(export(clf, "torchscript"), "torchscript")
    assert not recwarn.list  # the deprecation of TorchScript is not shown to users
    assert all(torch.equal(before[name], tensor) for name, tensor in clf.net.state_dict().items())
    assert all(parameter.requires_grad for parameter in clf.net.parameters())


@pytest.mark.parametrize(
    "model",
    [
        {"name": "fer_model0", "channels": [4, 8]},
        {"name": "resnet", "channels": [4, 8], "blocks": 1},
        {"name": "torchvision", "architecture": "mobilenet_v3_small"},
    ],
    ids=lambda model: model["name"],
)
def test_every_network_can_be_exported(model, faces):
    clf = network(image_size=33, **model)
    run = load_exported(export(clf, "pt2"), "pt2")
    np.testing.assert_allclose(run(faces[:, None]), clf.predict(faces).probabilities, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_int8_is_smaller_and_nearly_as_precise(mirrored, faces):
    require("onnx")
    clf = network(name="small_vgg", channels=[16, 64], mirrored=mirrored)
    full = export(clf, "onnx")
    small = quantise(full, synthetic_faces(n_train=64, n_val=0, n_test=0).images)
    assert len(small) < len(full) / 2
    difference = np.abs(load_exported(small, "onnx")(faces[:, None]) - clf.predict(faces).probabilities)
    assert 0 < difference.max() < 0.1
    import onnx

    operators = {node.op_type for node in onnx.load_from_string(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(small).graph.initializer]
    largest = max(np.abs(weight.astype(int)).max() for weight in weights if weight.dtype == np.int8 and weight.ndim)
    assert 32 <= largest <= 64  # 7 bits, so that sums of two products fit into 16
    properties = {entry.key: entry.value for entry in onnx.load_from_string(small).metadata_props}
    assert metadata(clf.inputs).items() <= properties.items()


# The command


@pytest.fixture
def ckpt(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    state = {f"net.{name}": tensor for name, tensor in network().net.state_dict().items()}
    ours = {"model": MODEL, "image_size": 24, "mean": 0.4, "std": 0.3, "classes": list(EMOTIONS)}
    torch.save({"epoch": 0, "global_step": 0, "fer_lightning": ours, "state_dict": state}, tmp_path / "mine.ckpt")
    return tmp_path / "mine.ckpt"


def error_of(capsys, *arguments: str) -> str:
    assert main(["export", *arguments]) == 1
    return capsys.readouterr().err


def test_the_command_checks_and_writes_the_file(ckpt, faces, capsys):
    assert main(["export", str(ckpt), "--format", "pt2"]) == 0
    out = capsys.readouterr().out
    assert "on 256 faces of synthetic, test" in out
    assert "angry, disgust, fear, happy, sad, surprise, neutral" in out
    assert out.endswith("written: mine.pt2\n")
    assert max(map(len, out.splitlines())) <= 80
    probabilities = load_exported(Path("mine.pt2").read_bytes(), "pt2")(faces[:, None])
    np.testing.assert_allclose(probabilities, load_checkpoint(ckpt, "cpu").predict(faces).probabilities, atol=1e-5)


def test_int8_prints_the_accuracy_on_the_test_split(ckpt, tmp_path, capsys):
    require("onnx")
    data = write_zip(tmp_path / "fer2013.zip", fake_faces())
    assert main(["export", "--ckpt", str(ckpt), "--int8", "--data", str(data)]) == 0
    out = capsys.readouterr().out
    header, _, full, small = [line.split() for line in out.splitlines()[1:5]]
    assert header[:4] == ["PrivateTest", "(n", "=", "14)"]
    assert (full[0], small[0], full[2]) == ("float32", "int8", "100.00%")
    assert out.endswith("written: mine.int8.onnx\n")
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["mine.int8.onnx"]


def test_data_without_test_images_are_rejected(ckpt, tmp_path, capsys):
    training = [face for face in fake_faces() if face.usage == TRAIN]
    data = write_zip(tmp_path / "fer2013.zip", training)
    assert "lacks test images" in error_of(capsys, str(ckpt), "--data", str(data), "--format", "pt2")


def test_a_file_that_differs_from_pytorch_is_not_written(ckpt, monkeypatch, capsys):
    Path("mine.pt2").write_text("an older file")
    monkeypatch.setattr(export_module, "largest_difference", lambda *_: float("nan"))
    assert "differ from PyTorch's by up to nan" in error_of(capsys, str(ckpt), "--format", "pt2")
    assert Path("mine.pt2").read_text() == "an older file"


def test_user_mistakes_give_an_error(ckpt, monkeypatch, capsys):
    assert "--int8 needs --format onnx, got --format pt2" in error_of(
        capsys, str(ckpt), "--format", "pt2", "--int8"
    )
    assert "FER-2013 was not found" in error_of(capsys, str(ckpt), "--int8")
    assert "invalid choice: 'onx'" in error_of(capsys, str(ckpt), "--format", "onx")
    assert "data.path=nowhere does not exist" in error_of(capsys, str(ckpt), "--data", "nowhere")
    Path("file").write_text("")
    assert "file/a.pt2 cannot be written" in error_of(capsys, str(ckpt), "--format", "pt2", "--out", "file/a.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert 'pip install -e ".[export]"' in error_of(capsys, str(ckpt))
    with pytest.raises(UserError, match=r"onnxscript, which is not installed: .* or use --format pt2"):
        load_exported(b"", "onnx")


def test_the_help_lists_all_formats():
    import argparse

    parser = argparse.ArgumentParser()
    configure(parser)
    assert set(parser._option_string_actions["--format"].choices) == set(FORMATS)
