"""Find near copies: the same photo at another crop, size, contrast or compression, mirrored or with a watermark.

The rule: two images are near copies if their details (what remains after subtracting a blurred image) correlate by
at least MIN_CORRELATION once the second, or its mirror image, has been shifted and scaled onto the first. How it
was chosen, and how often it errs, is in results/near_copies.md.

The search has three steps, each for fewer pairs than the one before: images in a common neighbourhood of coarse
descriptors; descriptors that are equal but for a small shift and scaling; alignment and comparison of the images.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fer_lightning.data.cache import default_dir
from fer_lightning.data.faces import Faces, first_copies, pixel_keys
from fer_lightning.files import write_atomically

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Item = TypeVar("Item")
Result = TypeVar("Result")
Number = TypeVar("Number", bound=np.generic)

FORMAT = 1  # increase when the rule, the search or the cached file changes
# Chosen by looking at pairs on both sides: above, nearly all show the same photo; below, more and more of them show
# another frame of the same scene, or another person.
MIN_CORRELATION = 0.85
# In grey levels of 255. Below, there is nothing to compare: the face of lowest contrast in FER-2013 has a standard
# deviation of 9.1, a plain grey image with JPEG noise 0.7.
MIN_CONTRAST = 8.0

_SIDE = 24  # images are compared at 24x24 pixels, where compression and thin lettering fade
_BORDER = 2  # pixels at each edge that are not compared, because a shift moves them out of the image
_FREQUENCIES = 6  # a descriptor holds the 6x6 lowest frequencies of the discrete cosine transform without the mean
_EXHAUSTIVE = 4096  # up to this number of images, all are in one neighbourhood
_NEIGHBOURHOODS = 5  # that an image is in, of 5 √N
_MOST_COMPARED = 2048  # in larger neighbourhoods, an image is compared with the next 2048 to 4096 by distance
_MIN_COSINE = 0.91  # of a candidate's descriptor and those of the shifted and scaled image
_MOST_ALIGNED = 16  # candidates of an image, the best ones
_STEPS = 6  # of an alignment
_EARLY_STEP, _EARLY_CORRELATION = (
    3,
    0.83,
)  # an alignment is given up if the images correlate less after so many steps
_MAX_SHIFT = 3.0  # pixels at 24x24, at the centre and additionally by scaling at the edge
_BLOCK = 128  # pairs aligned at once: their arrays fit into the cache of a core


@lru_cache(maxsize=1)  # requested once for each split of a dataset
def near_copies(faces: Faces, cache_dir: str | Path | None = None) -> Rows:
    """Return the `near_pairs` of a dataset, from the cache if possible.

    Args:
        faces: the whole dataset; only its pixels matter.
        cache_dir: the cache's folder; None for `cache.default_dir()`. If it is not writable, nothing is cached.

    Returns:
        int64 (P, 2).
    """
    key = hashlib.blake2b(b"".join(pixel_keys(faces)), digest_size=16).hexdigest()
    path = (default_dir() if cache_dir is None else Path(cache_dir)) / f"near-v{FORMAT}" / key
    pairs = _load(path, len(faces))
    if pairs is None:
        pairs = near_pairs(faces.images, first_copies(faces))
        content = pairs.astype("<i8").tobytes()
        with contextlib.suppress(OSError):  # without a cache, the next start takes longer
            write_atomically(path, hashlib.sha256(content).digest() + content)
    return pairs


def _load(path: Path, n: int) -> Rows | None:
    """Return the pairs in a cached file, or None if it is missing or not as it was written for n images."""
    try:
        sealed = path.read_bytes()
    except OSError:
        return None
    digest, content = sealed[:32], sealed[32:]
    if hashlib.sha256(content).digest() != digest or len(content) % 16:
        return None
    pairs = np.frombuffer(content, "<i8").astype(np.int64).reshape(-1, 2)
    valid = (pairs[:, 0] >= 0) & (pairs[:, 0] < pairs[:, 1]) & (pairs[:, 1] < n)
    return pairs if valid.all() else None


def copied_elsewhere(faces: Faces, usages: Sequence[int], near: Rows) -> Mask:
    """Return which images of the splits `usages` have an exact or near copy in another split.

    Near copies are those of `near` only: a near copy of a near copy does not count.

    Args:
        faces: the whole dataset.
        usages: values of `Faces.usage`, the splits to check.
        near: int64 (P, 2), the `near_copies` of the dataset.

    Returns:
        bool (N,), False for every image outside `usages`.
    """
    inside = np.isin(faces.usage, usages)
    return inside & copied_among(~inside, first_copies(faces), near)


def copied_among(chosen: Mask, first: Rows, near: Rows) -> Mask:
    """Return which images have an exact or near copy among the chosen ones; these are exact copies of themselves.

    Args:
        chosen: bool (N,).
        first: int64 (N,), the `first_copies`.
        near: int64 (P, 2), the `near_copies`.

    Returns:
        bool (N,).
    """
    is_chosen = np.zeros(len(chosen), bool)
    is_chosen[first[chosen]] = True  # pairs consist of first copies
    copied = is_chosen.copy()
    copied[near[is_chosen[near[:, 1]], 0]] = True
    copied[near[is_chosen[near[:, 0]], 1]] = True
    found: Mask = copied[first]
    return found


def connected(n: int, pairs: Rows) -> Rows:
    """Return the smallest node that each of n nodes is connected to, (n,), given edges (P, 2)."""
    root = np.arange(n)
    while True:
        smaller = root.copy()
        np.minimum.at(smaller, pairs[:, 0], root[pairs[:, 1]])
        np.minimum.at(smaller, pairs[:, 1], root[pairs[:, 0]])
        smaller = smaller[smaller]
        if (smaller == root).all():
            return root
        root = smaller


def measure(
    images: npt.NDArray[np.uint8], function: Callable[[Floats], npt.NDArray[Number]]
) -> npt.NDArray[Number]:
    """Apply a function to blocks of images as floats, because all of them at once would take too much memory.

    Args:
        images: uint8 (N, H, W).
        function: float32 (B, H, W) -> (B,).

    Returns:
        The results, (N,).
    """
    starts = range(0, max(1, len(images)), 1024)
    return np.concatenate([function(images[i : i + 1024].astype(np.float32)) for i in starts])


def contrast(images: npt.NDArray[np.uint8]) -> Floats:
    """Return the standard deviation of the grey levels of images (N, H, W): float32 (N,), 0 for constant images."""
    return measure(images, lambda x: x.std(axis=(1, 2)))


def near_pairs(images: npt.NDArray[np.uint8], first: Rows | None = None) -> Rows:
    """Find the pairs of near copies among different images.

    The work grows with N^1.5, and the memory is about 3 KB per image. About 4% of the pairs that a comparison of
    all images finds are missed. Images with a contrast below MIN_CONTRAST have no near copies.

    Args:
        images: uint8 (N, 48, 48).
        first: int64 (N,), the first image with the same pixels as each; only that one is searched. None if all
            images differ.

    Returns:
        int64 (P, 2): pairs of rows of `images`, the smaller row first, sorted. For an image with very many near
        copies, they contain the most similar ones.
    """
    searched = contrast(images) >= MIN_CONTRAST
    if first is not None:
        searched &= first == np.arange(len(images))
    rows = np.flatnonzero(searched)
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64)
    pairs, mirrored = _candidates(images, rows)
    pairs = rows[pairs]

    def are_copies(start: int) -> Mask:
        block = slice(start, start + _BLOCK)
        second = _shrink(images[pairs[block, 1]])
        second[mirrored[block]] = second[mirrored[block], :, ::-1]
        return _aligned_correlation(_shrink(images[pairs[block, 0]]), second) >= MIN_CORRELATION

    found = _in_parallel(are_copies, range(0, len(pairs), _BLOCK))
    return np.unique(pairs[np.concatenate([np.zeros(0, bool), *found])], axis=0)


def _in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the results for all items, in order.

    NumPy's own threads, for large matrix products only, take several times as long on a machine that is busy.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


# Candidates


def _shrink(images: npt.NDArray[np.uint8]) -> Floats:
    """Return the means of 2x2 pixels: float32 (N, 24, 24) of images (N, 48, 48)."""
    x = images.astype(np.float32)
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / np.float32(4)


def _describe(images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return unit descriptors (N, D), and orthonormal bases (N, 5, D) of each and its changes by shift and scaling.

    Low frequencies change almost linearly with a small shift or scaling. So the descriptor of a shifted and scaled
    copy lies close to the plane spanned by the original's descriptor and its derivatives: the tangent distance of
    P. Simard, Y. LeCun and J. Denker, "Efficient Pattern Recognition Using a New Transformation Distance", 1993.
    """
    x = _shrink(images)
    frequency = np.arange(_FREQUENCIES)
    basis = np.cos(np.pi / _SIDE * np.outer(frequency, np.arange(_SIDE) + 0.5)).astype(np.float32)
    basis[0] /= np.float32(np.sqrt(2))
    # In images, amplitudes fall with frequency; the weight keeps the lowest ones from deciding everything.
    weight = np.sqrt(np.hypot(frequency, frequency[:, None])).astype(np.float32)
    dy, dx = np.gradient(x, axis=(1, 2))
    grid = np.linspace(-1, 1, _SIDE, dtype=np.float32)
    vectors = np.stack(
        [
            ((basis @ (part @ basis.T)) * weight).reshape(len(x), -1)[:, 1:]
            for part in (x, dx, dy, dx * grid, dy * grid[:, None])
        ],
        axis=2,
    )
    length = np.linalg.norm(vectors[:, :, 0], axis=1, keepdims=True)
    return vectors[:, :, 0] / length, np.linalg.qr(vectors)[0].transpose(0, 2, 1)


def _candidates(images: npt.NDArray[np.uint8], rows: Rows) -> tuple[Rows, Mask]:
    """Return pairs of `rows` to align, int64 (P, 2) indices, and whether to mirror the second image, bool (P,)."""
    n = len(rows)
    described = [_describe(images[rows[i : i + 1024]]) for i in range(0, n, 1024)]
    descriptors = np.concatenate([descriptor for descriptor, _ in described])
    planes = np.concatenate([plane for _, plane in described])
    # Mirroring an image changes the sign of its odd horizontal frequencies.
    sign = np.tile(np.where(np.arange(_FREQUENCIES) % 2, -1, 1), _FREQUENCIES)[1:].astype(np.float32)
    descriptors = np.concatenate([descriptors, descriptors * sign])  # n + i is the mirror image of i

    def compare(part_and_others: tuple[Rows, Rows]) -> tuple[Rows, Floats]:
        """Return the codes of `_best` and the scores of promising pairs."""
        part, others = part_and_others
        along = planes[part] @ descriptors[others].T
        squared = np.square(along, out=along).sum(axis=1)  # cosines of the angles to the planes
        squared[part[:, None] == others % n] = 0  # the image itself or its mirror image
        limit = np.full(len(part), _MIN_COSINE**2, np.float32)
        many = (squared >= limit[:, None]).sum(axis=1) > _MOST_ALIGNED
        if many.any():
            limit[many] = np.partition(squared[many], -_MOST_ALIGNED, axis=1)[:, -_MOST_ALIGNED]
        i, j = np.nonzero(squared >= limit[:, None])
        scores = squared[i, j]
        i, j = part[i], others[j]
        return (np.minimum(i, j % n) * n + np.maximum(i, j % n)) * 2 + (j >= n), scores

    compared = _in_parallel(compare, _comparisons(descriptors, n))
    return _best(np.concatenate([codes for codes, _ in compared]), np.concatenate([x for _, x in compared]), n)


def _comparisons(descriptors: Floats, n: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield images, below n, and the images and mirror images to compare them with, of one neighbourhood each.

    The centres of the neighbourhoods are the descriptors of images at equal distances in the dataset.
    """
    number = 5 * isqrt(n) if n > _EXHAUSTIVE else 1
    centres = descriptors[np.linspace(0, n - 1, number).astype(int)].T
    nearest = np.empty((2 * n, min(_NEIGHBOURHOODS, number)), np.int64)
    for start in range(0, 2 * n, 1024):
        cosines = descriptors[start : start + 1024] @ centres
        for column in nearest[start : start + 1024].T:  # faster than a partial sort
            column[:] = cosines.argmax(axis=1)
            np.put_along_axis(cosines, column[:, None], -2, axis=1)
    by_centre = np.argsort(nearest, axis=None, kind="stable")
    bounds = np.searchsorted(nearest.ravel()[by_centre], np.arange(1, number))
    for centre, members in enumerate(np.split(by_centre // nearest.shape[1], bounds)):
        if len(members) > _MOST_COMPARED and number > 1:
            members = members[np.argsort(descriptors[members] @ -centres[:, centre], kind="stable")]
        for start in range(0, len(members), _MOST_COMPARED):
            some = members[start : start + _MOST_COMPARED]
            some = some[some < n]
            others = members[start : start + 2 * _MOST_COMPARED]
            for i in range(0, len(some), 256):
                for j in range(0, len(others), 1024):
                    yield some[i : i + 256], others[j : j + 1024]


def _best(codes: Rows, scores: Floats, n: int) -> tuple[Rows, Mask]:
    """Return the pairs of `_candidates` that are among the _MOST_ALIGNED best of either image.

    Args:
        codes: int64 (P,), 2 * (i * n + j) + mirrored of pairs i < j, in any order and with repetitions.
        scores: float32 (P,), higher is better; the best of each pair counts.
        n: the number of images.
    """
    order = np.lexsort((-scores, codes))
    codes, scores = codes[order], scores[order]
    is_first = np.diff(codes, prepend=-1) > 0
    codes, scores = codes[is_first], scores[is_first]
    pairs = np.stack([codes // 2 // n, codes // 2 % n], axis=1)
    images = pairs.T.ravel()
    order = np.lexsort((np.tile(-scores, 2), images))
    rank = np.empty(len(images), np.int64)
    rank[order] = np.arange(len(images)) - np.searchsorted(images[order], images[order])
    kept = (rank.reshape(2, -1) < _MOST_ALIGNED).any(axis=0)
    return pairs[kept], codes[kept] % 2 == 1


# Alignment

_INNER = slice(_BORDER, _SIDE - _BORDER)
_MIDDLE = np.float32((_SIDE - 1) / 2)
_OFFSETS = np.arange(_SIDE, dtype=np.float32)[_INNER] - _MIDDLE  # of the inner pixels from the middle
_N = len(_OFFSETS)
# A matrix (20, 20) that averages over 5 pixels; at the edges, the outermost pixel is repeated.
_SHIFTED = [np.eye(_N, dtype=np.float32)[np.clip(np.arange(_N) + i, 0, _N - 1)] for i in range(-2, 3)]
_BLUR: Floats = np.mean(_SHIFTED, axis=0)


def _aligned_correlation(first: Floats, second: Floats) -> Floats:
    """Shift and scale the second images onto the first, and return the correlation of their details.

    Gauss-Newton steps reduce the sum of squared differences between the normalised images. They use derivatives of
    the first image only: S. Baker and I. Matthews, "Lucas-Kanade 20 Years On: A Unifying Framework", 2004.

    Args:
        first: float32 (P, 24, 24).
        second: float32 (P, 24, 24).

    Returns:
        float32 (P,), -1 for pairs given up early.
    """
    inner = first[:, _INNER, _INNER]
    target = _unit(inner)
    dx = (first[:, _INNER, _BORDER + 1 : 1 - _BORDER] - first[:, _INNER, _BORDER - 1 : -1 - _BORDER]) / 2
    dy = (first[:, _BORDER + 1 : 1 - _BORDER, _INNER] - first[:, _BORDER - 1 : -1 - _BORDER, _INNER]) / 2
    grid = _OFFSETS / _MIDDLE
    slopes = np.stack([dx, dy, dx * grid, dy * grid[:, None]], axis=1).reshape(len(first), 4, _N * _N)
    length: Floats = np.maximum(inner.std(axis=(1, 2), keepdims=True) * _N, 1e-6)
    slopes /= length  # (P, 1, 1)
    slopes -= slopes.mean(axis=2, keepdims=True)
    slopes -= (slopes @ target[:, :, None]) * target[:, None]  # now derivatives of the normalised image
    normal = slopes @ slopes.transpose(0, 2, 1)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6  # keeps the inverse finite for plain stripes
    solve = np.linalg.inv(normal + damping[:, None, None] * np.eye(4, dtype=np.float32)) @ slopes
    motion = np.zeros((len(first), 4), np.float32)  # right and down, at the centre and by scaling at the edge
    left = np.arange(len(first))
    for step in range(_STEPS):
        moved = _unit(_move(second, motion))
        if step == _EARLY_STEP:
            going = (target * moved).sum(axis=1) >= _EARLY_CORRELATION
            second, target, moved = second[going], target[going], moved[going]
            solve, motion, left = solve[going], motion[going], left[going]
        change = (solve @ (moved - target)[:, :, None])[:, :, 0]
        motion = np.clip(motion - change, -_MAX_SHIFT, _MAX_SHIFT)
    correlation: Floats = np.full(len(first), -1, np.float32)
    correlation[left] = (_details(inner[left]) * _details(_move(second, motion))).sum(axis=1)
    return correlation


def _move(images: Floats, motion: Floats) -> Floats:
    """Shift and scale images (P, 24, 24) by motions (P, 4); return the inner pixels, (P, 20, 20), bilinearly."""

    def weights(shift: Floats, scale: Floats) -> Floats:
        at = np.clip(_MIDDLE + _OFFSETS * (1 + scale[:, None] / _MIDDLE) + shift[:, None], 0, _SIDE - 1)
        hat: Floats = np.maximum(1 - np.abs(at[:, :, None] - np.arange(_SIDE, dtype=np.float32)), 0)
        return hat

    across, down = weights(motion[:, 0], motion[:, 2]), weights(motion[:, 1], motion[:, 3])
    moved: Floats = down @ (images @ across.transpose(0, 2, 1))
    return moved


def _unit(images: Floats) -> Floats:
    """Return images (P, 20, 20) as vectors (P, 400) of mean 0 and length 1."""
    vectors = images.reshape(len(images), _N * _N)
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return unit


def _details(images: Floats) -> Floats:
    """Return the differences of images (P, 20, 20) from their means over 5x5 pixels, as unit vectors (P, 400)."""
    return _unit(images - _BLUR @ (images @ _BLUR.T))
