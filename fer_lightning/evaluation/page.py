"""An evaluation as a web page: every number of `to_json`, curves, and pictures to look at."""

import numpy as np
from torchmetrics.functional.classification import multiclass_precision_recall_curve

from fer_lightning.drawing.curves import (
    confusion_matrix,
    precision_recall_curves,
    reliability_diagram,
    robustness_curves,
)
from fer_lightning.drawing.html import chart, escape, figure, page, table
from fer_lightning.drawing.style import pixels
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.evaluation.corruptions import corrupt
from fer_lightning.evaluation.evaluate import Evaluation
from fer_lightning.evaluation.report import comparison_table, describe_calibration, split_rows
from fer_lightning.evaluation.statistics import BINS
from fer_lightning.files import Json
from fer_lightning.text import percent


def evaluation_page(found: Evaluation, told: Json) -> str:
    """A self-contained HTML document.

    Args:
        found: the evaluation.
        told: what `to_json` makes of it.
    """
    split = escape(told["split"])
    title = f"Evaluation of {found.network}"
    low, high = told["accuracy_95"]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{told["dataset"]}, {escape(told["source"])}<br>fingerprint '
        f"{told['data_fingerprint']}<br>{told['parameters']:,} parameters; tta={told['tta']}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in told["notes"]),
        f"<p><b>{percent(told['accuracy'])}</b> of {told['n']:,} images of {split} are right; 95% interval "
        f"{percent(low)} to {percent(high)}.</p>",
        table(["split", "n", "accuracy [95%]", "n", "leak-free [95%]"], _escaped(split_rows(told))),
        '<p class="faint">Leak-free are the images whose pixels occur in no other split. Intervals are '
        "Wilson's (1927).</p>",
        *_comparison(told),
        *_classes(found, told),
        *_calibration(told),
        *_robustness(found, told),
        *_mistakes(found, told),
    ]
    return page(title, "\n".join(body))


def _comparison(told: Json) -> list[str]:
    if not told["comparison"]:
        return []
    header, rows = comparison_table(told)
    return [
        "<h2>Comparison</h2>",
        f"<p>Against {escape(told['comparison']['against'])}, on the same images. p is McNemar's, mid-p (Fagerland "
        "et al. 2013): how likely two networks of equal accuracy differ as much or more.</p>",
        table(header, _escaped(rows)),
    ]


def _classes(found: Evaluation, told: Json) -> list[str]:
    logits, labels, _ = found.test
    precisions, recalls, _ = multiclass_precision_recall_curve(logits.softmax(dim=1), labels, NUM_CLASSES)
    occurring = {i: name for i, name in enumerate(EMOTIONS) if told["per_class"][name]["n"]}
    rows = [
        [name, f"{row['n']:,}", *(percent(row[key]) for key in ("precision", "recall", "f1", "average_precision"))]
        for name, row in told["per_class"].items()
    ]
    curves = precision_recall_curves(
        {name: (recalls[i].numpy(), precisions[i].numpy()) for i, name in occurring.items()},
        {name: told["per_class"][name]["average_precision"] for name in occurring.values()},
        {name: told["per_class"][name]["n"] / told["n"] for name in occurring.values()},
    )
    matrix = confusion_matrix(np.array(told["confusion"]), f"Confusion on {told['split']}")
    return [
        "<h2>Classes</h2>",
        table([escape(told["split"]), "n", "precision", "recall", "F1", "average precision"], rows),
        chart(
            pixels(matrix),
            "Confusion matrix: true emotions in rows, predicted ones in columns",
            inverts=False,
        ),
        "<p>Precision and recall as the probability that is asked for changes; average precision (AP) is the area "
        "below. Dotted is the class's share of the images, which is what guessing would give.</p>",
        chart(pixels(curves), "Precision over recall of each emotion; the table has the average precision"),
    ]


def _calibration(told: Json) -> list[str]:
    calibration = told["calibration"]
    panels = {"before": calibration["before"]}
    if calibration["after"]:
        panels[f"after, T = {calibration['temperature']:.2f}"] = calibration["after"]
    return [
        "<h2>Calibration</h2>",
        "<p>Of the images about which the network is 70% sure, are 70% right? The expected calibration error (ECE) "
        f"is the mean gap between confidence and accuracy over {BINS} bins of confidence; dividing the logits by "
        "one temperature changes the confidences and no answer (Guo et al. 2017).</p>",
        f'<p class="note">{escape(describe_calibration(calibration))}</p>',
        chart(pixels(reliability_diagram(panels)), "Accuracy by confidence"),
        '<p class="faint">Bars are the accuracy, dots the mean confidence against it; below the dashed line the '
        "network is too sure.</p>",
    ]


def _robustness(found: Evaluation, told: Json) -> list[str]:
    rows = [
        [name, *map(percent, row["accuracy"]), percent(row["mean_accuracy"])]
        for name, row in told["robustness"].items()
    ]
    face = found.faces.images[found.test_rows[:1]]
    strips = [
        figure(
            np.hstack([face[0], *(corrupt(face, name, strength)[0] for strength in row["strengths"])]),
            f"{name}; {row['parameter']}: {', '.join(f'{strength:g}' for strength in row['strengths'])}",
        )
        for name, row in told["robustness"].items()
    ]
    curves = robustness_curves(told["robustness"], told["accuracy"])
    return [
        "<h2>Robustness</h2>",
        f"<p>Accuracy on {escape(told['split'])} when every image is damaged, at five strengths (after Hendrycks "
        f"and Dietterich 2019): {percent(told['mean_corrupted_accuracy'])} in the mean over all below, "
        f"{percent(told['accuracy'])} as they are.</p>",
        table(["strength", *"12345", "mean"], rows),
        chart(pixels(curves), "Accuracy by strength of each corruption; the table has the numbers"),
        "<p>The split's first face as it is, and from the weakest damage to the strongest:</p>",
        f'<div class="cards strips">{"".join(strips)}</div>',
    ]


def _mistakes(found: Evaluation, told: Json) -> list[str]:
    row_of = {name: row for row, name in enumerate(found.faces.ids)}
    cards = "\n".join(
        '<div class="card">'
        + figure(
            found.faces.images[row_of[mistake["id"]]],
            f'<span class="warn">{mistake["predicted"]} {mistake["confidence"]:.1%}</span><br>'
            f"true: <b>{mistake['label']}</b><br>"
            f'<span class="faint">{escape(mistake["id"]).replace("/", "/<wbr>").replace("_", "_<wbr>")}</span>',
        )
        + "</div>"
        for mistake in told["mistakes"]
    )
    return [
        "<h2>Most confident mistakes</h2>",
        f"<p>{len(told['mistakes'])} of {told['n_mistakes']:,}. Some of the labels are wrong rather than the "
        "answer.</p>",
        f'<div class="cards">\n{cards}\n</div>',
    ]


def _escaped(rows: list[list[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]
