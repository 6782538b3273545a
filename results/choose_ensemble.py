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
from torch import Tensor

from fer_lightning import hardware
from fer_lightning.data.augment import normalise, resize
from fer_lightning.data.faces import VAL, Faces
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.errors import UserError
from fer_lightning.exit import exit_code
from fer_lightning.experiment.record import git_commit
from fer_lightning.files import Json, write_json
from fer_lightning.models.checkpoint import Checkpoint, net_from, read_checkpoint
from fer_lightning.models.tta import VIEWS, predict_logits
from fer_lightning.text import format_table, percent


def read_members(ckpts: Sequence[str], faces: Faces) -> dict[str, Checkpoint]:
    """Read checkpoints of networks that were trained on these faces, on this split.

    Raises:
        UserError: a file is not a checkpoint of this project, or its network was trained on other data.
    """
    members = {ckpt: read_checkpoint(ckpt) for ckpt in ckpts}
    for ckpt, checkpoint in members.items():
        same_data = checkpoint.data_fingerprint in (None, faces.fingerprint)  # older checkpoints have none
        if not same_data or checkpoint.inputs.classes != faces.classes:
            raise UserError(
                f"{ckpt} was trained on other data or another split, so it may have seen images of "
                f"{faces.split_names[VAL]}. Leave it out, or name its data with --data."
            )
    return members


def predict(checkpoint: Checkpoint, faces: Faces, batch_size: int = 256) -> dict[str, Tensor]:
    """Predict the validation split with every set of views.

    Returns:
        key of VIEWS -> probabilities, float32 (N, C), on the CPU.
    """
    inputs = checkpoint.inputs
    kind = hardware.accelerator("auto")
    mixed = hardware.choose_precision(kind)[0] == "bf16-mixed"
    net = net_from(checkpoint).to(kind, memory_format=torch.channels_last).eval()
    parts: dict[str, list[Tensor]] = {tta: [] for tta in VIEWS}
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=mixed):
        for images in torch.from_numpy(faces.images[faces.usage == VAL]).unsqueeze(1).split(batch_size):
            batch = normalise(resize(images.to(kind), inputs.image_size), inputs.mean, inputs.std)
            for tta in VIEWS:
                parts[tta].append(predict_logits(net, batch, tta).softmax(dim=1).cpu())
    return {tta: torch.cat(probabilities) for tta, probabilities in parts.items()}


def rank(members: Mapping[str, Mapping[str, Tensor]], labels: Tensor) -> list[Json]:
    """Score every subset of the members with every set of views.

    Args:
        members: checkpoint -> the result of `predict`; at least one.
        labels: int64 (N,).

    Returns:
        {"ckpt", "tta", "accuracy"}, the best first; of equals, the one with fewer members, then the first of VIEWS.
    """

    def accuracy(subset: Sequence[str], tta: str) -> float:
        mean = torch.stack([members[ckpt][tta] for ckpt in subset]).mean(dim=0)
        return (mean.argmax(dim=1) == labels).double().mean().item()

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
    predictions = {}
    numbers = {}
    for ckpt, checkpoint in read_members(args.ckpts, faces).items():
        predictions[ckpt] = predict(checkpoint, faces)
        numbers[ckpt] = str(len(predictions))
        print(f"{numbers[ckpt]}: {ckpt}", flush=True)
    labels = torch.from_numpy(faces.labels[faces.usage == VAL])
    ranking = rank(predictions, labels)
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
        "n": len(labels),
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
