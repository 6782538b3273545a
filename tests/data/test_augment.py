"""The fused warp compared with torchvision, and the invariants of augmentation."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fer_lightning.data.augment import (
    BatchAugment,
    NoAugment,
    TorchvisionAugment,
    affine_matrices,
    erase,
    jitter,
    normalise,
    resize,
    sampling_grid,
    warp,
)
from fer_lightning.errors import UserError

BASELINE = {
    "flip_prob": 0.5,
    "rotation_deg": 10.0,
    "translate_frac": 0.1,
    "scale": (0.9, 1.1),
    "shear_deg": 5.0,
    "brightness": 0.2,
    "contrast": 0.2,
}


@pytest.fixture
def faces():
    """Return smooth random images, uint8 (8, 1, 48, 48)."""
    noise = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(48, 48), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte()


def matrices(rotation_deg=0.0, translate_px=(0.0, 0.0), scale=1.0, shear_deg=0.0, flip=False):
    return affine_matrices(
        rotation_deg=torch.tensor([rotation_deg]),
        translate_frac=torch.tensor([translate_px]) / 48,
        scale=torch.tensor([scale]),
        shear_deg=torch.tensor([shear_deg]),
        flip=torch.tensor([flip]),
    )


@pytest.mark.parametrize(
    ("rotation_deg", "translate_px", "scale", "shear_deg"),
    [
        (10.0, (0, 0), 1.0, 0.0),
        (0.0, (4, -3), 1.0, 0.0),
        (0.0, (0, 0), 0.9, 0.0),
        (0.0, (0, 0), 1.1, 0.0),
        (0.0, (0, 0), 1.0, 5.0),
        (-7.0, (2, 5), 1.07, -4.0),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_equals_torchvision_affine(faces, rotation_deg, translate_px, scale, shear_deg, flip):
    image = faces[:1].float() / 255
    expected = tv.affine(
        tv.horizontal_flip(image) if flip else image,
        angle=rotation_deg,
        translate=list(translate_px),
        scale=scale,
        shear=[shear_deg, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    ours = warp(image, matrices(rotation_deg, translate_px, scale, shear_deg, flip), 48)
    # Compare only where both sample inside the image: torchvision blends the fill colour into the border pixels.
    inside = tv.affine(
        torch.ones_like(image),
        angle=rotation_deg,
        translate=list(translate_px),
        scale=scale,
        shear=[shear_deg, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    interior = inside > 0.999
    assert interior.float().mean() > 0.7
    assert (ours - expected)[interior].abs().max() <= 1 / 255


@pytest.mark.parametrize("image_size", [32, 48, 64, 128])
def test_identity_when_off(faces, image_size):
    ours = BatchAugment()(faces, torch.arange(8), seed=0, epoch=0, image_size=image_size)
    torch.testing.assert_close(ours, resize(faces, image_size), atol=2e-5, rtol=0)


def test_enlarging_to_the_size_of_pretrained_networks_is_a_single_warp(faces, monkeypatch):
    def second_step(*_, **__):
        raise AssertionError("interpolated a second time")

    monkeypatch.setattr(torch.nn.functional, "interpolate", second_step)
    out = BatchAugment(**BASELINE)(faces, torch.arange(8), seed=0, epoch=0, image_size=224)
    assert out.shape == (8, 1, 224, 224)


def test_resize_at_48_keeps_every_pixel(faces):
    assert torch.equal(resize(faces, 48), faces.float() / 255)
    assert torch.equal(NoAugment()(faces, torch.arange(8), 0, 0, 48), faces.float() / 255)


def test_flip_is_the_image_or_its_exact_mirror(faces):
    ours = BatchAugment(flip_prob=0.5)(faces, torch.arange(8), seed=1, epoch=0, image_size=48)
    plain, mirror = faces.float() / 255, faces.flip(-1).float() / 255
    is_plain = ((ours - plain).abs().amax(dim=(1, 2, 3)) < 1e-5).tolist()
    is_mirror = ((ours - mirror).abs().amax(dim=(1, 2, 3)) < 1e-5).tolist()
    assert [a != b for a, b in zip(is_plain, is_mirror, strict=True)] == [True] * 8
    assert 0 < sum(is_mirror) < 8


def test_64_equal_images_give_64_different_results(faces):
    same = faces[:1].expand(64, -1, -1, -1)
    ours = BatchAugment(**BASELINE)(same, torch.arange(64), seed=0, epoch=0, image_size=48)
    assert len({image.numpy().tobytes() for image in ours}) == 64


def test_draws_depend_on_seed_epoch_and_image_alone(faces):
    augment = BatchAugment(**BASELINE)
    index = torch.arange(8)
    whole = augment(faces, index, seed=3, epoch=2, image_size=64)
    # With other images, another order and another batch size.
    shuffled = torch.tensor([5, 0, 7])
    torch.testing.assert_close(augment(faces[shuffled], index[shuffled], 3, 2, 64), whole[shuffled])
    for seed, epoch in ((4, 2), (3, 1)):
        assert (augment(faces, index, seed, epoch, 64) - whole).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_parameters_stay_within_their_ranges():
    """The centre of a white square shows how far each image was shifted."""
    image = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    image[..., 20:28, 20:28] = 255
    many = image.expand(500, -1, -1, -1)
    ours = BatchAugment(translate_frac=0.1)(many, torch.arange(500), seed=0, epoch=0, image_size=48)
    position = torch.arange(48) + 0.5
    centre_x = (ours.sum(dim=(1, 2)) * position).sum(dim=1) / ours.sum(dim=(1, 2, 3))
    shift = (centre_x - 24) / 48
    assert shift.abs().max() <= 0.1 + 1e-4
    assert shift.min() < -0.09
    assert shift.max() > 0.09


def test_jitter_by_hand():
    image = torch.tensor([0.2, 0.4]).view(1, 1, 1, 2)
    # brightness 1.5: 0.3 and 0.6, mean 0.45; contrast 2: 0.45 -+ 0.3
    ours = jitter(image, torch.tensor([1.5]), torch.tensor([2.0]))
    torch.testing.assert_close(ours.flatten(), torch.tensor([0.15, 0.75]))


def test_jitter_equals_torchvision(faces):
    image = faces[:1].float() / 255
    expected = tv.adjust_contrast(tv.adjust_brightness(image, 1.2), 0.8)
    torch.testing.assert_close(jitter(image, torch.tensor([1.2]), torch.tensor([0.8])), expected)


def test_erase_by_hand():
    ours = erase(torch.zeros(1, 1, 10, 10), torch.tensor([0.4]), torch.tensor([[0.5, 0.3]]))
    expected = torch.zeros(10, 10)
    expected[1:5, 3:7] = 0.5  # centre 5 right and 3 down, 4 wide
    assert torch.equal(ours[0, 0], expected)


def test_sampling_grid_is_affine_grid():
    drawn = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        sampling_grid(drawn, 7), torch.nn.functional.affine_grid(drawn, [5, 1, 7, 7], align_corners=False)
    )


def test_black_outside_the_image():
    ours = warp(torch.ones(1, 1, 48, 48), matrices(translate_px=(12.0, 0.0)), 48)
    # The edge pixel is repeated once; everything beyond is black.
    torch.testing.assert_close(ours[0, 0, 0], torch.cat([torch.zeros(11), torch.ones(37)]))


def test_normalise_by_hand():
    assert normalise(torch.tensor([0.0, 0.5, 1.0]), 0.5, 0.5).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"flip_prob": 1.5}, "flip_prob=1.5"),
        ({"rotation_deg": -1.0}, "rotation_deg=-1.0"),
        ({"scale": (1.1, 0.9)}, "scale=[1.1, 0.9]"),
        ({"scale": (0.0, 1.0)}, "scale=[0.0, 1.0]"),
    ],
)
def test_values_out_of_range_are_errors(options, named):
    with pytest.raises(UserError) as error:
        BatchAugment(**options)
    assert named in str(error.value)


def test_torchvision_draws_are_reproducible_and_leave_the_generator_alone(faces):
    from torchvision.transforms import v2

    augment = TorchvisionAugment([v2.RandomHorizontalFlip(0.5), v2.RandomAffine(10, translate=(0.1, 0.1))])
    index = torch.arange(8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = augment(faces, index, seed=3, epoch=2, image_size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(augment(faces[4:6], index[4:6], 3, 2, 64), whole[4:6])
    assert not torch.equal(augment(faces, index, 3, 3, 64), whole)
    same = augment(faces[:1].expand(64, -1, -1, -1), torch.arange(64), 0, 0, 48)
    assert len({image.numpy().tobytes() for image in same}) > 60


def test_torchvision_transforms_may_scale_to_float_themselves():
    from torchvision.transforms import v2

    images = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8)
    augment = TorchvisionAugment([v2.ToDtype(torch.float32, scale=True)])
    out = augment(images, torch.arange(4), seed=0, epoch=0, image_size=24)
    torch.testing.assert_close(out, resize(images, 24))
