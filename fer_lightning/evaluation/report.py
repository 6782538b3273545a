"""Tables of scores for the terminal, at most 80 columns wide."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_lightning.files import Json
from fer_lightning.text import decimal, format_table, percent


def format_evaluation(report: Json) -> str:
    """Format the result of `to_json` for the terminal; tables are at most 80 columns wide."""
    classes = [
        [name, str(row["n"]), *(percent(row[key]) for key in ("precision", "recall", "f1", "average_precision"))]
        for name, row in report["per_class"].items()
    ]
    robust = [
        [name, *(f"{accuracy:.1%}" for accuracy in row["accuracy"]), f"{row['mean_accuracy']:.1%}"]
        for name, row in report["robustness"].items()
    ]
    parts = [
        "\n".join(
            [
                f"{report['network']} ({report['parameters']:,} parameters), tta={report['tta']}",
                f"{report['dataset']} from {report['source']}; fingerprint {report['data_fingerprint']}",
                *(f"note: {note}" for note in report["notes"]),
            ]
        ),
        format_table(*split_table(report)),
        format_table([report["split"], "n", "precision", "recall", "F1", "average precision"], classes),
        describe_calibration(report["calibration"]),
        format_table([f"{report['split']}, strength", *"12345", "mean"], robust),
    ]
    if report["comparison"]:
        against = f"McNemar's test on the same images against\n{report['comparison']['against']}\n\n"
        parts.append(against + format_table(*comparison_table(report)))
    return "\n\n".join(parts)


# Part of a split -> the suffix of its keys in the scores.
PARTS = {"all": "", "leak-free": "_leak_free", "strict": "_strict"}


def split_table(report: Json) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row for each part of each split: n, accuracy and, if known, that with own views."""
    header, columns = ["split", "n", "accuracy [95%]"], [report["splits"]]
    if own := report["with_own_tta"]:
        header, columns = [*header, f"tta={own['tta']} [95%]"], [*columns, own["splits"]]
    rows = [
        [
            name if part == "all" else f"  {part}",
            str(scores[f"n{key}"]),
            *(_with_interval(splits[name], f"accuracy{key}") for splits in columns),
        ]
        for name, scores in report["splits"].items()
        for part, key in PARTS.items()
    ]
    return header, rows


def describe_calibration(calibration: Json) -> str:
    """Describe ECE and loss before and after temperature scaling, one line each."""
    before, after = calibration["before"], calibration["after"]
    text = f"Calibration: ECE {before['ece']:.2%}, loss {before['loss']:.4f}."
    if after is None:
        return f"{text}\nNo validation split to fit a temperature on."
    return (
        f"{text}\nLogits divided by {calibration['temperature']:.3f}, fitted on {calibration['fitted_on']}: "
        f"ECE {after['ece']:.2%}, loss {after['loss']:.4f}."
    )


def comparison_table(report: Json) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of a comparison on the split and on its leak-free and strict parts.

    Columns are both accuracies, the images that only one network gets right, and p.
    """
    rows = []
    for key, name in (("all", report["split"]), ("leak_free", "leak-free"), ("strict", "strict")):
        row = report["comparison"][key]
        ours, theirs = row["only_this_right"], row["only_other_right"]
        accuracies = [
            percent((row["both_right"] + only) / row["n"] if row["n"] else None) for only in (ours, theirs)
        ]
        rows.append([name, str(row["n"]), *accuracies, str(ours), str(theirs), f"{row['p']:.2g}"])
    return ["split", "n", "this", "other", "only this right", "only other right", "p"], rows


def _with_interval(scores: Json, key: str) -> str:
    if scores[key] is None:
        return "-"
    low, high = scores[f"{key}_95"]
    return f"{scores[key]:.2%} [{100 * low:.1f}, {100 * high:.1f}]"


def format_results(results: Json) -> str:
    """Format results.json as the tables that end a run, at most 80 columns wide."""
    members = results["members"] or []
    tested = "best" if results["best_epoch"] is not None else "last" if "fit" in results["stages"] else "ckpt"
    if members:
        tested = "ckpts"
    splits = {f"{name} ({tested})": scores for name, scores in results["splits"].items()}
    name = results["split"]
    if results["last_epoch"]:
        splits[f"{name} (last)"] = results["last_epoch"][name]
    tables = [_scores_table("split (weights)", splits), _counts_table(results["splits"])]
    if members:
        labels = _distinct([member["ckpt"] for member in members])
        own = {label: member["splits"][name] for label, member in zip(labels, members, strict=True)}
        tables.append(_scores_table(name, own | {"ensemble": results["splits"][name]}))
    classes = [
        [
            emotion,
            str(scores["n"]),
            percent(scores["precision"]),
            percent(scores["recall"]),
            percent(scores["f1"]),
        ]
        for emotion, scores in results["per_class"].items()
    ]
    headline = f"{results['dataset']}, {results['split']} (n = {results['n']}): {percent(results['accuracy'])}"
    if members:
        headline += f", ensemble of {len(members)}"
    if results["without_tta"]:
        headline += f", tta={results['tta']}\n{percent(results['without_tta'][name]['accuracy'])} with tta=none"
    return "\n\n".join(
        [
            *tables,
            format_table([results["split"], "n", "precision", "recall", "F1"], classes),
            headline,
        ]
    )


def _scores_table(first: str, rows: Mapping[str, Json]) -> str:
    return format_table(
        [first, "accuracy", "leak-free", "strict", "macro-F1", "loss"],
        [
            [
                name,
                *(percent(scores[f"accuracy{key}"]) for key in PARTS.values()),
                decimal(scores["macro_f1"]),
                decimal(scores["loss"]),
            ]
            for name, scores in rows.items()
        ],
    )


def _counts_table(splits: Mapping[str, Json]) -> str:
    return format_table(
        ["number of images", *PARTS],
        [[name, *(str(scores[f"n{key}"]) for key in PARTS.values())] for name, scores in splits.items()],
    )


def _distinct(paths: Sequence[str]) -> list[str]:
    """Return short distinct names, at most 30 characters: a number and the path without the parts common to all."""
    parts = [Path(path).parts for path in paths]
    common = set.intersection(*map(set, parts))
    names = ["/".join(part for part in own if part not in common) for own in parts]
    return [f"{number} {name[-27:]}".rstrip() for number, name in enumerate(names, start=1)]
