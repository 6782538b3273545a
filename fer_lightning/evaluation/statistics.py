"""Statistics of right and wrong answers: intervals, tests and calibration."""

from math import exp, log, sqrt

import torch.nn.functional as F
from torch import Tensor

from fer_lightning.files import Json

Z95 = 1.959964  # 95% of a normal distribution lie within so many standard deviations
BINS = 15  # of confidence, as in the tables of Guo et al. 2017


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
