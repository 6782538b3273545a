"""Measure the search for near copies on FER-2013 and write near_copies.json beside this script.

``python results/near_copies.py`` takes about five minutes and 4 GB of memory on 2 cores.
"""

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces, first_copies, seen_elsewhere
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.near_copies import copied_elsewhere, near_pairs
from fer_lightning.files import write_json

Images = npt.NDArray[np.uint8]
FILE = Path(__file__).with_suffix(".json")
ORIGINALS = 500  # images that are copied in every way
LARGE = 460_000


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Return a function that compresses an image."""

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return compress


def crop(left: int, top: int, right: int, bottom: int) -> Callable[[Image.Image], Image.Image]:
    """Return a function that cuts pixels off each side and enlarges the rest to 48x48."""
    return lambda image: image.resize((48, 48), Image.Resampling.BILINEAR, (left, top, 48 - right, 48 - bottom))


def watermark(opacity: float) -> Callable[[Image.Image], Image.Image]:
    """Return a function that writes across the lower third of an image."""

    def mark(image: Image.Image) -> Image.Image:
        marked = image.copy()
        ImageDraw.Draw(marked).text((1, 30), "stock.co", fill=230)
        return Image.blend(image, marked, opacity)

    return mark


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg, quality 30": jpeg(30),
    "jpeg, quality 70": jpeg(70),
    "crop by 1 px on all sides": crop(1, 1, 1, 1),
    "crop by 2 px on all sides": crop(2, 2, 2, 2),
    "crop by 3 px on all sides": crop(3, 3, 3, 3),
    "crop by 3 px on one side": crop(3, 0, 0, 0),
    "crop by 3 px on two sides": crop(3, 3, 0, 0),
    "at 32x32 and back": lambda image: image.resize((32, 32)).resize((48, 48)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored, crop by 2 px, jpeg, quality 50": lambda image: jpeg(50)(
        crop(2, 2, 2, 2)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ),
    "40 grey levels brighter": lambda image: image.point(lambda grey: min(grey + 40, 255)),
    "contrast x 0.6": lambda image: image.point(lambda grey: round((grey - 128) * 0.6 + 128)),
    "gamma 0.6": lambda image: image.point(lambda grey: round(255 * (grey / 255) ** 0.6)),
    "watermark, opacity 30%": watermark(0.3),
    "watermark, opacity 60%": watermark(0.6),
    "watermark, opacity 100%": watermark(1.0),
}


def recall(images: Images) -> dict[str, float]:
    """Return the share of 500 random images whose copy is found among all others, by the way of copying."""
    chosen = np.random.default_rng(0).choice(len(images), ORIGINALS, replace=False)
    found = {}
    for way, change in WAYS.items():
        copies = np.stack([np.asarray(change(Image.fromarray(images[row]))) for row in chosen])
        pairs = {tuple(pair) for pair in near_pairs(np.concatenate([images, copies])).tolist()}
        found[way] = sum((int(row), len(images) + i) in pairs for i, row in enumerate(chosen)) / ORIGINALS
    return found


def varied(images: Images, n: int) -> Images:
    """Return n images: the given ones rotated by up to 25 degrees, enlarged by up to 40% and moved."""
    rng = np.random.default_rng(1)
    varied = np.empty((n, 48, 48), np.uint8)
    for i in range(n):
        angle, zoom = rng.uniform(-25, 25) * np.pi / 180, rng.uniform(1, 1.4)
        a, b = np.cos(angle) / zoom, np.sin(angle) / zoom
        x, y = 24 + rng.uniform(-5, 5, 2)
        coefficients = (a, b, x - 24 * (a + b), -b, a, y - 24 * (a - b))
        varied[i] = Image.fromarray(images[i % len(images)]).transform(
            (48, 48), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
    return varied


def cost(n: int) -> None:
    """Print the seconds, CPU seconds, memory and pairs of a search among n images as JSON."""
    faces = load_faces(download=False)
    images = np.array(faces.images) if n == len(faces) else varied(faces.images, n)
    first = first_copies(faces) if n == len(faces) else None
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = perf_counter()
    pairs = near_pairs(images, first)
    seconds = perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "images": n,
        "pairs": len(pairs),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "additional_memory_mb": (after.ru_maxrss - before.ru_maxrss) // 1024,
    }
    print(json.dumps(measured))


def copied(faces: Faces, near: npt.NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Count the held-out images that have an exact copy, and an exact or near one, in another split."""
    counts = {}
    for late, early in (
        (VAL, (TRAIN,)),
        (TEST, (TRAIN,)),
        (TEST, (VAL,)),
        (VAL, (TRAIN, TEST)),
        (TEST, (TRAIN, VAL)),
    ):
        # Move the images of the split that is not compared into the one that is counted.
        usage = np.where(np.isin(faces.usage, early), faces.usage, late).astype(np.uint8)
        compared, counted = replace(faces, usage=usage), faces.usage == late
        counts[f"{faces.split_names[late]} in {' or '.join(faces.split_names[split] for split in early)}"] = {
            "exact": int((seen_elsewhere(compared, [late]) & counted).sum()),
            "exact or near": int((copied_elsewhere(compared, [late], near) & counted).sum()),
        }
    return counts


def main() -> None:
    """Measure everything; each search for its cost runs in its own process."""
    faces = load_faces(download=False)
    first = first_copies(faces)
    near = near_pairs(faces.images, first)
    same_label = faces.labels[near[:, 0]] == faces.labels[near[:, 1]]
    commands = [[sys.executable, __file__, str(n)] for n in (len(faces), 4 * len(faces), LARGE)]
    outputs = [subprocess.run(command, check=True, capture_output=True).stdout for command in commands]
    write_json(
        FILE,
        {
            "data_fingerprint": faces.fingerprint,
            "pairs": len(near),
            "pairs_with_the_same_label": int(same_label.sum()),
            "copied": copied(faces, near),
            "recall": recall(faces.images[np.unique(first)]),
            "cost": [json.loads(output) for output in outputs],
            "cores": os.cpu_count(),
        },
    )


if __name__ == "__main__":
    cost(int(sys.argv[1])) if len(sys.argv) > 1 else main()
