"""Start a network from the weights of one with other classes or other colours: all layers but the last."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor, nn

from fer_lightning.errors import UserError


def last_layer(net: nn.Module, n_classes: int) -> tuple[str, ...]:
    """Return the name of the layer that computes the logits; a network of timm can have two, which it averages.

    Every network here registers it last, as those of torchvision do; networks of timm name theirs.

    Args:
        net: float (B, 1, H, W) -> logits (B, n_classes).
        n_classes: number of logits.

    Raises:
        UserError: that layer has another number of outputs, so it is not the one.
    """
    get_classifier: Any = getattr(net, "get_classifier", None)  # timm's
    named = get_classifier() if callable(get_classifier) else None
    heads = [head for head in (named if isinstance(named, tuple) else (named,)) if isinstance(head, nn.Module)]
    if heads:
        names = tuple(name for name, module in net.named_modules() if any(module is head for head in heads))
        how, remedy = "timm's classifier", "Choose another model.architecture."
    else:
        names = tuple(name for name, module in net.named_modules() if _weight(module) is not None)[-1:]
        how, remedy = "the layer that is registered last", "Assign the layer of the logits last in __init__."
    for name in names or ("",):
        weights = [_weight(module) for module in net.get_submodule(name).modules()] if name else []
        if n_classes not in [len(weight) for weight in weights if weight is not None]:
            raise UserError(
                f"{type(net).__qualname__}: {how}{f', {name},' if name else ''} does not compute the {n_classes} "
                f"logits, so it is not clear which weights to start from. {remedy}"
            )
    return names


def _weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def is_within(name: str, layers: tuple[str, ...]) -> bool:
    """Return whether a weight belongs to one of the layers."""
    return name.startswith(tuple(f"{layer}." for layer in layers))


def reorder_last(
    net: nn.Module, weights: Mapping[str, Tensor], columns: Sequence[int], prefix: str = ""
) -> dict[str, Tensor]:
    """Return weights whose last layer computes the logits in another order.

    Args:
        net: float (B, 1, H, W) -> logits (B, C), the network that they are for.
        weights: its state dict.
        columns: the present position of each of the C logits.
        prefix: what the names in `weights` have before those in `net`.
    """
    n = len(columns)
    last = tuple(f"{prefix}{layer}" for layer in last_layer(net, n))
    return {
        name: value[list(columns)] if is_within(name, last) and value.shape[:1] == (n,) else value
        for name, value in weights.items()
    }


def load_all_but_last(net: nn.Module, weights: Mapping[str, Tensor], source: str, n_classes: int) -> None:
    """Copy weights into a network, except into its last layer.

    The first convolution of a network for colour images is summed over the colours, which is equivalent to giving
    it the grey image three times.

    Args:
        net: float (B, 1, H, W) -> logits (B, n_classes). After an error it may have some of the weights.
        weights: the state dict of a network of the same architecture, perhaps with other classes or colours.
        source: where the weights come from, for messages.
        n_classes: number of logits.

    Raises:
        UserError: another layer is missing, superfluous or of another shape, or a weight is not finite.
    """
    last = last_layer(net, n_classes)
    given: Any = copy(weights)  # with the versions of the modules, which load_state_dict reads, if there are any
    for name in weights:
        if is_within(name, last):
            del given[name]
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise UserError(f"{source} has weights that are NaN or infinite. Use another file.")
    first = next(((name, conv) for name, conv in net.named_modules() if isinstance(conv, nn.Conv2d)), None)
    if first is not None and first[1].weight.shape[1] == 1:
        stem = given.get(f"{first[0]}.weight")
        if stem is not None and stem.ndim == 4 and stem.shape[1] == 3:
            given[f"{first[0]}.weight"] = stem.sum(dim=1, keepdim=True)
    try:
        missing, superfluous = net.load_state_dict(given, strict=False)
    except (RuntimeError, ValueError) as error:  # other shapes, or another version of the network
        problems = [str(error).strip().splitlines()[-1].strip().rstrip(".")]
    else:
        missing = [name for name in missing if not is_within(name, last)]
        found = {"lacks": missing, "has too many": superfluous}
        problems = [f"it {what}: {len(names)}, e.g. {names[0]}" for what, names in found.items() if names]
    if problems:
        raise UserError(
            f"{source} holds the weights of another network ({'; '.join(problems)}). Choose the network and the "
            "data.image_size that they were trained with."
        )
