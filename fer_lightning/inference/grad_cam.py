"""Grad-CAM: heat maps of the parts of a face that raise the score of an emotion.

R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV
2017. Implemented with hooks, because the available libraries depend on OpenCV, SciPy or scikit-learn and need to be
told the layer.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import Classifier, FaceImages

# The paper's maps have 7 to 14 positions a side. With 48 px images, a network's last layers may have only 3, too
# few to tell an eye from a mouth.
MIN_SIDE = 6


def grad_cam(clf: Classifier, faces: FaceImages, emotions: Sequence[int]) -> npt.NDArray[np.float32]:
    """Compute which parts of each face raise the score of an emotion.

    Sums the feature maps of the last layer with at least MIN_SIDE positions a side, each weighted by the mean
    gradient of the emotion's logit, and clips the sum at zero (equations 1 and 2). In a vision transformer that
    layer is the patch embedding, whose maps are less informative.

    Args:
        clf: any network with a convolution.
        faces: N faces, in any form that Classifier.predict accepts.
        emotions: N indices into clf.classes.

    Returns:
        float32 (N, h, w) in [0, 1] at the resolution of that layer. Each map is scaled to a maximum of 1; it is all
        0 if no part of the face raises the score.

    Raises:
        UserError: the network has no feature maps.
    """
    # Callbacks run with gradients disabled, and autograd cannot use tensors created in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        images = clf.net_input(faces)
        layer = _last_spatial_layer(clf.net, images[:1])
        maps: list[Tensor] = []

        def keep(module: nn.Module, given: object, out: Tensor) -> Tensor:
            maps.append(out.detach().requires_grad_())
            return maps[0].clone()  # an in-place activation may follow

        with layer.register_forward_hook(keep):
            # Not clf.net(images), because a compiled network would not run the hooks.
            logits = clf.net.forward(images)
        scores = logits[range(len(images)), list(emotions)]
        (gradients,) = torch.autograd.grad(scores.sum(), maps)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        heat = F.relu((weights * maps[0].detach()).sum(dim=1))
        heat /= heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
        return heat.cpu().numpy()


def _last_spatial_layer(net: nn.Module, image: Tensor) -> nn.Module:
    """Return the last module to run whose output (1, C, h, w) has at least MIN_SIDE positions a side.

    If no output is that large, return the last module with the largest output.
    """
    candidates: list[tuple[int, nn.Module]] = []

    def record(module: nn.Module, given: object, out: object) -> None:
        # Feature maps are square, like the image. This rules out (1, h, w, C) in Swin transformers.
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] == out.shape[3]:
            candidates.append((out.shape[3], module))

    hooks: list[RemovableHandle] = [module.register_forward_hook(record) for module in net.modules()]
    try:
        with torch.no_grad():
            net.forward(image)
    finally:
        for hook in hooks:
            hook.remove()
    # Skip modules that are called several times, such as a shared activation: their output is ambiguous.
    calls = Counter(module for _, module in candidates)
    candidates = [(side, module) for side, module in candidates if calls[module] == 1]
    if not candidates:
        raise UserError("Grad-CAM needs a network with convolutions: this one has no feature maps.")
    min_side = min(MIN_SIDE, max(side for side, _ in candidates))
    return [module for side, module in candidates if side >= min_side][-1]
