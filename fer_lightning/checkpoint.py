"""Reading checkpoints: plain tensors and values only, nothing that could execute."""

import io
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models import build_model


@dataclass(frozen=True)
class InputSpec:
    """What the network expects; it travels in every checkpoint, so that nobody can feed it anything else."""

    image_size: int  # height and width in pixels
    mean: float  # of pixels in [0, 1]
    std: float
    classes: tuple[str, ...] = EMOTIONS  # in the order of the logits


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of this project holds, apart from the optimizer's and callbacks' states."""

    path: Path
    epoch: int  # from 0: the last one that its weights have seen
    global_step: int
    inputs: InputSpec
    model: dict[str, Any]  # name and options of the network
    val_split: str | None  # name of the split that its run selected on; older checkpoints do not say
    state_dict: dict[str, torch.Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint with ``weights_only=True``.

    Raises:
        UserError: no such file, a damaged one, one that would execute code, another project's, or one whose classes
            are in another order.
    """
    path = Path(path)
    try:
        # From memory: from a file cut short torch may raise OSError too.
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"ckpt={path} cannot be read: {error.strerror}. Give a run's checkpoints/best.ckpt."
        ) from error
    except UnpicklingError as error:
        raise UserError(
            f"ckpt={path} is not a checkpoint of plain weights: it is damaged, or loading it could run code, so it "
            "was not loaded."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {why}") from error
    try:
        ours = content["fer_lightning"]
        found = Checkpoint(
            path=path,
            epoch=int(content["epoch"]),
            global_step=int(content["global_step"]),
            inputs=InputSpec(
                int(ours["image_size"]), float(ours["mean"]), float(ours["std"]), tuple(ours["classes"])
            ),
            model=dict(ours["model"]),
            val_split=ours.get("val_split"),
            state_dict=content["state_dict"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"ckpt={path} was not written by this project: {error} is missing or of the wrong kind."
        ) from error
    if found.inputs.classes != EMOTIONS:
        raise UserError(f"ckpt={path} was trained on the classes {found.inputs.classes}, not on {EMOTIONS}.")
    return found


def load_weights(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the checkpoint's weights into the network.

    Raises:
        UserError: the networks differ.
    """
    try:
        # By the name that it has in EmotionClassifier, whose weights these are.
        nn.ModuleDict({"net": net}).load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise UserError(
            f"ckpt={checkpoint.path} holds the network {checkpoint.model}, which does not fit this one: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error


def net_from(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's own network with its weights, for answers: float (B, 1, H, W) -> logits (B, 7)."""
    net = build_model(image_size=checkpoint.inputs.image_size, **checkpoint.model)
    load_weights(net, checkpoint)
    return net.eval()
