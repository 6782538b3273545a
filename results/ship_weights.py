"""Turn a run's best checkpoint into a network that ships with the package.

    python results/ship_weights.py RUN_FOLDER NAME

writes weights/NAME.pt, the run's best weights in half precision, and weights/NAME.json, the scores of the weights
loaded from that file. PublicTest chooses the network's own test-time augmentation. Card and weights name it, and
fer-lightning evaluate reports the accuracy with it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fer_lightning.data.faces import TEST, VAL, Faces
from fer_lightning.evaluation.evaluate import held_out_predictions
from fer_lightning.evaluation.scores import score_classes, score_splits, select
from fer_lightning.exit import exit_code
from fer_lightning.files import write_json
from fer_lightning.inference.classifier import WEIGHTS, Classifier, load_checkpoint
from fer_lightning.models.tta import VIEWS
from fer_lightning.runs.folders import read_results


def halved(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Reduce a checkpoint to what ships: no optimizer state, and weights in float16.

    The vectors of batch norm keep their dtype: they are small, and a variance may exceed float16's range.
    """
    weights = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor.clone()
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("net.")
    }
    return {**{key: checkpoint[key] for key in ("epoch", "global_step", "fer_lightning")}, "state_dict": weights}


def card(clf: Classifier, faces: Faces) -> dict[str, Any]:
    """Score a network by test-time augmentation and split, and by class on the test split without augmentation.

    Its own augmentation is the one with the best accuracy on the validation split; of equals, the first of VIEWS.
    Without that split it is "none".
    """
    predictions = {tta: held_out_predictions(clf, faces, tta) for tta in VIEWS}
    scores = {tta: score_splits(predicted, faces) for tta, predicted in predictions.items()}
    validation = faces.split_names[VAL]
    logits, labels, _ = select(predictions["none"], faces, (TEST,))
    return {
        "parameters": sum(parameter.numel() for parameter in clf.net.parameters()),
        "data_fingerprint": faces.fingerprint,
        "own_tta": max(scores, key=lambda tta: scores[tta][validation]["accuracy"] or 0.0),
        "tta": scores,
        "per_class": score_classes(logits, labels, faces.classes),
    }


def ship(run_dir: Path, name: str, faces: Faces) -> dict[str, Any]:
    """Write weights/NAME.pt and weights/NAME.json for a run's best checkpoint; return the content of the latter."""
    source = run_dir / "checkpoints" / "best.ckpt"
    load_checkpoint(source, "cpu")  # raises a clear error if the checkpoint is invalid
    content = halved(torch.load(source, map_location="cpu", weights_only=True))
    with TemporaryDirectory() as folder:
        trial = Path(folder) / f"{name}.pt"
        torch.save(content, trial)
        scores = card(load_checkpoint(trial, "cpu"), faces)
    content["fer_lightning"]["tta"] = scores["own_tta"]
    results = {"labels": "fer2013"} | json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    kept = (
        *("experiment", "command", "seed", "labels", "val_split", "best_epoch"),
        *("train_seconds", "hardware", "git_commit"),
    )
    shipped = {key: results[key] for key in kept} | scores
    torch.save(content, WEIGHTS / f"{name}.pt")
    write_json(WEIGHTS / f"{name}.json", shipped)
    return shipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of sys.argv, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python results/ship_weights.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_FOLDER", type=Path)
    parser.add_argument("name", metavar="NAME", help="name for load_pretrained")
    parser.add_argument("--data", metavar="PATH", help="zip, folder or CSV; default: FER2013_PATH, then ./data")
    return exit_code(lambda rest: _ship(parser.parse_args(rest)), sys.argv[1:] if arguments is None else arguments)


def _ship(args: argparse.Namespace) -> int:
    from fer_lightning.data.fer2013 import load_faces

    labels = (read_results(args.run_dir) or {}).get("labels", "fer2013")
    shipped = ship(args.run_dir, args.name, load_faces(args.data, download=False, labels=labels))
    for tta, splits in shipped["tta"].items():
        print(f"tta={tta}: " + ", ".join(f"{split} {scores['accuracy']:.2%}" for split, scores in splits.items()))
    print(", ".join(f"{name} {scores['recall']:.0%}" for name, scores in shipped["per_class"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
