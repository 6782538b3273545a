"""HTML page of an evaluation: every number of `to_json`, curves and example images."""

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
from fer_lightning.evaluation.corruptions import corrupt
from fer_lightning.evaluation.evaluate import Evaluation
from fer_lightning.evaluation.report import comparison_table, describe_calibration, split_table
from fer_lightning.evaluation.statistics import BINS
from fer_lightning.files import Json
from fer_lightning.models.tta import n_views
from fer_lightning.text import percent


def evaluation_page(evaluation: Evaluation, report: Json) -> str:
    """Render an evaluation as a self-contained HTML document.

    Args:
        evaluation: the evaluation.
        report: the result of `to_json(evaluation)`.
    """
    split = escape(report["split"])
    title = f"Evaluation of {evaluation.network}"
    low, high = report["accuracy_95"]
    splits_header, splits = split_table(report)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{report["dataset"]}, {escape(report["source"])}<br>fingerprint '
        f"{report['data_fingerprint']}<br>{report['parameters']:,} parameters; tta={report['tta']}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in report["notes"]),
        f"<p>Accuracy on {split}: <b>{percent(report['accuracy'])}</b> of {report['n']:,} images; 95% confidence "
        f"interval {percent(low)} to {percent(high)}.</p>",
        table(splits_header, _escaped(splits)),
        '<p class="faint">Leak-free images are those whose pixels occur in no other split; of strict ones, no near '
        "copy (the same photo cropped, compressed or mirrored) occurs there either. The 95% intervals are Wilson "
        f"score intervals (Wilson 1927).{_about_own_tta(report)}</p>",
        *_comparison(report),
        *_classes(evaluation, report),
        *_calibration(report),
        *_robustness(evaluation, report),
        *_mistakes(evaluation, report),
    ]
    return page(title, "\n".join(body))


def _about_own_tta(report: Json) -> str:
    """Return the sentence that explains the column of the network's own test-time augmentation, if there is one."""
    if not report["with_own_tta"]:
        return ""
    tta = report["with_own_tta"]["tta"]
    return (
        f" tta={tta} is the network's own test-time augmentation: the mean prediction for {n_views(tta)} views of "
        "each image. All that follows is with one view."
    )


def _comparison(report: Json) -> list[str]:
    if not report["comparison"]:
        return []
    header, rows = comparison_table(report)
    return [
        "<h2>Comparison</h2>",
        f"<p>Compared with {escape(report['comparison']['against'])} on the same images. p is the mid-p value of "
        "McNemar's test (Fagerland et al. 2013): the probability that two networks of equal accuracy differ at "
        "least this much.</p>",
        table(header, _escaped(rows)),
    ]


def _classes(evaluation: Evaluation, report: Json) -> list[str]:
    logits, labels, _ = evaluation.test
    precisions, recalls, _ = multiclass_precision_recall_curve(logits.softmax(dim=1), labels, logits.shape[1])
    occurring = {i: name for i, name in enumerate(report["classes"]) if report["per_class"][name]["n"]}
    rows = [
        [
            escape(name),
            f"{row['n']:,}",
            *(percent(row[key]) for key in ("precision", "recall", "f1", "average_precision")),
        ]
        for name, row in report["per_class"].items()
    ]
    curves = precision_recall_curves(
        {name: (recalls[i].numpy(), precisions[i].numpy()) for i, name in occurring.items()},
        {name: report["per_class"][name]["average_precision"] for name in occurring.values()},
        {name: report["per_class"][name]["n"] / report["n"] for name in occurring.values()},
    )
    matrix = confusion_matrix(np.array(report["confusion"]), f"Confusion on {report['split']}", report["classes"])
    return [
        "<h2>Classes</h2>",
        table([escape(report["split"]), "n", "precision", "recall", "F1", "average precision"], rows),
        chart(
            pixels(matrix),
            "Confusion matrix: rows are true classes, columns are predicted ones",
            inverts=False,
        ),
        "<p>Precision and recall as the decision threshold varies; average precision (AP) is the area under the "
        "curve. The dotted line is the class's share of the images, the precision of random guessing.</p>",
        chart(pixels(curves), "Precision-recall curve of each class; the table lists the average precision"),
    ]


def _calibration(report: Json) -> list[str]:
    calibration = report["calibration"]
    panels = {"before": calibration["before"]}
    if calibration["after"]:
        panels[f"after, T = {calibration['temperature']:.2f}"] = calibration["after"]
    return [
        "<h2>Calibration</h2>",
        "<p>A calibrated network is right on 70% of the images that it predicts with 70% confidence. The expected "
        f"calibration error (ECE) is the mean gap between confidence and accuracy over {BINS} confidence bins. "
        "Dividing the logits by a temperature changes the confidences but not the predicted classes (Guo et al. "
        "2017).</p>",
        f'<p class="note">{escape(describe_calibration(calibration))}</p>',
        chart(pixels(reliability_diagram(panels)), "Reliability diagram: accuracy by confidence"),
        '<p class="faint">Bars show the accuracy of each bin, dots its mean confidence and accuracy. Below the '
        "dashed line, the network is overconfident.</p>",
    ]


def _robustness(evaluation: Evaluation, report: Json) -> list[str]:
    rows = [
        [name, *map(percent, row["accuracy"]), percent(row["mean_accuracy"])]
        for name, row in report["robustness"].items()
    ]
    face = evaluation.faces.images[evaluation.test_rows[:1]]
    strips = [
        figure(
            np.hstack([face[0], *(corrupt(face, name, strength)[0] for strength in row["strengths"])]),
            f"{name}; {row['parameter']}: {', '.join(f'{strength:g}' for strength in row['strengths'])}",
        )
        for name, row in report["robustness"].items()
    ]
    curves = robustness_curves(report["robustness"], report["accuracy"])
    return [
        "<h2>Robustness</h2>",
        f"<p>Accuracy on {escape(report['split'])} when every image is corrupted, at five strengths (after "
        f"Hendrycks and Dietterich 2019): {percent(report['mean_corrupted_accuracy'])} on average over all "
        f"corruptions and strengths, {percent(report['accuracy'])} on the clean images.</p>",
        table(["strength", *"12345", "mean"], rows),
        chart(pixels(curves), "Accuracy by corruption strength; the table lists the numbers"),
        "<p>The first face of the split, clean and then corrupted, weakest first:</p>",
        f'<div class="cards strips">{"".join(strips)}</div>',
    ]


def _mistakes(evaluation: Evaluation, report: Json) -> list[str]:
    row_of = {name: row for row, name in enumerate(evaluation.faces.ids)}
    cards = "\n".join(
        '<div class="card">'
        + figure(
            evaluation.faces.images[row_of[mistake["id"]]],
            f'<span class="warn">{escape(mistake["predicted"])} {mistake["confidence"]:.1%}</span><br>'
            f"true: <b>{escape(mistake['label'])}</b><br>"
            f'<span class="faint">{escape(mistake["id"]).replace("/", "/<wbr>").replace("_", "_<wbr>")}</span>',
        )
        + "</div>"
        for mistake in report["mistakes"]
    )
    return [
        "<h2>Most confident mistakes</h2>",
        f"<p>{len(report['mistakes'])} of {report['n_mistakes']:,} mistakes. In some, the label is wrong "
        "rather than the prediction.</p>",
        f'<div class="cards">\n{cards}\n</div>',
    ]


def _escaped(rows: list[list[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]
