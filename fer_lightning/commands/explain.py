"""Show which parts of a face drive the predicted emotion, using Grad-CAM.

Each PATH is a photo, in which faces are detected first, or an image of one cropped face. A picture is written for
each face: the face as the network sees it, the parts that raise the emotion's score (Grad-CAM, Selvaraju et al.
2017) and the probabilities.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_network_arguments, load_network, log, unique_name
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_lightning.inference.classifier import Classifier, Prediction


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning explain``."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photo or cropped face")
    add_network_arguments(parser)
    parser.add_argument("--no-detect", action="store_true", help="treat each image as one cropped face")
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("explanations"),
        metavar="DIR",
        help="folder for the pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--emotion", metavar="NAME", help="emotion to explain (default: the most probable one of each face)"
    )


def run(args: argparse.Namespace) -> int:
    """Write a picture of each face; return 1 if a file could not be read."""
    from fer_lightning.data.classes import class_index
    from fer_lightning.drawing.style import write_png
    from fer_lightning.inference.faces import is_small
    from fer_lightning.inference.photos import crop_face, face_regions, note_about, read_photo
    from fer_lightning.text import format_table, printable

    clf = load_network(args)
    requested = None if args.emotion is None else class_index(args.emotion, clf.classes)
    if args.emotion is not None and requested is None:
        raise UserError(f"--emotion={args.emotion}: expected one of {', '.join(clf.classes)}.")
    rows: list[list[str]] = []
    taken: set[str] = set()
    failed = False
    try:
        for path in dict.fromkeys(args.paths):
            try:
                photo = read_photo(path)
            except UserError as error:
                log(f"error: {printable(str(path))} cannot be read: {error}.")
                failed = True
                continue
            regions = face_regions(photo, not args.no_detect)
            if note := note_about(photo, (region.turn_deg for region in regions)):
                log(f"note: {printable(str(path))}: {note}.")
            if not regions:
                log(
                    f"note: {printable(str(path))}: no face found. Use --no-detect to treat the whole image as one."
                )
            for region in regions:
                picture, prediction = _explain(clf, crop_face(photo, region), requested, path.name)
                out = args.save / f"{unique_name(path.stem, taken)}.png"
                try:
                    write_png(picture, out)
                except OSError as error:
                    raise UserError(f"{out} cannot be written: {error.strerror}.") from error
                confidence = prediction.probabilities[0].max()
                emotion = prediction.names[0] + " (too small)" * is_small(region.box)
                rows.append([printable(out.name), emotion, f"{confidence:.1%}"])
    finally:  # list the pictures already written, even after an error or Ctrl-C
        if rows:
            print(format_table(["picture", "emotion", "confidence"], rows))
            print(f"written: {len(rows)} in {args.save}")
    return 1 if failed else 0


def _explain(
    clf: "Classifier", face: "npt.NDArray[np.uint8]", emotion: int | None, name: str
) -> "tuple[npt.NDArray[np.uint8], Prediction]":
    """Return the picture and the prediction of a face (H, W); `emotion` defaults to the most probable one."""
    from fer_lightning.drawing.faces import explanation
    from fer_lightning.drawing.style import pixels
    from fer_lightning.inference.grad_cam import grad_cam

    prediction = clf.predict(face)
    probabilities = prediction.probabilities[0]
    emotion = int(prediction.labels[0]) if emotion is None else emotion
    title = f"{name}: {prediction.names[0]}, {probabilities.max():.0%}"
    figure = explanation(face, grad_cam(clf, face, [emotion])[0], probabilities, emotion, title, clf.classes)
    return pixels(figure), prediction
