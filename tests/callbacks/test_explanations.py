"""Grad-CAM figures and projector files of a real fit and test."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fer_lightning.callbacks import grad_cam as grad_cam_module
from fer_lightning.callbacks import prediction_grid as prediction_grid_module
from fer_lightning.callbacks.grad_cam import GradCAM
from fer_lightning.callbacks.prediction_grid import PredictionGrid
from fer_lightning.callbacks.projector import Projector, penultimate_features, principal_components
from fer_lightning.data.augment import NoAugment
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.drawing.faces import prediction_grid
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.training.module import EmotionClassifier
from fer_lightning.training.optim import build_optimizer

MODEL = {"name": "fer_model0", "channels": [4, 8]}
INPUTS = InputSpec(24, 0.4, 0.3)


def module() -> EmotionClassifier:
    torch.manual_seed(0)

    def optimizer(parameters, total_steps, steps_per_epoch):
        return build_optimizer(parameters, total_steps, steps_per_epoch, name="sgd", lr=0.1)

    return EmotionClassifier(build_model(image_size=24, **MODEL), optimizer, INPUTS, MODEL)


def trainer(run_dir, *callbacks, tensorboard=True) -> Trainer:
    return Trainer(
        default_root_dir=run_dir,
        max_epochs=1,
        accelerator="cpu",
        logger=tensorboard and TensorBoardLogger(run_dir.parent, name=run_dir.name, version=""),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder, module and data of a finished run, and the arguments of all its figures."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    trained = module()
    data = FaceDataModule(
        synthetic_faces(n_train=28, n_val=21, n_test=42),
        NoAugment(),
        14,
        INPUTS.image_size,
        INPUTS.mean,
        INPUTS.std,
    )
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        for drawer in (prediction_grid_module, grad_cam_module):
            patch.setattr(drawer, "prediction_grid", lambda *args: drawn.append(args) or prediction_grid(*args))
        run = trainer(run_dir, PredictionGrid(n_faces=14), GradCAM(n_faces=14), Projector(n_faces=35))
        run.fit(trained, datamodule=data)
        run.test(trained, datamodule=data, verbose=False)
    return run_dir, trained, data, drawn


def test_grad_cam_shows_the_sample_of_the_prediction_grid(finished):
    run_dir, trained, _, drawn = finished
    for grid, cam, title in ((drawn[0], drawn[2], "validation after epoch 0"), (drawn[3], drawn[5], "test")):
        assert cam[3] == f"{title}: evidence for the predicted emotion (Grad-CAM)"
        assert cam[0].shape == (14, 48, 48, 3)
        for of_cam, of_grid in zip(cam[1:3], grid[1:3], strict=True):
            np.testing.assert_array_equal(of_cam, of_grid)
        difference = np.abs(cam[0].astype(int) - grid[0][..., None]).max(axis=(1, 2, 3))
        assert (difference > 0).any()
        cold = (cam[0] == grid[0][..., None]).all(axis=3)
        assert cold.any()  # pixels without evidence show the face unchanged
    tags = EventAccumulator(str(run_dir)).Reload().Tags()["images"]
    assert {"predictions/grid_grad_cam", "predictions_test/grid_grad_cam"} <= set(tags)
    assert {"grad_cam_val.png", "grad_cam_test.png"} <= {path.name for path in (run_dir / "figures").iterdir()}
    assert all(parameter.requires_grad for parameter in trained.net.parameters())


def test_projector_gets_the_test_faces_with_their_features(finished):
    run_dir, trained, data, _ = finished
    [config] = run_dir.glob("projector_config.pbtxt")
    [folder] = (path for path in (run_dir / "00001").iterdir())
    assert f'tensor_path: "00001/{folder.name}/tensors.tsv"' in config.read_text()

    header, *rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
    assert header == ["emotion", "predicted", "confidence"]
    assert [row[0] for row in rows] == list(EMOTIONS) * 5
    features = np.loadtxt(folder / "tensors.tsv")
    assert features.shape == (35, 35)  # 288 features reduced to as many components as faces
    with Image.open(folder / "sprite.png") as sprite:
        pixels = np.asarray(sprite.convert("L"))
    assert pixels.shape == (6 * 48, 6 * 48)
    clf = Classifier(trained.net, INPUTS, "cpu")
    for number in (0, 8, 34):
        top, left = 48 * (number // 6), 48 * (number % 6)
        face = pixels[top : top + 48, left : left + 48]
        [row] = np.flatnonzero((data.faces.images == face).all(axis=(1, 2)))
        assert EMOTIONS[data.faces.labels[row]] == rows[number][0]
        prediction = clf.predict(face)
        assert prediction.names == [rows[number][1]]
        assert prediction.probabilities.max() == pytest.approx(float(rows[number][2]), abs=1e-3)


def test_features_are_the_input_of_the_last_layer():
    clf = Classifier(module().net, INPUTS, "cpu")
    faces = synthetic_faces(n_train=0, n_val=0, n_test=9).images
    features = penultimate_features(clf, faces, batch_size=4)
    assert (features.dtype, features.shape) == (np.float32, (9, 8 * 6 * 6))
    with torch.no_grad():
        probabilities = clf.net.classifier(torch.from_numpy(features)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, clf.predict(faces).probabilities, atol=1e-6)
    with pytest.raises(UserError, match="a final linear layer, which this network lacks"):
        penultimate_features(Classifier(nn.Conv2d(1, 7, 24), INPUTS, "cpu"), faces)


def test_principal_components_keep_the_distances():
    features = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    components = principal_components(features, 6)
    assert components.shape == (6, 6)
    for points in (features, components):
        points -= points[0].copy()
    np.testing.assert_allclose(components @ components.T, features @ features.T, atol=1e-4)
    assert principal_components(features, 40) is features
    variance = principal_components(features, 3).var(axis=0)
    assert (np.diff(variance) < 0).all()


def test_projector_without_tensorboard_is_an_error_before_the_run_starts(tmp_path):
    data = FaceDataModule(synthetic_faces(n_train=7, n_val=7, n_test=7), NoAugment(), 7, 24)
    with pytest.raises(UserError, match=r"callbacks=projector needs TensorBoard\. Set logger=tensorboard\."):
        trainer(tmp_path / "run", Projector(), tensorboard=False).fit(module(), datamodule=data)
    assert not (tmp_path / "run").exists()


def test_values_out_of_range():
    with pytest.raises(UserError, match=r"callbacks\.projector\.n_faces=1: expected 2 to 5000\."):
        Projector(n_faces=1)
    for name in ("n_faces", "every_n_epochs"):
        with pytest.raises(UserError, match=rf"callbacks\.grad_cam\.{name}=0: expected at least 1"):
            GradCAM(**{name: 0})
