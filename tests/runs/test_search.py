"""Searches with Optuna: the search space, resuming after a kill, and pruning."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import ROOT

from fer_lightning.config.cli import main
from fer_lightning.config.compat import parse_override
from fer_lightning.errors import Stopped, UserError
from fer_lightning.files import write_json
from fer_lightning.runs import ranking as runs

optuna = pytest.importorskip("optuna", reason='searches need pip install -e ".[sweep]"')

FOLDER = Path("runs/default/s")
SEARCH = ("-m", "sweep=optuna", "name=s", "optim.lr=tag(log,interval(1e-5,1e-1))", "augment=none,light")

# A dummy run; run 1 waits for the file "go". Every run appends a line to the file "started" when it starts.
SLOW_SEARCH = """
import sys, time
from pathlib import Path
from fer_lightning.config.cli import main
from fer_lightning.config.compose import to_yaml
from fer_lightning.config.schema import to_dict
from fer_lightning.files import write_atomically, write_json

def job(cfg, run_dir):
    with open("started", "a") as file:
        print(run_dir.name, cfg.resume, file=file)
    write_atomically(run_dir / "config.yaml", to_yaml(to_dict(cfg)))
    write_atomically(run_dir / "checkpoints" / "last.ckpt", "")
    while run_dir.name == "1" and not Path("go").exists():
        time.sleep(0.005)
    results = {"status": "finished", "command": "python train.py", "best_value": cfg.optim["lr"]}
    write_json(run_dir / "results.json", results)

sys.exit(main(job))
"""


pytestmark = pytest.mark.usefixtures("own_folder")


def finish(cfg, run_dir, **results):
    defaults = {"status": "finished", "command": "python train.py", "best_value": cfg.optim["lr"]}
    write_json(run_dir / "results.json", defaults | results)


def study_of(folder=FOLDER):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "optuna.journal"))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize(
    ("override", "given", "distribution", "setting"),
    [
        ("a.b=interval(0,2)", 0.5, optuna.distributions.FloatDistribution(0, 2), "a.b=0.5"),
        ("a=int(interval(2,9))", 3, optuna.distributions.IntDistribution(2, 9), "a=3"),
        ("a=tag(log,interval(1e-4,1))", 0.1, optuna.distributions.FloatDistribution(1e-4, 1, log=True), "a=0.1"),
        ("a=range(1,10,4)", 5, optuna.distributions.IntDistribution(1, 9, step=4), "a=5"),
        ("a=range(0.5,2.0,0.5)", 1.0, optuna.distributions.FloatDistribution(0.5, 1.5, step=0.5), "a=1.0"),
        ("a=[1,2],[3]", "[3]", optuna.distributions.CategoricalDistribution(["[1,2]", "[3]"]), "a=[3]"),
        ("++a=choice(x,y)", "y", optuna.distributions.CategoricalDistribution(["x", "y"]), "++a=y"),
    ],
)
def test_hydras_override_grammar_defines_the_search_space(override, given, distribution, setting):
    from hydra_plugins.optuna_sweeper import _setting

    parsed = parse_override(override)
    trial = optuna.trial.FixedTrial({parsed.key_or_group: given})
    assert _setting(trial, parsed) == setting
    assert trial.distributions == {parsed.key_or_group: distribution}
    assert _setting(trial, parse_override("c=1")) == "c=1"


def test_a_search_reports_its_runs_to_the_study_and_can_be_extended(capsys):
    def job(cfg, run_dir):
        if run_dir.name == "1":
            raise UserError("no luck")
        finish(cfg, run_dir, status="pruned" if run_dir.name == "2" else "finished")

    assert main(job, (*SEARCH, "hydra.sweeper.n_trials=4")) == 1
    study = study_of()
    assert states(study) == ["COMPLETE", "RUNNING", "PRUNED", "COMPLETE"]
    assert study.direction.name == "MAXIMIZE"
    rates = [trial.params["optim.lr"] for trial in study.trials]
    assert len(set(rates)) == 4
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert [study.trials[number].value for number in (0, 3)] == [rates[0], rates[3]]
    assert "1 of 4 runs failed" in capsys.readouterr().err

    tried = []
    assert main(lambda cfg, folder: (tried.append(folder.name), finish(cfg, folder)), SEARCH[:-1]) == 1
    assert "this one lacks augment=none,light" in capsys.readouterr().err
    again = lambda cfg, folder: (tried.append(folder.name), finish(cfg, folder))  # noqa: E731
    assert main(again, (*SEARCH, "hydra.sweeper.n_trials=5")) == 0
    assert tried == ["1", "4"]
    assert states(study_of()) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"]
    assert [trial.params["optim.lr"] for trial in study_of().trials][:4] == rates


def test_a_loss_is_minimised():
    assert main(finish, (*SEARCH, "monitor=loss/val", "hydra.sweeper.n_trials=1")) == 0
    assert study_of().direction.name == "MINIMIZE"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_SEARCH, *SEARCH, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def started():
    return [line.split() for line in Path("started").read_text().splitlines()] if Path("started").exists() else []


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_search_resumes_its_unfinished_trial_and_makes_the_same_choices():
    three = (*SEARCH[:2], "name=never", *SEARCH[3:], "hydra.sweeper.n_trials=3")
    assert main(finish, three) == 0
    with start("hydra.sweeper.n_trials=3") as process:
        wait_for(lambda: len(started()) == 2 and (FOLDER / "1/checkpoints/last.ckpt").exists())
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert states(study_of()) == ["COMPLETE", "RUNNING"]
    Path("go").touch()
    with start("hydra.sweeper.n_trials=3") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert started() == [["0", "None"], ["1", "None"], ["1", str(FOLDER / "1")], ["2", "None"]]
    study, never = study_of(), study_of(Path("runs/default/never"))
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.params for trial in study.trials] == [trial.params for trial in never.trials]
    assert [trial.value for trial in study.trials] == [trial.value for trial in never.trials]


@pytest.mark.slow
def test_processes_share_a_search():
    with start("hydra.sweeper.n_trials=5") as first:
        wait_for(lambda: len(started()) == 2)
        with start("hydra.sweeper.n_trials=5") as second:
            wait_for(lambda: len(started()) == 5)
            output, _ = second.communicate(timeout=120)
            assert second.returncode == 0, output
            assert "1 of 5 runs are still running in other processes." in output
        Path("go").touch()
        output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert [number for number, *_ in started()] == ["0", "1", "2", "3", "4"]
    assert states(study_of()) == ["COMPLETE"] * 5


def test_a_trial_that_finished_before_a_signal_is_reported_by_the_next_command():
    def job(cfg, run_dir):
        finish(cfg, run_dir)
        raise Stopped(signal.SIGTERM)

    assert main(job, (*SEARCH, "hydra.sweeper.n_trials=1")) == 143
    assert states(study_of()) == ["RUNNING"]
    assert main(lambda cfg, run_dir: pytest.fail("done twice"), (*SEARCH, "hydra.sweeper.n_trials=1")) == 0
    assert states(study_of()) == ["COMPLETE"]


def test_an_incomplete_last_line_of_the_journal_is_removed():
    assert main(finish, (*SEARCH, "hydra.sweeper.n_trials=1")) == 0
    with (FOLDER / "optuna.journal").open("a") as file:
        file.write('{"op_code":')
    assert main(finish, (*SEARCH, "hydra.sweeper.n_trials=2")) == 0
    assert states(study_of()) == ["COMPLETE"] * 2


def test_a_hopeless_run_is_pruned(capsys):
    """The first trial reports 100% after the second epoch; the second one learns too slowly to reach that."""
    from fer_lightning.commands.train import job

    small = ("data=synthetic", "data.n_train=28", "data.n_val=14", "data.n_test=14", "model.channels=[4]")
    small += ("trainer.accelerator=cpu", "trainer.max_epochs=4", "callbacks=none", "logger=none", "stages=[fit]")
    small += ("trainer.enable_model_summary=false", "callbacks.pruning.startup_trials=1", *SEARCH[1:3])

    def done(cfg, run_dir):
        from fer_lightning.runs.search import report, trial_of

        report(trial_of(run_dir, 1, 2), 1.0, 1)
        report(trial_of(run_dir, 1, 2), 1.0, 2)
        report(trial_of(run_dir, 1, 2), 0.0, 2)  # already reported, so ignored
        finish(cfg, run_dir)

    given = ("-m", *small, "optim.lr=tag(log,interval(1e-9,1e-8))")
    assert main(done, (*given, "hydra.sweeper.n_trials=1")) == 0
    assert study_of().trials[0].intermediate_values == {1: 1.0, 2: 1.0}
    assert main(job, (*given, "hydra.sweeper.n_trials=2")) == 0
    results = json.loads((FOLDER / "1/results.json").read_text())
    assert (results["status"], results["error"]) == ("pruned", None)
    assert [epoch["epoch"] for epoch in results["history"]] == [0, 1, 2]
    assert results["best_value"] == max(epoch["val_accuracy"] for epoch in results["history"])
    assert states(study_of()) == ["COMPLETE", "PRUNED"]
    reported = study_of().trials[1].intermediate_values
    assert reported == {epoch["epoch"]: epoch["val_accuracy"] for epoch in results["history"]}
    assert "pruned: accuracy/val is worse than the median" in capsys.readouterr().out
    assert [run.status for run in runs.rank_runs(FOLDER)] == ["pruned", "finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep=optuna",), "sweep=optuna has nothing to search"),
        (("sweep=optuna", "optim.lr=tag(log,interval(0,1))"), "expected interval(low,high)"),
        (("sweep=optuna", "optim.lr=interval(1e-2,1e-4)"), "expected interval(low,high)"),
        (("optim.lr=interval(1e-4,1e-2)",), "an interval needs a search. Add sweep=optuna"),
        (("sweep=optuna", "data.batch_size=interval(8,64)"), "expected an integer"),
        (("sweep=optuna", "optim.lr=interval(low,high)"), "cannot parse"),
    ],
)
def test_an_invalid_search_prints_one_line(arguments, message, capsys, tmp_path):
    assert main(finish, ("-m", *arguments)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_optuna_prints_one_line(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )
    assert main(finish, SEARCH) == 1
    assert capsys.readouterr().err == 'error: sweep=optuna needs Optuna: pip install -e ".[sweep]".\n'
    assert list(tmp_path.iterdir()) == []
