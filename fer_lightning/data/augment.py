"""Batch augmentation on the device: uint8 faces in, float images at the network's size out.

Brightness and contrast come first, then one warp does flip, rotation, affine map and resize, with parameters drawn
for each image. Every draw is a pure function of (seed, epoch, image index): see philox.py.
"""

from collections.abc import Callable, Sequence
from math import pi
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.data.philox import TORCH_SEED, uniforms, words
from fer_lightning.errors import UserError


class Augment(Protocol):
    """What the data module calls on a training batch."""

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        """uint8 (B, 1, H, W), int64 (B,) -> float32 (B, 1, image_size, image_size) in [0, 1]."""
        ...


def resize(images: Tensor, image_size: int) -> Tensor:
    """uint8 (B, 1, H, W) -> float32 (B, 1, image_size, image_size) in [0, 1]: all that validation and test get."""
    unit = images.float() / 255
    if images.shape[-2:] == (image_size, image_size):
        return unit
    return F.interpolate(unit, size=(image_size, image_size), mode="bilinear", antialias=True)


def normalise(images: Tensor, mean: float, std: float) -> Tensor:
    """float (B, 1, H, W) in [0, 1] -> (x - mean) / std."""
    return (images - mean) / std


def affine_matrices(
    rotation_deg: Tensor,
    translate_frac: Tensor,
    scale: Tensor,
    shear_deg: Tensor,
    flip: Tensor,
) -> Tensor:
    """The maps from output to input coordinates that ``affine_grid`` takes, both in [-1, 1].

    The same map as torchvision's ``functional.affine`` on a square image: flip first, then rotate (clockwise for
    a positive angle) and shear, scale, translate.

    Args:
        rotation_deg: (B,).
        translate_frac: (B, 2), right and down, in parts of the width.
        scale: (B,), above 1 enlarges the face.
        shear_deg: (B,), parallel to the x axis.
        flip: bool (B,), mirror left and right.

    Returns:
        float32 (B, 2, 3).
    """
    angle = rotation_deg * (pi / 180)
    cos, sin, tan = angle.cos(), angle.sin(), (shear_deg * (pi / 180)).tan()
    # Forward, p_out = scale * R(angle) @ Shear @ p_in + t with R = [[cos, -sin], [sin, cos]] (y points down) and
    # Shear = [[1, -tan], [0, 1]]; the inverse is [[1, tan], [0, 1]] @ R(-angle) / scale.
    inverse = torch.stack([cos - tan * sin, sin + tan * cos, -sin, cos], dim=-1).view(-1, 2, 2)
    inverse = inverse / scale.view(-1, 1, 1)
    offset = -inverse @ (2 * translate_frac).unsqueeze(-1)
    matrices = torch.cat([inverse, offset], dim=-1)
    mirror = torch.where(flip, -1.0, 1.0)
    return torch.stack([matrices[:, 0] * mirror.unsqueeze(-1), matrices[:, 1]], dim=1)


def sampling_grid(matrices: Tensor, image_size: int) -> Tensor:
    """What ``affine_grid(matrices, ..., align_corners=False)`` gives, 20 times faster on a CPU.

    The map is a sum of a vector for the column and one for the row; as complex numbers x + iy that is one
    broadcast addition.

    Args:
        matrices: float32 (B, 2, 3).
        image_size: height and width in pixels of the output.

    Returns:
        float32 (B, image_size, image_size, 2), coordinates (x, y) in the input.
    """
    pixel = (2 * torch.arange(image_size, device=matrices.device) + 1) / image_size - 1
    across, down, offset = matrices.unsqueeze(1).unbind(-1)  # (B, 1, 2) each
    column = torch.view_as_complex(across * pixel.unsqueeze(-1))
    row = torch.view_as_complex(down * pixel.unsqueeze(-1) + offset)
    return torch.view_as_real(column.unsqueeze(1) + row.unsqueeze(2))


def warp(images: Tensor, matrices: Tensor, image_size: int) -> Tensor:
    """float (B, 1, H, W), (B, 2, 3) -> float (B, 1, image_size, image_size): bilinear, black outside the image."""
    # Sampling leaves pixels out when it shrinks: shrink afterwards, antialiased.
    width = images.shape[-1]
    size = max(image_size, width)
    # A rim of repeated pixels: without it sampling would blend black into every edge when enlarging, which `resize`
    # does not do. Black begins beyond the rim.
    rimmed = F.pad(images, (1, 1, 1, 1), mode="replicate")
    grid = sampling_grid(matrices * (width / (width + 2)), size)
    out = F.grid_sample(rimmed, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if size == image_size:
        return out
    return F.interpolate(out, size=(image_size, image_size), mode="bilinear", antialias=True)


class NoAugment:
    """Training images get what validation images get."""

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        return resize(images, image_size)


class BatchAugment:
    """Random flip, rotation, translation, scale, shear, brightness, contrast and erasing, drawn for each image.

    Args:
        flip_prob: probability of a left-right mirror.
        rotation_deg: rotation, uniform in plus or minus this.
        translate_frac: shift right and down, each uniform in plus or minus this part of the width.
        scale: lowest and highest factor of size, uniform between.
        shear_deg: horizontal shear, uniform in plus or minus this.
        brightness: factor on all pixels, uniform in 1 plus or minus this.
        contrast: factor on the distance from the image's mean, uniform in 1 plus or minus this.
        erase_prob: probability that a square of the image is set to mid grey (after Zhong et al. 2017, "Random
            erasing data augmentation").
        erase_frac: smallest and largest side of that square in parts of the width.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        flip_prob: float = 0.0,
        rotation_deg: float = 0.0,
        translate_frac: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        shear_deg: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        erase_prob: float = 0.0,
        erase_frac: Sequence[float] = (0.1, 0.3),
    ) -> None:
        ranges: dict[str, tuple[float, float, float]] = {
            "flip_prob": (flip_prob, 0, 1),
            "rotation_deg": (rotation_deg, 0, 180),
            "translate_frac": (translate_frac, 0, 1),
            "shear_deg": (shear_deg, 0, 60),
            "brightness": (brightness, 0, 1),
            "contrast": (contrast, 0, 1),
            "erase_prob": (erase_prob, 0, 1),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise UserError(f"augment.{name}={value} is out of range: it goes from {low} to {high}.")
        for name, pair, low in (("scale", scale, 1e-3), ("erase_frac", erase_frac, 0.0)):
            if len(pair) != 2 or not low <= pair[0] <= pair[1]:
                raise UserError(f"augment.{name}={list(pair)} is not a pair [lowest, highest] from {low} up.")
        self.flip_prob = flip_prob
        self.rotation_deg = rotation_deg
        self.translate_frac = translate_frac
        self.scale = tuple(scale)
        self.shear_deg = shear_deg
        self.brightness = brightness
        self.contrast = contrast
        self.erase_prob = erase_prob
        self.erase_frac = tuple(erase_frac)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        draws = uniforms(seed, epoch, index, 12)
        unit, signed = draws.unbind(1), (2 * draws - 1).unbind(1)
        matrices = affine_matrices(
            rotation_deg=self.rotation_deg * signed[0],
            translate_frac=self.translate_frac * torch.stack([signed[1], signed[2]], dim=1),
            scale=_between(self.scale, unit[3]),
            shear_deg=self.shear_deg * signed[4],
            flip=unit[5] < self.flip_prob,
        )
        unit_images = images.float() / 255
        if self.brightness or self.contrast:
            # Before the warp, where there are fewer pixels, none of them the black from outside the image.
            unit_images = jitter(unit_images, 1 + self.brightness * signed[6], 1 + self.contrast * signed[7])
        out = warp(unit_images, matrices, image_size)
        if self.erase_prob:
            # An image that keeps all its pixels gets a square of side 0.
            side = _between(self.erase_frac, unit[8]) * (unit[9] < self.erase_prob)
            out = erase(out, side, torch.stack([unit[10], unit[11]], dim=1))
        return out


def _between(pair: Sequence[float], unit: Tensor) -> Tensor:
    return pair[0] + (pair[1] - pair[0]) * unit


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then contrast about the image's mean, as torchvision's ``adjust_*`` functions do.

    float (B, 1, H, W) in [0, 1] and factors (B,) -> the same shape, clamped to [0, 1].
    """
    bright = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 1)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, bright, contrast.view(-1, 1, 1, 1)).clamp_(0, 1)


def erase(images: Tensor, side_frac: Tensor, centre_frac: Tensor) -> Tensor:
    """Sets a square to mid grey.

    Args:
        images: float (B, 1, H, W).
        side_frac: (B,), in parts of the width.
        centre_frac: (B, 2), right and down, in parts of the width.
    """
    size = images.shape[-1]
    pixel = (torch.arange(size, device=images.device) + 0.5) / size
    inside = (pixel - centre_frac.unsqueeze(-1)).abs() < side_frac.view(-1, 1, 1) / 2  # (B, 2, W)
    mask = inside[:, 1].unsqueeze(-1) & inside[:, 0].unsqueeze(-2)  # (B, H, W)
    return images.masked_fill(mask.unsqueeze(1), 0.5)


class TorchvisionAugment:
    """The same job by ordinary torchvision v2 transforms, one image at a time.

    Slower than BatchAugment, and the place to try any transform of torchvision by a line of YAML. Each image's
    transforms see torch's generator seeded from (seed, epoch, image index), so the draws are as reproducible.

    Args:
        transforms: called in order on a uint8 tensor (1, H, W); a resize to the network's size follows.
    """

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        bits = words(seed, epoch, index, 1, TORCH_SEED)
        seeds = ((bits[:, 0] << 31) ^ bits[:, 1]).tolist()
        out = []
        with torch.random.fork_rng(devices=[]):
            for image, image_seed in zip(images, seeds, strict=True):
                torch.manual_seed(image_seed)
                for transform in self.transforms:
                    image = transform(image)
                out.append(image)
        return resize(torch.stack(out), image_size)
