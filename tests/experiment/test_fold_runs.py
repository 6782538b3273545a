"""Runs with data.fold: what selects, what is tested, what is recorded, and what is refused."""

from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from composing import composed
from faults import Killed, KilledAt, differences, results_of, run, with_callback
from lightning.pytorch import Callback

from fer_lightning.callbacks.drawing import validation_predictions
from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.folds import assign_folds
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.models.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("own_folder")


class Validated(Callback):
    """Callback that records the rows of the predictions that are drawn after a validation."""

    def on_validation_end(self, trainer, pl_module):
        if predictions := validation_predictions(trainer, pl_module, 1):
            self.rows, self.title = predictions.rows.tolist(), predictions.title


def test_a_run_selects_on_its_fold_and_tests_on_the_held_out_splits(monkeypatch, capsys):
    watch = Validated()
    with_callback(monkeypatch, watch)
    run("name=a", "trainer.max_epochs=1", "data.fold=1/4", "data.class_weights=balanced", "callbacks=default")
    results, out = results_of("runs/default/a"), capsys.readouterr().out
    assert "112 train, 21 validation, 14 test\n          84 of train outside fold 1/4, 28 inside\n" in out
    assert "selected on train fold 1/4, tested on test\n" in out
    assert "optimistic" not in out
    assert (results["val_split"], results["split"]) == ("train fold 1/4", "test")
    assert {name: scores["n"] for name, scores in results["splits"].items()} == {
        "validation": 21,
        "test": 14,
        "validation+test": 35,
    }
    assert read_checkpoint(Path("runs/default/a/checkpoints/best.ckpt")).val_split == "train fold 1/4"
    faces = synthetic_faces(n_train=112, n_val=21, n_test=14)
    assert watch.rows == np.flatnonzero(assign_folds(faces, 4) == 1).tolist()
    assert watch.title == "train fold 1/4 after epoch 0"

    # The weights are not optimistic on any split that is tested.
    run("name=again", "stages=[test]", "ckpt=runs/default/a/checkpoints/best.ckpt")
    out = capsys.readouterr().out
    assert "selected on train fold 1/4 (by the checkpoint's own run), tested on test\n" in out
    assert "optimistic" not in out
    assert results_of("runs/default/again")["splits"] == results["splits"]


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ("5/5", "data.fold=5/5: expected K/N, with N of at least 2 folds and K from 0 to N - 1, e.g. 0/5"),
        ("-1/5", "data.fold=-1/5: expected K/N"),
        ("0", "data.fold=0: expected a string or null, e.g. data.fold=0/5."),
        ("0/113", "data.fold=K/113: the 112 images of train form only 112 groups"),
    ],
)
def test_a_bad_fold_is_one_line_and_nothing_is_written(fold, message, capsys, tmp_path):
    run(f"data.fold={fold}", code=1)
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.rglob("*")) == []


def test_weights_that_saw_the_fold_are_pointed_out(trained, capsys):
    trained()  # on all of Training
    run("name=b", "trainer.max_epochs=1", "data.fold=0/4", "ckpt=runs/default/a")
    note = "may have been trained on images of the fold, so that the accuracy on it is optimistic\n"
    assert note in capsys.readouterr().out
    run("name=c", "trainer.max_epochs=1", "data.fold=0/4", "ckpt=runs/default/b")
    assert note not in capsys.readouterr().out
    run("name=d", "trainer.max_epochs=1", "data.fold=1/4", "distill.ckpt=runs/default/b")
    assert note in capsys.readouterr().out


def test_a_fold_without_a_fit_is_refused(trained, capsys):
    trained()
    run("name=b", "stages=[test]", "ckpt=runs/default/a", "data.fold=0/4", code=1)
    assert "data.fold=0/4: only a fit uses it. Leave it out." in capsys.readouterr().err


def test_a_stopped_run_resumes_on_its_own_fold_only(monkeypatch, capsys):
    settings = ["data.fold=2/4", "trainer.max_epochs=2", "model.channels=[2]"]
    run("name=never", *settings)
    with_callback(monkeypatch, KilledAt(8))
    with pytest.raises(Killed):
        run("name=a", *settings)
    before = {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}
    for change in ("data.fold=3/4", "data.fold=null"):
        assert main(job, ["resume=runs/default/a", change]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert f"error: {change}: a resumed run continues its fit." in line
    assert before == {path: path.read_bytes() for path in Path("runs/default/a").rglob("*") if path.is_file()}
    assert main(job, ["resume=runs/default/a"]) == 0
    assert differences("runs/default/a", "runs/default/never") == []


def test_a_sweep_of_folds_ends_with_mean_and_standard_deviation(capsys):
    run("-m", "sweep=folds", "name=s", "data.fold=0/3,1/3,2/3", "trainer.max_epochs=1")
    results = [results_of(f"runs/default/s/{number}") for number in range(3)]
    assert [one["val_split"] for one in results] == [f"train fold {number}/3" for number in range(3)]
    out = capsys.readouterr().out
    assert "3 runs in runs/default/s, ranked by accuracy on train fold K/3\n" in out
    [row] = [line.split("  ") for line in out.splitlines() if line.startswith("data.fold=K/3")]
    cells = [cell.strip() for cell in row if cell]
    expected = [
        f"{100 * fmean(values):.2f} ± {100 * stdev(values):.2f}%"
        for values in ([one["best_value"] for one in results], [one["accuracy"] for one in results])
    ]
    assert cells == ["data.fold=K/3", *expected, "3"]


def test_the_sweep_has_five_folds_and_crosses_them_with_other_settings():
    jobs = composed("-m", "sweep=folds", "experiment=fast", "seed=0,1")
    assert sorted((cfg.data.fold, cfg.seed) for cfg, _ in jobs) == [
        (f"{number}/5", seed) for number in range(5) for seed in (0, 1)
    ]
