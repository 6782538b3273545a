"""Reading checkpoints: plain tensors and values only, nothing that could execute."""

import io
import pickletools
import reprlib
import zipfile
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models import build_model

MAX_IMAGE_SIZE = 1024  # pixels; beyond, a checkpoint could ask for any amount of memory

# All that a checkpoint of plain weights names. What else weights_only allows can take memory without end, as a
# bytearray of any length does.
_PLAIN = {"collections OrderedDict", "torch Size", "torch._utils _rebuild_tensor_v2"}


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
    data_fingerprint: str | None  # of the faces that its run trained on; older checkpoints do not say
    state_dict: dict[str, torch.Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint with ``weights_only=True``.

    Raises:
        UserError: no such file, a damaged one, one that would execute code, another project's, one whose classes
            are in another order, or one with weights that are not finite.
    """
    path = Path(path)
    try:
        _check_archive(path)
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
    except (
        *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError),
        *(AssertionError, zipfile.BadZipFile, NotImplementedError),
    ) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {why}") from error
    if not isinstance(content, dict):
        raise UserError(f"ckpt={path} was not written by this project: it holds one {type(content).__name__}.")
    try:
        ours = content["fer_lightning"]
        _check_header(ours, content["state_dict"])
        found = Checkpoint(
            path=path,
            epoch=int(content["epoch"]),
            global_step=int(content["global_step"]),
            inputs=InputSpec(
                int(ours["image_size"]), float(ours["mean"]), float(ours["std"]), tuple(ours["classes"])
            ),
            model=dict(ours["model"]),
            val_split=ours.get("val_split"),
            data_fingerprint=ours.get("data_fingerprint"),
            state_dict=content["state_dict"],
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"ckpt={path} was not written by this project: {error} is missing or of the wrong kind."
        ) from error
    if found.inputs.classes != EMOTIONS:
        raise UserError(
            f"ckpt={path} was trained on the classes {reprlib.repr(found.inputs.classes)}, not on {EMOTIONS}."
        )
    if not all(tensor.isfinite().all() for tensor in found.state_dict.values()):
        raise UserError(
            f"ckpt={path} holds weights that are NaN or infinite, whose answers mean nothing; this project writes "
            "none. Take another checkpoint of its run, or train it again."
        )
    return found


def _check_archive(path: Path) -> None:
    """Raises for what would take more memory than the file has bytes, or names more than plain tensors."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch.save packs nothing, so what it has written cannot unpack to more.
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UnpicklingError("more bytes than the file has")
        if (damaged := archive.testzip()) is not None:
            raise UnpicklingError(f"damaged: {damaged}")
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                for opcode, name, _ in pickletools.genops(archive.read(member)):
                    if opcode.name in ("GLOBAL", "STACK_GLOBAL") and not (
                        name in _PLAIN or (str(name).startswith("torch ") and str(name).endswith("Storage"))
                    ):
                        raise UnpicklingError(f"not a plain value: {name}")


def _check_header(ours: Any, weights: Any) -> None:
    """Raises TypeError or ValueError for a header or weights that this project does not write."""
    if not (isinstance(ours, dict) and isinstance(ours["model"], dict) and isinstance(weights, dict)):
        raise TypeError("header or state_dict")
    if not isinstance(ours["model"]["name"], str) or "image_size" in ours["model"]:
        raise TypeError("model")
    for name, value in ours["model"].items():
        values = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not all(isinstance(one, int | float | str | None) for one in values):
            raise TypeError("model")
    if not 1 <= int(ours["image_size"]) <= MAX_IMAGE_SIZE:
        raise ValueError("image_size")
    if not (isfinite(ours["mean"]) and isfinite(ours["std"]) and ours["std"] > 0):
        raise ValueError("mean or std")
    if not all(isinstance(one, str) for one in ours["classes"]):
        raise TypeError("classes")
    for name in ("val_split", "data_fingerprint"):
        if not isinstance(ours.get(name), str | None):
            raise TypeError(name)
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError("state_dict")
        # A view that repeats its numbers could be of any size.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("state_dict")


def load_weights(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the checkpoint's weights into the network; one on the meta device takes them as its own.

    Raises:
        UserError: the networks differ.
    """
    try:
        # By the name that it has in EmotionClassifier, whose weights these are.
        is_meta = any(parameter.is_meta for parameter in net.parameters())
        nn.ModuleDict({"net": net}).load_state_dict(checkpoint.state_dict, assign=is_meta)
    except RuntimeError as error:
        raise UserError(
            f"ckpt={checkpoint.path} holds the network {checkpoint.model}, which does not fit this one: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error


def net_from(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's own network with its weights, for answers: float (B, 1, H, W) -> logits (B, 7)."""
    for device in ("meta", "cpu"):  # first without memory: the size is only what the checkpoint claims
        with torch.device(device):
            net = build_model(image_size=checkpoint.inputs.image_size, **checkpoint.model)
        load_weights(net, checkpoint)
    return net.eval()
