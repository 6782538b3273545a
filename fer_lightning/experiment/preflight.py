"""Try augmentation and network on one batch before a run starts, so that a mistake in them costs no epoch.

A bug in them ends the run here, where few calls separate its traceback from the code that it is in.
"""

import torch
from torch import Tensor

from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.training.module import EmotionClassifier

N_IMAGES = 16
# Rounding, e.g. of an interpolation, may leave the range by less than half a grey level.
TOLERANCE = 0.5 / 255


def check_augmentation(data: FaceDataModule) -> None:
    """Augment the first training images, and check what comes out.

    Raises:
        UserError: it is not float32 (B, 1, H, W) in [0, 1], or not finite.
    """
    rows = data.rows(data.train_usages)[:N_IMAGES]
    images, augmented = data.images(rows), data.preview(rows, epoch=0)
    name, expected = _name(data.augment), (len(rows), 1, data.image_size, data.image_size)
    problem = _dtype_or_shape(augmented, expected)
    if not problem and augmented.dtype != torch.float32:
        problem = str(augmented.dtype)
    if not problem:
        low, high = augmented.min().item(), augmented.max().item()
        if not augmented.isfinite().all():
            problem = "values that are NaN or infinite"
        elif low < -TOLERANCE or high > 1 + TOLERANCE:
            problem = f"values from {low:.3g} to {high:.3g}"
        elif high <= 1.01 / 255 and images.max() > 1:
            problem = f"values up to {high:.3g}, as if they had been divided by 255 twice"
    if problem:
        raise UserError(
            f"augment: {name} returned {problem}. Expected float32 {expected} with values in [0, 1], for "
            f"uint8 images {tuple(images.shape)}; they are normalised afterwards."
        )


def check_network(module: EmotionClassifier) -> None:
    """Compute the logits of two grey images, and check what comes out.

    The network is in evaluation mode and gets no gradients, so this changes nothing in it.

    Raises:
        UserError: it is not floating-point (B, C), with C the number of the data's classes.
    """
    net, size, n_classes = module.net, module.inputs.image_size, len(module.inputs.classes)
    was_training = net.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # net(...) would compile a compiled network for a batch of this size.
        logits = net.eval().forward(torch.zeros(2, 1, size, size).contiguous(memory_format=module.memory_format))
    net.train(was_training)
    if problem := _dtype_or_shape(logits, (2, n_classes)):
        raise UserError(
            f"model={module.model['name']}: {_name(net)} returned {problem} for 2 images of {size} px. Expected "
            f"floating-point logits (2, {n_classes}), one for each class: {', '.join(module.inputs.classes)}."
        )


def _dtype_or_shape(output: object, expected: tuple[int, ...]) -> str:
    """Return what is wrong with the type, dtype or shape of an output, or an empty string."""
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}"
    dtype = str(output.dtype).removeprefix("torch.")
    is_wrong = tuple(output.shape) != expected or not output.is_floating_point()
    return f"{dtype} {tuple(output.shape)}" if is_wrong else ""


def _name(component: object) -> str:
    """Return the name of a component's class with its module, or of a function."""
    named = component if hasattr(component, "__qualname__") else type(component)
    return f"{named.__module__}.{named.__qualname__}"
