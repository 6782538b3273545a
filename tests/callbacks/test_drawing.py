"""Drawing callbacks and the dashboard, in real fits with a real TensorBoard logger."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from torch import nn

from fer_lightning.callbacks import confusion_matrix as confusion_matrix_module
from fer_lightning.callbacks import drawing
from fer_lightning.callbacks import prediction_grid as prediction_grid_module
from fer_lightning.callbacks import training_faces as training_faces_module
from fer_lightning.callbacks.confusion_matrix import ConfusionMatrix, confusion_counts
from fer_lightning.callbacks.dashboard import Dashboard
from fer_lightning.callbacks.drawing import balanced_sample
from fer_lightning.callbacks.prediction_grid import PredictionGrid
from fer_lightning.data.augment import BatchAugment, resize
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.evaluation.scores import confident_mistakes
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.training.module import EmotionClassifier

N_TRAIN, N_VAL, N_TEST = 28, 35, 42
TEXTS = {"config": "optim:\n  lr: 0.1\n", "command": "python train.py model.channels=[8,16] data.batch_size=4"}
HPARAMS = {"optim.lr": 0.1, "model": "fer_model0", "data.batch_size": 14, "model.batch_norm": True}


def some_faces() -> Faces:
    sizes = (N_TRAIN, N_VAL, N_TEST)
    usage = np.repeat(np.array([TRAIN, VAL, TEST], np.uint8), sizes)
    images = np.random.default_rng(0).integers(0, 256, (len(usage), 48, 48), dtype=np.uint8)
    labels = np.arange(len(usage)) % 7
    return Faces(images, labels, usage, [str(i) for i in range(len(usage))], "synthetic", "a test", "0" * 16)


def data_module(split: str = "official") -> FaceDataModule:
    def only_resized(images, index, seed, epoch, image_size):
        return resize(images, image_size)

    return FaceDataModule(some_faces(), only_resized, batch_size=14, image_size=48, split=split)


def classifier() -> EmotionClassifier:
    torch.manual_seed(0)

    def optimizer(parameters, total_steps, steps_per_epoch):
        sgd = torch.optim.SGD(parameters, lr=0.1)
        return sgd, torch.optim.lr_scheduler.ConstantLR(sgd, 1.0)

    return EmotionClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 7)), optimizer, InputSpec(48, 0.5, 0.5), {"name": "linear"}
    )


def trainer(run_dir, *callbacks, epochs=2, tensorboard=True, **options) -> Trainer:
    logger = TensorBoardLogger(run_dir.parent, name=run_dir.name, version="", default_hp_metric=False)
    return Trainer(
        default_root_dir=run_dir,
        max_epochs=epochs,
        accelerator="cpu",
        logger=tensorboard and logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"enable_checkpointing": False, "num_sanity_val_steps": 1, **options},
    )


def events(run_dir) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def image_steps(read: EventAccumulator) -> dict[str, list[int]]:
    return {tag: [image.step for image in read.Images(tag)] for tag in read.Tags()["images"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple:
    """The folder of a run of two epochs and a test with all three callbacks, its events, and those of the fit."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    dashboard, data = Dashboard(TEXTS, HPARAMS), data_module()
    run = trainer(run_dir, PredictionGrid(), ConfusionMatrix(), dashboard)
    module = classifier()
    run.fit(module, datamodule=data)
    before = events(run_dir)
    run.test(module, datamodule=data, verbose=False)
    dashboard.report(run, {"best_epoch": 1, "accuracy/test": 0.25, "accuracy/best_val": 0.5})
    return run_dir, events(run_dir), before


# The sample and the mistakes


def test_sample_is_balanced_and_takes_the_classes_in_turn():
    labels = np.repeat(np.arange(7), [40, 5, 41, 72, 48, 31, 50])
    sample = balanced_sample(labels, 28)
    np.testing.assert_array_equal(labels[sample], np.tile(np.arange(7), 4))
    assert len(set(sample)) == 28
    np.testing.assert_array_equal(sample[::7], [0, 10, 20, 30])  # evenly spread over the 40 angry ones


def test_sample_is_filled_from_other_classes_if_one_is_short_or_missing():
    labels = np.array([0] * 10 + [1] + [3] * 10)
    sample = balanced_sample(labels, 9)
    np.testing.assert_array_equal(labels[sample], [0, 1, 3, 0, 3, 0, 3, 0, 3])
    assert len(set(sample)) == 9
    assert sorted(balanced_sample(labels, 100)) == list(range(21))
    assert len(balanced_sample(labels[:0], 28)) == 0


def test_mistakes_are_sorted_by_confidence():
    labels = np.array([0, 1, 2, 3, 4])
    probabilities = np.full((5, 7), 0.02)
    for row, (predicted, confidence) in enumerate([(1, 0.5), (1, 0.99), (3, 0.8), (0, 0.5), (5, 0.6)]):
        probabilities[row, predicted] = confidence
    np.testing.assert_array_equal(confident_mistakes(labels, probabilities, 10), [2, 4, 0, 3])
    np.testing.assert_array_equal(confident_mistakes(labels, probabilities, 2), [2, 4])


def test_confusion_counts_have_true_classes_in_rows():
    counts = confusion_counts(np.array([3, 3, 3, 6]), np.array([3, 4, 4, 6]), 8)
    assert counts.shape == (8, 8)
    assert (counts[3, 3], counts[3, 4], counts[6, 6], counts.sum()) == (1, 2, 1, 4)


# Files and events of a run


def test_every_figure_is_an_image_in_the_runs_folder(finished):
    sizes = {}
    for path in (finished[0] / "figures").iterdir():
        with Image.open(path) as image:
            image.load()
            sizes[path.name] = image.size
    grid, square = (1190, 950), (920, 820)
    assert sizes == {
        "predictions_val.png": grid,
        "predictions_test.png": grid,
        "most_confident_mistakes.png": grid,
        "confusion_val.png": square,
        "confusion_test.png": square,
    }


def test_images_are_logged_once_per_epoch_and_not_by_the_sanity_check(finished):
    assert image_steps(finished[1]) == {
        "predictions/grid": [0, 1],
        "predictions/most_confident_mistakes": [0, 1],
        "scores/confusion_val": [0, 1],
        "predictions_test/grid": [2],
        "predictions_test/most_confident_mistakes": [2],
        "scores/confusion_test": [2],
    }


def test_all_events_are_in_the_runs_folder(finished):
    files = list(finished[0].parent.rglob("events.out.tfevents.*"))
    assert files
    assert {file.parent for file in files} == {finished[0]}


def test_texts_are_shown_verbatim(finished):
    read = finished[1]
    text = {tag: read.Tensors(tag) for tag in read.Tags()["tensors"] if tag.startswith("run/")}
    assert sorted(text) == ["run/command/text_summary", "run/config/text_summary"]
    (config,), (command,) = text["run/config/text_summary"], text["run/command/text_summary"]
    assert config.tensor_proto.string_val == [b"```yaml\noptim:\n  lr: 0.1\n```"]
    assert command.tensor_proto.string_val == [f"`{TEXTS['command']}`".encode()]


def test_charts_combine_training_and_validation(finished):
    read = finished[1]
    layout = layout_pb2.Layout.FromString(read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    # TensorBoard smooths the lines of multiline charts, but not those of margin charts.
    assert not any(chart.HasField("multiline") for chart in category.chart)
    charts = {chart.title: [line.value for line in chart.margin.series] for chart in category.chart}
    assert charts["loss"] == ["loss/train", "loss/val"]
    assert charts["accuracy"] == ["accuracy/train", "accuracy/val"]
    assert charts["recall by emotion"] == [f"recall/{emotion}" for emotion in EMOTIONS]
    lines = [line for chart in category.chart for line in chart.margin.series]
    assert all(line.lower == line.value == line.upper for line in lines)
    assert {line.value for line in lines} <= set(read.Tags()["scalars"])


def test_hparams_table_has_a_row_for_the_run(finished):
    content = finished[1].PluginTagToContent(metadata.PLUGIN_NAME)
    row = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert row.hparams["optim.lr"].number_value == 0.1
    assert row.hparams["model"].string_value == "fer_model0"
    assert row.hparams["model.batch_norm"].bool_value is True
    assert row.group_name == ""  # TensorBoard then names the row after the run
    # Otherwise TensorBoard would use the columns of this run for all runs.
    assert metadata.EXPERIMENT_TAG not in content


def test_results_are_written_once_and_only_after_the_test(finished):
    _, read, before = finished
    assert not {"accuracy/test", "best_epoch"} & set(before.Tags()["scalars"])
    assert [(event.step, event.value) for event in read.Scalars("accuracy/test")] == [(2, 0.25)]
    assert [event.value for event in read.Scalars("best_epoch")] == [1]


def test_the_table_and_the_pictures_start_with_what_matters_most(finished):
    scalars, images = (sorted(finished[1].Tags()[kind]) for kind in ("scalars", "images"))  # TensorBoard's order
    assert scalars[:4] == ["accuracy/best_val", "accuracy/test", "accuracy/train", "accuracy/val"]
    assert images[0] == "predictions/grid"


# Contents of the figures


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list[tuple]]:
    """The arguments of every figure, by the function that drew it."""
    calls: dict[str, list[tuple]] = {"prediction_grid": [], "confusion_matrix": []}
    drawers = {"prediction_grid": prediction_grid_module, "confusion_matrix": confusion_matrix_module}

    def recording(name):
        draw = getattr(drawers[name], name)

        def record(*arguments):
            calls[name].append(arguments)
            return draw(*arguments)

        return record

    for name in calls:
        monkeypatch.setattr(drawers[name], name, recording(name))
    return calls


def test_each_figure_shows_the_split_in_its_title(tmp_path, drawn):
    data, module = data_module(), classifier()
    run = trainer(tmp_path, PredictionGrid(n_faces=14), ConfusionMatrix(), epochs=1)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)

    (val, val_title, _), (test, test_title, classes) = drawn["confusion_matrix"]
    assert (val.sum(), val_title) == (N_VAL, "Confusion on PublicTest after epoch 0")
    assert (test.sum(), test_title) == (N_TEST, "Confusion on PrivateTest")  # although PublicTest was tested too
    assert classes == EMOTIONS

    sample, mistakes, test_sample, test_mistakes = drawn["prediction_grid"]
    assert sample[3].startswith("PublicTest after epoch 0: ")
    assert "of 14 correct in a fixed sample" in sample[3]
    assert f"mistakes in {N_TEST}" in test_mistakes[3]
    faces = data.faces
    for (images, labels, probabilities, _, _), usage in ((sample, VAL), (test_sample, TEST)):
        np.testing.assert_array_equal(labels, np.tile(np.arange(7), 2))
        rows = [int(np.flatnonzero((faces.images == image).all(axis=(1, 2)))[0]) for image in images]
        assert (faces.usage[rows] == usage).all()
        np.testing.assert_array_equal(faces.labels[rows], labels)
        module.eval()
        with torch.no_grad():
            x = (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.5
            np.testing.assert_allclose(module(x).softmax(dim=1), probabilities, atol=1e-5)
    for _, labels, probabilities, _, _ in (mistakes, test_mistakes):
        assert (probabilities.argmax(axis=1) != labels).all()
        assert (np.diff(probabilities.max(axis=1)) <= 0).all()


def test_sample_is_the_same_after_every_epoch_and_in_every_run(tmp_path, drawn):
    for seed in (0, 1):
        torch.manual_seed(seed)
        run = trainer(tmp_path / str(seed), PredictionGrid(n_faces=7), epochs=2)
        run.fit(classifier(), datamodule=data_module())
    samples = drawn["prediction_grid"][::2]
    assert len(samples) == 4
    for images, *_ in samples[1:]:
        np.testing.assert_array_equal(images, samples[0][0])


def test_kaggle_folder_draws_both_splits_together(tmp_path, drawn):
    run = trainer(tmp_path, ConfusionMatrix())
    run.test(classifier(), datamodule=data_module("kaggle_folder"), verbose=False)
    ((counts, title, _),) = drawn["confusion_matrix"]
    assert (counts.sum(), title) == (N_VAL + N_TEST, "Confusion on PublicTest+PrivateTest")


def test_every_n_epochs_skips_the_others(tmp_path):
    callbacks = PredictionGrid(n_faces=7, every_n_epochs=2), ConfusionMatrix(every_n_epochs=3)
    trainer(tmp_path, *callbacks, epochs=5).fit(classifier(), datamodule=data_module())
    steps = image_steps(events(tmp_path))
    assert steps["predictions/grid"] == [1, 3]
    assert steps["scores/confusion_val"] == [2]


def test_without_a_logger_the_figures_are_still_written(tmp_path):
    dashboard = Dashboard(TEXTS, HPARAMS)
    callbacks = PredictionGrid(), ConfusionMatrix(), dashboard
    run = trainer(tmp_path, *callbacks, epochs=1, tensorboard=False)
    run.fit(classifier(), datamodule=data_module())
    dashboard.report(run, {"best_epoch": 0})
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"predictions_val.png", "most_confident_mistakes.png", "confusion_val.png"}


def test_only_the_first_process_draws_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_predictions", lambda *_: pytest.fail("drew a figure"))
    second = SimpleNamespace(is_global_zero=False, sanity_checking=False, current_epoch=0, loggers=[None])
    second.state = SimpleNamespace(fn="fit")
    for callback in (PredictionGrid(), ConfusionMatrix()):
        callback.on_validation_end(second, classifier())
        callback.on_test_end(second, classifier())
    dashboard = Dashboard(TEXTS, HPARAMS)
    dashboard.on_train_start(second, classifier())
    dashboard.report(second, {"best_epoch": 0})
    assert not list(tmp_path.iterdir())


def test_resumed_run_writes_its_texts_again_at_its_epoch(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    options = {"enable_checkpointing": True}
    first = trainer(tmp_path, Dashboard(TEXTS, HPARAMS), checkpoints, epochs=2, **options)
    first.fit(classifier(), datamodule=data_module())
    again = Dashboard({**TEXTS, "command": "python train.py resume=true"}, HPARAMS)
    second = trainer(tmp_path, again, epochs=3, **options)
    second.fit(classifier(), datamodule=data_module(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    second.test(classifier(), datamodule=data_module(), verbose=False)

    # Sorted by step, because files of the same second and process are read in the alphabetical order of a counter.
    texts = sorted(
        (text.step, *text.tensor_proto.string_val) for text in events(tmp_path).Tensors("run/command/text_summary")
    )
    assert texts == [(0, f"`{TEXTS['command']}`".encode()), (2, b"`python train.py resume=true`")]


def test_run_without_a_fit_has_its_texts_too(tmp_path):
    run = trainer(tmp_path, Dashboard(TEXTS, HPARAMS))
    run.test(classifier(), datamodule=data_module(), verbose=False)
    run.loggers[0].finalize("success")
    read = events(tmp_path)
    assert "run/config/text_summary" in read.Tags()["tensors"]
    assert metadata.SESSION_START_INFO_TAG in read.PluginTagToContent(metadata.PLUGIN_NAME)


def test_training_faces_are_drawn_as_the_network_gets_them(tmp_path, monkeypatch):
    drawn = []
    original = training_faces_module.face_table
    monkeypatch.setattr(
        training_faces_module, "face_table", lambda *args, **kw: drawn.append((args, kw)) or original(*args, **kw)
    )
    data = data_module()
    data.augment = BatchAugment(flip_prob=0.5, rotation_deg=20, translate_frac=0.1)
    seen = {}
    prepare = data._augment_batch

    def recorded(images, index, epoch):
        out = prepare(images, index, epoch)
        seen.update({(epoch, int(row)): image for row, image in zip(index, out, strict=True)})
        return out

    data._augment_batch = recorded
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, name="", version=""),
        callbacks=[training_faces_module.TrainingFaces(n_epochs=2)],
        default_root_dir=tmp_path,
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(classifier(), data)
    ((images,), names) = drawn[0]
    assert len(drawn) == 1
    assert (names["rows"], names["columns"]) == (["resized", "epoch 0", "epoch 1"], list(EMOTIONS))
    rows = balanced_sample(data.faces.labels[:N_TRAIN], 7)
    np.testing.assert_array_equal(images[0], data.faces.images[rows])
    for epoch in (0, 1):
        for face, row in zip(images[1 + epoch], rows, strict=True):
            unit = seen[epoch, int(row)] * data.std + data.mean
            np.testing.assert_allclose(face, 255 * unit[0], atol=0.51)
    assert "training/augmented" in EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    assert (tmp_path / "figures" / "training_faces.png").exists()
