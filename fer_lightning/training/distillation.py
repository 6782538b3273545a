"""Knowledge distillation: a student learns from its teachers' soft targets besides the labels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.errors import UserError
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.tta import check_tta, log_mean_probabilities, predict_logits
from fer_lightning.training.soft_targets import Batches, SoftTargetStore


class InputAdapter(nn.Module):
    """A network behind a conversion of images from another input format: normalisation first, then size.

    Args:
        net: float (B, 1, h, w) -> logits (B, C).
        target: the input format that `net` was trained on.
        source: the input format of the images.
    """

    def __init__(self, net: nn.Module, target: InputSpec, source: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.size = (target.image_size, target.image_size)
        self.factor, self.offset = source.std / target.std, (source.mean - target.mean) / target.std

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits from images in the source format: float (B, 1, H, W) -> (B, C)."""
        converted = self.factor * images + self.offset
        if converted.shape[-2:] != self.size:
            converted = F.interpolate(converted, size=self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.net(converted)
        return logits


class Teacher:
    """Trained networks that provide soft targets for a student.

    After Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network". Not a module, so that its
    weights stay out of the student's checkpoint.

    Args:
        nets: networks float (B, 1, H, W) -> logits (B, C), whose probabilities are averaged.
        weight: share of the distillation loss in the total loss, in (0, 1]; the rest is the loss on the labels.
        temperature: divisor of the teacher's and the student's logits, above 0; larger values give the less likely
            emotions more weight.
        tta: test-time augmentation of the teacher's predictions, a key of tta.VIEWS.
        store: keeps the soft targets of images that repeat; None if they do not.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        weight: float = 0.5,
        temperature: float = 1.0,
        tta: str = "none",
        store: SoftTargetStore | None = None,
    ) -> None:
        if not 0 < weight <= 1:
            raise UserError(f"distill.weight={weight}: expected above 0 and at most 1.")
        if temperature <= 0:
            raise UserError(f"distill.temperature={temperature}: expected a number above 0.")
        check_tta(tta)
        self.nets = [net.eval().requires_grad_(False) for net in nets]
        self.weight = weight
        self.temperature = temperature
        self.tta = tta
        self.store = store
        self._device, self._memory_format = torch.device("cpu"), torch.contiguous_format
        self._table: Tensor | None = None  # soft targets of this epoch, see SoftTargetStore.table

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move the networks to the student's device."""
        self._device, self._memory_format = device, memory_format
        for net in self.nets:
            net.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def prepare_epoch(
        self,
        epoch: int,
        batches: Batches | None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Look up the soft targets of all training images of an epoch, if they repeat.

        Args:
            epoch: the student's epoch.
            batches: returns the training batches of an epoch, images as the student gets them; None for an epoch
                that is cut short, whose soft targets are computed batch by batch.
            context: the precision of the predictions.
        """
        self._table = None
        if self.store is not None and batches is not None:

            def predict(images: Tensor) -> Tensor:
                with context():
                    return self._predict(images)

            self._table = self.store.table(epoch, batches, predict).to(self._device)

    @torch.no_grad()
    def soft_targets(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the teacher's predictions for a batch, as prepared for this epoch or computed now.

        Args:
            images: float (B, 1, H, W), as the student gets them.
            index: int64 (B,), the images' rows in the dataset.

        Returns:
            float32 (B, C), the logarithm of the mean probabilities.
        """
        return self._predict(images) if self._table is None else self._table[index]

    def _predict(self, images: Tensor) -> Tensor:
        """Average the networks' predictions: float (B, 1, H, W) -> log probabilities float32 (B, C)."""
        images = images.contiguous(memory_format=self._memory_format)
        return log_mean_probabilities(torch.stack([predict_logits(net, images, self.tta) for net in self.nets]))

    def loss(self, targets: Tensor, logits: Tensor, label_loss: Tensor) -> Tensor:
        """Compute the student's total loss, a scalar.

        Args:
            targets: the batch's soft targets (B, C).
            logits: the student's logits (B, C).
            label_loss: the student's mean loss on the labels, a scalar.
        """
        teacher = F.log_softmax(targets / self.temperature, dim=1)
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        distance = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        # The square keeps the gradients' scale independent of the temperature (section 2 of the paper).
        return (1 - self.weight) * label_loss + self.weight * self.temperature**2 * distance
