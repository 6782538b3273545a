"""How good a network is: a report on the held-out images, with intervals.

Accuracy with its 95% interval and its leak-free twin, each class, calibration before and after temperature
scaling, robustness under seven corruptions at five strengths each, and on demand a paired test against another
checkpoint. The page also has the curves, the confusion matrix and the most confident mistakes.
"""

import argparse
from pathlib import Path

from fer_lightning.commands import (
    add_network_arguments,
    add_tta_argument,
    load_network,
    tell,
    write_file,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning evaluate``."""
    add_network_arguments(parser, positional=True)
    parser.add_argument("--data", metavar="PATH", help="zip, CSV or folder; by default FER2013_PATH's, then ./data")
    parser.add_argument("--report", type=Path, metavar="HTML", help="a page with curves, matrix and mistakes")
    parser.add_argument("--json", type=Path, metavar="JSON", help="every number")
    parser.add_argument(
        "--against",
        metavar="CKPT",
        help="another checkpoint, or a network that ships: whether the two differ by more than chance",
    )
    add_tta_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the numbers and writes the files that were asked for."""
    from fer_lightning.data.fer2013 import load_faces
    from fer_lightning.evaluation.evaluate import evaluate, to_json
    from fer_lightning.evaluation.page import evaluation_page
    from fer_lightning.evaluation.report import format_evaluation
    from fer_lightning.files import write_atomically, write_json
    from fer_lightning.inference.classifier import checkpoint_path, load_checkpoint
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    clf = load_network(args)
    against = (args.against, load_checkpoint(checkpoint_path(args.against), args.device)) if args.against else None
    faces = load_faces(args.data, download=False)
    found = evaluate(args.ckpt or args.model, clf, faces, tell, args.tta, against)
    told = to_json(found)
    print(format_evaluation(told))
    if args.report:
        write_file(args.report, write_atomically, evaluation_page(found, told))
    if args.json:
        write_file(args.json, write_json, told)
    return 0
