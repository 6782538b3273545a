"""Bugs in custom code show their traceback; user mistakes are one line, with a traceback on request."""

import os
import subprocess
import sys
import traceback

import contributed
import pytest
from faults import results_of
from lightning.fabric.utilities.exceptions import MisconfigurationException
from project import ROOT, SMALL

from fer_lightning import models
from fer_lightning.__main__ import main as tools
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.exit import TRACEBACK_VARIABLE
from fer_lightning.training import optim

CALLBACK = "callbacks.mine._target_=contributed.MyCallback"
TRANSFORM = "augment.transforms=[{_target_: contributed.MyTransform, where: %s}]"

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(autouse=True)
def _added(monkeypatch):
    """Add a custom network and optimizer to the project's tables."""
    monkeypatch.setitem(models.MODELS, "torchvision", contributed.MyNet)  # it takes the options of the YAML file
    monkeypatch.setitem(optim.OPTIMIZERS, "adam", contributed.MyOptimizer)


FEW = [*(setting for setting in SMALL if not setting.startswith("model.")), "trainer.max_epochs=1"]
NET = "model=torchvision"
STOP = "callbacks.stop"
MINE = ["augment=none", "augment._target_=contributed.MyAugment"]
V2 = "torchvision.transforms.v2"
FLOAT32 = "{_target_: hydra.utils.get_object, path: torch.float32}"
TO_DTYPE = f"augment.transforms=[{{_target_: {V2}.ToDtype, dtype: {FLOAT32}, scale: %s}}]"
AFFINE = "augment.transforms=[{_target_: torchvision.transforms.v2.RandomAffine}]"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ([CALLBACK, "callbacks.mine.where=constructor"], TypeError),
        ([CALLBACK, "callbacks.mine.where=hook"], TypeError),
        ([CALLBACK, "callbacks.mine.where=value"], ValueError),
        ([CALLBACK, "callbacks.mine.where=wrong hook"], MisconfigurationException),
        (["model.architecture=constructor"], TypeError),
        (["model.architecture=forward"], TypeError),
        (["augment=torchvision", TRANSFORM % "constructor"], TypeError),
        (["augment=torchvision", TRANSFORM % "forward"], TypeError),
        (["optim.lr=13"], TypeError),
        (["logger.mine._target_=contributed.MyLogger", "logger.mine.where=constructor"], TypeError),
        (["data._target_=contributed.my_faces", "data.seed=13"], TypeError),
    ],
)
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_a_bug_in_custom_code_shows_its_traceback(settings, error, sweep, capsys):
    if sweep:
        assert main(job, [*FEW, NET, *settings, "-m", "name=s"]) == 1
        error_output = capsys.readouterr().err
        assert "Traceback (most recent call last):" in error_output
        assert "contributed.py" in error_output
        assert results_of("runs/default/s/0")["error"].startswith(error.__name__)
    else:
        with pytest.raises(error):
            main(job, [*FEW, NET, *settings])


@pytest.mark.parametrize("where", ["model.architecture=forward", "augment.transforms=[%s]"])
def test_the_traceback_of_a_bug_in_a_forward_is_short_and_ends_in_it(where, tmp_path):
    bug = (
        ["augment=torchvision", where % "{_target_: contributed.MyTransform, where: forward}"]
        if "%" in where
        else [where]
    )
    with pytest.raises(TypeError) as caught:
        main(job, [*FEW, NET, *bug, "name=a"])
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[-2:]] == ["forward", "bug"]
    assert not any("lightning/pytorch" in frame.filename for frame in frames)
    assert list(tmp_path.rglob("*")) == []  # so the name is free for the next attempt


def test_a_function_can_be_an_augmentation():
    own = ["augment=none", "augment._target_=contributed.my_augment", "augment._partial_=true"]
    assert main(job, [*FEW, NET, "model.architecture=mine", *own, "name=a"]) == 0


def test_custom_code_works_without_the_bug():
    mine = [CALLBACK, "augment=torchvision", TRANSFORM % "none", "logger.mine._target_=contributed.MyLogger"]
    assert main(job, [*FEW, NET, "model.architecture=mine", *mine, "name=a"]) == 0
    assert results_of("runs/default/a")["status"] == "finished"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([CALLBACK, "callbacks.mine.wher=x"], "contributed.MyCallback: unknown option 'wher'. Did you mean where?"),
        ([CALLBACK, "callbacks.mine.n=x"], "contributed.MyCallback: n=x: expected an integer"),
        (
            ["callbacks.mine._target_=contributed.MyCalback"],
            "has no MyCalback. Did you mean MyCallback?",
        ),
        (["callbacks.mine._target_=contributd.MyCallback"], "no module contributd."),
        (["callbacks.mine._target_=builtins.dict"], "callbacks.mine is not a Lightning callback."),
        (["callbacks=default", "callbacks.prediction_grd.n_faces=7"], "Did you mean prediction_grid?"),
        (["callbacks=default", "callbacks.prediction_grid.n_face=7"], "Did you mean n_faces?"),
        (
            [f"{STOP}._target_=lightning.pytorch.callbacks.EarlyStopping", f"{STOP}.monitor=a", f"{STOP}.mode=mox"],
            "EarlyStopping cannot be built with monitor=a, mode=mox: `mode` can be",
        ),
        (["optim=sgd", "optim.name=adam"], "optim.name=adam: unknown option 'momentum'"),
        (
            ["augment=torchvision", "augment.transforms=[{_target_: torchvision.transforms.v2.RandomAffine}]"],
            "degrees",
        ),
        (["data.n_train=-3"], "data.n_train=-3: expected at least 0"),
        (["data.seed=-1"], "data.seed=-1: expected at least 0"),
        (["logger.mine._target_=contributed.MyLogger", "logger.mine.where=[1]"], "where=[1]: expected a string"),
        (["trainer.max_steps=[1]"], "Lightning's Trainer rejected its arguments: "),
        (
            ["model.architecture=shape"],
            "model=torchvision: contributed.MyNet returned float32 (2, 6) for 2 images of 24 px. Expected "
            "floating-point logits (2, 7), one for each class: angry, disgust,",
        ),
        ([TO_DTYPE % "false", "augment=torchvision"], "TorchvisionAugment returned values from "),
        (
            ["augment=none", "augment._target_=contributed.my_augment"],
            "missing a required argument: 'images'. To pass the function itself, set _partial_=true",
        ),
        (
            [*MINE, "augment.returns=uint8"],
            "returned uint8 (16,",
        ),
        (
            [*MINE, "augment.returns=grey levels"],
            "contributed.MyAugment returned values from 0 to 255. Expected float32 (16, 1, 24, 24) with values in "
            "[0, 1], for uint8 images (16, 1, 48, 48)",
        ),
        ([*MINE, "augment.returns=scaled twice"], "255 twice"),
        (
            [*MINE, "augment.returns=no number"],
            "NaN or infinite",
        ),
        ([*MINE, "augment.returns=float64"], "torch.float64"),
        (
            [*MINE, "augment.returns=unresized"],
            "(16, 1, 48, 48).",
        ),
        ([*MINE, "augment.returns=nothing"], "a NoneType."),
        (
            ["augment=torchvision", "augment.transforms=[{_target_: torchvision.transforms.v2.ToPILImage}]"],
            "augment.transforms returned a PIL.Image.Image. Expected a tensor (1, H, W).",
        ),
        (
            [
                "augment=torchvision",
                f"augment.transforms=[{{_target_: {V2}.RandomResize, min_size: 9, max_size: 99}}]",
            ],
            "augment.transforms returned images of different shapes, e.g. (1,",
        ),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(settings, message, capsys, tmp_path):
    assert main(job, [*FEW, NET, *settings]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.rglob("*")) == []


def test_hydras_convert_has_no_effect():
    transforms = "[{_target_: contributed.MyTransform, _convert_: all}]"
    mine = ["augment=torchvision", f"augment.transforms={transforms}"]
    assert main(job, [*FEW, NET, *mine, "name=a"]) == 0


def test_a_failing_import_inside_a_module_is_a_bug(tmp_path, monkeypatch):
    (tmp_path / "half_done.py").write_text("import not_installed\n\nclass MyCallback: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        main(job, [*FEW, NET, "callbacks.mine._target_=half_done.MyCallback"])


def test_a_traceback_does_not_show_hydra(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *SMALL, CALLBACK, "callbacks.mine.where=constructor"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'contributed.py", line' in done.stderr
    assert "TypeError: unsupported operand: the bug" in done.stderr
    assert "hydra/_internal" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr


@pytest.mark.parametrize("requested", ["flag", "variable"])
def test_the_traceback_of_an_error_is_shown_on_request(requested, capsys, monkeypatch, tmp_path):
    flag = ["--traceback"] if requested == "flag" else []
    if requested == "variable":
        monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    (tmp_path / "cut.ckpt").write_bytes(b"PK")
    for command in (
        lambda: main(job, [*SMALL, "stages=[test]", "ckpt=cut.ckpt", *flag]),
        lambda: main(job, [*flag, *SMALL, "-m", "name=s", "stages=[test]", "ckpt=cut.ckpt"]),
        lambda: tools(["predict", *flag, "--ckpt", "cut.ckpt", str(tmp_path / "cut.ckpt")]),
    ):
        assert command() == 1
        error = capsys.readouterr().err
        assert "zipfile.BadZipFile: File is not a zip file" in error
        assert "error: ckpt=cut.ckpt is damaged or not a checkpoint: File is not a zip file\n" in error
    assert os.environ.get(TRACEBACK_VARIABLE) == ("1" if requested == "variable" else None)


def test_traceback_after_two_dashes_is_a_path(capsys):
    assert tools(["predict", "--ckpt", "no.ckpt", "--", "--traceback"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_several_choices_of_callbacks_are_merged():
    got = []
    assert main(lambda cfg, run_dir: got.append(cfg.callbacks), ["callbacks=[ema,grad_cam]"]) == 0
    assert list(got[0]) == ["prediction_grid", "confusion_matrix", "training_faces", "ema", "grad_cam"]
