"""Networks of torchvision with one grey channel and seven classes."""

import pytest
import torch

from fer_lightning.errors import UserError
from fer_lightning.models import build_model


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vgg11_bn", "googlenet", "vit_b_32"],
)
def test_torchvision_network_maps_grey_images_to_seven_logits(architecture):
    net = build_model("torchvision", image_size=64, architecture=architecture)
    assert net.training
    with torch.no_grad():
        assert net(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_first_convolution_treats_grey_as_three_equal_channels():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    colour = resnet18(num_classes=7).eval()
    torch.manual_seed(0)
    grey = build_model("torchvision", image_size=32, architecture="resnet18").eval()
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet81", "Did you mean resnet18?"),
        ("fcn_resnet50", "model.architecture=fcn_resnet50 does not exist"),  # a segmentation network
        ("inception_v3", "at 48 px: choose another data.image_size"),
        ("alexnet", "at 48 px: choose another data.image_size"),
        ("vit_b_32", "indivisible by patch size"),
        ("maxvit_t", "not divisible by partition size 7"),
    ],
)
def test_invalid_architecture_or_size_is_a_one_line_error(architecture, message):
    with pytest.raises(UserError) as error:
        build_model("torchvision", image_size=48, architecture=architecture)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
