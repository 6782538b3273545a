"""Philox compared with published test vectors, and the numbers drawn from it."""

import pytest
import torch

from fer_lightning.data.philox import permutation, philox4x32, uniforms


# Known-answer vectors of the Random123 library (kat_vectors, philox4x32 with 10 rounds).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, expected):
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert [word.item() for word in philox4x32((c0, c1, c2, c3), (key[0], key[1]))] == expected


def test_uniforms_are_uniform_and_independent():
    draws = uniforms(seed=0, epoch=0, index=torch.arange(20_000), n=6).double()
    assert draws.shape == (20_000, 6)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Five standard errors: 0.002 each for the mean, 0.007 for a correlation.
    assert (draws.mean(dim=0) - 0.5).abs().max() < 0.0103
    assert (draws.var(dim=0) - 1 / 12).abs().max() < 0.003
    correlation = torch.corrcoef(draws.T) - torch.eye(6)
    assert correlation.abs().max() < 0.036


def test_a_prefix_of_the_numbers_stays_the_same():
    index = torch.tensor([3, 9])
    assert torch.equal(uniforms(1, 2, index, 9)[:, :5], uniforms(1, 2, index, 5))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (2**32, 0), (-1, 0)])
def test_seed_and_epoch_change_the_draws(seed, epoch):
    index = torch.arange(100)
    assert not torch.equal(uniforms(seed, epoch, index, 1), uniforms(0, 0, index, 1))
    assert not torch.equal(permutation(seed, epoch, 100), permutation(0, 0, 100))


def test_permutation_has_each_image_once_and_is_reproducible():
    order = permutation(seed=5, epoch=3, n=1000)
    assert order.sort().values.tolist() == list(range(1000))
    assert torch.equal(order, permutation(seed=5, epoch=3, n=1000))
    # A random permutation has one fixed point on average.
    assert (order == torch.arange(1000)).sum() < 10
