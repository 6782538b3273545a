"""Fine-tuning: what is kept of a checkpoint or of pretrained weights, frozen layers, learning rates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from composing import composed
from fake_fer2013 import write_folders
from faults import Killed, KilledAt, content, differences, results_of, same, with_callback
from project import ROOT, SMALL
from torch import nn

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.errors import UserError
from fer_lightning.experiment.plan import Plan, adopt_weights
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.training.optim import build_optimizer, parameter_groups

pytestmark = pytest.mark.usefixtures("own_folder")

FIT = Plan(fit=True, test=True, resumed=None, initial=[], teachers=[])
OWN = ["data=fer2013", "data.path=faces", "data.classes=folders", "name=b"]
OPTIONS = [text for text in SMALL if not text.startswith(("data=", "data.n_", "model.", "data.image_size"))]


@pytest.fixture
def start(trained):
    """Train a network on seven classes, and write 60 faces of three others."""
    trained()
    write_folders("faces", ("bad", "good", "so-so"), 20)
    return weights("a")


def finetune(*settings, code=0):
    assert main(job, [*OPTIONS, *OWN, "ckpt=runs/default/a", *settings]) == code


def weights(name):
    return read_checkpoint(Path("runs/default", name, "checkpoints/last.ckpt")).state_dict


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


LAST = {"net.classifier.weight", "net.classifier.bias"}


def test_a_checkpoint_of_other_classes_gives_all_but_the_last_layer(start, capsys):
    capsys.readouterr()
    finetune("trainer.max_epochs=1", "finetune.freeze_epochs=1")
    told = "runs/default/a/checkpoints/best.ckpt, all but the last layer, which is for other classes"
    assert (
        f"weights:  start from {told}\n          note: only the last layer is trained\nnetwork:"
        in capsys.readouterr().out
    )
    assert results_of("runs/default/b")["start"] == told
    after = weights("b")
    assert {name: len(after[name]) for name in LAST} == dict.fromkeys(LAST, 3)
    kept = {name: value for name, value in start.items() if name not in LAST}
    assert changed(kept, after) == set()  # statistics of the batch norms included
    assert read_checkpoint("runs/default/b/checkpoints/last.ckpt").inputs.classes == ("bad", "good", "so-so")


def test_frozen_layers_are_trained_afterwards(start, capsys):
    finetune("trainer.max_epochs=2", "finetune.freeze_epochs=1", "finetune.backbone_lr_factor=0.5")
    out = capsys.readouterr().out
    assert "note: only the last layer is trained before epoch 1\n" in out
    assert "note: all layers but the last learn at 0.5 of its rate\n" in out
    kept = {name: value for name, value in start.items() if name not in LAST}
    assert changed(kept, weights("b")) == kept.keys()


def test_a_run_killed_while_frozen_resumes_exactly(start, monkeypatch):
    settings = ["finetune.freeze_epochs=1", "trainer.max_epochs=2", "optim=adamw", "data.batch_size=8"]
    settings += ["checkpoint.every_n_minutes=1e-9", "finetune.backbone_lr_factor=0.5"]
    for step in (3, 9):  # in the frozen epoch of six steps, and in the next
        finetune(*settings, f"name=never{step}")
        with_callback(monkeypatch, KilledAt(step))
        with pytest.raises(Killed):
            finetune(*settings, f"name=killed{step}")
        if step == 9:  # as after SIGKILL, when nothing is written any more
            Path("runs/default/killed9/results.json").unlink()
        assert main(job, [f"resume=runs/default/killed{step}"]) == 0
        assert differences(f"runs/default/killed{step}", f"runs/default/never{step}") == []
        told = results_of(f"runs/default/killed{step}")["start"]
        assert told.startswith("runs/default/a/checkpoints/best.ckpt")
        assert told.endswith("which is for other classes") or step == 9


@pytest.mark.slow
def test_two_processes_freeze_and_train_like_one(start):
    settings = ["trainer.max_epochs=2", "finetune.freeze_epochs=1", "trainer.precision=32-true"]
    finetune(*settings)
    command = [sys.executable, ROOT / "train.py", *OPTIONS, *OWN, "ckpt=runs/default/a", *settings]
    done = subprocess.run(
        [*command, "name=two", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = weights("b"), weights("two")
    learnt = [name for name in one if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    for name in learnt:  # each process normalises its own half of a batch
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0.02)
    frozen = content("runs/default/two", "last.ckpt")["optimizer_states"][0]["state"]
    assert {entry["step"].item() for entry in frozen.values()} == {3, 6}


def test_frozen_layers_get_no_optimizer_steps(start):
    finetune("trainer.max_epochs=2", "finetune.freeze_epochs=1", "optim.weight_decay=0.1")
    states = content("runs/default/b", "last.ckpt")["optimizer_states"][0]["state"]
    steps = [int(states[number]["step"]) for number in sorted(states)]
    assert steps == [3] * (len(steps) - 2) + [6, 6]  # three steps per epoch; the last layer's two come last


def test_the_backbone_learns_at_its_own_rate():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    groups = parameter_groups(net, 3, backbone_lr_factor=0.1)
    optimizer, schedule = build_optimizer(
        groups, total_steps=8, steps_per_epoch=2, lr=0.5, schedule="cosine", warmup_epochs=1.0
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert optimizer.param_groups[0]["params"][0] is net[2].weight
    for _ in range(8):
        last, others = (group["lr"] for group in optimizer.param_groups)
        assert 0 < last <= 0.5
        assert others == pytest.approx(0.1 * last)
        optimizer.step()
        schedule.step()
    assert all(isinstance(entry, nn.Parameter) for entry in parameter_groups(net, 3, 1.0))


def test_a_lower_rate_changes_the_backbone_less(start):
    moved = []
    for factor in ("1.0", "0.1"):
        rates = ["optim=sgd", "optim.lr=0.01", f"finetune.backbone_lr_factor={factor}"]
        finetune("trainer.max_epochs=1", *rates, f"name={factor}")
        after = weights(factor)
        moved.append((after["net.features.0.weight"] - start["net.features.0.weight"]).norm())
    assert moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.freeze_epochs=2", "ckpt=null"], "finetune.freeze_epochs=2: all layers would have"),
        (["finetune.backbone_lr_factor=0.5", "ckpt=null"], "finetune.backbone_lr_factor=0.5: all layers would"),
        (["finetune.freeze_epochs=-1"], "finetune.freeze_epochs=-1: expected at least 0."),
        (["finetune.backbone_lr_factor=0"], "finetune.backbone_lr_factor=0: expected above 0, at most 1."),
        (["finetune.backbone_lr_factor=2"], "finetune.backbone_lr_factor=2: expected above 0, at most 1."),
        (["finetune.freeze_epoch=1"], "Did you mean finetune.freeze_epochs?"),
        (["stages=[test]"], "has the classes angry, disgust"),
        (["model=torchvision", "model.weights=DEFAULT"], "model.weights=DEFAULT and ckpt=runs/default/a/che"),
    ],
)  # fmt: skip
def test_what_cannot_be_fine_tuned_is_one_line_and_writes_nothing(start, settings, message, capsys):
    capsys.readouterr()
    finetune(*settings, code=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not any(Path("runs/default/b").glob("*.*"))


def test_the_same_classes_in_another_order_keep_their_logits(trained):
    trained()
    names = ("disgust", "anger", "fear", "happy", "sad", "surprise", "neutral")  # anger: another name of angry
    write_folders("faces", names)
    finetune(f"data.classes=[{','.join(names)}]", "optim.lr=1e-9", "trainer.max_epochs=1")
    assert results_of("runs/default/b")["start"] == "runs/default/a/checkpoints/best.ckpt"
    before, after = read_checkpoint("runs/default/a/checkpoints/best.ckpt").state_dict, weights("b")
    for name in LAST:
        torch.testing.assert_close(after[name], before[name][[1, 0, 2, 3, 4, 5, 6]], rtol=0, atol=1e-6)


def test_a_resumed_run_keeps_what_it_fine_tunes(start, capsys):
    finetune("trainer.max_epochs=1", "finetune.freeze_epochs=1")
    assert main(job, ["resume=runs/default/b", "trainer.max_epochs=2", "finetune.backbone_lr_factor=0.5"]) == 1
    assert "a resumed run keeps its network and optimizer" in capsys.readouterr().err


@pytest.fixture
def squeezenet():
    from torchvision.models import squeezenet1_1

    torch.manual_seed(3)
    net = squeezenet1_1()
    torch.save(net.state_dict(), "own.pth")
    return ["model=torchvision", "model.architecture=squeezenet1_1", "model.weights=own.pth"]


def test_a_run_from_pretrained_weights(squeezenet, capsys):
    settings = ["data=synthetic", "data.n_train=14", "data.n_val=7", "data.n_test=7", "trainer.max_epochs=1"]
    settings += [*squeezenet, "finetune.freeze_epochs=1", "name=a", "data.image_size=64"]
    assert main(job, [*OPTIONS, *settings]) == 0
    assert "weights:  start from model.weights=own.pth, all but the last layer\n" in capsys.readouterr().out
    saved = yaml.safe_load(Path("runs/default/a/config.yaml").read_text())
    assert (saved["data"]["image_size"], saved["model"]["weights"]) == (64, "own.pth")
    assert (round(saved["data"]["mean"], 3), round(saved["data"]["std"], 3)) == (0.449, 0.226)
    checkpoint = read_checkpoint("runs/default/a/checkpoints/last.ckpt")
    assert checkpoint.model == {"name": "torchvision", "architecture": "squeezenet1_1"}
    file = torch.load("own.pth")
    assert torch.equal(checkpoint.state_dict["net.features.3.squeeze.weight"], file["features.3.squeeze.weight"])
    Path("own.pth").unlink()  # a resumed run needs it no more
    before = content("runs/default/a", "last.ckpt")
    assert main(job, ["resume=runs/default/a", "trainer.max_epochs=2"]) == 0
    assert not same(before, content("runs/default/a", "last.ckpt"))
    assert results_of("runs/default/a")["start"] == "model.weights=own.pth, all but the last layer"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], (224, 0.449, 0.226)),
        (["experiment=best_cpu"], (224, 0.449, 0.226)),  # its 48 px are for its own network
        (["data.image_size=96", "data.std=0.5"], (96, 0.449, 0.5)),
    ],
)
def test_the_input_is_that_of_the_weights_unless_the_command_line_names_another(settings, expected):
    [(cfg, _)] = composed("model=torchvision", "model.weights=DEFAULT", *settings)
    data = adopt_weights(cfg, FIT).data
    assert (data.image_size, round(data.mean, 3), round(data.std, 3)) == expected


def test_an_experiment_that_chooses_weights_may_choose_the_input_too():
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: torchvision\n"
        "model: {weights: DEFAULT}\ndata: {image_size: 96}\n"
    )
    [(cfg, _)] = composed("--config-dir", "mine", "experiment=own")
    data = adopt_weights(cfg, FIT).data
    assert (data.image_size, round(data.mean, 3)) == (96, 0.449)


def test_a_checkpoint_that_names_weights_is_refused(trained):
    trained()
    path = Path("runs/default/a/checkpoints/last.ckpt")
    checkpoint = torch.load(path)
    checkpoint["fer_lightning"]["model"] = {
        "name": "torchvision",
        "architecture": "resnet18",
        "weights": "/etc/hosts",
    }
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="not written by this project: model: it names pretrained weights"):
        read_checkpoint(path)
