"""Statistics of right and wrong predictions: confidence intervals, significance tests and calibration."""

from math import exp, log, sqrt

import torch.nn.functional as F
from torch import Tensor

from fer_lightning.files import Json

Z95 = 1.959964  # 95% of a normal distribution lies within this many standard deviations
BINS = 15  # confidence bins, as in the tables of Guo et al. 2017


def wilson_interval(hits: int, n: int) -> list[float]:
    """Return the 95% Wilson score interval [low, high] of the proportion hits / n; [0, 1] if n is 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not n:
        return [0.0, 1.0]
    centre = hits + Z95**2 / 2
    margin = Z95 * sqrt(hits * (n - hits) / n + Z95**2 / 4)
    return [max(0.0, (centre - margin) / (n + Z95**2)), min(1.0, (centre + margin) / (n + Z95**2))]


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the mid-p value of McNemar's test for two networks on the same images.

    This is the probability that networks of equal accuracy differ at least as much as observed: under the null
    hypothesis, each image that only one of them gets right is equally likely to belong to either. Computed exactly,
    in integers. M. Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary matched-pairs data: mid-p and
    asymptotic are better than exact conditional", BMC Medical Research Methodology 13 (2013).

    Args:
        only_first: number of images that only the first network gets right.
        only_second: number of images that only the second network gets right.

    Returns:
        The two-sided p; 1.0 if the networks agree on every image.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0
    ways = at_most = 1  # ways to choose exactly `fewer`, and at most `fewer`, of n images
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        at_most += ways
    if only_first == only_second:
        return 1 - ways / (2 << n)
    return (2 * at_most - ways) / (1 << n)


def calibration(logits: Tensor, labels: Tensor) -> Json:
    """Measure how well the confidences match the accuracy.

    C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. The images
    are sorted into BINS bins of equal width by confidence, the probability of the predicted class. The expected
    calibration error (ECE) is the gap between mean confidence and accuracy of each bin, averaged over the images
    (equation 3).

    Args:
        logits: float (N, C).
        labels: int64 (N,).

    Returns:
        {"ece", "loss", "bins": [{"from", "to", "n", "confidence", "accuracy"}, ...]}. "loss" is the cross-entropy;
        "confidence" and "accuracy" are None in an empty bin.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bin_of = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)  # (low, high], as in the paper
    bins: list[Json] = []
    ece = 0.0  # computed from the reported bins: torchmetrics puts a confidence of exactly 1 into a sixteenth bin
    for i in range(BINS):
        inside = bin_of == i
        n = int(inside.sum())
        row = {"from": i / BINS, "to": (i + 1) / BINS, "n": n, "confidence": None, "accuracy": None}
        if n:
            mean, right = confidence[inside].mean().item(), (predicted == labels)[inside].double().mean().item()
            row |= {"confidence": mean, "accuracy": right}
            ece += n / len(labels) * abs(mean - right)
        bins.append(row)
    return {"ece": ece, "loss": F.cross_entropy(logits.double(), labels).item(), "bins": bins}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature T that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1/T. At its minimum, the expected logit under the predicted probabilities equals
    the logit of the true class, averaged over the images. If the expected logit is larger, the network is
    overconfident and T must grow.

    Args:
        logits: float (N, C).
        labels: int64 (N,).

    Returns:
        T, between 1/20 and 20.
    """
    logits = logits.double()
    true = logits.gather(1, labels.unsqueeze(1)).mean()
    low, high = log(1 / 20), log(20)
    for _ in range(40):
        middle = (low + high) / 2
        expected = ((logits / exp(middle)).softmax(dim=1) * logits).sum(dim=1).mean()
        low, high = (middle, high) if expected > true else (low, middle)
    return exp((low + high) / 2)
