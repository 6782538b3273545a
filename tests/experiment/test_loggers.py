"""The loggers of a run, with what they wrote read back."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import lightning.pytorch.loggers.wandb as lightning_wandb
import pytest
import yaml
from faults import results_of, run
from lightning.pytorch.loggers import CSVLogger
from project import ROOT, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")

BOTH = ("logger=[tensorboard,csv]", "trainer.log_every_n_steps=2")


def table(folder):
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


class Recorder(CSVLogger):
    """A logger of one's own; its arguments tell where it was told to write."""


def test_several_loggers_get_the_same_curves_settings_and_results(capsys):
    run("name=a", *BOTH, "tags=[first,try]", "optim.lr=0.002")
    folder, rows = Path("runs/default/a"), table("runs/default/a")
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss/train", "accuracy/val", "recall/happy", "step/loss", "lr", "accuracy/test"):
        expected = {event.step: event.value for event in events.Scalars(name)}
        assert expected
        assert dict(column(rows, name)) == pytest.approx(expected)
    results = results_of(folder)
    assert [value for _, value in column(rows, "accuracy/test")] == [results["accuracy"]]
    expected = {epoch["epoch"]: epoch["train_accuracy"] for epoch in results["history"]}
    assert dict(column(rows, "accuracy/train")) == pytest.approx(expected)
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert settings["optim.lr"] == 0.002
    assert settings["run/tags"] == "first, try"
    assert settings["run/command"] == (folder / "command.txt").read_text().strip()
    [text] = events.Tensors("run/tags/text_summary")
    assert text.tensor_proto.string_val == [b"`first, try`"]
    assert results["tags"] == ["first", "try"]
    assert "UserWarning" not in capsys.readouterr().err


def test_the_table_of_a_resumed_run_has_every_step_once():
    run("name=a", *BOTH, "trainer.max_epochs=2")
    before = table("runs/default/a")
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=4"]) == 0
    run("name=whole", *BOTH, "trainer.max_epochs=4")
    after, whole = table("runs/default/a"), table("runs/default/whole")
    for name in ("step/loss", "accuracy/train", "accuracy/val", "accuracy/test"):
        assert [step for step, _ in column(after, name)] == [step for step, _ in column(whole, name)]
    for name in ("step/loss", "accuracy/train", "accuracy/val"):
        assert column(after, name)[: len(column(before, name))] == column(before, name)


def test_a_logger_of_ones_own_writes_into_the_folder_of_the_run():
    run("name=a", "logger.mine._target_=test_loggers.Recorder", "logger.mine.prefix=my")
    assert column(table("runs/default/a"), "my-accuracy/test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["logger._target_=test_loggers.Recorder"], r"logger\.mine\._target_=my_module\.MyLogger"),
        (["logger.mine._target_=builtins.dict"], r"logger\.mine is not a logger of Lightning"),
        (["logger=csv", "logger.csv.flush=3"], "CSVLogger: unknown option 'flush'"),
        (["logger=csv", "logger.csv.flush_logs_every_n_steps=0"], "expected at least 1"),
        (["logger=[csv,mlflo]"], r"logger=mlflo does not exist\. Did you mean mlflow"),
        (["logger=wandb"], r'^error: logger=wandb is not installed: pip install -e "\.\[wandb\]"\.$'),
        (["tags=a"], "tags=a: expected a list of strings"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(settings, message, tmp_path, monkeypatch, capsys):
    missing = type("Missing", (), {"__bool__": lambda self: False, "__str__": lambda self: "no wandb"})()
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", missing)
    assert main(job, [*SMALL, *settings, "name=a"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert list(tmp_path.rglob("*")) == []


def test_a_run_of_an_older_version_is_resumed_with_its_logger():
    run("name=a", "logger=tensorboard", "trainer.max_epochs=1")
    path = Path("runs/default/a/config.yaml")
    content = yaml.safe_load(path.read_text())
    content["logger"] = content["logger"]["tensorboard"]
    path.write_text(yaml.safe_dump(content))
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0
    assert len(EventAccumulator("runs/default/a").Reload().Scalars("accuracy/val")) == 2


@pytest.mark.parametrize("content", ["{", "[1]", "null", '{"mlflow": 5}'])
def test_damaged_numbers_of_loggers_are_named(content, capsys):
    run("name=a", "logger=csv", "trainer.max_epochs=1")
    Path("runs/default/a/loggers.json").write_text(content)
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 1
    assert "loggers.json is damaged: " in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"a,b,c,d\n", b",\n", b"1" + b",1" * 60 + b"\n", b"\xff\xfe\n", b"x\n"])
def test_a_damaged_table_is_named_and_kept(damage, capsys):
    run("name=a", "logger=csv", "trainer.max_epochs=1")
    path = Path("runs/default/a/metrics.csv")
    damaged = path.read_bytes() + damage
    path.write_bytes(damaged)
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 1
    assert "metrics.csv is damaged: " in capsys.readouterr().err
    assert path.read_bytes() == damaged


def test_a_table_that_was_set_aside_by_a_killed_process_is_used():
    run("name=a", "logger=csv", "trainer.max_epochs=1")
    path = Path("runs/default/a/metrics.csv")
    rows = column(table("runs/default/a"), "accuracy/val")
    path.rename(path.with_name(".metrics.csv"))
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0
    after = column(table("runs/default/a"), "accuracy/val")
    assert (after[:1], len(after)) == (rows, 2)
    assert not path.with_name(".metrics.csv").exists()


def test_a_name_of_ones_own_is_a_folder_within_the_run():
    run("name=a", "logger=[csv,tensorboard]", "logger.csv.name=b", "logger.tensorboard.name=c")
    assert Path("runs/default/a/b/metrics.csv").exists()
    assert list(Path("runs/default/a/c").glob("events.*"))
    assert not Path("runs/default/b").exists()


class Plain(CSVLogger):
    """A logger whose arguments are not those of its base class."""

    def __init__(self) -> None:
        super().__init__("elsewhere", name="", version="")


def test_a_logger_of_ones_own_may_have_other_arguments():
    run("name=a", "logger.mine._target_=test_loggers.Plain")
    assert column(table("elsewhere"), "accuracy/test")


@pytest.mark.parametrize("mistake", ["trainer.accelerator=foo", "trainer.precision=foo", "logger.csv.name=[1]"])
def test_a_mistake_that_is_found_late_leaves_nothing_behind(mistake, tmp_path):
    run("name=a", "logger=[tensorboard,csv]", mistake, code=1)
    assert list(tmp_path.rglob("*")) == []


def test_harmless_settings_of_a_logger_need_not_be_named_again():
    run("name=a", "logger=tensorboard", "logger.tensorboard.max_queue=5", "trainer.max_epochs=1")
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0


# Loggers with servers, in processes of their own: they keep threads, and connect to themselves.

DRAWN = [item for item in SMALL if item != "callbacks=none"] + [
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
]


def train(*arguments, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def wandb_records(folder):
    """Yield what an offline run of W&B would send to the server, from its file in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = Path(folder).glob("wandb/offline-run-*/run-*.wandb")
    content, place, record = path.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768  # in this block
        if left < 7:
            place += left
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_has_curves_settings_results_and_pictures_of_every_run_of_a_sweep():
    pytest.importorskip("wandb", reason='pip install -e ".[wandb]"')
    done = train("-m", *DRAWN, "name=s", "logger=wandb", "logger.wandb.offline=true", "tags=[first]", "seed=0,1")
    assert done.returncode == 0, done.stderr
    numbers = set()
    for folder in (Path("runs/default/s/0"), Path("runs/default/s/1")):
        records = list(wandb_records(folder))
        [started] = [record.run for record in records if record.HasField("run")]
        assert (started.project, started.display_name, list(started.tags)) == (
            "fer-lightning",
            f"s/{folder.name}",
            ["first"],
        )
        numbers.add(started.run_id)
        rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        history = results_of(folder)["history"]
        curve = {row["trainer/global_step"]: row["accuracy/val"] for row in rows if "accuracy/val" in row}
        assert curve == pytest.approx({epoch["epoch"]: epoch["val_accuracy"] for epoch in history})
        assert [row["accuracy/test"] for row in rows if "accuracy/test" in row] == [results_of(folder)["accuracy"]]
        pictures = {key.removesuffix("/filenames") for row in rows for key in row if key.endswith("/filenames")}
        assert {"predictions/grid", "predictions_test/grid", "scores/confusion_test"} <= pictures
        settings = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for record in records
            if record.HasField("config")
            for item in record.config.update
        }
        assert settings["seed"] == int(folder.name)
        assert settings["run/command"] == (folder / "command.txt").read_text().strip()
        assert list(folder.glob("wandb/*/files/media/images/predictions/grid_*.png"))
    assert len(numbers) == 2


@pytest.mark.slow
def test_wandb_without_an_account_is_one_line_and_nothing_is_written(tmp_path):
    pytest.importorskip("wandb", reason='pip install -e ".[wandb]"')
    done = train(*DRAWN, "name=a", "logger=wandb")
    assert done.returncode == 1
    assert "error: logger=wandb cannot start: " in done.stderr
    assert "logger.wandb.offline=true" in done.stderr.splitlines()[-1]
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "server", "message"),
    [
        (["logger=mlflow"], "foo://bar", "error: logger=mlflow cannot start: "),
        (["logger=[mlflow,csv]", "trainer.precision=foo"], "", "precision"),
        (
            ["logger=wandb", "logger.wandb.offline=true", "logger.wandb.foo=3"],
            "",
            "unexpected keyword argument 'foo'",
        ),
        (["logger=wandb", "logger.wandb.offline=true", f"tags=[{'x' * 70}]"], "", "64 characters"),
    ],
)
def test_what_the_logger_of_a_server_refuses_is_one_line(settings, server, message):
    pytest.importorskip("mlflow", reason='pip install -e ".[mlflow]"')
    pytest.importorskip("wandb", reason='pip install -e ".[wandb]"')
    done = train(*DRAWN, "name=a", *settings, **({"MLFLOW_TRACKING_URI": server} if server else {}))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not Path("runs/default/a").exists()


@pytest.mark.slow
def test_mlflow_has_curves_settings_results_and_pictures_in_one_database(monkeypatch):
    pytest.importorskip("mlflow", reason='pip install -e ".[mlflow]"')
    from mlflow import MlflowClient

    # At the same time in an empty folder: both create the database.
    done = train("-m", *DRAWN, "name=s", "logger=mlflow", "tags=[first]", "seed=0,1", "hydra/launcher=joblib")
    assert done.returncode == 0, done.stderr
    done = train("resume=runs/default/s/0", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr

    client = MlflowClient("sqlite:///runs/mlflow.db")
    experiment = client.get_experiment_by_name("fer-lightning")
    runs = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"s/0", "s/1"}
    for name, found in runs.items():
        folder = Path("runs/default") / name
        history = results_of(folder)["history"]
        assert found.info.status == "FINISHED"
        assert found.data.tags["tags"] == "first"
        points = client.get_metric_history(found.info.run_id, "accuracy/val")
        curve = {point.step: point.value for point in points}
        assert len(points) == len(curve)
        assert curve == pytest.approx({epoch["epoch"]: epoch["val_accuracy"] for epoch in history})
        assert found.data.metrics["accuracy/test"] == results_of(folder)["accuracy"]
        assert found.data.params["seed"] == name[-1]
        assert found.data.params["run/command"].startswith("python train.py data=synthetic")
        pictures = {
            Path(item.path).name.partition("+")[0] for item in client.list_artifacts(found.info.run_id, "images")
        }
        assert {"predictions~grid", "predictions_test~grid", "scores~confusion_test"} <= pictures
