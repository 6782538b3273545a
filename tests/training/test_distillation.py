"""Distillation: the loss by hand, and a teacher that stays out of the checkpoint and unchanged."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fer_lightning.commands.train import job
from fer_lightning.config.cli import main
from fer_lightning.data.augment import normalise
from fer_lightning.errors import UserError
from fer_lightning.models.checkpoint import InputSpec, read_checkpoint
from fer_lightning.training.distillation import OtherInput, Teacher

IMAGES = torch.zeros(2, 1, 4, 4)
INDEX = torch.tensor([3, 1])


class Says(nn.Module):
    """Answers every batch with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def test_the_loss_by_hand():
    torch.manual_seed(0)
    first, second, student = (torch.randn(2, 7) for _ in range(3))
    teacher = Teacher([Says(first), Says(second)], weight=0.25)
    loss = teacher.loss(teacher.answer(IMAGES, INDEX, 0), student, torch.tensor(3.0))
    target = (first.softmax(1) + second.softmax(1)) / 2
    divergence = (target * (target.log() - student.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss, 0.75 * 3.0 + 0.25 * divergence)


def test_the_temperature_softens_and_keeps_the_gradients_size():
    torch.manual_seed(0)
    says, student = torch.randn(2, 7), torch.randn(2, 7)
    loss = Teacher([Says(says)], weight=1.0, temperature=4.0).loss(says, student, torch.tensor(3.0))
    target = (says / 4).softmax(1)
    torch.testing.assert_close(loss, 16 * (target * (target.log() - (student / 4).log_softmax(1))).sum(1).mean())


def test_a_perfect_student_has_nothing_to_learn_and_the_teacher_never_does():
    says = torch.randn(2, 7)
    student = says.clone().requires_grad_()
    teacher = Teacher([Says(says)], weight=1.0)
    loss = teacher.loss(teacher.answer(IMAGES, INDEX, 0), student, F.cross_entropy(student, torch.tensor([0, 1])))
    loss.backward()
    torch.testing.assert_close((loss.detach(), student.grad), (torch.tensor(0.0), torch.zeros(2, 7)))
    assert not any(parameter.requires_grad or parameter.grad for parameter in teacher.nets[0].parameters())


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (1.1, 1.0), (0.5, 0.0)])
def test_values_out_of_range(weight, temperature):
    with pytest.raises(UserError, match="distill"):
        Teacher([Says(torch.zeros(1, 7))], weight, temperature)


class Counts(nn.Module):
    """Answers with the image's own first pixels, and counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, images):
        self.asked += 1
        return images.flatten(1)[:, :7]


def test_answers_that_come_again_are_remembered():
    images = torch.randn(5, 1, 4, 4)
    net = Counts()
    teacher = Teacher([net], augment_epochs=2, n_images=5, n_train=5)
    first, second = torch.tensor([4, 0, 2]), torch.tensor([3, 1])
    for epoch in (0, 1):
        for index in (first, second):
            says = teacher.answer(images[index] + epoch, index, epoch)
            torch.testing.assert_close(says, (images[index] + epoch).flatten(1)[:, :7].log_softmax(1))
    assert net.asked == 4
    mixed = torch.tensor([0, 1, 2, 3, 4])  # in another order, and of batches that never were
    torch.testing.assert_close(teacher.answer(IMAGES, mixed, 3), (images + 1).flatten(1)[:, :7].log_softmax(1))
    assert net.asked == 4


def test_an_epoch_that_was_cut_short_is_asked_again_whole():
    images = torch.randn(5, 1, 4, 4)
    net = Counts()
    teacher = Teacher([net], augment_epochs=1, n_images=5, n_train=5)
    # Three images in the first epoch and three in the second: six answers, but the last image has none.
    for epoch, index in enumerate((torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), torch.arange(5))):
        says = teacher.answer(images[index], index, epoch)
        torch.testing.assert_close(says, images[index].flatten(1)[:, :7].log_softmax(1))
    assert net.asked == 3


def test_a_teacher_may_look_at_the_mirror_image_too():
    images = torch.randn(2, 1, 4, 4)
    says = Teacher([Counts()], tta="mirror").answer(images, INDEX, 0)
    both = [view.flatten(1)[:, :7].softmax(1) for view in (images, images.flip(-1))]
    torch.testing.assert_close(says.exp(), (both[0] + both[1]) / 2)


SMALL = (
    "data=synthetic",
    "data.n_train=28",
    "data.n_val=7",
    "data.n_test=7",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_model_summary=false",
    "callbacks=none",
    "logger=none",
    "stages=[fit]",
)


@pytest.fixture
def taught(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert main(job, ["name=teacher", "model.channels=[4,8]", *SMALL]) == 0
    return "runs/default/teacher/checkpoints/best.ckpt"


def test_a_run_with_teachers(taught):
    options = (f"distill.ckpt=[{taught},{taught}]", "distill.temperature=2", "model.channels=[3]")
    assert main(job, ["name=student", *options, *SMALL]) == 0
    assert main(job, ["name=alone", "model.channels=[3]", *SMALL]) == 0
    student, alone = (
        read_checkpoint(f"runs/default/{name}/checkpoints/best.ckpt").state_dict for name in ("student", "alone")
    )
    assert student.keys() == alone.keys()  # no weight of a teacher's
    assert not torch.equal(student["net.classifier.weight"], alone["net.classifier.weight"])


def test_a_teacher_of_another_input_gets_its_own_images(taught):
    options = (
        f"distill.ckpt={taught}",
        "data.image_size=32",
        "data.mean=0.4",
        "data.std=0.2",
        "distill.weight=1.0",
    )
    assert main(job, ["name=student", *options, *SMALL]) == 0


def test_another_input_is_the_same_pixels():
    pixels = torch.rand(3, 1, 24, 24)
    seen = []

    class Sees(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.flatten(1)[:, :7]

    given = InputSpec(24, 0.5, 0.25)
    for size, mean, std in ((24, 0.3, 0.5), (32, 0.3, 0.5), (12, 0.5, 0.25)):
        own = InputSpec(size, mean, std)
        OtherInput(Sees(), own, given)(normalise(pixels, given.mean, given.std))
        resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(seen[-1], normalise(resized, mean, std))
