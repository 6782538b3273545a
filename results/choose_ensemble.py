"""Choose the members of an ensemble and its test-time augmentation on PublicTest.

    python results/choose_ensemble.py A.ckpt B.ckpt ... --out ensemble_choice.json

predicts PublicTest with every network and every set of views, and scores the mean of the probabilities of every
subset of the networks. The most accurate one is written, and printed as the command that tests it. Precision and
memory format are those of train.py.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch

from fer_lightning import hardware
from fer_lightning.data.faces import VAL, Faces, select_rows
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.errors import UserError
from fer_lightning.evaluation.evaluate import held_out_predictions
from fer_lightning.evaluation.scores import Predictions, ensemble
from fer_lightning.exit import exit_code
from fer_lightning.experiment.record import git_commit
from fer_lightning.files import Json, write_json
from fer_lightning.inference.classifier import Classifier, load_checkpoint
from fer_lightning.models.tta import VIEWS
from fer_lightning.text import format_table, percent


def load_members(ckpts: Sequence[str], faces: Faces) -> dict[str, Classifier]:
    """Load networks that were trained on these faces, on this split.

    Raises:
        UserError: a file is not a checkpoint of this project, or its network was trained on other data.
    """
    members = {ckpt: load_checkpoint(ckpt) for ckpt in ckpts}
    for ckpt, clf in members.items():
        same_data = clf.data_fingerprint in (None, faces.fingerprint)  # older checkpoints have none
        if not same_data or clf.classes != faces.classes:
            raise UserError(
                f"{ckpt} was trained on other data or another split, so it may have seen images of "
                f"{faces.split_names[VAL]}. Leave it out, or name its data with --data."
            )
    return members


def predict(clf: Classifier, validation: Faces) -> dict[str, Predictions]:
    """Predict the images of a validation split with every set of views: key of VIEWS -> predictions."""
    clf.net.to(memory_format=torch.channels_last)
    kind = clf.device.type
    mixed = hardware.choose_precision(kind)[0] == "bf16-mixed"
    with torch.autocast(kind, torch.bfloat16, enabled=mixed):
        return {tta: held_out_predictions(clf, validation, tta) for tta in VIEWS}


def rank(members: Mapping[str, Mapping[str, Predictions]]) -> list[Json]:
    """Score every subset of the members with every set of views.

    Args:
        members: checkpoint -> the result of `predict`; at least one.

    Returns:
        {"ckpt", "tta", "accuracy"}, the best first; of equals, the one with fewer members, then the first of VIEWS.
    """

    def accuracy(subset: Sequence[str], tta: str) -> float:
        mean = ensemble([members[ckpt][tta] for ckpt in subset])
        return (mean.logits.argmax(dim=1) == mean.labels).double().mean().item()

    ranking = [
        {"ckpt": list(subset), "tta": tta, "accuracy": accuracy(subset, tta)}
        for size in range(1, len(members) + 1)
        for tta in VIEWS
        for subset in combinations(members, size)
    ]
    return sorted(ranking, key=lambda row: -row["accuracy"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of sys.argv, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python results/choose_ensemble.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "ckpts", metavar="CKPT", nargs="+", help="checkpoint of a network trained on the same split"
    )
    parser.add_argument("--data", metavar="PATH", help="zip, folder or CSV; default: FER2013_PATH, then ./data")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="JSON file to write")
    return exit_code(
        lambda rest: _choose(parser.parse_args(rest)), sys.argv[1:] if arguments is None else arguments
    )


def _choose(args: argparse.Namespace) -> int:
    # What may fail comes before the work.
    args.out.parent.mkdir(parents=True, exist_ok=True)
    faces = load_faces(args.data, download=False)
    validation = select_rows(faces, faces.usage == VAL)
    members = load_members(args.ckpts, faces)
    numbers = {ckpt: str(number) for number, ckpt in enumerate(members, start=1)}
    predictions = {}
    for ckpt, clf in members.items():
        predictions[ckpt] = predict(clf, validation)
        print(f"{numbers[ckpt]}: {ckpt}", flush=True)
    ranking = rank(predictions)
    split = faces.split_names[VAL]
    rows = [
        [percent(row["accuracy"]), row["tta"], " ".join(numbers[ckpt] for ckpt in row["ckpt"])]
        for row in ranking[:10]
    ]
    print(format_table([split, "tta", "members"], rows))
    report = {
        "command": shlex.join(["python", "results/choose_ensemble.py", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "split": split,
        "n": len(validation),
        "data_fingerprint": faces.fingerprint,
        "chosen": ranking[0],
        "alone": [row for row in ranking if len(row["ckpt"]) == 1],
    }
    write_json(args.out, report)
    ckpts = ",".join(ranking[0]["ckpt"])
    settings = ["stages=[test]", f"ckpt=[{ckpts}]", f"tta={ranking[0]['tta']}"]
    settings += [f"data.path={args.data}"] if args.data else []
    print(shlex.join(["python", "train.py", *settings]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
