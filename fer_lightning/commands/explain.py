"""Where in a face the network sees the emotion: a Grad-CAM picture of each.

Each file is one upright face, cut out of its photo as in FER-2013. Its picture shows the face, the parts that speak
for the emotion (Selvaraju et al. 2017) and the seven probabilities.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_network_arguments, load_network, tell
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning explain``."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image files of faces")
    add_network_arguments(parser)
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
    from fer_lightning import plots
    from fer_lightning.emotions import EMOTIONS, emotion_index
    from fer_lightning.grad_cam import grad_cam
    from fer_lightning.output import format_table

    asked = None if args.emotion is None else emotion_index(args.emotion)
    if args.emotion is not None and asked is None:
        raise UserError(f"--emotion {args.emotion} is not one of {', '.join(EMOTIONS)}.")
    pictures = _pictures(args.paths, args.save)
    clf = load_network(args)
    rows = []
    for path, picture in pictures.items():
        try:
            face = _face(path)
        except UserError as error:
            tell(f"error: {error}")
            continue
        predicted = clf.predict(face)
        emotion = int(predicted.labels[0]) if asked is None else asked
        confidence = predicted.probabilities[0].max()
        figure = plots.explanation(
            face,
            grad_cam(clf, face, [emotion])[0],
            predicted.probabilities[0],
            emotion,
            f"{path.name}: {predicted.names[0]}, {confidence:.0%}",
        )
        try:
            plots.write_png(plots.pixels(figure), picture)
        except OSError as error:
            raise UserError(f"{picture} cannot be written: {error.strerror}.") from error
        rows.append([picture.name, predicted.names[0], f"{confidence:.1%}"])
    if rows:
        print(format_table(["picture", "emotion", "confidence"], rows))
        print(f"written: {len(rows)} in {args.save}")
    return 0 if len(rows) == len(pictures) else 1


def _pictures(paths: list[Path], folder: Path) -> dict[Path, Path]:
    """Each file once, with the picture that it gets."""
    pictures: dict[Path, Path] = {}
    for path in paths:
        name, number = path.stem, 2
        while folder / f"{name}.png" in (taken for other, taken in pictures.items() if other != path):
            name, number = f"{path.stem}-{number}", number + 1
        pictures[path] = folder / f"{name}.png"
    return pictures


def _face(path: Path) -> "npt.NDArray[np.uint8]":
    """The face in a file, grey (H, W): the whole image. Faces found in whole photos come in here.

    Raises:
        UserError: it cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not an image, or a damaged one"
        raise UserError(f"{path} cannot be read: {why}.") from error
