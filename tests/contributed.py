"""Third-party extensions of the project, each with the same bug in the place that `where` selects."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from fer_lightning.data.augment import resize
from fer_lightning.data.faces import Faces
from fer_lightning.data.synthetic import synthetic_faces


def bug(where: str, here: str) -> None:
    """Raise the bug if it was requested here."""
    if where == here:
        raise TypeError("unsupported operand: the bug")


class MyCallback(Callback):
    def __init__(self, where: str = "", n: int = 1) -> None:
        bug(where, "constructor")
        self.where = where

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bug(self.where, "hook")
        if self.where == "value":
            raise ValueError("the bug")
        if trainer.global_rank == 1:
            bug(self.where, "second process")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.where == "wrong hook":
            self.log("a", 1.0)  # Lightning raises a MisconfigurationException


class MyNet(nn.Module):
    def __init__(self, architecture: str = "", weights: str | None = None, image_size: int = 48) -> None:
        super().__init__()
        bug(architecture, "constructor")
        self.where = architecture
        self.linear = nn.Linear(image_size**2, 6 if architecture == "shape" else 7)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        bug(self.where, "forward")
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class MyTransform(nn.Module):
    def __init__(self, where: str = "") -> None:
        super().__init__()
        bug(where, "constructor")
        self.where = where

    def forward(self, image: Tensor) -> Tensor:
        bug(self.where, "forward")
        return image


class MyAugment:
    def __init__(self, returns: str = "") -> None:
        self.returns = returns

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor | None:
        unit = resize(images, image_size)
        results: dict[str, Tensor | None] = {
            "uint8": (255 * unit).byte(),
            "grey levels": 255 * (unit - unit.min()) / (unit.max() - unit.min()),
            "scaled twice": unit / 255,
            "no number": unit / 0,
            "float64": unit.double(),
            "unresized": images / 255,
            "nothing": None,
        }
        return results.get(self.returns, unit)


def my_augment(images: Tensor, index: Tensor, seed: int, epoch: int, image_size: int) -> Tensor:
    return resize(images, image_size)


class MyOptimizer(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, weight_decay: float, fused: bool) -> None:
        bug("", "" if lr == 13 else "elsewhere")
        super().__init__(params, lr, weight_decay=weight_decay, fused=fused)


class MyLogger(TensorBoardLogger):
    def __init__(self, where: str = "", **options: Any) -> None:
        bug(where, "constructor")
        super().__init__(**options)


def my_faces(n_train: int, n_val: int, n_test: int, seed: int) -> Faces:
    bug("", "" if seed == 13 else "elsewhere")
    return synthetic_faces(n_train, n_val, n_test, seed)
