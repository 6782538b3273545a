"""How good a trained network is: intervals, calibration, robustness, and a test against another network."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_average_precision, multiclass_confusion_matrix

from fer_lightning.data.faces import TEST, VAL, Faces
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.evaluation.corruptions import CORRUPTIONS, corrupt
from fer_lightning.evaluation.scores import Predictions, confident_mistakes, score_classes, score_splits, select
from fer_lightning.inference.classifier import Classifier
from fer_lightning.text import format_table

Json = dict[str, Any]

Z95 = 1.959964  # 95% of a normal distribution lie within so many standard deviations
BINS = 15  # of confidence, as in the tables of Guo et al. 2017
MISTAKES = 28  # listed, the most confident first


def wilson_interval(hits: int, n: int) -> list[float]:
    """The 95% interval [low, high] of a share of `hits` in `n`.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Without
    any case it is [0, 1].
    """
    if not n:
        return [0.0, 1.0]
    centre = hits + Z95**2 / 2
    margin = Z95 * sqrt(hits * (n - hits) / n + Z95**2 / 4)
    return [max(0.0, (centre - margin) / (n + Z95**2)), min(1.0, (centre + margin) / (n + Z95**2))]


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's mid-p value: how likely networks of equal accuracy differ as much or more on the same images.

    M. Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional", BMC Medical Research Methodology 13 (2013). Given how many images only one
    of the two gets right, each has an even chance to be the first's. Exact, in integers.

    Args:
        only_first: images that only the first network gets right.
        only_second: images that only the second gets right.

    Returns:
        The two-sided p, 1.0 where there is no such image.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0
    ways = at_most = 1  # to choose `fewer` of n images, and that many or less
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        at_most += ways
    if only_first == only_second:
        return 1 - ways / (2 << n)
    return (2 * at_most - ways) / (1 << n)


def calibration(logits: Tensor, labels: Tensor) -> Json:
    """Whether 70% sure means right in 70% of cases.

    C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: the images
    are put into BINS bins of equal width by the confidence, the probability of the predicted class; the expected
    calibration error (ECE) is the mean over the images of their bin's gap between mean confidence and accuracy
    (equation 3).

    Args:
        logits: float (N, 7).
        labels: int64 (N,).

    Returns:
        {"ece", "loss", "bins": [{"from", "to", "n", "confidence", "accuracy"}, ...]}; the last two are None in an
        empty bin, and "loss" is the cross-entropy.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bin_of = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)  # (low, high], as in the paper
    bins: list[Json] = []
    ece = 0.0  # of the bins that are drawn: torchmetrics puts a confidence of exactly 1 into a sixteenth
    for i in range(BINS):
        inside = bin_of == i
        n = int(inside.sum())
        row = {"from": i / BINS, "to": (i + 1) / BINS, "n": n, "confidence": None, "accuracy": None}
        if n:
            sure, right = confidence[inside].mean().item(), (predicted == labels)[inside].double().mean().item()
            row |= {"confidence": sure, "accuracy": right}
            ece += n / len(labels) * abs(sure - right)
        bins.append(row)
    return {"ece": ece, "loss": F.cross_entropy(logits.double(), labels).item(), "bins": bins}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T from 1/20 to 20 that gives softmax(logits / T) the least cross-entropy (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1/T, and least where the logit that the network expects, the mean under its own
    probabilities, is on average that of the true class. Above it the network is too sure, and T must grow.

    Args:
        logits: float (N, 7).
        labels: int64 (N,).
    """
    logits = logits.double()
    true = logits.gather(1, labels.unsqueeze(1)).mean()
    low, high = log(1 / 20), log(20)
    for _ in range(40):
        middle = (low + high) / 2
        expected = ((logits / exp(middle)).softmax(dim=1) * logits).sum(dim=1).mean()
        low, high = (middle, high) if expected > true else (low, middle)
    return exp((low + high) / 2)


def held_out_predictions(clf: Classifier, faces: Faces, tta: str = "none") -> Predictions:
    """The classifier's answers on every image of both held-out splits."""
    rows = np.flatnonzero(np.isin(faces.usage, (VAL, TEST)))
    logits = torch.from_numpy(np.log(clf.predict(faces.images[rows], tta=tta).probabilities + 1e-30))
    return Predictions(torch.from_numpy(rows), logits, torch.from_numpy(faces.labels[rows]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network's answers; `to_json` has what follows from them."""

    network: str  # for people to read: a name or a path
    parameters: int
    val_split: str | None  # that the network's run selected it on, where that is known
    faces: Faces
    tta: str
    predictions: Predictions  # of both held-out splits
    robustness: dict[str, list[float]]  # accuracy on the test split by corruption, one for each strength
    other: str | None = None  # what it is compared with
    other_predictions: Predictions | None = None

    @property
    def test(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, 7), labels (n,) and leak-free (n,) of the test split."""
        return select(self.predictions, self.faces, (TEST,))

    @property
    def test_rows(self) -> npt.NDArray[np.int64]:
        """The rows in `faces` of the test split: (n,)."""
        return np.flatnonzero(self.faces.usage == TEST)


def evaluate(
    network: str,
    clf: Classifier,
    faces: Faces,
    tell: Callable[[str], None],
    tta: str = "none",
    against: tuple[str, Classifier] | None = None,
) -> Evaluation:
    """Asks a network about the held-out splits, and about the test split under every corruption.

    Args:
        network: what to call it.
        clf: the network.
        faces: with a test split; without a validation split there is no temperature.
        tell: called with a line after each step.
        tta: test-time augmentation, a key of tta.VIEWS, used throughout.
        against: name and network to compare it with, on the clean images.

    Raises:
        UserError: no test split; no such `tta`.
    """
    rows = np.flatnonzero(faces.usage == TEST)
    if not len(rows):
        raise UserError(f"{faces.source} has no images to test on: give it a folder test/ with class folders.")
    predictions = held_out_predictions(clf, faces, tta)
    tell(f"{network}: {len(predictions.index):,} held-out images")
    other = None
    if against is not None:
        other = held_out_predictions(against[1], faces, tta)
        tell(f"{against[0]}: the same")
    robustness = {}
    for name, corruption in CORRUPTIONS.items():
        robustness[name] = [
            float((clf.predict(corrupt(faces.images[rows], name, s), tta).labels == faces.labels[rows]).mean())
            for s in corruption.strengths
        ]
        tell(f"{name}: {' '.join(f'{accuracy:.1%}' for accuracy in robustness[name])}")
    return Evaluation(
        network=network,
        parameters=sum(parameter.numel() for parameter in clf.net.parameters()),
        val_split=clf.val_split,
        faces=faces,
        tta=tta,
        predictions=predictions,
        robustness=robustness,
        other=against[0] if against else None,
        other_predictions=other,
    )


def to_json(found: Evaluation) -> Json:
    """Every number, with the names of results.json where it has them; images by their ids.

    ``confusion[i][j]`` counts the images of class i that were taken for class j.
    """
    faces = found.faces
    logits, labels, clean = found.test
    probabilities = logits.softmax(dim=1)
    split = faces.split_names[TEST]
    splits = score_splits(found.predictions, faces)
    for scores in splits.values():
        for key in ("accuracy", "accuracy_leak_free"):
            n = scores[key.replace("accuracy", "n")]
            scores[f"{key}_95"] = wilson_interval(round(scores[key] * n), n) if n else None
    per_class = score_classes(logits, labels)
    precisions = multiclass_average_precision(probabilities, labels, NUM_CLASSES, average="none").tolist()
    for scores, average_precision in zip(per_class.values(), precisions, strict=True):
        scores["average_precision"] = average_precision if scores["n"] else None
    mistakes = confident_mistakes(labels.numpy(), probabilities.numpy())
    return {
        "network": found.network,
        "parameters": found.parameters,
        "val_split": found.val_split,
        "dataset": faces.dataset,
        "source": faces.source,
        "data_fingerprint": faces.fingerprint,
        "notes": [*faces.notes, *_selection(found)],
        "tta": found.tta,
        "split": split,
        **splits[split],
        "splits": splits,
        "per_class": per_class,
        "confusion": multiclass_confusion_matrix(logits, labels, NUM_CLASSES).tolist(),
        "calibration": _calibration(found),
        "mistakes": [
            {
                "id": faces.ids[found.test_rows[i]],
                "label": EMOTIONS[int(labels[i])],
                "predicted": EMOTIONS[int(probabilities[i].argmax())],
                "confidence": float(probabilities[i].max()),
                "leak_free": bool(clean[i]),
            }
            for i in mistakes[:MISTAKES]
        ],
        "n_mistakes": len(mistakes),
        "robustness": {
            name: {
                "parameter": CORRUPTIONS[name].parameter,
                "strengths": list(CORRUPTIONS[name].strengths),
                "accuracy": accuracies,
                "mean_accuracy": float(np.mean(accuracies)),
            }
            for name, accuracies in found.robustness.items()
        },
        "mean_corrupted_accuracy": float(np.mean(list(found.robustness.values()))),
        "comparison": _comparison(found),
    }


def _selection(found: Evaluation) -> list[str]:
    """Which of the splits has already decided which weights these are."""
    known = (found.val_split or "").split("+")
    both = [name for name in (found.faces.split_names[VAL], found.faces.split_names[TEST]) if name in known]
    if not both or found.faces.dataset != "FER-2013":  # elsewhere a split of the same name is another one
        return []
    return [f"weights selected on {'+'.join(both)} score too well on it"]


def _calibration(found: Evaluation) -> Json:
    """Before and after dividing the test split's logits by the validation split's temperature."""
    logits, labels, _ = found.test
    val_logits, val_labels, _ = select(found.predictions, found.faces, (VAL,))
    told: Json = {"before": calibration(logits, labels), "temperature": None, "fitted_on": None, "after": None}
    if len(val_labels):
        temperature = fit_temperature(val_logits, val_labels)
        told |= {
            "temperature": temperature,
            "fitted_on": found.faces.split_names[VAL],
            "after": calibration(logits / temperature, labels),
        }
    return told


def _comparison(found: Evaluation) -> Json | None:
    """`compare` with the other network; None without one."""
    if found.other_predictions is None:
        return None
    return {"against": found.other} | compare(found.predictions, found.other_predictions, found.faces)


def compare(predictions: Predictions, others: Predictions, faces: Faces) -> Json:
    """McNemar's test of two networks on the test split ("all") and on its leak-free part ("leak_free").

    Args:
        predictions: the first network's, of every image of the split.
        others: the second's, of the same images in the same order.
        faces: the dataset that their `index` points into.
    """
    logits, labels, clean = select(predictions, faces, (TEST,))
    other_logits, _, _ = select(others, faces, (TEST,))
    ours, theirs = logits.argmax(dim=1) == labels, other_logits.argmax(dim=1) == labels
    told: Json = {}
    for name, rows in (("all", torch.ones_like(clean)), ("leak_free", clean)):
        only_ours, only_theirs = int((ours & ~theirs & rows).sum()), int((theirs & ~ours & rows).sum())
        told[name] = {
            "n": int(rows.sum()),
            "both_right": int((ours & theirs & rows).sum()),
            "only_this_right": only_ours,
            "only_other_right": only_theirs,
            "p": mcnemar(only_ours, only_theirs),
        }
    return told


def format_evaluation(told: Json) -> str:
    """What `to_json` holds, for the terminal; tables are at most 80 columns wide."""
    classes = [
        [name, str(row["n"]), *(percent(row[key]) for key in ("precision", "recall", "f1", "average_precision"))]
        for name, row in told["per_class"].items()
    ]
    robust = [
        [name, *(f"{accuracy:.1%}" for accuracy in row["accuracy"]), f"{row['mean_accuracy']:.1%}"]
        for name, row in told["robustness"].items()
    ]
    parts = [
        "\n".join(
            [
                f"{told['network']} ({told['parameters']:,} parameters), tta={told['tta']}",
                f"{told['dataset']} from {told['source']}; fingerprint {told['data_fingerprint']}",
                *(f"note: {note}" for note in told["notes"]),
            ]
        ),
        format_table(["split", "n", "accuracy [95%]", "n", "leak-free [95%]"], split_rows(told)),
        format_table([told["split"], "n", "precision", "recall", "F1", "average precision"], classes),
        describe_calibration(told["calibration"]),
        format_table([f"{told['split']}, strength", *"12345", "mean"], robust),
    ]
    if told["comparison"]:
        against = f"McNemar's test on the same images, against\n{told['comparison']['against']}\n\n"
        parts.append(against + format_table(*comparison_table(told)))
    return "\n\n".join(parts)


def split_rows(told: Json) -> list[list[str]]:
    """Each split's name, n and accuracy, and the same of its leak-free part."""
    return [
        [
            name,
            *(
                cell
                for part in ("", "_leak_free")
                for cell in (str(scores[f"n{part}"]), _with_interval(scores, f"accuracy{part}"))
            ),
        ]
        for name, scores in told["splits"].items()
    ]


def describe_calibration(told: Json) -> str:
    """ECE and loss before and after the temperature, a line each."""
    before, after = told["before"], told["after"]
    text = f"Calibration: ECE {before['ece']:.2%}, loss {before['loss']:.4f}."
    if after is None:
        return f"{text}\nWithout a validation split there is no temperature."
    return (
        f"{text}\nLogits divided by {told['temperature']:.3f}, fitted on {told['fitted_on']}: "
        f"ECE {after['ece']:.2%}, loss {after['loss']:.4f}."
    )


def comparison_table(told: Json) -> tuple[list[str], list[list[str]]]:
    """Header and rows: both accuracies, what only one gets right, and p; for the split and its leak-free part."""
    rows = []
    for key, name in (("all", told["split"]), ("leak_free", "leak-free")):
        row = told["comparison"][key]
        ours, theirs = row["only_this_right"], row["only_other_right"]
        accuracies = [
            percent((row["both_right"] + only) / row["n"] if row["n"] else None) for only in (ours, theirs)
        ]
        rows.append([name, str(row["n"]), *accuracies, str(ours), str(theirs), f"{row['p']:.2g}"])
    return ["split", "n", "this", "other", "only this right", "only other right", "p"], rows


def percent(value: float | None) -> str:
    """A share with two decimals, "-" where there is none."""
    return "-" if value is None else f"{value:.2%}"


def _with_interval(scores: Json, key: str) -> str:
    if scores[key] is None:
        return "-"
    low, high = scores[f"{key}_95"]
    return f"{scores[key]:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
