"""Labels in doubt, by confident learning from out-of-fold predictions.

C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70
(2021), arXiv:1911.00068.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError

FOLDS = 4
EPOCHS = 6
_MAX_UNPACKED = 2**30  # bytes of an .npz; that of FER-2013 has 8 million
_MAX_LR = 4e-3  # of Adam, in one cycle (Smith and Topin 2017)


def confident_labels(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The class that each image is confidently of; its label where it is of none.

    An image is confidently of class j when its probability of j reaches the mean probability of j over the images
    that are labelled j; of several such classes the likeliest counts. So each class has its own threshold, and one
    that the network underrates is not suspected wholesale. Where the result is not the label, the image is off the
    diagonal of the confident joint (section 3.1 of the paper), and its label in doubt.

    Args:
        probabilities: (N, 7), each image's by a network that was not trained on it.
        labels: (N,) as given.

    Returns:
        int64 (N,).
    """
    thresholds = np.array(
        [probabilities[labels == j, j].mean() if (labels == j).any() else np.inf for j in range(NUM_CLASSES)]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), labels)


def read_probabilities(path: Path, ids: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
    """Probabilities (N, 7) in the order of `ids`, from an .npz with the arrays ids (N,) and probabilities (N, 7).

    Raises:
        UserError: the file cannot be read, or is not about these images, or holds no probabilities.
    """
    takes = "It takes what numpy.savez(FILE, ids=ids, probabilities=p) writes."
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked <= _MAX_UNPACKED:
            with np.load(path, allow_pickle=False) as arrays:
                names, probabilities = arrays["ids"], arrays["probabilities"]
    except Exception as error:  # zipfile and NumPy raise nearly anything for what is damaged
        raise UserError(f"--probabilities {path} cannot be read ({error}). {takes}") from error
    if unpacked > _MAX_UNPACKED:
        raise UserError(f"--probabilities {path} would unpack to {unpacked / 2**30:,.1f} GiB. {takes}")
    if names.ndim != 1:
        raise UserError(f"--probabilities {path}: ids has the shape {names.shape}, not (N,). {takes}")
    if probabilities.shape != (len(names), NUM_CLASSES) or not np.issubdtype(probabilities.dtype, np.floating):
        raise UserError(
            f"--probabilities {path} has probabilities of shape {probabilities.shape} and type "
            f"{probabilities.dtype} for {len(names)} ids: ({len(names)}, {NUM_CLASSES}) floats are needed."
        )
    # Also false for NaN.
    sound = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-2)
    if not sound.all():
        raise UserError(
            f"--probabilities {path}: {int((~sound).sum())} rows are no probabilities, the first is that of "
            f"{str(names[~sound][0])!r}: numbers from 0 to 1 with the sum 1 are needed, e.g. a softmax."
        )
    row_of = {str(name): row for row, name in enumerate(names)}
    if missing := [name for name in ids if name not in row_of]:
        raise UserError(
            f"--probabilities {path} has none for {len(missing)} of {len(ids)} images, the first is {missing[0]!r}."
        )
    ordered: npt.NDArray[np.floating[Any]] = probabilities[[row_of[name] for name in ids]]
    return ordered


def assign_folds(groups: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """Folds of whole groups, by chance: int64 (N,), rows that name groups -> int64 (N,), 0 to FOLDS - 1."""
    from fer_lightning.data.philox import permutation

    folds: npt.NDArray[np.int64] = permutation(seed, 0, len(groups)).numpy()[groups] % FOLDS
    return folds


def out_of_fold_probabilities(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    tell: Callable[[str], None],
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """Probabilities of every image by a small network that was trained on the other folds, on the CPU.

    Three convolutions on 24x24 px, 27,000 parameters, trained for EPOCHS epochs in each of FOLDS folds. On all of
    FER-2013 this takes 130 seconds of one core, and 52% of the predictions are right.

    Args:
        images: (N, 48, 48).
        labels: (N,).
        groups: (N,), rows; equal for images that must share a fold, for who has seen a copy is not impartial.
        tell: called with a line after each fold.
        seed: of the folds and the training.

    Returns:
        float32 (N, 7), rows with the sum 1.

    Raises:
        UserError: too few images to train on.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fer_lightning.data.philox import permutation, uniforms

    n = len(labels)
    if n < 100:
        raise UserError(f"{n} images are too few to train on: looking for wrong labels needs 100.")
    x = F.avg_pool2d(torch.tensor(images)[:, None].float(), 2).sub_(128).div_(64)
    y = torch.tensor(labels)
    fold = torch.tensor(assign_folds(groups, seed))
    batch_size = min(128, max(8, n // 256))  # so that few images make as many steps as all of FER-2013
    probabilities = np.empty((n, NUM_CLASSES), np.float32)
    for held_out in range(FOLDS):
        rows, tested = (fold != held_out).nonzero()[:, 0], (fold == held_out).nonzero()[:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential()
            for c_in, c_out in ((1, 16), (16, 32), (32, 64)):
                net.extend(
                    [
                        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                        nn.BatchNorm2d(c_out),
                        nn.ReLU(),
                        nn.MaxPool2d(2),
                    ]
                )
            net.extend([nn.Flatten(), nn.Linear(64 * 3 * 3, NUM_CLASSES)])
        steps = -(-len(rows) // batch_size)
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MAX_LR, total_steps=EPOCHS * steps)
        for epoch in range(EPOCHS):
            for batch in torch.split(rows[permutation(seed, epoch, len(rows))], batch_size):
                mirror = uniforms(seed, epoch, batch, 1)[:, :, None, None] < 0.5
                loss = F.cross_entropy(net(torch.where(mirror, x[batch].flip(-1), x[batch])), y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        net.eval()
        with torch.inference_mode():
            answers = torch.cat([net(x[batch]).softmax(dim=1) for batch in torch.split(tested, 1024)])
        probabilities[tested.numpy()] = answers.numpy()
        accuracy = (answers.argmax(dim=1) == y[tested]).float().mean().item()
        tell(f"fold {held_out + 1} of {FOLDS}: trained on {len(rows)}, {accuracy:.2%} of {len(tested)} right")
    return probabilities
