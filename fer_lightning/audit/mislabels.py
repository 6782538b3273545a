"""Find suspect labels by confident learning from out-of-fold predictions.

C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70
(2021), arXiv:1911.00068.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.errors import UserError

FOLDS = 4
EPOCHS = 6
_MAX_UNPACKED = 2**30  # bytes of an .npz; FER-2013 takes 8 million
_MAX_LR = 4e-3  # peak of Adam's one-cycle schedule (Smith and Topin 2017)


def confident_labels(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the class that each image confidently belongs to, or its label if there is none.

    An image confidently belongs to class j if its probability of j reaches the mean probability of j over the
    images labelled j. If several classes qualify, the most probable one counts. Because each class has its own
    threshold, a class that the network underestimates is not suspected as a whole. Where the result differs from
    the label, the image is off the diagonal of the confident joint (section 3.1), and the label is suspect.

    Args:
        probabilities: float (N, C), predicted for each image by a network that was not trained on it.
        labels: int64 (N,), the given labels.

    Returns:
        int64 (N,).
    """
    thresholds = np.array(
        [
            probabilities[labels == j, j].mean() if (labels == j).any() else np.inf
            for j in range(probabilities.shape[1])
        ]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), labels)


def read_probabilities(path: Path, ids: Sequence[str], n_classes: int) -> npt.NDArray[np.floating[Any]]:
    """Read out-of-fold probabilities from an .npz file.

    Args:
        path: a file with the arrays ids, (N,), and probabilities, float (N, C), in any order of images.
        ids: ids of the images to return.
        n_classes: C, the number of classes.

    Returns:
        float (len(ids), C), in the order of `ids`.

    Raises:
        UserError: the file is unreadable, lacks some of the images, or its values are not probabilities.
    """
    remedy = "Write it with numpy.savez(FILE, ids=ids, probabilities=p)."
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked <= _MAX_UNPACKED:
            with np.load(path, allow_pickle=False) as arrays:
                names, probabilities = arrays["ids"], arrays["probabilities"]
    except Exception as error:  # zipfile and NumPy raise almost any type for damaged files
        raise UserError(f"--probabilities {path} cannot be read ({error}). {remedy}") from error
    if unpacked > _MAX_UNPACKED:
        raise UserError(f"--probabilities {path}: would unpack to {unpacked / 2**30:,.1f} GiB. {remedy}")
    if names.ndim != 1:
        raise UserError(f"--probabilities {path}: expected ids of shape (N,), got {names.shape}. {remedy}")
    if probabilities.shape != (len(names), n_classes) or not np.issubdtype(probabilities.dtype, np.floating):
        raise UserError(
            f"--probabilities {path}: expected probabilities of shape ({len(names)}, {n_classes}) and a float "
            f"dtype for {len(names)} ids, got {probabilities.shape} and {probabilities.dtype}."
        )
    # False for NaN, too.
    valid = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-2)
    if not valid.all():
        raise UserError(
            f"--probabilities {path}: {int((~valid).sum())} rows are not probabilities, the first is that of "
            f"{str(names[~valid][0])!r}. Each row needs values from 0 to 1 that sum to 1, e.g. a softmax."
        )
    row_of = {str(name): row for row, name in enumerate(names)}
    if missing := [name for name in ids if name not in row_of]:
        raise UserError(
            f"--probabilities {path}: no row for {len(missing)} of {len(ids)} images, the first is {missing[0]!r}."
        )
    ordered: npt.NDArray[np.floating[Any]] = probabilities[[row_of[name] for name in ids]]
    return ordered


def assign_folds(groups: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """Assign each group to a random fold.

    Args:
        groups: int64 (N,), for each image the row that identifies its group.
        seed: seed of the assignment.

    Returns:
        int64 (N,), 0 to FOLDS - 1; equal for all images of a group.
    """
    from fer_lightning.data.philox import permutation

    folds: npt.NDArray[np.int64] = permutation(seed, 0, len(groups)).numpy()[groups] % FOLDS
    return folds


def out_of_fold_probabilities(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    n_classes: int,
    log: Callable[[str], None],
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """Predict every image with a small network trained on the other folds, on the CPU.

    The network has three convolutions on 24x24 px and 27,000 parameters. Each of the FOLDS folds is trained for
    EPOCHS epochs. On all of FER-2013, this takes 130 seconds on one core and reaches 52% accuracy.

    Args:
        images: uint8 (N, 48, 48).
        labels: int64 (N,).
        groups: int64 (N,), rows; equal for images that must share a fold, because a network that was trained on a
            copy of an image has seen its label.
        n_classes: C, the number of classes.
        log: receives a progress line after each fold.
        seed: seed of the folds and of the training.

    Returns:
        float32 (N, C), rows that sum to 1.

    Raises:
        UserError: there are fewer than 100 images.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fer_lightning.data.philox import permutation, uniforms

    n = len(labels)
    if n < 100:
        raise UserError(f"{n} images are too few: searching for suspect labels needs at least 100.")
    x = F.avg_pool2d(torch.tensor(images)[:, None].float(), 2).sub_(128).div_(64)
    y = torch.tensor(labels)
    fold = torch.tensor(assign_folds(groups, seed))
    batch_size = min(128, max(8, n // 256))  # small datasets get as many steps as FER-2013
    probabilities = np.empty((n, n_classes), np.float32)
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
            net.extend([nn.Flatten(), nn.Linear(64 * 3 * 3, n_classes)])
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
            predicted = torch.cat([net(x[batch]).softmax(dim=1) for batch in torch.split(tested, 1024)])
        probabilities[tested.numpy()] = predicted.numpy()
        accuracy = (predicted.argmax(dim=1) == y[tested]).float().mean().item()
        log(f"fold {held_out + 1}/{FOLDS}: trained on {len(rows)}, accuracy {accuracy:.2%} on {len(tested)}")
    return probabilities
