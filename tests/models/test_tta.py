"""Views of test-time augmentation, and the mean of their predictions."""

import math

import pytest
import torch

from fer_lightning.errors import UserError
from fer_lightning.models.tta import VIEWS, check_tta, log_mean_probabilities, n_views, predict_logits


def test_views_of_an_image_with_numbered_pixels():
    image = torch.arange(48.0 * 48).view(1, 1, 48, 48)
    assert [view is image for view in VIEWS["none"](image)] == [True]
    plain, mirrored = VIEWS["mirror"](image)
    assert plain is image
    assert torch.equal(mirrored, image.flip(-1))
    shifts = VIEWS["shifts"](image)
    assert len(shifts) == 18
    shifts_of_the_centre = {(view[0, 0, 24, 24] - image[0, 0, 24, 24]).item() for view in shifts[:9]}
    assert shifts_of_the_centre == {48.0 * y + x for y in (-2, 0, 2) for x in (-2, 0, 2)}
    assert torch.equal(shifts[0], image)
    assert torch.equal(shifts[9], mirrored)
    crops = VIEWS["ten_crop"](torch.ones(1, 1, 48, 48))
    assert len(crops) == 10
    assert all(torch.equal(crop, torch.ones(1, 1, 48, 48)) for crop in crops)


def test_ten_crop_takes_44_of_48_pixels():
    # On a ramp, the middle column of a resized crop has the mean value of its 44 pixels.
    ramp = torch.arange(48.0).expand(1, 1, 48, 48)
    middles = [crop[0, 0, 0, 23:25].mean().item() for crop in VIEWS["ten_crop"](ramp)[:5]]
    assert middles == pytest.approx([21.5, 25.5, 21.5, 25.5, 23.5], abs=1e-4)


@pytest.mark.parametrize("tta", VIEWS)
def test_views_do_not_depend_on_the_precision_of_the_network(tta):
    images = torch.rand(2, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        views = VIEWS[tta](images)
    torch.testing.assert_close(views, VIEWS[tta](images))


def test_zooms_magnify_about_the_centre_and_repeat_the_edges():
    # On a ramp around 0 at the centre, magnifying divides the values; beyond the image the edge is repeated.
    ramp = (torch.arange(48.0) - 23.5).expand(2, 1, 48, 48)
    zooms = VIEWS["zooms"](ramp)
    assert len(zooms) == 10
    assert zooms[0] is ramp
    for view, mirrored, factor in zip(zooms[:5], zooms[5:], (1, 0.85, 0.92, 1.09, 1.18), strict=True):
        torch.testing.assert_close(view, (ramp / factor).clamp(-23.5, 23.5), atol=1e-4, rtol=0)
        assert torch.equal(mirrored, view.flip(-1))
    upright = VIEWS["zooms"](ramp.mT)[4]
    torch.testing.assert_close(upright, ramp.mT / 1.18, atol=1e-4, rtol=0)


def test_softmax_of_the_logits_is_the_mean_of_the_probabilities():
    def net(images):  # uses only the left half
        left = images[..., :24].mean(dim=(1, 2, 3))
        return torch.stack([left, *[torch.zeros_like(left)] * 6], dim=1)

    images = torch.zeros(1, 1, 48, 48)
    images[..., :24] = 2.0
    expected = (net(images).softmax(1) + net(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(predict_logits(net, images, "mirror").softmax(1), expected)
    assert torch.equal(predict_logits(net, images, "none"), net(images))


def test_mean_of_underflowing_probabilities_is_finite():
    logits = torch.tensor([[[0.0, -200.0]], [[0.0, -300.0]]])
    torch.testing.assert_close(log_mean_probabilities(logits), torch.tensor([[0.0, -200.0 - math.log(2)]]))


def test_the_number_of_views():
    assert {tta: n_views(tta) for tta in VIEWS} == {
        "none": 1,
        "mirror": 2,
        "shifts": 18,
        "zooms": 10,
        "ten_crop": 10,
    }


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        UserError, match=r"tta=miror does not exist\. Did you mean mirror\? Choose from none, mirror, "
    ):
        check_tta("miror")
