"""Classification networks of torchvision, adapted to grey faces."""

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.backbones import build_for
from fer_lightning.models.pretrained import ExpectedInput, not_downloaded, read_weights
from fer_lightning.models.transfer import load_all_but_last

# Networks with further classifiers beside the last layer, which only their first training used.
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def torchvision_net(
    architecture: str = "resnet18",
    weights: str | None = None,
    image_size: int = 224,
    n_classes: int = len(EMOTIONS),
) -> nn.Module:
    """Build a network of ``torchvision.models`` with one input channel.

    The kernels of the first convolution are summed over the colours, which is equivalent to repeating the grey
    channel three times.

    Args:
        architecture: a name for ``torchvision.models.get_model``, e.g. "resnet18" or "convnext_tiny".
        weights: None for random weights; the name of torchvision's pretrained weights, e.g. "DEFAULT", which are
            downloaded unless they lie in torch.hub's folder; or a file of weights. The last layer stays random.
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: torchvision has no classification network or weights of that name, the network does not support
            this image size, or the weights cannot be downloaded, cannot be read or are those of another network.
    """
    models = _models(architecture)
    options: dict[str, Any] = {}
    if architecture in _WITH_AUXILIARY:
        # In training mode the auxiliary classifiers would return extra outputs. init_weights=True is the default,
        # but torchvision warns unless it is passed explicitly.
        options = {"aux_logits": False, "init_weights": True}
    elif architecture.startswith("vit_"):
        options = {"image_size": image_size}
    elif architecture.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}

    def build() -> nn.Module:
        net: nn.Module = models.get_model(architecture, weights=None, num_classes=n_classes, **options)
        _use_grey_input(net)
        return net

    net = build_for(image_size, build)
    if weights is not None:
        given = _in_our_names(architecture, _find(architecture, weights))
        load_all_but_last(net, given, f"model.weights={weights}", n_classes)
    return net.train()


def torchvision_input(model: Mapping[str, Any]) -> ExpectedInput:
    """Return the images that pretrained weights expect; for a file, those of the architecture's default weights.

    Args:
        model: the options of ``torchvision_net``.

    Raises:
        UserError: torchvision has no network or weights of that name.
    """
    architecture, weights = model.get("architecture", "resnet18"), model["weights"]
    known = _models(architecture).get_model_weights(architecture)
    transforms = (_named(architecture, weights) or known["DEFAULT"]).transforms()
    if architecture in _WITH_AUXILIARY:  # they normalise anew, to this
        return ExpectedInput(transforms.crop_size[0], 0.5, 0.5)
    return ExpectedInput(transforms.crop_size[0], fmean(transforms.mean), fmean(transforms.std))


def _models(architecture: str) -> Any:
    """Return ``torchvision.models``, after a check that it has a classification network of that name."""
    from torchvision import models  # slow to import, and not needed for other networks

    known = models.list_models(module=models)
    if architecture not in known:
        raise UserError(
            f"model.architecture={architecture} does not exist.{did_you_mean(architecture, known)} "
            "Choose from https://docs.pytorch.org/vision/stable/models.html#classification, "
            "e.g. resnet18, vgg11_bn, convnext_tiny."
        )
    return models


def _named(architecture: str, weights: str) -> Any:
    """Return torchvision's weights of that name, or None if it is the path of a file.

    Raises:
        UserError: it is neither.
    """
    known = _models(architecture).get_model_weights(architecture)
    name = weights.rpartition(".")[2] if weights.startswith(f"{known.__name__}.") else weights
    if name in known.__members__:
        return known[name]
    is_name = re.fullmatch(r"\w*(_Weights\.\w+)?", weights) is not None
    if not is_name or (weights and Path(weights).exists()):
        return None
    raise UserError(
        f"model.weights={weights}: {architecture} has no such weights.{did_you_mean(weights, known.__members__)} "
        f"Choose from {', '.join(known.__members__)}, or give the path of a file."
    )


def _in_our_names(architecture: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return published weights with the names of the network's layers today, without auxiliary classifiers."""
    if architecture.startswith("densenet"):  # published when norm1 was called norm.1
        return {re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", name): value for name, value in weights.items()}
    if architecture in _WITH_AUXILIARY:
        return {name: value for name, value in weights.items() if not name.startswith(_AUXILIARY)}
    return weights


def _find(architecture: str, weights: str) -> Mapping[str, Tensor]:
    """Read pretrained weights by name, downloading them if needed, or from a file."""
    setting, named = f"model.weights={weights}", _named(architecture, weights)
    if named is None:
        return read_weights(Path(weights), setting)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / named.url.rpartition("/")[2]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The name ends in the start of the file's SHA-256, which is checked.
            torch.hub.download_url_to_file(named.url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: another hash
            raise not_downloaded(setting, named.url, folder, error) from error
    return read_weights(path, setting)


def _use_grey_input(net: nn.Module) -> None:
    """Reduce the first convolution to one input channel, in place."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
