"""Reading checkpoints: plain tensors and values only, nothing that could execute."""

import io
import pickletools
import reprlib
import zipfile
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer_lightning.arguments import first_line
from fer_lightning.data.faces import MAX_IMAGE_SIZE
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models import build_model

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
    content = _load(path)
    try:
        found = _parsed(path, content)
    except _ForeignError as error:
        raise UserError(f"ckpt={path} was not written by this project: {error}.") from error
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


def _load(path: Path) -> Any:
    """Return what a file holds, once nothing in it can execute or take more memory than the file has bytes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"ckpt={path} cannot be read: {error.strerror}. Give a run's checkpoints/best.ckpt."
        ) from error
    try:
        names, why = _pickled_names(content)
    except Exception as error:  # zipfile and pickletools raise nearly anything for what is damaged
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {first_line(error)}") from error
    foreign = sorted(
        name for name in names if not (name in _PLAIN or (name.startswith("torch ") and name.endswith("Storage")))
    )
    if why or foreign:
        raise UserError(
            f"ckpt={path} is not a checkpoint of plain weights: it is damaged, or loading it could run code, so it "
            f"was not loaded ({why or reprlib.repr(foreign[0])})."
        )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # and so does torch
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {first_line(error)}") from error


def _pickled_names(content: bytes) -> tuple[set[str], str]:
    """Return the classes and functions that an archive of torch.save names, and why not to load it, or ""."""
    names: set[str] = set()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # torch.save packs nothing, so what it has written cannot unpack to more.
        if sum(member.file_size for member in members) > len(content):
            return names, "more bytes than the file has"
        if (damaged := archive.testzip()) is not None:
            return names, f"damaged: {reprlib.repr(damaged)}"
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                for opcode, name, _ in pickletools.genops(archive.read(member)):
                    if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                        names.add(str(name))
    return names, ""


class _ForeignError(Exception):
    """What in a checkpoint is missing or is not what this project writes."""


def _parsed(path: Path, content: Any) -> Checkpoint:
    """Check everything that a checkpoint says before any of it is used."""
    header = _field(content, "fer_lightning", dict)
    inputs = InputSpec(
        image_size=_field(header, "image_size", int),
        mean=float(_field(header, "mean", int | float)),
        std=float(_field(header, "std", int | float)),
        classes=tuple(_field(header, "classes", list | tuple)),
    )
    if not 1 <= inputs.image_size <= MAX_IMAGE_SIZE:
        raise _ForeignError(f"image_size={inputs.image_size}")
    if not (isfinite(inputs.mean) and isfinite(inputs.std) and inputs.std > 0):
        raise _ForeignError(f"mean={inputs.mean}, std={inputs.std}")
    if not all(isinstance(one, str) for one in inputs.classes):
        raise _ForeignError("a class without a name")
    model, state_dict = _field(header, "model", dict), _field(content, "state_dict", dict)
    _check_model(model)
    _check_weights(state_dict)
    return Checkpoint(
        path=path,
        epoch=_field(content, "epoch", int),
        global_step=_field(content, "global_step", int),
        inputs=inputs,
        model=model,
        val_split=_field(header, "val_split", str | None, None),
        data_fingerprint=_field(header, "data_fingerprint", str | None, None),
        state_dict=state_dict,
    )


def _check_model(model: dict[Any, Any]) -> None:
    _field(model, "name", str)
    for name, value in model.items():
        values = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(one, int | float | str | None) for one in values)
        if not isinstance(name, str) or name == "image_size" or not plain:
            raise _ForeignError(f"model: {reprlib.repr(name)}")


def _check_weights(state_dict: dict[Any, Any]) -> None:
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise _ForeignError(f"state_dict: {reprlib.repr(name)}")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise _ForeignError(f"state_dict: {reprlib.repr(name)} is not a plain tensor")
        # A view that repeats its numbers could be of any size.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _ForeignError(f"state_dict: {reprlib.repr(name)} repeats its numbers")


def _field(content: Any, name: str, kind: Any, *default: Any) -> Any:
    """Return an entry of a dict, of this type."""
    if not isinstance(content, dict):
        raise _ForeignError(f"it holds one {type(content).__name__}")
    if name not in content and default:
        return default[0]
    value = content.get(name)
    if name not in content or not isinstance(value, kind) or (isinstance(value, int) and abs(value) >= 2**63):
        raise _ForeignError(f"{name} is missing or of the wrong kind")
    return value


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
