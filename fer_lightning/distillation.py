"""Knowledge distillation: a network that learns what larger ones answer, beside the labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.errors import UserError
from fer_lightning.tta import mean_answer


class Teacher:
    """Trained networks whose answers another one learns.

    After Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network". Not a module: its weights
    are no part of the student's checkpoint.

    Args:
        nets: float (B, 1, H, W) -> logits (B, 7) each; their answer is the mean of their probabilities.
        weight: part of the loss that is the distance from the teacher's answer; the rest is that from the labels.
        temperature: what both answers' logits are divided by; above 1 the less likely emotions count more.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, nets: Sequence[nn.Module], weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1:
            raise UserError(f"distill.weight={weight} is out of range: it goes from above 0 to 1.")
        if temperature <= 0:
            raise UserError(f"distill.temperature={temperature} must be above 0.")
        self.nets = [net.eval().requires_grad_(False) for net in nets]
        self.weight = weight
        self.temperature = temperature

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Moves the networks to where the student is."""
        for net in self.nets:
            net.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]

    def loss(self, images: Tensor, logits: Tensor, label_loss: Tensor) -> Tensor:
        """The student's whole loss.

        Args:
            images: float (B, 1, H, W), what the student saw.
            logits: the student's answer (B, 7).
            label_loss: its mean loss on the labels, a scalar.
        """
        with torch.no_grad():
            answer = mean_answer(torch.stack([net(images) for net in self.nets]))
        target = F.log_softmax(answer / self.temperature, dim=1)
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        distance = F.kl_div(student, target, reduction="batchmean", log_target=True)
        # The square keeps the gradient's size where the temperature changes (section 2 of the paper).
        return (1 - self.weight) * label_loss + self.weight * self.temperature**2 * distance
