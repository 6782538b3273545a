"""Grad-CAM: where in a face the network finds what speaks for an emotion.

R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV
2017.
Hooks instead of a library, for those bring OpenCV, SciPy or scikit-learn and ask for the layer.
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

# The paper's maps have 7 to 14 positions a side. On 48 px a network's last layers can be down to 3, too coarse to
# tell an eye from a mouth.
MIN_SIDE = 6


def grad_cam(clf: Classifier, faces: FaceImages, emotions: Sequence[int]) -> npt.NDArray[np.float32]:
    """What parts of each face raise the score of an emotion.

    The feature maps of the last layer with at least MIN_SIDE positions a side are added up, each weighted with the
    mean gradient of the emotion's logit (equations 1 and 2), and what remains above zero is kept. In a vision
    transformer that layer is the patches' embedding, whose maps tell less.

    Args:
        clf: any network with a convolution.
        faces: N faces, as Classifier.predict takes them.
        emotions: N indices into emotions.EMOTIONS.

    Returns:
        float32 (N, h, w), the positions of that layer: 1 where a face's map is highest, all 0 where nothing in the
        face speaks for the emotion.

    Raises:
        UserError: the network has no feature maps.
    """
    # A callback is called with gradients off, and in inference mode their tensors could not be used here.
    with torch.inference_mode(False), torch.enable_grad():
        images = clf.net_input(faces)
        layer = _last_spatial_layer(clf.net, images[:1])
        maps: list[Tensor] = []

        def keep(module: nn.Module, given: object, out: Tensor) -> Tensor:
            maps.append(out.detach().requires_grad_())
            return maps[0].clone()  # for an activation that works in place may follow

        with layer.register_forward_hook(keep):
            # Not clf.net(images): a network compiled for the fit would not run the hooks.
            logits = clf.net.forward(images)
        scores = logits[range(len(images)), list(emotions)]
        (gradients,) = torch.autograd.grad(scores.sum(), maps)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        heat = F.relu((weights * maps[0].detach()).sum(dim=1))
        heat /= heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
        return heat.cpu().numpy()


def _last_spatial_layer(net: nn.Module, image: Tensor) -> nn.Module:
    """The last module to finish whose output (1, C, h, w) has MIN_SIDE positions a side, or the most there are."""
    found: list[tuple[int, nn.Module]] = []

    def note(module: nn.Module, given: object, out: object) -> None:
        # Square as the image is; Swin transformers also have (1, h, w, C).
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] == out.shape[3]:
            found.append((out.shape[3], module))

    hooks: list[RemovableHandle] = [module.register_forward_hook(note) for module in net.modules()]
    try:
        with torch.no_grad():
            net.forward(image)
    finally:
        for hook in hooks:
            hook.remove()
    # A module that is called several times, as an activation may be, has several outputs.
    calls = Counter(module for _, module in found)
    found = [(side, module) for side, module in found if calls[module] == 1]
    if not found:
        raise UserError("This network has no feature maps, which Grad-CAM is about.")
    needed = min(MIN_SIDE, max(side for side, _ in found))
    return [module for side, module in found if side >= needed][-1]
