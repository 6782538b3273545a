"""Counter-based random numbers: the same (seed, epoch, image index) always gives the same draw.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a
counter into random bits without any state. The counter is (image index, epoch, block, stream), the key is the seed.
An image's draws therefore do not depend on batch size, number of processes or interruptions, and checkpoints need
no generator state.
"""

import torch
from torch import Tensor

AUGMENT, ORDER, TORCH_SEED, BALANCE, MIXUP = (
    0,
    1,
    2,
    3,
    4,
)  # streams, one per purpose, so that no two uses share bits

# Constants from the paper: multipliers and the Weyl increments of the key.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ten rounds of Philox, which give four words of 32 random bits for each counter.

    Args:
        counter: four int64 tensors of broadcastable shapes, values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32), on the counter's device.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps modulo 2^64, which keeps all 64 bits of a product of two 32-bit words; the mask clears the
        # sign bits that the shift brings in.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(seed: int, epoch: int, index: Tensor, blocks: int, stream: int) -> Tensor:
    """Return random 32-bit words for each image.

    Args:
        seed: any 64-bit integer.
        epoch: epoch number, from 0.
        index: int64 (B,), the images' rows in the dataset.
        blocks: number of Philox blocks, four words each.
        stream: AUGMENT, ORDER, TORCH_SEED, BALANCE or MIXUP.

    Returns:
        int64 (B, 4 * blocks), uniform in [0, 2^32), on the device of `index`.
    """
    block = torch.arange(blocks, device=index.device)
    counter = (
        index[:, None].expand(-1, blocks),
        torch.full_like(block, epoch),
        block,
        torch.full_like(block, stream),
    )
    return torch.stack(philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=-1).flatten(1)


def uniforms(seed: int, epoch: int, index: Tensor, n: int) -> Tensor:
    """Return `n` uniform numbers in [0, 1) for each image.

    Args:
        seed: any 64-bit integer.
        epoch: epoch number, from 0.
        index: int64 (B,), the images' rows in the dataset.
        n: numbers per image.

    Returns:
        float32 (B, n) on the device of `index`; see `to_unit`.
    """
    return to_unit(words(seed, epoch, index, -(-n // 4), AUGMENT)[:, :n])


def to_unit(bits: Tensor) -> Tensor:
    """Turn random words, int64 in [0, 2^32), into float32 in [0, 1): multiples of 2^-24, so none rounds to 1.0."""
    return (bits >> 8).float() * 2.0**-24


def permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the order of an epoch: int64 (n,), a permutation of 0 .. n - 1 that depends only on seed and epoch."""
    bits = words(seed, epoch, torch.arange(n, device=device), 1, ORDER)
    # With 63 random bits per image, 10^6 images have a tie with probability 5e-8, and the stable sort settles it.
    keys = (bits[:, 0] << 31) ^ bits[:, 1]
    return torch.argsort(keys, stable=True)
