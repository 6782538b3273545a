"""Knowledge distillation: a network that learns what larger ones answer, beside the labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import answer, check_tta, mean_answer


class OtherInput(nn.Module):
    """A network that gets images made for another one: normalised as its own were, then resized to its size.

    Args:
        net: float (B, 1, h, w) -> logits (B, 7).
        own: what `net` was trained on.
        given: what the images are made for.
    """

    def __init__(self, net: nn.Module, own: InputSpec, given: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.size = (own.image_size, own.image_size)
        self.factor, self.offset = given.std / own.std, (given.mean - own.mean) / own.std

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        own = self.factor * images + self.offset
        if own.shape[-2:] != self.size:
            own = F.interpolate(own, size=self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.net(own)
        return logits


class Teacher:
    """Trained networks whose answers another one learns.

    After Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network". Not a module: its weights
    are no part of the student's checkpoint.

    Args:
        nets: float (B, 1, H, W) -> logits (B, 7) each; their answer is the mean of their probabilities.
        weight: part of the loss that is the distance from the teacher's answer; the rest is that from the labels.
        temperature: what both answers' logits are divided by; above 1 the less likely emotions count more.
        tta: the views of an image that the teacher's answer is the mean of, a key of tta.VIEWS.
        augment_epochs: epochs after which the same images come again; the answers to them are kept, once an epoch
            has asked for all of them. An epoch that is cut short, or shared by several processes, is asked anew.
        n_images: rows of the dataset that images are named by.
        n_train: images of an epoch.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        weight: float = 0.5,
        temperature: float = 1.0,
        tta: str = "none",
        augment_epochs: int | None = None,
        n_images: int = 0,
        n_train: int = 0,
    ) -> None:
        if not 0 < weight <= 1:
            raise UserError(f"distill.weight={weight} is out of range: it goes from above 0 to 1.")
        if temperature <= 0:
            raise UserError(f"distill.temperature={temperature} must be above 0.")
        check_tta(tta)
        self.nets = [net.eval().requires_grad_(False) for net in nets]
        self.weight = weight
        self.temperature = temperature
        self.tta = tta
        self._kept = torch.zeros(augment_epochs or 0, n_images, NUM_CLASSES)
        # Whether every image of an epoch has its answer in there is known on the host: to look into the answers
        # themselves, each step would have to wait for the device.
        self._complete = [False] * len(self._kept)
        self._n_train = n_train
        self._epoch, self._n_answered = -1, 0

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Moves the networks to where the student is."""
        for net in self.nets:
            net.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        self._kept = self._kept.to(device)

    @torch.no_grad()
    def answer(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """What the student shall learn: the logarithm of the mean of the probabilities, float32 (B, 7).

        Args:
            images: float (B, 1, H, W), what the student sees.
            index: int64 (B,), which images they are.
            epoch: of the student's training.
        """
        if not len(self._kept):
            return self._ask(images)
        turn = epoch % len(self._kept)
        if self._complete[turn]:
            return self._kept[turn, index]
        if epoch != self._epoch:
            self._epoch, self._n_answered = epoch, 0
        said = self._ask(images)
        self._kept[turn, index] = said
        self._n_answered += len(index)  # no image comes twice in an epoch
        self._complete[turn] = self._n_answered == self._n_train
        return said

    def _ask(self, images: Tensor) -> Tensor:
        return mean_answer(torch.stack([answer(net, images, self.tta) for net in self.nets]))

    def loss(self, said: Tensor, logits: Tensor, label_loss: Tensor) -> Tensor:
        """The student's whole loss.

        Args:
            said: what `answer` gave for the images (B, 7).
            logits: the student's answer (B, 7).
            label_loss: its mean loss on the labels, a scalar.
        """
        target = F.log_softmax(said / self.temperature, dim=1)
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        distance = F.kl_div(student, target, reduction="batchmean", log_target=True)
        # The square keeps the gradient's size where the temperature changes (section 2 of the paper).
        return (1 - self.weight) * label_loss + self.weight * self.temperature**2 * distance
