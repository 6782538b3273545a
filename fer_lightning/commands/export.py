"""Export a network for other programs as ONNX, pt2 or TorchScript.

The exported graph maps grey faces, uint8 (N, 1, H, W), any number of any size, to probabilities, float32 (N, C), of
the C classes. It includes resizing, normalisation and softmax; its metadata contains the class names. The file is
written only if its probabilities agree with those of the network in PyTorch. With --int8 this is checked before
quantisation, and the accuracy of both is printed. ONNX needs pip install -e ".[export]".
"""

import argparse
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import (
    add_class_arguments,
    add_network_arguments,
    label_settings,
    load_network,
    log,
    write_file,
)
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.data.faces import Faces

_CHECKED_FACES = 256
_CALIBRATION_FACES = 512


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning export``."""
    add_network_arguments(parser, positional=True, device=False)
    parser.add_argument(
        "--format",
        choices=("onnx", "pt2", "torchscript"),
        default="onnx",
        help="file format (default: %(default)s)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantise the convolutions and linear layers of an ONNX file to 8 bits, calibrated on training "
        "images, and print the accuracy before and after",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: named after the network, in this folder)"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="FER-2013 for the check: zip, tar, CSV or folder (default: $FER2013_PATH, then ./data, else synthetic "
        "faces)",
    )
    add_class_arguments(parser, "those of the network and all emotions that occur")


def run(args: argparse.Namespace) -> int:
    """Export the network, compare it with PyTorch and write the file."""
    import numpy as np

    from fer_lightning.data.classes import columns_of
    from fer_lightning.data.faces import TEST, TRAIN
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
        raise UserError(f"--int8 needs --format onnx, got --format {args.format}.")
    clf = load_network(args)
    faces = _load_faces(args, clf.classes)
    tested = faces.usage == TEST
    split = faces.split_names[TEST]

    if not tested.any() or (args.int8 and not (faces.usage == TRAIN).any()):
        raise UserError(f"{faces.source} lacks test images for the check, or training images for --int8.")

    log(f"exporting to {args.format} (seconds for a small network, minutes for a large one)")
    content = export(clf, args.format)
    exported = load_exported(content, args.format)
    checked = faces.images[tested][:: ceil(tested.sum() / _CHECKED_FACES)]
    difference = largest_difference(exported, clf, checked)
    if not difference <= TOLERANCE:  # also true for NaN
        raise UserError(
            f"the exported probabilities differ from PyTorch's by up to {difference:.1e}, more than "
            f"{TOLERANCE:.0e}. Nothing was written. Try another --format."
        )
    print(f"largest difference from PyTorch: {difference:.1e}, on {len(checked)} faces of {faces.dataset}, {split}")

    if args.int8:
        training = faces.images[faces.usage == TRAIN]
        small = quantise(content, training[:: ceil(len(training) / _CALIBRATION_FACES)])
        variants = {
            "float32": (content, probabilities(exported, faces.images[tested])),
            "int8": (small, probabilities(load_exported(small, "onnx"), faces.images[tested])),
        }
        columns = columns_of(faces.classes, clf.classes)
        variants = {name: (file, predicted[:, columns]) for name, (file, predicted) in variants.items()}
        labels, reference = faces.labels[tested], variants["float32"][1].argmax(axis=1)
        rows = []
        for name, (file, predicted) in variants.items():
            classes = predicted.argmax(axis=1)
            accuracy, agreement = np.mean(classes == labels), np.mean(classes == reference)
            rows.append([name, f"{accuracy:.2%}", f"{agreement:.2%}", f"{_kib(file)} KiB"])
        print(format_table([f"{split} (n = {len(labels):,})", "accuracy", "agreement", "file"], rows))
        content = small

    name = Path(args.ckpt).stem if args.ckpt else args.model
    path = args.out or Path(f"{name}.int8.onnx" if args.int8 else f"{name}.{args.format}")
    print(f"faces: uint8 (N, 1, H, W) -> probabilities: float32 (N, {len(clf.classes)})")
    print(", ".join(clf.classes))
    write_file(path, write_atomically, content)
    return 0


def _load_faces(args: argparse.Namespace, classes: Sequence[str]) -> "Faces":
    """Load FER-2013, or generate synthetic faces if it is not found and no labels are needed.

    For ``--int8``, which prints accuracies, images of other classes than the network's are left out.
    """
    from fer_lightning.data.classes import class_set_of, restrict, shared_classes
    from fer_lightning.data.fer2013 import load_faces
    from fer_lightning.data.lookup import FacesNotFound
    from fer_lightning.data.synthetic import synthetic_faces
    from fer_lightning.emotions import EMOTIONS

    known = args.classes or (None if classes == EMOTIONS else class_set_of([classes]))
    try:
        faces = load_faces(args.data, download=False, classes=known, **label_settings(args))
    except FacesNotFound:
        if args.int8:
            raise
        return synthetic_faces(n_train=0, n_val=0, n_test=_CHECKED_FACES)
    if not args.int8:
        return faces
    shared = shared_classes([classes], faces.classes)
    if shared != faces.classes:
        log(f"note: accuracies on the {len(shared)} classes that network and data share: {', '.join(shared)}")
    return restrict(faces, shared)


def _kib(content: bytes) -> str:
    return f"{len(content) / 1024:,.0f}"
