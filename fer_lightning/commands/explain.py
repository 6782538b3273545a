"""Where in a face the network sees the emotion: a Grad-CAM picture of each.

Each PATH is a photo, whose faces are found first, or a face already cut out. A face's picture shows it as the
network gets it, the parts that speak for the emotion (Selvaraju et al. 2017) and the seven probabilities.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_network_arguments, load_network, tell, untaken
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_lightning.inference.classifier import Classifier, Prediction


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning explain``."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photos, or faces cut out")
    add_network_arguments(parser)
    parser.add_argument("--no-detect", action="store_true", help="every picture is one face, cut out already")
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("explanations"),
        metavar="DIR",
        help="where the pictures go; default %(default)s",
    )
    parser.add_argument(
        "--emotion", metavar="NAME", help="what speaks for this one; by default for the most probable"
    )


def run(args: argparse.Namespace) -> int:
    """Explains each face and writes its picture; 1 if a file could not be read."""
    from fer_lightning.drawing.style import write_png
    from fer_lightning.emotions import EMOTIONS, emotion_index
    from fer_lightning.inference.photos import crop_face, face_boxes, read_photo
    from fer_lightning.text import format_table, printable

    asked = None if args.emotion is None else emotion_index(args.emotion)
    if args.emotion is not None and asked is None:
        raise UserError(f"--emotion {args.emotion} is not one of {', '.join(EMOTIONS)}.")
    clf = load_network(args)
    rows: list[list[str]] = []
    taken: set[str] = set()
    failed = False
    try:
        for path in dict.fromkeys(args.paths):
            try:
                photo = read_photo(path)
            except UserError as error:
                tell(f"error: {printable(str(path))} cannot be read: {error}.")
                failed = True
                continue
            boxes = face_boxes(photo, not args.no_detect)
            if not boxes:
                tell(
                    f"note: {printable(str(path))}: no face was found; --no-detect takes the whole picture for one."
                )
            for box in boxes:
                drawn, predicted = _explained(clf, crop_face(photo, box), asked, path.name)
                picture = args.save / f"{untaken(path.stem, taken)}.png"
                try:
                    write_png(drawn, picture)
                except OSError as error:
                    raise UserError(f"{picture} cannot be written: {error.strerror}.") from error
                confidence = predicted.probabilities[0].max()
                rows.append([printable(picture.name), predicted.names[0], f"{confidence:.1%}"])
    finally:  # what is written is told, whatever ends it
        if rows:
            print(format_table(["picture", "emotion", "confidence"], rows))
            print(f"written: {len(rows)} in {args.save}")
    return 1 if failed else 0


def _explained(
    clf: "Classifier", face: "npt.NDArray[np.uint8]", emotion: int | None, name: str
) -> "tuple[npt.NDArray[np.uint8], Prediction]":
    """The picture of a face (H, W), for its most probable emotion if none is asked for, and what is said of it."""
    from fer_lightning.drawing.faces import explanation
    from fer_lightning.drawing.style import pixels
    from fer_lightning.inference.grad_cam import grad_cam

    predicted = clf.predict(face)
    probabilities = predicted.probabilities[0]
    emotion = int(predicted.labels[0]) if emotion is None else emotion
    title = f"{name}: {predicted.names[0]}, {probabilities.max():.0%}"
    figure = explanation(face, grad_cam(clf, face, [emotion])[0], probabilities, emotion, title)
    return pixels(figure), predicted
