"""Networks of timm, adapted to grey faces. timm is an extra; it is imported only for these networks."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.pretrained import ExpectedInput, not_downloaded, read_weights
from fer_lightning.models.transfer import last_layer


def timm_net(
    architecture: str = "resnet18",
    pretrained: bool = False,
    weights: str | None = None,
    image_size: int = 224,
    n_classes: int = len(EMOTIONS),
) -> nn.Module:
    """Build a network of timm with one input channel; timm itself sums the first kernels over the colours.

    Args:
        architecture: a name for ``timm.create_model``, perhaps with the tag of its weights: "resnet18.a1_in1k".
        pretrained: whether to start from timm's weights, which are downloaded unless they lie in the cache of
            huggingface_hub. The last layer stays random.
        weights: a file of weights to start from instead.
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: timm is not installed or has no network or weights of that name, the network does not support
            this image size, or the weights cannot be downloaded, cannot be read or are those of another network.
    """
    timm, config = _timm(architecture), _config(architecture)
    options: dict[str, Any] = {"num_classes": n_classes, "in_chans": 1}
    if config is not None and config.fixed_input_size:  # of a vision transformer; others take any size
        options["img_size"] = image_size
    try:
        net: nn.Module = timm.create_model(architecture, pretrained=False, **options)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 1, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, RuntimeError) and hardware.is_out_of_memory(error):
            raise
        reason = first_line(error).rstrip(".")
        raise UserError(f"choose another data.image_size; most expect 224 ({reason})") from error
    if weights is not None:
        setting = f"model.weights={weights}"
        given, last = read_weights(Path(weights), setting), f"{last_layer(net, n_classes)}."
        # timm itself would leave these random without a word, because the last layer has to be missing.
        if lacking := [name for name in net.state_dict() if name not in given and not name.startswith(last)]:
            raise UserError(
                f"{setting} holds the weights of another network than {architecture}: it lacks {len(lacking)} of "
                f"{len(net.state_dict())}, e.g. {lacking[0]}."
            )
        net = _load(architecture, options, setting, pretrained_cfg_overlay={"state_dict": given})
    elif pretrained:
        net = _load(architecture, options, "model.pretrained=true")
    return net.train()


def timm_input(model: Mapping[str, Any]) -> ExpectedInput:
    """Return the images that an architecture's pretrained weights expect.

    Args:
        model: the options of ``timm_net``.

    Raises:
        UserError: timm is not installed, or has no network or weights of that name.
    """
    config = _config(model["architecture"])
    if config is None:
        raise _no_weights(model["architecture"])
    return ExpectedInput(config.input_size[-1], fmean(config.mean), fmean(config.std))


def _load(architecture: str, options: Mapping[str, Any], setting: str, **source: Any) -> nn.Module:
    """Build a network with pretrained weights, by timm's own means."""
    timm, config = _timm(architecture), _config(architecture)
    if config is None:
        raise _no_weights(architecture)
    try:
        net: nn.Module = timm.create_model(architecture, pretrained=True, **options, **source)
    except OSError as error:  # what huggingface_hub and requests raise without a connection
        hub = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
        url = hub if config.hf_hub_id else config.url
        raise not_downloaded(setting, url, "huggingface_hub's cache", error) from error
    except RuntimeError as error:
        if hardware.is_out_of_memory(error):
            raise
        raise UserError(
            f"{setting} holds the weights of another network than {architecture}, or of another data.image_size "
            f"({str(error).strip().splitlines()[-1].strip()})."
        ) from error
    return net


def _no_weights(architecture: str) -> UserError:
    return UserError(
        f"model.architecture={architecture}: timm has no pretrained weights for it. Leave model.pretrained out, or "
        "choose from timm.list_pretrained()."
    )


def _timm(architecture: str) -> Any:
    """Return timm, after a check that it has a network and weights of that name."""
    try:
        import timm
    except ImportError as error:
        raise UserError('model=timm needs timm: pip install -e ".[timm]".') from error
    name, _, tag = architecture.partition(".")
    # Other forms that create_model takes, such as hf-hub:USER/NAME, would download a network from anywhere.
    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError(
            f"model.architecture={architecture} does not exist in timm.{did_you_mean(name, known)} Choose from "
            f"the {len(known):,} of timm.list_models(), e.g. resnet18, convnext_atto, mobilenetv3_small_100."
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        choices = f" Choose from {', '.join(tags)}." if tags else ""
        raise UserError(f"model.architecture={architecture}: timm has no weights {tag} of {name}.{choices}")
    return timm


def _config(architecture: str) -> Any:
    """Return timm's description of an architecture's pretrained weights; None if there are none."""
    config = _timm(architecture).models.get_pretrained_cfg(architecture)
    return config if config is not None and (config.hf_hub_id or config.url) else None
