"""Checkpoint reading that never executes code: only plain tensors and values are accepted."""

import io
import pickletools
import reprlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer_lightning.arguments import first_line
from fer_lightning.data.classes import check_names
from fer_lightning.data.faces import MAX_IMAGE_SIZE
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.models import build_model
from fer_lightning.models.pretrained import without_weights
from fer_lightning.models.tta import VIEWS

# The only globals in a checkpoint of plain weights, besides storage classes. weights_only=True allows others, some
# of which can allocate unlimited memory, such as a bytearray of arbitrary length.
_PLAIN = {"collections OrderedDict", "torch Size", "torch._utils _rebuild_tensor_v2"}


@dataclass(frozen=True)
class InputSpec:
    """Input format and classes of a network, stored in every checkpoint so that it cannot be fed other images.

    Attributes:
        image_size: height and width of the images, in pixels.
        mean: mean of pixels in [0, 1], subtracted by normalisation.
        std: standard deviation that normalisation divides by.
        classes: class names in the order of the logits.
    """

    image_size: int
    mean: float
    std: float
    classes: tuple[str, ...] = EMOTIONS


class SelectClasses(nn.Module):
    """A network reduced to some of its classes.

    Args:
        net: float (B, 1, H, W) -> logits (B, C).
        columns: positions of K classes in the logits.
    """

    def __init__(self, net: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.columns = list(columns)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits of these classes: float (B, 1, H, W) -> (B, K)."""
        logits: torch.Tensor = self.net(images)[:, self.columns]
        return logits


@dataclass(frozen=True)
class Checkpoint:
    """Validated contents of a checkpoint, without the states of the optimizer and the callbacks.

    Attributes:
        path: the file.
        epoch: the last epoch that the weights were trained in, from 0.
        global_step: optimizer steps taken.
        inputs: input format and classes of the network.
        model: name and options of the network.
        val_split: the split that the best epoch was selected on; None in older checkpoints.
        data_fingerprint: fingerprint of the training data; None in older checkpoints.
        tta: the network's own test-time augmentation: its run's setting `tta` when the file was written or, in
            weights that ship, the views with the best accuracy on PublicTest; "none" in older checkpoints.
        state_dict: the weights.
    """

    path: Path
    epoch: int
    global_step: int
    inputs: InputSpec
    model: dict[str, Any]
    val_split: str | None
    data_fingerprint: str | None
    tta: str
    state_dict: dict[str, torch.Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and validate a checkpoint of this project, with ``weights_only=True``.

    Raises:
        UserError: the file is missing, damaged, could execute code or comes from another project; or a weight is
            not finite.
    """
    path = Path(path)
    content = _load(path)
    try:
        checkpoint = _parse(path, content)
    except _ForeignError as error:
        raise UserError(f"ckpt={path} was not written by this project: {error}.") from error
    if not all(tensor.isfinite().all() for tensor in checkpoint.state_dict.values()):
        raise UserError(
            f"ckpt={path} has weights that are NaN or infinite. Use another checkpoint of that run, or train again."
        )
    return checkpoint


def _load(path: Path) -> Any:
    """Return the unpickled contents of a file that cannot execute code or need more memory than its own size."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"ckpt={path} cannot be read: {error.strerror}. Pass a run's checkpoints/best.ckpt."
        ) from error
    try:
        names, problem = _pickled_names(content)
    except Exception as error:  # zipfile and pickletools raise nearly any exception for damaged input
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {first_line(error)}") from error
    foreign = sorted(
        name for name in names if not (name in _PLAIN or (name.startswith("torch ") and name.endswith("Storage")))
    )
    if problem or foreign:
        raise UserError(
            f"ckpt={path} was not loaded: it is damaged, or loading it could run code "
            f"({problem or reprlib.repr(foreign[0])}). Only checkpoints of plain weights are read."
        )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # as does torch
        raise UserError(f"ckpt={path} is damaged or not a checkpoint: {first_line(error)}") from error


def _pickled_names(content: bytes) -> tuple[set[str], str]:
    """Return the globals that a torch.save archive refers to, and why not to load it or an empty string."""
    names: set[str] = set()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # torch.save does not compress, so an honest archive cannot expand to more than its own size.
        if sum(member.file_size for member in members) > len(content):
            return names, "expands to more than its own size"
        if (damaged := archive.testzip()) is not None:
            return names, f"damaged: {reprlib.repr(damaged)}"
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                for opcode, name, _ in pickletools.genops(archive.read(member)):
                    if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                        names.add(str(name))
    return names, ""


class _ForeignError(Exception):
    """A mismatch between a checkpoint's contents and what this project writes."""


def _parse(path: Path, content: Any) -> Checkpoint:
    """Validate every field of a checkpoint before any of it is used."""
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
    if not all(isinstance(name, str) for name in inputs.classes):
        raise _ForeignError("classes: expected strings")
    check_names(inputs.classes, f"ckpt={path}")
    tta = _field(header, "tta", str, "none")
    if tta not in VIEWS:
        raise _ForeignError(f"tta={reprlib.repr(tta)} is unknown")
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
        tta=tta,
        state_dict=state_dict,
    )


def _check_model(model: dict[Any, Any]) -> None:
    """Check that the network's name and options are plain values."""
    _field(model, "name", str)
    if without_weights(model) != model:  # they would be downloaded, or read from any file of this machine
        raise _ForeignError("model: it names pretrained weights")
    for name, value in model.items():
        values = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(item, int | float | str | None) for item in values)
        if not isinstance(name, str) or name in ("image_size", "n_classes") or not plain:
            raise _ForeignError(f"model: {reprlib.repr(name)}")


def _check_weights(state_dict: dict[Any, Any]) -> None:
    """Check that the weights are plain dense tensors, each fully backed by its storage."""
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise _ForeignError(f"state_dict: {reprlib.repr(name)}")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise _ForeignError(f"state_dict: {reprlib.repr(name)} is not a plain tensor")
        # An expanded view could claim any size at no cost in the file.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _ForeignError(f"state_dict: {reprlib.repr(name)} is larger than its storage")


def _field(content: Any, name: str, kind: Any, *default: Any) -> Any:
    """Return a dict entry of the expected type, or the default if there is one and the entry is missing."""
    if not isinstance(content, dict):
        raise _ForeignError(f"expected a dict, got {type(content).__name__}")
    if name not in content and default:
        return default[0]
    value = content.get(name)
    if name not in content or not isinstance(value, kind) or (isinstance(value, int) and abs(value) >= 2**63):
        raise _ForeignError(f"{name} is missing or has the wrong type")
    return value


def load_weights(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the checkpoint's weights into a network; a network on the meta device adopts the tensors themselves.

    Raises:
        UserError: the weights do not match the network.
    """
    try:
        # The weights were saved by EmotionClassifier, which holds its network as `net`.
        is_meta = any(parameter.is_meta for parameter in net.parameters())
        nn.ModuleDict({"net": net}).load_state_dict(checkpoint.state_dict, assign=is_meta)
    except RuntimeError as error:
        raise UserError(
            f"ckpt={checkpoint.path} holds the network {checkpoint.model}, which does not match this one: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error


def net_from(checkpoint: Checkpoint) -> nn.Module:
    """Build the checkpoint's network in eval mode with its weights loaded: float (B, 1, H, W) -> logits (B, C)."""
    for device in ("meta", "cpu"):  # meta allocates nothing, so it tests the claimed size for free
        with torch.device(device):
            inputs = checkpoint.inputs
            net = build_model(image_size=inputs.image_size, n_classes=len(inputs.classes), **checkpoint.model)
        load_weights(net, checkpoint)
    return net.eval()
