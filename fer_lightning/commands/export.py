"""A network as a file for other programs: ONNX, pt2 or TorchScript.

The graph takes grey faces as uint8 (N, 1, H, W), any number of any size, and gives probabilities as float32 (N, 7):
resizing, normalising and the softmax are inside, and the class names in its metadata. What is written has been run
and compared with the network in PyTorch. ONNX needs pip install -e ".[export]".
"""

import argparse
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_network_arguments, load_network, tell, write_file
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.data.faces import Faces

_CHECKED_FACES = 256
_CALIBRATION_FACES = 512


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning export``."""
    add_network_arguments(parser, positional=True, device=False)
    parser.add_argument(
        "--format", choices=("onnx", "pt2", "torchscript"), default="onnx", help="default %(default)s"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="convolutions and linear layers of an ONNX file in 8 bits, with their ranges from training images; "
        "tells the accuracy that is left",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default the network's name, here")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="FER-2013 to check with, a zip, CSV or folder; by default FER2013_PATH's, then ./data, and drawn "
        "faces where there is none",
    )


def run(args: argparse.Namespace) -> int:
    """Exports, checks, and writes the file."""
    import numpy as np

    from fer_lightning.data.faces import TEST, TRAIN
    from fer_lightning.emotions import EMOTIONS
    from fer_lightning.files import write_atomically
    from fer_lightning.inference.export import (
        TOLERANCE,
        export,
        largest_difference,
        load_exported,
        probabilities,
        quantise,
    )
    from fer_lightning.text import format_table

    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8 is for --format onnx, not for {args.format}.")
    clf = load_network(args)
    faces = _faces(args.data, drawn=not args.int8)
    tested = faces.usage == TEST
    split = faces.split_names[TEST]

    if not tested.any() or (args.int8 and not (faces.usage == TRAIN).any()):
        raise UserError(f"{faces.source} lacks test images for the check, or training images for --int8.")

    tell(f"exporting to {args.format}, which takes seconds for a small network and minutes for a large one")
    content = export(clf, args.format)
    exported = load_exported(content, args.format)
    checked = faces.images[tested][:: ceil(tested.sum() / _CHECKED_FACES)]
    difference = largest_difference(exported, clf, checked)
    if not difference <= TOLERANCE:
        raise UserError(
            f"The exported network's probabilities differ from PyTorch's by up to {difference:.1e}, more than "
            f"{TOLERANCE:.0e}: nothing was written. Try another --format."
        )
    print(f"largest difference from PyTorch: {difference:.1e}, on {len(checked)} faces of {faces.dataset}, {split}")

    if args.int8:
        training = faces.images[faces.usage == TRAIN]
        small = quantise(content, training[:: ceil(len(training) / _CALIBRATION_FACES)])
        answers = {
            "float32": (content, probabilities(exported, faces.images[tested])),
            "int8": (small, probabilities(load_exported(small, "onnx"), faces.images[tested])),
        }
        labels, whole = faces.labels[tested], answers["float32"][1].argmax(axis=1)
        rows = []
        for name, (file, answer) in answers.items():
            said = answer.argmax(axis=1)
            rows.append(
                [name, f"{np.mean(said == labels):.2%}", f"{np.mean(said == whole):.2%}", f"{_kib(file)} KiB"]
            )
        print(format_table([f"{split} (n = {len(labels):,})", "accuracy", "same answer", "file"], rows))
        content = small

    name = Path(args.ckpt).stem if args.ckpt else args.model
    path = args.out or Path(f"{name}.int8.onnx" if args.int8 else f"{name}.{args.format}")
    print("faces: uint8 (N, 1, H, W) -> probabilities: float32 (N, 7)")
    print(", ".join(EMOTIONS))
    write_file(path, write_atomically, content)
    return 0


def _faces(path: str | None, drawn: bool) -> "Faces":
    """FER-2013, or drawn faces where it is nowhere to be found and they will do."""
    from fer_lightning.data.fer2013 import load_faces
    from fer_lightning.data.lookup import FacesNotFound
    from fer_lightning.data.synthetic import synthetic_faces

    try:
        return load_faces(path, download=False)
    except FacesNotFound:
        if not drawn:
            raise
        return synthetic_faces(n_train=0, n_val=0, n_test=_CHECKED_FACES)


def _kib(content: bytes) -> str:
    return f"{len(content) / 1024:,.0f}"
