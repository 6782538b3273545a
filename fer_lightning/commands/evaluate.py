"""Evaluate a network on held-out images, those of FER-2013 by default.

Prints accuracy with its 95% interval, also without leaked images, and beside it the accuracy with the network's own
test-time augmentation; scores of each class, calibration before and after temperature scaling, robustness to seven
corruptions at five strengths each and, with --against, a paired test against another network. The HTML report adds
curves, the confusion matrix and the most confident mistakes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import (
    add_class_arguments,
    add_network_arguments,
    add_tta_argument,
    label_settings,
    load_checkpoint,
    load_network,
    log,
    write_file,
)
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.data.faces import Faces
    from fer_lightning.inference.classifier import Classifier


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning evaluate``."""
    add_network_arguments(parser, positional=True)
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="zip, tar, CSV or folder (default: $FER2013_PATH, then ./data); synthetic: the demo's faces",
    )
    add_class_arguments(parser, "those of the networks and all emotions that occur; the shared ones are compared")
    parser.add_argument(
        "--skip-bad", action="store_true", help="drop unusable images, as data.skip_bad=true does in training"
    )
    parser.add_argument(
        "--report", type=Path, metavar="HTML", help="write a page with curves, confusion matrix and mistakes"
    )
    parser.add_argument("--json", type=Path, metavar="JSON", help="write all numbers")
    parser.add_argument(
        "--against",
        metavar="CKPT",
        help="test whether accuracy differs significantly from that of another checkpoint or pretrained network",
    )
    add_tta_argument(parser, default=None)


def run(args: argparse.Namespace) -> int:
    """Evaluate the network, print the numbers and write the requested files."""
    from fer_lightning.data.classes import class_set, restrict, shared_classes
    from fer_lightning.evaluation.evaluate import evaluate, to_json
    from fer_lightning.evaluation.page import evaluation_page
    from fer_lightning.evaluation.report import format_evaluation
    from fer_lightning.files import write_atomically, write_json
    from fer_lightning.models.tta import check_tta

    if args.tta is not None:
        check_tta(args.tta)
    clf = load_network(args)
    against = (args.against, load_checkpoint(args.against, args.device)) if args.against else None
    networks = [clf, *([against[1]] if against else [])]
    faces = _load_faces(args, networks)
    if faces.dataset == "FER-2013" and clf.classes == class_set("ferplus").names:
        note = "The network's classes are those of FER+, tested on FER-2013's own labels; see --labels ferplus."
        faces = replace(faces, notes=(*faces.notes, note))
    shared = shared_classes([network.classes for network in networks], faces.classes)
    if any(names != shared for names in (faces.classes, *(network.classes for network in networks))):
        note = f"Compared on the {len(shared)} classes that network and data share: {', '.join(shared)}."
        faces, clf = restrict(replace(faces, notes=(*faces.notes, note)), shared), clf.restricted_to(shared)
        against = (against[0], against[1].restricted_to(shared)) if against else None
    evaluation = evaluate(args.ckpt or args.model, clf, faces, log, args.tta, against)
    report = to_json(evaluation)
    print(format_evaluation(report))
    if args.report:
        write_file(args.report, write_atomically, evaluation_page(evaluation, report))
    if args.json:
        write_file(args.json, write_json, report)
    return 0


def _load_faces(args: argparse.Namespace, networks: "Sequence[Classifier]") -> "Faces":
    """Return the faces that ``--data`` names."""
    from fer_lightning.data.fer2013 import load_held_out
    from fer_lightning.data.synthetic import synthetic_faces

    if args.data == "synthetic" and not Path(args.data).exists():
        if args.classes or args.rename or args.skip_bad or args.labels != "fer2013" or args.ferplus:
            raise UserError(
                "--data synthetic: the classes of drawn faces are fixed. Leave out --classes, --rename, --labels, "
                "--ferplus and --skip-bad."
            )
        return synthetic_faces()
    return load_held_out(
        args.data,
        networks=[network.classes for network in networks],
        trained_on=[network.data_fingerprint for network in networks],
        classes=args.classes,
        skip_bad=args.skip_bad,
        **label_settings(args),
    )
