"""Check a dataset for duplicates, leaks between splits and wrong labels.

The dataset is a copy of FER-2013 or a folder of class folders. The report lists image counts by split and class,
exact and near copies within and across splits, copies with different labels, constant, dark, bright and blurred
images and, on request, images without a detectable face and suspicious labels. Nothing is downloaded or changed.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_class_arguments, label_settings, log, write_file
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_lightning.data.faces import Faces


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning audit``."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="zip, tar, CSV or folder (default: $FER2013_PATH, then ./data)"
    )
    parser.add_argument("--report", type=Path, metavar="HTML", help="write a page with examples of each finding")
    parser.add_argument("--json", type=Path, metavar="JSON", help="write all findings with all their images")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="CSV",
        help="write one line per image: id, split, label, findings, the groups of its copies, suggested label",
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        metavar="TXT",
        help="write a list of training images to leave out, for data.exclude=TXT of train.py",
    )
    parser.add_argument(
        "--kinds",
        default="leaks,conflicts,copies,constant",
        help="kinds of training images that --exclude lists, separated by commas: leaks (same pixels as a held-out "
        "image), conflicts (all images with the same pixels but different labels), copies (same pixels as an "
        "earlier training image), constant (all pixels equal), near (near copies of a held-out or an earlier "
        "training image), dark, bright, blurred, mislabels (default: %(default)s)",
    )
    parser.add_argument(
        "--faces",
        action="store_true",
        help='look for images in which the face detector finds nothing; needs pip install -e ".[photo]", and one '
        "to two minutes for FER-2013",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--mislabels",
        action="store_true",
        help="look for suspicious labels with out-of-fold predictions of a small network, which is trained first: "
        "two to three minutes on one CPU core for FER-2013",
    )
    source.add_argument(
        "--probabilities",
        type=Path,
        metavar="NPZ",
        help="look for suspicious labels with your own out-of-fold predictions: arrays ids (N,) and "
        "probabilities (N, classes) in the order of --classes, by default angry, disgust, fear, happy, sad, "
        "surprise, neutral",
    )
    parser.add_argument(
        "--relabel",
        type=Path,
        metavar="CSV",
        help="with --mislabels or --probabilities: write the suggested labels of training images, for "
        "data.relabel=CSV of train.py; look through them first",
    )
    add_class_arguments(parser, "those of the labels")


def run(args: argparse.Namespace) -> int:
    """Audit the dataset, print the findings and write the requested files."""
    from fer_lightning.audit.audit import audit, suspect_labels
    from fer_lightning.audit.findings import check_kinds, exclusions
    from fer_lightning.audit.mislabels import out_of_fold_probabilities, read_probabilities
    from fer_lightning.audit.page import audit_page
    from fer_lightning.audit.report import exclusion_list, format_audit, relabel_list, to_csv, to_json
    from fer_lightning.files import write_atomically, write_json

    kinds = args.kinds.split(",")
    check_kinds(kinds)
    if args.faces:
        from fer_lightning.inference.detector import require_detector

        require_detector()
    faces = _load(args)
    result = audit(faces)
    if args.faces:
        result = replace(result, faceless=_faceless(faces))
    if args.mislabels:
        n_classes = len(faces.classes)
        found = out_of_fold_probabilities(faces.images, faces.labels, result.near, n_classes, log)
        result = suspect_labels(result, found)
    elif args.probabilities:
        result = suspect_labels(result, read_probabilities(args.probabilities, faces.ids, len(faces.classes)))
    excluded = exclusions(result, kinds)
    relabelled = relabel_list(result) if args.relabel else ""
    print(format_audit(result))
    if args.report:
        write_file(args.report, write_atomically, audit_page(result))
    if args.json:
        write_file(args.json, write_json, to_json(result))
    if args.csv:
        write_file(args.csv, write_atomically, to_csv(result))
    if args.exclude:
        write_file(args.exclude, write_atomically, exclusion_list(faces, excluded))
    if args.relabel:
        write_file(args.relabel, write_atomically, relabelled)
    return 0


def _faceless(faces: "Faces") -> "npt.NDArray[np.bool_]":
    from fer_lightning.audit.quality import has_no_face
    from fer_lightning.inference.detector import find_faces

    log("looking for faces")
    return has_no_face(faces.images, lambda photo: [region.box for region in find_faces(photo, try_turns=False)])


def _load(args: argparse.Namespace) -> "Faces":
    """Load the faces; list unreadable images in a note, because an audit must not stop at the first one."""
    from fer_lightning.data.fer2013 import load_faces

    load = partial(load_faces, args.path, download=False, classes=args.classes, **label_settings(args))
    try:
        return load()
    except UserError as error:
        faces = load(skip_bad=True)  # raises again for other errors
        return replace(faces, notes=(str(error), *faces.notes))
