"""Distillation: the loss computed by hand, and a frozen teacher that stays out of the checkpoint."""

import re
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from project import SMALL
from torch import nn

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.augment import normalise
from fer_lightning.errors import UserError
from fer_lightning.models.checkpoint import InputSpec, read_checkpoint
from fer_lightning.training import soft_targets
from fer_lightning.training.distillation import InputAdapter, Teacher
from fer_lightning.training.soft_targets import SoftTargetStore

IMAGES = torch.zeros(2, 1, 4, 4)
INDEX = torch.tensor([3, 1])


class Constant(nn.Module):
    """A network that returns the same logits for every batch."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def test_loss_matches_a_computation_by_hand():
    torch.manual_seed(0)
    first, second, student = (torch.randn(2, 7) for _ in range(3))
    teacher = Teacher([Constant(first), Constant(second)], weight=0.25)
    loss = teacher.loss(teacher.soft_targets(IMAGES, INDEX), student, torch.tensor(3.0))
    target = (first.softmax(1) + second.softmax(1)) / 2
    divergence = (target * (target.log() - student.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss, 0.75 * 3.0 + 0.25 * divergence)


def test_temperature_softens_and_keeps_the_scale_of_gradients():
    torch.manual_seed(0)
    logits, student = torch.randn(2, 7), torch.randn(2, 7)
    loss = Teacher([Constant(logits)], weight=1.0, temperature=4.0).loss(logits, student, torch.tensor(3.0))
    target = (logits / 4).softmax(1)
    torch.testing.assert_close(loss, 16 * (target * (target.log() - (student / 4).log_softmax(1))).sum(1).mean())


def test_perfect_student_gets_no_gradient_and_the_teacher_never_does():
    logits = torch.randn(2, 7)
    student = logits.clone().requires_grad_()
    teacher = Teacher([Constant(logits)], weight=1.0)
    loss = teacher.loss(
        teacher.soft_targets(IMAGES, INDEX), student, F.cross_entropy(student, torch.tensor([0, 1]))
    )
    loss.backward()
    torch.testing.assert_close((loss.detach(), student.grad), (torch.tensor(0.0), torch.zeros(2, 7)))
    assert not any(parameter.requires_grad or parameter.grad for parameter in teacher.nets[0].parameters())


@pytest.mark.parametrize(
    ("weight", "temperature", "message"),
    [
        (0.0, 1.0, "distill.weight=0.0: expected above 0 and at most 1."),
        (1.1, 1.0, "distill.weight=1.1: expected above 0 and at most 1."),
        (0.5, 0.0, "distill.temperature=0.0: expected a number above 0."),
    ],
)
def test_values_out_of_range(weight, temperature, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Teacher([Constant(torch.zeros(1, 7))], weight, temperature)


class Counting(nn.Module):
    """A network that returns the first pixels of each image as logits, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.flatten(1)[:, :7]


def test_teacher_can_average_over_the_mirror_image():
    images = torch.randn(2, 1, 4, 4)
    targets = Teacher([Counting()], tta="mirror").soft_targets(images, INDEX)
    both = [view.flatten(1)[:, :7].softmax(1) for view in (images, images.flip(-1))]
    torch.testing.assert_close(targets.exp(), (both[0] + both[1]) / 2)


ONCE = [*SMALL, "trainer.max_epochs=1", "stages=[fit]"]


@pytest.fixture
def teacher_checkpoint(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert main(job, [*ONCE, "name=teacher"]) == 0
    return "runs/default/teacher/checkpoints/best.ckpt"


def test_run_with_two_teachers(teacher_checkpoint):
    options = (
        f"distill.ckpt=[{teacher_checkpoint},{teacher_checkpoint}]",
        "distill.temperature=2",
        "model.channels=[3]",
    )
    assert main(job, [*ONCE, "name=student", *options]) == 0
    assert main(job, [*ONCE, "name=alone", "model.channels=[3]"]) == 0
    student, alone = (
        read_checkpoint(f"runs/default/{name}/checkpoints/best.ckpt").state_dict for name in ("student", "alone")
    )
    assert student.keys() == alone.keys()  # no teacher weights
    assert not torch.equal(student["net.classifier.weight"], alone["net.classifier.weight"])


def test_teacher_with_another_input_format(teacher_checkpoint):
    options = (
        f"distill.ckpt={teacher_checkpoint}",
        "data.image_size=32",
        "data.mean=0.4",
        "data.std=0.2",
        "distill.weight=1.0",
    )
    assert main(job, [*ONCE, "name=student", *options]) == 0


def test_adapter_feeds_the_same_pixels_in_the_other_format():
    pixels = torch.rand(3, 1, 24, 24)
    inputs = []

    class Recorder(nn.Module):
        def forward(self, images):
            inputs.append(images)
            return images.flatten(1)[:, :7]

    source = InputSpec(24, 0.5, 0.25)
    for size, mean, std in ((24, 0.3, 0.5), (32, 0.3, 0.5), (12, 0.5, 0.25)):
        target = InputSpec(size, mean, std)
        InputAdapter(Recorder(), target, source)(normalise(pixels, source.mean, source.std))
        resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(inputs[-1], normalise(resized, mean, std))


TINY = [*SMALL, "stages=[fit]", "data.augment_epochs=2", "mix.mixup_alpha=0.4", "augment.erase_prob=0.5"]


def stored(tmp_path):
    """Return the soft targets of every file in the cache, by their path."""
    return {path: path.read_bytes() for path in (tmp_path / "cache").glob("fer_lightning/soft-targets-v1/*")}


@pytest.fixture
def teach(teacher_checkpoint, monkeypatch, tmp_path):
    """Return a function that trains a student for two epochs, and returns its last weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(name, *options, epochs=2):
        teacher = [f"distill.ckpt={teacher_checkpoint}", f"trainer.max_epochs={epochs}", f"name={name}"]
        assert main(job, [*TINY, *teacher, *options]) == 0
        return torch.load(f"runs/default/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    return run


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_runs_share_the_soft_targets_whatever_their_seed_and_batch_size(teach, tmp_path, monkeypatch):
    weights = teach("first")
    files = stored(tmp_path)
    assert len(files) == 2
    monkeypatch.setattr(soft_targets.SoftTargetStore, "_save", None)  # nothing is computed again
    assert same(teach("again"), weights)
    assert not same(teach("seed", "seed=1"), weights)
    teach("batches", "data.batch_size=6", epochs=4)
    assert stored(tmp_path) == files


@pytest.mark.parametrize(
    "option",
    [
        "augment.rotation_deg=3",
        "augment.flip_prob=0.52",
        "mix.mixup_alpha=0.5",
        "data.image_size=32",
        "data.std=0.3",
        "data.seed=1",
        "data.fold=0/4",
        "distill.tta=mirror",
        "distill.ckpt=tiny",
    ],
)
def test_other_images_or_teachers_have_soft_targets_of_their_own(option, teach, tmp_path):
    teach("first", epochs=1)
    before = stored(tmp_path)
    teach("second", option, epochs=1)
    after = stored(tmp_path)
    assert len(before) == 1
    assert len(after) == 2


def test_stored_soft_targets_are_those_of_the_images_that_the_student_gets(teach, monkeypatch):
    differences = []
    served = Teacher.soft_targets

    def compare(self, images, index):
        targets = served(self, images, index)
        differences.append((targets.exp() - self._predict(images).exp()).abs().max().item())
        return targets

    monkeypatch.setattr(Teacher, "soft_targets", compare)
    teach("mixed", "trainer.precision=bf16-mixed", "augment.translate_frac=0.2", "distill.ckpt=tiny", epochs=1)
    assert max(differences) < 0.02  # the rounding of bfloat16


def test_damaged_soft_targets_are_computed_again(teach, tmp_path, capsys):
    weights = teach("first")
    files = stored(tmp_path)
    for path, content in files.items():
        path.write_bytes(content[:8] + bytes([content[8] ^ 1]) + content[9:])
    assert same(teach("again"), weights)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:     ")]
    assert sum("was damaged; the teacher's soft targets are computed again." in note for note in notes) == 2
    assert stored(tmp_path) == files


def test_soft_targets_stay_in_memory_where_the_cache_cannot_be_written(teach, tmp_path, capsys):
    weights = teach("first", epochs=3)
    shutil.rmtree(tmp_path / "cache" / "fer_lightning" / "soft-targets-v1")
    (tmp_path / "cache" / "fer_lightning" / "soft-targets-v1").write_text("a file in the way")
    capsys.readouterr()
    assert same(teach("again", epochs=3), weights)
    [note] = [line for line in capsys.readouterr().out.splitlines() if "Cannot write" in line]
    assert note.startswith("note:     Cannot write the teacher's soft targets in ")
    assert note.endswith("; they are kept in memory only.")


def test_epoch_that_is_cut_short_asks_for_its_own_images_only(teach, tmp_path):
    teach("short", "trainer.limit_train_batches=2")
    assert stored(tmp_path) == {}


def test_store_computes_each_epoch_once_in_the_order_of_the_rows():
    images = torch.randn(2, 5, 1, 4, 4)
    rows = torch.tensor([0, 2, 3, 6, 7])

    def batches(epoch):
        return [{"images": images[epoch, part], "index": rows[part]} for part in (slice(0, 3), slice(3, 5))]

    net = Counting()
    teacher = Teacher([net], store=SoftTargetStore(2, 7, "data", rows, None))
    for epoch in (0, 1, 2, 3):
        teacher.prepare_epoch(epoch, batches)
        targets = teacher.soft_targets(torch.empty(3, 1, 4, 4), torch.tensor([7, 0, 3]))
        torch.testing.assert_close(targets, images[epoch % 2, [4, 0, 2]].flatten(1)[:, :7].log_softmax(1))
    assert net.calls == 4
    teacher.prepare_epoch(4, None)
    shown = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(
        teacher.soft_targets(shown, torch.tensor([7])), shown.flatten(1)[:, :7].log_softmax(1)
    )
