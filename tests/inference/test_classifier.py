"""Predicting from Python: a checkpoint reproduces its own test results, for every form of faces."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from project import ROOT

import fer_lightning
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.faces import TEST
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError

DATA = {"n_train": 28, "n_val": 7, "n_test": 14}


@pytest.fixture(scope="module")
def tested_run(tmp_path_factory):
    """The folder of a run trained for one epoch and tested with test-time augmentation."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        options = ("model.channels=[4,8]", "tta=mirror", "callbacks=none", "logger=none")
        trainer = ("trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.precision=32-true")
        data = (
            "data=synthetic",
            "data.image_size=32",
            "data.mean=0.4",
            *(f"data.{k}={n}" for k, n in DATA.items()),
        )
        assert main(job, ["name=a", *options, *trainer, *data]) == 0
    return folder / "runs/default/a"


@pytest.fixture(scope="module")
def clf(tested_run):
    return fer_lightning.load_checkpoint(tested_run / "checkpoints/best.ckpt", device="cpu")


@pytest.fixture(scope="module")
def faces():
    drawn = synthetic_faces(**DATA)
    return drawn.images[drawn.usage == TEST]


def test_a_checkpoint_reproduces_its_own_test_results(tested_run, clf, faces):
    results = json.loads((tested_run / "results.json").read_text())
    drawn = synthetic_faces(**DATA)
    labels = drawn.labels[drawn.usage == TEST]
    for tta, scores in (("mirror", results), ("none", results["without_tta"]["test"])):
        p = clf.predict(faces, tta=tta)
        assert (p.labels == labels).mean() == scores["accuracy"]
        assert -np.log(p.probabilities[range(14), labels]).mean() == pytest.approx(scores["loss"], rel=1e-4)


def test_contents_of_a_prediction(clf, faces):
    p = clf.predict(faces)
    assert (p.probabilities.dtype, p.probabilities.shape) == (np.float32, (14, 7))
    np.testing.assert_allclose(p.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (p.labels.dtype, p.labels.tolist()) == (
        np.int64,
        [max(range(7), key=row.__getitem__) for row in p.probabilities],
    )
    assert p.names == [EMOTIONS[label] for label in p.labels]
    assert not clf.net.training


def test_the_batch_size_changes_nothing(clf, faces):
    whole = clf.predict(faces).probabilities
    for batch_size in (1, 4, 14):
        np.testing.assert_allclose(clf.predict(faces, batch_size=batch_size).probabilities, whole, atol=1e-6)


def test_every_form_of_faces_gives_the_same_prediction(clf, faces):
    expected = clf.predict(faces).probabilities
    read_only = faces.copy()
    read_only.flags.writeable = False
    pictures = [Image.fromarray(face) for face in faces]
    forms = {
        "tensor": torch.from_numpy(faces),
        "read-only": read_only,
        "backwards": faces[::-1].copy()[::-1],
        "list": pictures,
        "tuple": tuple(pictures),
        "colour": [picture.convert("RGB") for picture in pictures],
        "transparent": [picture.convert("RGBA") for picture in pictures],
    }
    for name, form in forms.items():
        np.testing.assert_allclose(clf.predict(form).probabilities, expected, atol=1e-6, err_msg=name)
    for single in (faces[3], torch.from_numpy(faces[3]), pictures[3]):
        np.testing.assert_allclose(clf.predict(single).probabilities, expected[3:4], atol=1e-6)


def test_faces_of_any_size_are_resized(clf, faces):
    doubled = faces.repeat(2, axis=1).repeat(2, axis=2)
    unit = torch.from_numpy(doubled)[:, None].float() / 255
    images = (F.interpolate(unit, size=(32, 32), mode="bilinear", antialias=True) - 0.4) / 0.5
    with torch.no_grad():
        expected = clf.net(images).softmax(dim=1).numpy()
    np.testing.assert_allclose(clf.predict(doubled).probabilities, expected, atol=1e-6)
    mixed = [Image.fromarray(faces[0]), Image.fromarray(doubled[1]), Image.fromarray(doubled[2][:90])]
    expected = [clf.predict(face).probabilities[0] for face in (faces[0], doubled[1], doubled[2][:90])]
    np.testing.assert_allclose(clf.predict(mixed).probabilities, expected, atol=1e-6)


def test_a_rotated_face_is_turned_upright(clf, faces, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    Image.fromarray(np.rot90(faces[0])).save(tmp_path / "rotated.png", exif=exif)
    with Image.open(tmp_path / "rotated.png") as rotated:
        probabilities = clf.predict(rotated).probabilities
    np.testing.assert_allclose(probabilities, clf.predict(faces[0]).probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        (np.zeros((2, 48, 48), np.float32), "expected uint8 pixels from 0 to 255, got float32"),
        (torch.zeros(2, 48, 48), "expected uint8 pixels from 0 to 255, got float32"),
        (np.zeros((2, 48, 48), np.int64), "got int64"),
        (np.zeros(48, np.uint8), r"got shape \(48,\)"),
        (np.zeros((2, 2, 48, 48), np.uint8), r"got shape \(2, 2, 48, 48\)"),
        (np.zeros((48, 48, 3), np.uint8), "Pass colour images as PIL"),
        (np.zeros((0, 48, 48), np.uint8), "expected at least one face"),
        (torch.zeros(3, 0, 48, dtype=torch.uint8), "expected at least one face"),
        ([], "expected at least one face"),
        (["face.png"], r"faces\[0\]: expected a PIL image, got str"),
        ([np.zeros((48, 48), np.uint8)], "combine arrays with numpy.stack"),
        ("face.png", "PIL images, got str"),
        (None, "PIL images, got NoneType"),
    ],
)
def test_invalid_faces_are_rejected(clf, faces, message):
    with pytest.raises(UserError, match=message):
        clf.predict(faces)


def test_invalid_options_are_rejected(clf, faces, tested_run):
    with pytest.raises(UserError, match="Did you mean mirror"):
        clf.predict(faces, tta="miror")
    with pytest.raises(UserError, match="batch_size=0: expected at least 1"):
        clf.predict(faces, batch_size=0)
    for device in ("meta", "hpu:1"):
        with pytest.raises(UserError, match=f"device={device}: expected auto, cpu, cuda, cuda:1 or mps"):
            fer_lightning.load_pretrained("tiny", device)
    with pytest.raises(UserError, match="device=quantum: expected auto"):
        fer_lightning.load_checkpoint(tested_run / "checkpoints/best.ckpt", device="quantum")
    with pytest.raises(UserError, match="No such file"):
        fer_lightning.load_checkpoint("nowhere.ckpt")


def test_imports_are_lazy_and_predicting_does_not_import_lightning():
    code = (
        "import sys, fer_lightning\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "assert callable(fer_lightning.load_checkpoint)\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'lightning', 'hydra', 'matplotlib', 'torchvision'} & set(sys.modules)\n"
        "assert not hasattr(fer_lightning, 'load_checkpiont')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_16_bit_and_transparent_faces_are_decoded_like_photos(clf):
    grey = np.linspace(0, 255, 48 * 48).astype(np.uint8).reshape(48, 48)
    expected = clf.predict(grey).probabilities
    # Composited on white, this equals `grey`.
    transparent = Image.merge("LA", (Image.new("L", (48, 48)), Image.fromarray(255 - grey)))
    for face in (Image.fromarray(grey.astype(np.uint16) << 8), transparent):
        np.testing.assert_allclose(clf.predict(face).probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_faces_with_a_channel_axis_are_accepted(kind):
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    clf = fer_lightning.load_pretrained("tiny")
    expected = clf.predict(kind(faces)).probabilities
    np.testing.assert_array_equal(clf.predict(kind(faces[:, None])).probabilities, expected)


@pytest.mark.parametrize("n", [1, 5, 2304])
def test_rows_of_a_csv_are_not_taken_for_one_face(n):
    with pytest.raises(UserError, match=r"looks like rows of 2,304 pixels.*reshape\(-1, 48, 48\)"):
        fer_lightning.load_pretrained("tiny").predict(np.zeros((n, 2304), np.uint8))


def test_the_public_names_are_listed():
    assert dir(fer_lightning) == sorted([*fer_lightning.__all__, "__version__"])
