"""Image corruptions at five strengths each, for measuring the robustness of a network.

After D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. Noise, blur, brightness, contrast and JPEG use the strengths of their CIFAR-10-C, with
the blur scaled from 32 px to 48 px; occlusion and rotation are our additions.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from fer_lightning.data.augment import affine_matrices, erase, jitter, warp

_BLOCK = 1024  # images per block, which bounds the memory


@dataclass(frozen=True)
class Corruption:
    """A kind of image corruption."""

    parameter: str  # what the strengths measure, with the unit
    strengths: tuple[float, float, float, float, float]  # weakest first
    apply: Callable[[Tensor, float, torch.Generator], Tensor]  # float (B, 1, S, S) in [0, 1] -> the same shape


def _random_signs(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw -1 or 1 for each image: float32 (B,)."""
    return torch.randint(0, 2, (len(images),), generator=generator).float() * 2 - 1


def _noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return images + std * torch.randn(images.shape, generator=generator)


def _blur(images: Tensor, sigma_px: float, generator: torch.Generator) -> Tensor:
    blurred: Tensor = transforms.gaussian_blur(images, [2 * ceil(3 * sigma_px) + 1] * 2, [sigma_px] * 2)
    return blurred


def _brightness(images: Tensor, change: float, generator: torch.Generator) -> Tensor:
    return images + change * _random_signs(images, generator).view(-1, 1, 1, 1)


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return jitter(images, torch.ones(len(images)), torch.full((len(images),), factor))


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    decoded = []
    for pixels in _to_uint8(images).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).unsqueeze(1) / 255


def _occlusion(images: Tensor, side_frac: float, generator: torch.Generator) -> Tensor:
    centres = side_frac / 2 + (1 - side_frac) * torch.rand(len(images), 2, generator=generator)
    return erase(images, torch.full((len(images),), side_frac), centres)


def _rotation(images: Tensor, angle_deg: float, generator: torch.Generator) -> Tensor:
    n = len(images)
    matrices = affine_matrices(
        rotation_deg=angle_deg * _random_signs(images, generator),
        translate_frac=torch.zeros(n, 2),
        scale=torch.ones(n),
        shear_deg=torch.zeros(n),
        flip=torch.zeros(n, dtype=torch.bool),
    )
    return warp(images, matrices, images.shape[-1])


CORRUPTIONS = {
    "noise": Corruption("standard deviation, white = 1", (0.04, 0.06, 0.08, 0.09, 0.1), _noise),
    "blur": Corruption("Gaussian sigma, px", (0.6, 0.9, 1.05, 1.2, 1.5), _blur),
    "brightness": Corruption("shift up or down, white = 1", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Corruption("factor about the mean", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "JPEG": Corruption("quality, 1 to 100", (80, 65, 58, 50, 40), _jpeg),
    "occlusion": Corruption("side of a grey square, fraction of the width", (0.2, 0.3, 0.4, 0.5, 0.6), _occlusion),
    "rotation": Corruption("angle left or right, degrees", (10, 20, 30, 40, 50), _rotation),
}


def corrupt(images: npt.NDArray[np.uint8], name: str, strength: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Apply one corruption to every image.

    The noise, signs and positions depend only on `seed`, so they are the same at every strength.

    Args:
        images: uint8 (N, S, S).
        name: a key of CORRUPTIONS.
        strength: one of the corruption's strengths, or any other value of its parameter.
        seed: seed of the random draws.

    Returns:
        uint8 (N, S, S): the corrupted images, rounded to whole grey levels as an image file would be.
    """
    generator = torch.Generator().manual_seed(seed)
    out = np.empty_like(images)
    for start in range(0, len(images), _BLOCK):
        block = torch.tensor(images[start : start + _BLOCK]).unsqueeze(1) / 255
        out[start : start + _BLOCK] = _to_uint8(CORRUPTIONS[name].apply(block, strength, generator)).numpy()
    return out


def _to_uint8(images: Tensor) -> Tensor:
    """Convert float (B, 1, S, S) in [0, 1] to uint8 (B, S, S), clipping to [0, 255]."""
    return (images.squeeze(1) * 255).round().clamp(0, 255).byte()
