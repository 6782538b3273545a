"""What is wrong with a copy of FER-2013, or with a folder of class folders.

Counts by split and class, images that occur twice (exactly or nearly) within and across splits, equal images with
different labels, constant images and, on demand, labels in doubt. Nothing is downloaded or changed.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import tell, write_file
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.data.faces import Faces


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning audit``."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="zip, CSV or folder; by default FER2013_PATH's, then ./data"
    )
    parser.add_argument("--report", type=Path, metavar="HTML", help="a page with examples of each finding")
    parser.add_argument("--json", type=Path, metavar="JSON", help="every finding with all its images")
    parser.add_argument(
        "--exclude", type=Path, metavar="TXT", help="training images to leave out, for data.exclude=TXT of train.py"
    )
    parser.add_argument(
        "--kinds",
        default="leaks,conflicts,copies,constant",
        help="which training images --exclude lists: leaks (same pixels in a held-out split), conflicts (same "
        "pixels, different labels: all of them), copies (of an earlier training image), constant, near (nearly a "
        "leak or a copy), mislabels; default %(default)s",
    )
    parser.add_argument(
        "--near",
        type=int,
        metavar="BITS",
        help="images are near duplicates when their 64-bit perceptual hashes differ in at most so many bits, 0 to "
        "12; default 4, where nearly all show one photo; at 8 a quarter are different faces",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--mislabels",
        action="store_true",
        help="look for labels in doubt with the out-of-fold predictions of a small network that is trained for it: "
        "two to three minutes of a CPU core for FER-2013",
    )
    source.add_argument(
        "--probabilities",
        type=Path,
        metavar="NPZ",
        help="look for labels in doubt with your own out-of-fold predictions: arrays ids (N,) and "
        "probabilities (N, 7) in the order angry, disgust, fear, happy, sad, surprise, neutral",
    )


def run(args: argparse.Namespace) -> int:
    """Audits, prints the findings and writes the files that were asked for."""
    from fer_lightning.audit.audit import NEAR_BITS, audit, suspect_labels
    from fer_lightning.audit.findings import check_kinds, exclusions
    from fer_lightning.audit.mislabels import out_of_fold_probabilities, read_probabilities
    from fer_lightning.audit.page import audit_page
    from fer_lightning.audit.report import exclusion_list, format_audit, to_json
    from fer_lightning.files import write_atomically, write_json

    kinds = args.kinds.split(",")
    check_kinds(kinds)
    faces = _load(args.path)
    found = audit(faces, NEAR_BITS if args.near is None else args.near)
    if args.mislabels:
        found = suspect_labels(found, out_of_fold_probabilities(faces.images, faces.labels, found.near, tell))
    elif args.probabilities:
        found = suspect_labels(found, read_probabilities(args.probabilities, faces.ids))
    listed = exclusions(found, kinds)
    print(format_audit(found))
    if args.report:
        write_file(args.report, write_atomically, audit_page(found))
    if args.json:
        write_file(args.json, write_json, to_json(found))
    if args.exclude:
        write_file(args.exclude, write_atomically, exclusion_list(faces, listed))
    return 0


def _load(path: str | None) -> "Faces":
    """The faces; unreadable images are listed in a note, for an audit must not end at the first fault."""
    from fer_lightning.data.fer2013 import load_faces

    try:
        return load_faces(path, download=False)
    except UserError as error:
        faces = load_faces(path, download=False, skip_bad=True)  # raises again what skipping does not cure
        return replace(faces, notes=(str(error), *faces.notes))
