"""Batch augmentation on the device: uint8 faces in, float images at the network's input size out.

Brightness and contrast come first, then a single warp applies flip, rotation, affine map and resize, with
parameters drawn per image. Every draw is a pure function of (seed, epoch, image index); see philox.py.
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
    """Callable that the data module applies to each training batch."""

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 (B, 1, H, W).
            index: int64 (B,), the images' rows in the dataset. With data.sampler=balanced, an image's second draw
                in an epoch adds the size of the dataset to its row, the third adds it twice, and so on.
            seed: seed of the draws.
            epoch: epoch number, from 0.
            image_size: height and width of the output in pixels.

        Returns:
            float32 (B, 1, image_size, image_size) in [0, 1].
        """
        ...


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize uint8 (B, 1, H, W) to float32 (B, 1, image_size, image_size) in [0, 1].

    Validation and test images get no other transform.
    """
    return _resize_unit(images.float() / 255, image_size)


def _resize_unit(unit: Tensor, image_size: int) -> Tensor:
    """Resize float (B, 1, H, W) to (B, 1, image_size, image_size)."""
    if unit.shape[-2:] == (image_size, image_size):
        return unit
    return F.interpolate(unit, size=(image_size, image_size), mode="bilinear", antialias=True)


def normalise(images: Tensor, mean: float, std: float) -> Tensor:
    """Return (images - mean) / std for float images (B, 1, H, W) in [0, 1]."""
    return (images - mean) / std


def affine_matrices(
    rotation_deg: Tensor,
    translate_frac: Tensor,
    scale: Tensor,
    shear_deg: Tensor,
    flip: Tensor,
) -> Tensor:
    """Return the matrices for ``affine_grid``, which map output to input coordinates, both in [-1, 1].

    On a square image the map equals torchvision's ``functional.affine``: flip first, then rotate (clockwise for a
    positive angle) and shear, scale, translate.

    Args:
        rotation_deg: (B,).
        translate_frac: (B, 2), right and down, as fractions of the width.
        scale: (B,), above 1 enlarges the face.
        shear_deg: (B,), parallel to the x axis.
        flip: bool (B,), whether to mirror left and right.

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
    """Return the grid of ``affine_grid(matrices, ..., align_corners=False)``, 20 times faster on a CPU.

    Each grid point is the sum of one vector per column and one per row. With the vectors as complex numbers x + iy,
    that is a single broadcast addition.

    Args:
        matrices: float32 (B, 2, 3).
        image_size: height and width of the output in pixels.

    Returns:
        float32 (B, image_size, image_size, 2), input coordinates (x, y).
    """
    pixel = (2 * torch.arange(image_size, device=matrices.device) + 1) / image_size - 1
    across, down, offset = matrices.unsqueeze(1).unbind(-1)  # (B, 1, 2) each
    column = torch.view_as_complex(across * pixel.unsqueeze(-1))
    row = torch.view_as_complex(down * pixel.unsqueeze(-1) + offset)
    return torch.view_as_real(column.unsqueeze(1) + row.unsqueeze(2))


def warp(images: Tensor, matrices: Tensor, image_size: int) -> Tensor:
    """Warp float images (B, 1, H, W) by matrices (B, 2, 3) to float (B, 1, image_size, image_size).

    Sampling is bilinear; everything outside the image is black.
    """
    # Bilinear sampling skips pixels when it shrinks, so shrink afterwards, with antialiasing.
    width = images.shape[-1]
    size = max(image_size, width)
    # Without a rim of repeated pixels, enlarging would blend black into every edge, which `resize` does not do.
    # Beyond the rim everything is black.
    rimmed = F.pad(images, (1, 1, 1, 1), mode="replicate")
    grid = sampling_grid(matrices * (width / (width + 2)), size)
    out = F.grid_sample(rimmed, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if size == image_size:
        return out
    return F.interpolate(out, size=(image_size, image_size), mode="bilinear", antialias=True)


class NoAugment:
    """No augmentation: training images are only resized, like validation images."""

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        """Resize the batch."""
        return resize(images, image_size)


class BatchAugment:
    """Random flip, rotation, translation, scale, shear, brightness, contrast and erasing, drawn per image.

    Args:
        flip_prob: probability of mirroring left and right.
        rotation_deg: largest rotation; uniform in [-rotation_deg, rotation_deg].
        translate_frac: largest shift right and down as a fraction of the width; each uniform in plus or minus it.
        scale: smallest and largest scale factor; uniform in between.
        shear_deg: largest horizontal shear; uniform in [-shear_deg, shear_deg].
        brightness: factor on all pixels, uniform in 1 plus or minus this.
        contrast: factor on the difference from the image's mean, uniform in 1 plus or minus this.
        erase_prob: probability of setting a square of the image to mid grey (after Zhong et al. 2017, "Random
            erasing data augmentation").
        erase_frac: smallest and largest side of that square as fractions of the width.

    Raises:
        UserError: a value is out of range.
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
                raise UserError(f"augment.{name}={value}: expected {low} to {high}.")
        for name, pair, low in (("scale", scale, 1e-3), ("erase_frac", erase_frac, 0.0)):
            if len(pair) != 2 or not low <= pair[0] <= pair[1]:
                raise UserError(
                    f"augment.{name}={list(pair)}: expected [lowest, highest] with {low} <= lowest <= highest."
                )
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
        """Augment the batch with parameters drawn for each image."""
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
            # Before the warp there are fewer pixels, and none of the black from outside the image.
            unit_images = jitter(unit_images, 1 + self.brightness * signed[6], 1 + self.contrast * signed[7])
        out = warp(unit_images, matrices, image_size)
        if self.erase_prob:
            # A side of 0 leaves the image as it is.
            side = _between(self.erase_frac, unit[8]) * (unit[9] < self.erase_prob)
            out = erase(out, side, torch.stack([unit[10], unit[11]], dim=1))
        return out


def _between(pair: Sequence[float], unit: Tensor) -> Tensor:
    return pair[0] + (pair[1] - pair[0]) * unit


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Adjust brightness, then contrast about the image's mean, like torchvision's ``adjust_*`` functions.

    Args:
        images: float (B, 1, H, W) in [0, 1].
        brightness: factors, (B,).
        contrast: factors, (B,).

    Returns:
        float (B, 1, H, W), clamped to [0, 1].
    """
    bright = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 1)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, bright, contrast.view(-1, 1, 1, 1)).clamp_(0, 1)


def erase(images: Tensor, side_frac: Tensor, centre_frac: Tensor) -> Tensor:
    """Set a square of each image to mid grey.

    Args:
        images: float (B, 1, H, W).
        side_frac: (B,), as a fraction of the width.
        centre_frac: (B, 2), right and down, as fractions of the width.

    Returns:
        float (B, 1, H, W), a new tensor.
    """
    size = images.shape[-1]
    pixel = (torch.arange(size, device=images.device) + 0.5) / size
    inside = (pixel - centre_frac.unsqueeze(-1)).abs() < side_frac.view(-1, 1, 1) / 2  # (B, 2, W)
    mask = inside[:, 1].unsqueeze(-1) & inside[:, 0].unsqueeze(-2)  # (B, H, W)
    return images.masked_fill(mask.unsqueeze(1), 0.5)


class TorchvisionAugment:
    """Augmentation by standard torchvision v2 transforms, one image at a time.

    This is slower than BatchAugment, but any torchvision transform can be added as a line of YAML. For each image,
    torch's generator is seeded from (seed, epoch, image index), so the draws are just as reproducible.

    Args:
        transforms: called in order on a uint8 tensor (1, H, W); the result is resized to the network's input size.
            As everywhere in torchvision, it is uint8, or float in [0, 1], e.g. after ``ToDtype(scale=True)``.
    """

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
        """Apply the transforms to each image with its own seed, then resize the batch."""
        bits = words(seed, epoch, index, 1, TORCH_SEED)
        seeds = ((bits[:, 0] << 31) ^ bits[:, 1]).tolist()
        out = []
        with torch.random.fork_rng(devices=[]):
            for image, image_seed in zip(images, seeds, strict=True):
                torch.manual_seed(image_seed)
                for transform in self.transforms:
                    image = transform(image)
                out.append(image)
        _check_transformed(out)
        batch = torch.stack(out)
        return _resize_unit(batch.float(), image_size) if batch.is_floating_point() else resize(batch, image_size)


def _check_transformed(images: Sequence[object]) -> None:
    """Raise UserError if what the transforms return is not a tensor, or differs in shape between images."""
    shapes = set()
    for image in images:
        if not isinstance(image, Tensor):
            kind = f"{type(image).__module__}.{type(image).__qualname__}"
            raise UserError(f"augment.transforms returned a {kind}. Expected a tensor (1, H, W).")
        shapes.add(tuple(image.shape))
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes)
        raise UserError(
            f"augment.transforms returned images of different shapes, e.g. {one} and {other}. Add a transform with "
            "a fixed output size at the end, such as Resize."
        )
