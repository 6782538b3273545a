"""Runs on data with other classes than FER-2013's: every part has the data's own names and order."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fake_fer2013 import encode, fake_faces, write_folders, write_zip
from PIL import Image
from project import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import fer_lightning
from fer_lightning.__main__ import main as command
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.emotions import EMOTIONS
from fer_lightning.models.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("own_folder")

EIGHT = ("anger", "contempt", "disgust", "fear", "happiness", "neutrality", "sadness", "$x_1$ & <b>")
DRAWN = "callbacks=[default,grad_cam,projector]"
OPTIONS = [setting for setting in SMALL if not setting.startswith(("data=", "data.n_", "trainer.max_epochs"))]


def run(*settings: str, code: int = 0) -> None:
    assert main(job, [*OPTIONS, "trainer.max_epochs=1", *settings]) == code


def results(path: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path(path).read_text())
    return content


@pytest.fixture
def trained_on_eight() -> Path:
    write_folders("eight", EIGHT)
    run(
        "data.path=eight",
        "data.classes=folders",
        "name=a",
        "callbacks=[default,grad_cam,projector]",
        "logger=tensorboard",
    )
    return Path("runs/default/a")


def test_eight_classes_are_trained_drawn_exported_and_predicted(
    trained_on_eight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = sorted(EIGHT, key=str.casefold)
    found = results("runs/default/a/results.json")
    assert found["classes"] == list(found["per_class"]) == classes  # type: ignore[call-overload]
    figures = {path.name for path in (trained_on_eight / "figures").iterdir()}
    assert {"predictions_test.png", "confusion_val.png", "grad_cam_test.png"} <= figures
    events = EventAccumulator(str(trained_on_eight)).Reload()
    scalars = events.Tags()["scalars"]
    assert {"recall/contempt", "precision/$x_1$ & <b>"} <= set(scalars)
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (recalls,) = [chart.margin.series for chart in layout.category[0].chart if "recall" in chart.title]
    assert [line.value for line in recalls] == [f"recall/{name}" for name in classes]
    assert {line.value for line in recalls} <= set(scalars)
    ckpt = str(trained_on_eight / "checkpoints/best.ckpt")
    assert read_checkpoint(ckpt).inputs.classes == tuple(classes)

    clf = fer_lightning.load_checkpoint(ckpt, "cpu")
    prediction = clf.predict(np.zeros((3, 48, 48), np.uint8))
    assert prediction.probabilities.shape == (3, 8)
    assert prediction.names == [classes[label] for label in prediction.labels]
    ((face,),) = clf.predict_photos([Image.open(io.BytesIO(encode(np.zeros((48, 48), np.uint8))))])
    assert list(face.probabilities) == classes

    capsys.readouterr()
    assert command(["predict", "eight/anger/0.png", "--ckpt", ckpt, "--csv", "--save", "out"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    smoothed = [f"smoothed_{name}" for name in classes]
    assert header.endswith(",".join(["confidence", *classes, "id", *smoothed, "doubt"]))
    assert len(row.split(",")) == len(header.split(","))
    assert command(["explain", "eight/anger/0.png", "--ckpt", ckpt, "--emotion", "contempt"]) == 0
    assert command(["export", "--ckpt", ckpt, "--format", "pt2"]) == 0
    assert "probabilities: float32 (N, 8)\n" + ", ".join(classes) in capsys.readouterr().out


def test_eight_classes_are_evaluated_and_audited(
    trained_on_eight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = str(trained_on_eight / "checkpoints/best.ckpt")
    assert command(["evaluate", ckpt, "--data", "eight", "--json", "a.json", "--report", "a.html"]) == 0
    found, trained = results("a.json"), results("runs/default/a/results.json")
    assert found["classes"] == trained["classes"]
    assert (found["n"], found["accuracy"]) == (trained["n"], trained["accuracy"])  # the run's own cut
    assert "&lt;b&gt;" in (page := Path("a.html").read_text())
    assert "<b></td>" not in page
    assert command(["audit", "eight", "--classes=folders", "--json", "b.json", "--report", "b.html"]) == 0
    assert list(results("b.json")["counts"]["train"]) == trained["classes"]  # type: ignore[index, call-overload]

    capsys.readouterr()
    write_folders("seven", EMOTIONS)
    assert command(["evaluate", ckpt, "--data", "seven", "--json", "c.json"]) == 0
    shared = ["anger", "disgust", "fear", "happiness", "neutrality", "sadness"]
    assert results("c.json")["classes"] == shared
    out = capsys.readouterr().out
    assert f"note: Compared on the 6 classes that network and data share: {', '.join(shared)}." in out
    assert "note: Images of classes that are not compared were left out: 10 of surprise." in out
    assert command(["evaluate", "--model=tiny", "--data", "eight"]) == 1
    assert "'$x_1$ & <b>' is no class." in capsys.readouterr().err
    assert command(["evaluate", "--model=tiny", "--data", "eight", "--rename", "$x_1$ & <b>="]) == 0
    assert command(["evaluate", "--model=tiny", "--data", "eight", "--against", ckpt, "--json", "d.json"]) == 0
    assert results("d.json")["classes"] == ["angry", "disgust", "fear", "happy", "sad", "neutral"]


def test_other_labels_than_those_of_the_network_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_zip(tmp_path / "fer2013.zip", fake_faces((2, 1, 1))))
    hint = "note: The network's classes are those of FER+, tested on FER-2013's own labels; see --labels ferplus."
    for name, said in (("ferplus", True), ("tiny", False)):
        assert command(["evaluate", "--model", name, "--data", data]) == 0
        assert (hint in capsys.readouterr().out) == said


def test_three_classes_of_merged_folders_teach_and_continue(capsys: pytest.CaptureFixture[str]) -> None:
    write_folders("eight", EIGHT[:7])
    merged = "data.rename={contempt: negative, disgust: negative, fear: negative, sad: negative, angry: negative}"
    run("data.path=eight", merged, "data.rename.surprise=null", "name=a", "monitor=recall/negative")
    found = results("runs/default/a/results.json")
    assert found["classes"] == ["negative", "happy", "neutral"]
    assert found["monitor"] == "recall/negative"
    ckpt = "runs/default/a/checkpoints/best.ckpt"
    # Student and teacher may have the classes in another order, but a teacher must know all of them.
    run(
        "data.path=eight",
        "data.classes=[happy,neutral,negative]",
        "data.rename={contempt: negative, disgust: negative, fear: negative, sad: negative, anger: negative}",
        f"distill.ckpt={ckpt}",
        "name=b",
    )
    assert results("runs/default/b/results.json")["classes"] == ["happy", "neutral", "negative"]
    capsys.readouterr()
    run("data.path=eight", "data.rename={contempt: null}", f"distill.ckpt={ckpt}", "name=c", code=1)
    assert f"distill.ckpt={ckpt} does not know the class angry" in capsys.readouterr().err
    run("data.path=eight", "data.rename={contempt: null}", f"ckpt={ckpt}", "name=c", "stages=[test]", code=1)
    assert f"ckpt={ckpt} has the classes negative, happy, neutral, the data have angry" in capsys.readouterr().err
    assert (
        main(job, ["resume=runs/default/a", "trainer.max_epochs=2", "data.classes=[happy,neutral,negative]"]) == 1
    )
    run("data.path=eight", "data.rename={contempt: null}", "monitor=recall/negative", "name=c", code=1)
    assert "monitor=recall/negative is not a metric." in capsys.readouterr().err
    assert not Path("runs/default/c").exists()
    run("data.path=eight", merged, "data.rename.surprise=null", f"ckpt={ckpt}", "stages=[test]", "name=d")
    assert results("runs/default/d/results.json")["accuracy"] == found["accuracy"]
