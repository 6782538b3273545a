"""What photos of faces suffer from, at five strengths each, for measuring how robust a network is.

After D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. Noise, blur, brightness, contrast and JPEG have the strengths of their CIFAR-10-C, the
blur enlarged from 32 px to 48; occlusion and rotation are ours.
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

_BLOCK = 1024  # images at once: bounds the memory


@dataclass(frozen=True)
class Corruption:
    """One kind of damage."""

    parameter: str  # what the strengths are, with the unit
    strengths: tuple[float, float, float, float, float]  # from weak to strong
    apply: Callable[[Tensor, float, torch.Generator], Tensor]  # float (B, 1, S, S) in [0, 1] -> the same shape


def _signs(images: Tensor, draw: torch.Generator) -> Tensor:
    """-1 or 1 for each image: (B,)."""
    return torch.randint(0, 2, (len(images),), generator=draw).float() * 2 - 1


def _noise(images: Tensor, std: float, draw: torch.Generator) -> Tensor:
    return images + std * torch.randn(images.shape, generator=draw)


def _blur(images: Tensor, sigma_px: float, draw: torch.Generator) -> Tensor:
    blurred: Tensor = transforms.gaussian_blur(images, [2 * ceil(3 * sigma_px) + 1] * 2, [sigma_px] * 2)
    return blurred


def _brightness(images: Tensor, change: float, draw: torch.Generator) -> Tensor:
    return images + change * _signs(images, draw).view(-1, 1, 1, 1)


def _contrast(images: Tensor, factor: float, draw: torch.Generator) -> Tensor:
    return jitter(images, torch.ones(len(images)), torch.full((len(images),), factor))


def _jpeg(images: Tensor, quality: float, draw: torch.Generator) -> Tensor:
    decoded = []
    for pixels in _to_uint8(images).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).unsqueeze(1) / 255


def _occlusion(images: Tensor, side_frac: float, draw: torch.Generator) -> Tensor:
    inside = side_frac / 2 + (1 - side_frac) * torch.rand(len(images), 2, generator=draw)
    return erase(images, torch.full((len(images),), side_frac), inside)


def _rotation(images: Tensor, angle_deg: float, draw: torch.Generator) -> Tensor:
    n = len(images)
    matrices = affine_matrices(
        rotation_deg=angle_deg * _signs(images, draw),
        translate_frac=torch.zeros(n, 2),
        scale=torch.ones(n),
        shear_deg=torch.zeros(n),
        flip=torch.zeros(n, dtype=torch.bool),
    )
    return warp(images, matrices, images.shape[-1])


CORRUPTIONS = {
    "noise": Corruption("standard deviation, black to white = 1", (0.04, 0.06, 0.08, 0.09, 0.1), _noise),
    "blur": Corruption("sigma of a Gaussian, px", (0.6, 0.9, 1.05, 1.2, 1.5), _blur),
    "brightness": Corruption("lighter or darker by, black to white = 1", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Corruption("factor about the mean", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "JPEG": Corruption("quality of 100", (80, 65, 58, 50, 40), _jpeg),
    "occlusion": Corruption("side of a grey square, of the width", (0.2, 0.3, 0.4, 0.5, 0.6), _occlusion),
    "rotation": Corruption("left or right by, degrees", (10, 20, 30, 40, 50), _rotation),
}


def corrupt(images: npt.NDArray[np.uint8], name: str, strength: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Damages every image in the same way.

    Noise, signs and places are drawn from `seed` and are the same at every strength.

    Args:
        images: (N, S, S).
        name: a key of CORRUPTIONS.
        strength: one of its strengths, or any other value of its parameter.
        seed: of the draws.

    Returns:
        (N, S, S), rounded to whole grey levels as in a file.
    """
    draw = torch.Generator().manual_seed(seed)
    out = np.empty_like(images)
    for start in range(0, len(images), _BLOCK):
        block = torch.tensor(images[start : start + _BLOCK]).unsqueeze(1) / 255
        out[start : start + _BLOCK] = _to_uint8(CORRUPTIONS[name].apply(block, strength, draw)).numpy()
    return out


def _to_uint8(images: Tensor) -> Tensor:
    """float (B, 1, S, S) -> uint8 (B, S, S), clipped to [0, 255]."""
    return (images.squeeze(1) * 255).round().clamp(0, 255).byte()
