"""Start a network from the weights of one with other classes or other colours: all layers but the last."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fer_lightning.errors import UserError

# Classifiers of GoogLeNet and Inception v3 beside the last layer, which only their first training used.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def last_layer(net: nn.Module, n_classes: int) -> str:
    """Return the name of the layer that computes the logits.

    Every network here registers it last, as those of torchvision do; networks of timm name it.

    Args:
        net: float (B, 1, H, W) -> logits (B, n_classes).
        n_classes: number of logits.

    Raises:
        UserError: the layer that is registered last has another number of outputs, so it is not the one.
    """
    get_classifier: Any = getattr(net, "get_classifier", None)  # timm's
    named = get_classifier() if callable(get_classifier) else None
    weights = {
        name: module.weight
        for name, module in net.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
        and (module is named or not isinstance(named, nn.Module))
    }
    name = list(weights)[-1] if weights else "none"
    if not weights or len(weights[name]) != n_classes:
        raise UserError(
            f"{type(net).__qualname__}: the layer that is registered last, {name}, does not compute the "
            f"{n_classes} logits, so it is not clear which weights to start from. Assign the layer of the logits "
            "last in __init__."
        )
    return name


def load_all_but_last(net: nn.Module, weights: Mapping[str, Tensor], source: str, n_classes: int) -> None:
    """Copy weights into a network, except into its last layer.

    The first convolution of a network for colour images is summed over the colours, which is equivalent to giving
    it the grey image three times.

    Args:
        net: float (B, 1, H, W) -> logits (B, n_classes).
        weights: the state dict of a network of the same architecture, perhaps with other classes or colours.
        source: where the weights come from, for messages.
        n_classes: number of logits.

    Raises:
        UserError: another layer is missing, superfluous or of another shape, or a weight is not finite.
    """
    last = f"{last_layer(net, n_classes)}."
    own = net.state_dict()
    given = {name: tensor for name, tensor in weights.items() if not name.startswith((last, *_AUXILIARY))}
    first = next((name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), "")
    stem = given.get(f"{first}.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 and own[f"{first}.weight"].shape[1] == 1:
        given[f"{first}.weight"] = stem.sum(dim=1, keepdim=True)
    loaded = {name: tensor for name, tensor in own.items() if name.startswith(last)} | given
    wrong = [name for name in {**own, **loaded} if _shape(own.get(name)) != _shape(loaded.get(name))]
    if wrong:
        raise UserError(
            f"{source} holds the weights of another network: {len(wrong)} of {len(own)} do not fit this one, e.g. "
            f"{wrong[0]} is {_shape(loaded.get(wrong[0])) or 'missing'} there and "
            f"{_shape(own.get(wrong[0])) or 'missing'} here. Choose the network and the data.image_size that they "
            "were trained with."
        )
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise UserError(f"{source} has weights that are NaN or infinite. Use another file.")
    net.load_state_dict(loaded)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
