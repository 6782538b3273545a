"""Pretrained weights of torchvision and timm: where they are, how files are read, and the input they expect."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_lightning.arguments import first_line
from fer_lightning.errors import UserError

# Options of a network that choose its initial weights. A checkpoint has weights of its own, so it leaves them out:
# reading one must neither download nor open anything else.
WEIGHT_OPTIONS = {"torchvision": ("weights",), "timm": ("weights", "pretrained")}


@dataclass(frozen=True)
class ExpectedInput:
    """The images that pretrained weights were trained on.

    Attributes:
        image_size: height and width, in pixels.
        mean: mean of the pixels in [0, 1], over the colours.
        std: standard deviation, over the colours.
    """

    image_size: int
    mean: float
    std: float


def without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name and options of a network without those that choose its initial weights."""
    left_out = WEIGHT_OPTIONS.get(model["name"], ())
    return {key: value for key, value in model.items() if key not in left_out}


def weights_of(model: Mapping[str, Any]) -> str:
    """Return the setting that gives a network pretrained weights, e.g. "model.weights=DEFAULT"; empty for none."""
    for option in WEIGHT_OPTIONS.get(model["name"], ()):
        value = model.get(option)
        if value not in (None, False):
            return f"model.{option}={'true' if value is True else value}"
    return ""


def read_weights(path: Path, setting: str) -> Mapping[str, Tensor]:
    """Read a file of weights, as torchvision, timm and most training scripts save them; it cannot run code.

    Args:
        path: a .pth or .pt file that torch.save wrote, or a .safetensors file.
        setting: the setting that names it, for messages.

    Returns:
        The weights by name, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    content = _load(path, setting)
    if isinstance(content, dict) and "fer_lightning" in content:
        raise UserError(f"{setting}: {path} is a checkpoint of this project. Start from it with ckpt={path}.")
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(map(torch.is_tensor, content.values())):
        raise UserError(f"{setting}: {path} holds no weights. Expected the network's state_dict().")
    if all(name.startswith("module.") for name in content):  # saved by DataParallel
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return content


def _load(path: Path, setting: str) -> Any:
    """Return the content of a file of tensors, without running code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f'{setting}: .safetensors files need safetensors: pip install -e ".[timm]".') from error
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror or first_line(error)}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{setting}: {path} was not loaded: it is damaged, or holds more than weights, and loading it could "
            "run code. Save the network's state_dict() alone, or give another file."
        ) from error
    except Exception as error:  # torch.load raises nearly any exception for damaged input
        reason = "it ends early" if isinstance(error, EOFError) else "its format is unknown"
        raise UserError(
            f"{setting}: {path} is damaged or not a file of weights ({reason}). Delete it and download it "
            "again, or give another."
        ) from error


def not_downloaded(setting: str, url: str, folder: object, error: BaseException) -> UserError:
    """Return the error for weights that cannot be downloaded, with the three ways out."""
    return UserError(
        f"{setting}: the weights are not in {folder}, and the download failed ({first_line(error).rstrip('.')}). "
        f"Connect to the internet and try again; or download {url} elsewhere and set model.weights=FILE; or leave "
        f"{setting.partition('=')[0]} out, to start from random weights."
    )
