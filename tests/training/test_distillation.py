"""Distillation: the loss computed by hand, and a frozen teacher that stays out of the checkpoint."""

import re
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
from fer_lightning.training.distillation import InputAdapter, Teacher

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
    loss = teacher.loss(teacher.soft_targets(IMAGES, INDEX, 0), student, torch.tensor(3.0))
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
        teacher.soft_targets(IMAGES, INDEX, 0), student, F.cross_entropy(student, torch.tensor([0, 1]))
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


def test_soft_targets_of_repeated_images_are_cached():
    images = torch.randn(5, 1, 4, 4)
    net = Counting()
    teacher = Teacher([net], augment_epochs=2, n_images=5, n_train=5)
    first, second = torch.tensor([4, 0, 2]), torch.tensor([3, 1])
    for epoch in (0, 1):
        for index in (first, second):
            targets = teacher.soft_targets(images[index] + epoch, index, epoch)
            torch.testing.assert_close(targets, (images[index] + epoch).flatten(1)[:, :7].log_softmax(1))
    assert net.calls == 4
    mixed = torch.tensor([0, 1, 2, 3, 4])  # another order, and a batch that was never predicted
    torch.testing.assert_close(
        teacher.soft_targets(IMAGES, mixed, 3), (images + 1).flatten(1)[:, :7].log_softmax(1)
    )
    assert net.calls == 4


def test_incomplete_epoch_is_not_served_from_the_cache():
    images = torch.randn(5, 1, 4, 4)
    net = Counting()
    teacher = Teacher([net], augment_epochs=1, n_images=5, n_train=5)
    # Three images in each of the first two epochs: six predictions, but none of the last image.
    for epoch, index in enumerate((torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), torch.arange(5))):
        targets = teacher.soft_targets(images[index], index, epoch)
        torch.testing.assert_close(targets, images[index].flatten(1)[:, :7].log_softmax(1))
    assert net.calls == 3


def test_teacher_can_average_over_the_mirror_image():
    images = torch.randn(2, 1, 4, 4)
    targets = Teacher([Counting()], tta="mirror").soft_targets(images, INDEX, 0)
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
