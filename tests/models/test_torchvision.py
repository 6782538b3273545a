"""Networks of torchvision for one grey channel and seven classes."""

import pytest
import torch

from fer_lightning.errors import UserError
from fer_lightning.models import build_model


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vgg11_bn", "googlenet", "vit_b_32"],
)
def test_a_network_of_torchvision_takes_grey_and_tells_seven_classes(architecture):
    net = build_model("torchvision", image_size=64, architecture=architecture)
    assert net.training
    with torch.no_grad():
        assert net(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_the_first_convolution_sees_grey_as_three_equal_channels():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    colour = resnet18(num_classes=7).eval()
    torch.manual_seed(0)
    grey = build_model("torchvision", image_size=32, architecture="resnet18").eval()
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("resnet81", "Did you mean resnet18?"),
        ("fcn_resnet50", "model.architecture=fcn_resnet50 does not exist"),  # segments
        ("inception_v3", "at 48 px: choose another data.image_size"),
        ("alexnet", "at 48 px: choose another data.image_size"),
        ("vit_b_32", "indivisible by patch size"),
        ("maxvit_t", "not divisible by partition size 7"),
    ],
)
def test_an_architecture_that_cannot_be_says_why_in_one_line(architecture, said):
    with pytest.raises(UserError) as error:
        build_model("torchvision", image_size=48, architecture=architecture)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
