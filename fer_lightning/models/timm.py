"""Networks of timm, adapted to grey faces. timm is an extra; it is imported only for these networks."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from fer_lightning import hardware
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.models.backbones import build_for
from fer_lightning.models.pretrained import ExpectedInput, not_downloaded, read_weights
from fer_lightning.models.transfer import load_all_but_last


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
        weights: a file of weights to start from instead, with timm's names for them and for the same image size.
        image_size: height and width of the input, in pixels.
        n_classes: number of logits.

    Raises:
        UserError: timm is not installed or has no network or weights of that name, the network does not support
            this image size, or the weights cannot be downloaded, cannot be read or are those of another network.
    """
    if pretrained and weights is not None:
        raise UserError(f"model.weights={weights} and model.pretrained=true are both initial weights. Leave one.")
    if weights == "DEFAULT":
        raise UserError("model.weights=DEFAULT: expected a file. timm's own weights are model.pretrained=true.")
    timm, config = _look_up(architecture)
    if pretrained and config is None:
        raise _no_weights(architecture)
    options: dict[str, Any] = {"num_classes": n_classes, "in_chans": 1}
    if config is not None and config.fixed_input_size:  # of a vision transformer; others take any size
        options["img_size"] = image_size
    build = partial(timm.create_model, architecture, **options)
    # With random weights first: a wrong image size must not cost a download.
    net = build_for(image_size, build, TypeError)
    if weights is not None:
        setting = f"model.weights={weights}"
        load_all_but_last(net, read_weights(Path(weights), setting), setting, n_classes)
    elif pretrained:
        net = _pretrained(architecture, config, partial(build, pretrained=True))
    return net.train()


def timm_input(model: Mapping[str, Any]) -> ExpectedInput | None:
    """Return the images that an architecture's pretrained weights expect; None if timm has none to know it from.

    Args:
        model: the options of ``timm_net``.

    Raises:
        UserError: timm is not installed, or has no network or weights of that name.
    """
    architecture = model.get("architecture", "resnet18")
    _, config = _look_up(architecture)
    if config is not None:
        return ExpectedInput(config.input_size[-1], fmean(config.mean), fmean(config.std))
    if model.get("pretrained"):
        raise _no_weights(architecture)
    return None


def _no_weights(architecture: str) -> UserError:
    return UserError(
        f"model.architecture={architecture}: timm has no pretrained weights for it. Leave model.pretrained out, or "
        "choose from timm.list_pretrained()."
    )


def _pretrained(architecture: str, config: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with timm's pretrained weights, by timm's own means."""
    try:
        return build()
    except OSError as error:  # what huggingface_hub and requests raise without a connection
        hub = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
        url = hub if config.hf_hub_id else config.url
        raise not_downloaded("model.pretrained=true", url, "huggingface_hub's cache", error) from error
    except RuntimeError as error:
        if hardware.is_out_of_memory(error):
            raise
        raise UserError(
            f"model.pretrained=true: timm's weights do not fit {architecture} at this data.image_size "
            f"({str(error).strip().splitlines()[-1].strip()})."
        ) from error


def _look_up(architecture: str) -> tuple[Any, Any]:
    """Return timm and its description of an architecture's pretrained weights, None if there are none.

    Raises:
        UserError: timm is not installed, or has no network or weights of that name.
    """
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
    config = timm.models.get_pretrained_cfg(architecture)
    return timm, config if config is not None and (config.hf_hub_id or config.url) else None
