"""Grad-CAM: values computed by hand, every network, and the explain command."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fer_lightning.__main__ import main
from fer_lightning.data.images import FORMAT_NAMES
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.drawing import faces as plots
from fer_lightning.drawing.style import write_png
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference import photos
from fer_lightning.inference.classifier import Classifier
from fer_lightning.inference.faces import Region
from fer_lightning.inference.grad_cam import MIN_SIDE, grad_cam
from fer_lightning.models import MODELS, build_model
from fer_lightning.models.checkpoint import InputSpec

MODEL = {"name": "small_vgg", "channels": [4, 8]}


class TwoMaps(nn.Module):
    """A network with two maps, the image and its negative: an in-place activation, means and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.classifier = nn.Linear(2, 7)
        self.classifier.weight.data = torch.tensor(
            [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [1, 3], [-1, -3]]
        ).float()

    def forward(self, images):
        return self.classifier(F.leaky_relu_(self.maps(images), 0.5).mean(dim=(2, 3)))


def classifier(net: nn.Module, image_size: int = 8) -> Classifier:
    return Classifier(net, InputSpec(image_size, 0.0, 1.0), "cpu")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return synthetic_faces(n_train=0, n_val=0, n_test=7).images


def test_maps_equal_those_computed_by_hand():
    net = TwoMaps()
    pixels = np.random.default_rng(0).integers(1, 256, (7, 8, 8), dtype=np.uint8)
    heat = grad_cam(classifier(net), pixels, range(7))
    assert (heat.dtype, heat.shape) == (np.float32, (7, 8, 8))
    for emotion, (positive, negative) in enumerate(net.classifier.weight.tolist()):
        # The activation halves the gradient of the negative map.
        raises_score = positive - 0.5 * negative > 0
        by_hand = pixels[emotion] / pixels[emotion].max() * raises_score
        np.testing.assert_allclose(heat[emotion], by_hand, atol=1e-5)
    assert heat.any(axis=(1, 2)).tolist() == [True, False, False, True, True, False, True]


@pytest.mark.parametrize("name", [*sorted(MODELS.keys() - {"timm"}), "resnet50", "vit_b_32", "swin_t"])
def test_every_network_can_be_explained_and_is_not_changed(name, faces):
    small = {
        "fer_model0": {"channels": [4, 8]},
        "small_vgg": {"channels": [4, 8, 8, 8]},
        "resnet": {"channels": [4, 8]},
    }
    options = small.get(name, {"architecture": "mobilenet_v3_small" if name == "torchvision" else name})
    size = 48 if name in small else 64 if name == "vit_b_32" else 96
    torch.manual_seed(0)
    clf = classifier(build_model("torchvision" if "architecture" in options else name, size, **options), size)
    prediction = clf.predict(faces[:2])
    with torch.inference_mode():  # as in a callback
        heat = grad_cam(clf, faces[:2], prediction.labels.tolist())
    assert heat.shape == (2, heat.shape[1], heat.shape[1])
    assert min(heat.shape[1:]) >= (2 if name.startswith("vit") else MIN_SIDE)  # 2 x 2 patches of 32 px
    assert heat.min() >= 0
    np.testing.assert_allclose(heat.max(axis=(1, 2))[heat.any(axis=(1, 2))], 1, rtol=1e-6)
    assert not any(module._forward_hooks for module in clf.net.modules())
    assert all(parameter.grad is None for parameter in clf.net.parameters())
    np.testing.assert_array_equal(clf.predict(faces[:2]).probabilities, prediction.probabilities)


def test_a_compiled_network_can_be_explained(faces):
    torch.manual_seed(0)
    clf = classifier(build_model(image_size=48, **MODEL), 48)
    expected = grad_cam(clf, faces, range(7))
    clf.net.compile(backend="eager")
    np.testing.assert_array_equal(grad_cam(clf, faces, range(7)), expected)


def test_a_network_without_feature_maps_is_an_error():
    clf = classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))
    with pytest.raises(UserError, match="this one has no feature maps"):
        grad_cam(clf, np.zeros((1, 8, 8), np.uint8), [0])


def test_the_overlay_colours_only_hot_areas():
    face = np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8)
    np.testing.assert_array_equal(plots.heat_overlay(face, np.zeros((3, 3))), np.repeat(face[..., None], 3, axis=2))
    half = np.zeros((2, 2))
    half[:, 1] = 1
    picture = plots.heat_overlay(face, half).astype(int)
    np.testing.assert_array_equal(picture[:, 0], np.repeat(face[:, :1], 3, axis=1))
    assert (picture[:, -1, 0] > picture[:, -1, 2] + 50).all()  # red over blue


# The command


@pytest.fixture
def ckpt(tmp_path, monkeypatch, faces) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = {f"net.{name}": tensor for name, tensor in build_model(image_size=24, **MODEL).state_dict().items()}
    ours = {"model": MODEL, "image_size": 24, "mean": 0.4, "std": 0.3, "classes": list(EMOTIONS)}
    torch.save({"epoch": 0, "global_step": 0, "fer_lightning": ours, "state_dict": state}, "mine.ckpt")
    for path, face in (("a/face.png", faces[0]), ("b/face.jpg", faces[1]), ("c.png", faces[2])):
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(face).convert("RGB").save(path)
    return "mine.ckpt"


def test_each_image_gets_a_picture(ckpt, capsys):
    assert main(["explain", "a/face.png", "b/face.jpg", "c.png", "--ckpt", ckpt]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["face.png", "face-2.png", "c.png"]
    assert out.endswith("written: 3 in explanations\n")
    assert err == ""
    assert sorted(path.name for path in Path("explanations").iterdir()) == ["c.png", "face-2.png", "face.png"]
    for path in Path("explanations").iterdir():
        with Image.open(path) as picture:
            assert picture.size == (1320, 500)


def test_the_requested_emotion_is_explained(ckpt, monkeypatch):
    drawn = []
    draw = plots.explanation
    monkeypatch.setattr(plots, "explanation", lambda *args: drawn.append(args) or draw(*args))
    assert main(["explain", "c.png", "--ckpt", ckpt, "--emotion", "Fearful", "--save", "to/here"]) == 0
    [(face, heat, probabilities, emotion, title, classes)] = drawn
    assert (face.shape, heat.ndim, emotion) == ((48, 48), 2, EMOTIONS.index("fear"))
    assert classes == EMOTIONS
    assert title.startswith(f"c.png: {EMOTIONS[probabilities.argmax()]}")
    assert Path("to/here/c.png").is_file()


def test_unreadable_files_are_reported_and_the_rest_is_explained(ckpt, capsys):
    Path("bad.png").write_text("no image")
    assert main(["explain", "bad.png", "nowhere.png", "a", "c.png", "--ckpt", ckpt]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"error: bad.png cannot be read: not an image of type {FORMAT_NAMES}.",
        "error: nowhere.png cannot be read: No such file or directory.",
        "error: a cannot be read: Is a directory.",
    ]
    assert out.endswith("written: 1 in explanations\n")


def test_a_jpeg_that_lacks_its_last_bytes_is_explained_with_a_note(ckpt, capsys):
    Path("cut.jpg").write_bytes(Path("b/face.jpg").read_bytes()[:-2])
    assert main(["explain", "cut.jpg", "--ckpt", ckpt]) == 0
    assert capsys.readouterr().err == f"note: cut.jpg: {photos.TRUNCATED_NOTE}.\n"


def test_each_face_of_a_photo_gets_a_picture(ckpt, monkeypatch, capsys):
    regions = {"two.png": [Region((0, 0, 60, 60)), Region((60, 20, 31, 31))], "none.png": []}
    for name in regions:
        Image.new("RGB", (120, 100)).save(name)
    detected = iter(regions.values())
    monkeypatch.setattr(photos, "find_faces", lambda *_: next(detected))
    assert main(["explain", *regions, "--ckpt", ckpt]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["two.png", "two-2.png"]
    assert ["(too small)" in line for line in out.splitlines()[2:4]] == [False, True]
    assert err == "note: none.png: no face found. Use --no-detect to treat the whole image as one.\n"
    assert main(["explain", "none.png", "--no-detect", "--ckpt", ckpt]) == 0
    assert "written: 1 in explanations" in capsys.readouterr().out


def test_user_mistakes_give_an_error(ckpt, capsys):
    assert main(["explain", "c.png", "--ckpt", ckpt, "--emotion", "bored"]) == 1
    assert "--emotion=bored: expected one of angry, disgust" in capsys.readouterr().err
    assert main(["explain", "c.png", "--ckpt", ckpt, "--save", "c.png"]) == 1
    assert "c.png/c.png cannot be written" in capsys.readouterr().err


def test_pictures_written_before_the_disk_was_full_are_listed(ckpt, capsys, monkeypatch):
    write = write_png

    def full(picture, path):
        if path.stem == "d":
            raise OSError(28, "No space left on device")
        write(picture, path)

    monkeypatch.setattr("fer_lightning.drawing.style.write_png", full)
    Image.open("c.png").save("d.png")
    assert main(["explain", "c.png", "d.png", "--ckpt", ckpt]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[2].startswith("c.png")
    assert out.endswith("written: 1 in explanations\n")
    assert err == "error: explanations/d.png cannot be written: No space left on device.\n"
