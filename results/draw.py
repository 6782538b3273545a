"""Draw the curves and the frontier of the README from the results files next to this script.

Usage: python results/draw.py
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fer_lightning.drawing.curves import history_curves
from fer_lightning.drawing.style import pixels, write_png

HERE = Path(__file__).resolve().parent
OURS, THEIRS = ("#0072B2", "o"), ("#D55E00", "D")  # Okabe and Ito's blue and vermillion


def read(name: str) -> dict[str, Any]:
    """Read a JSON file of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def baseline() -> Figure:
    """Plot the baseline's history and, dashed, the original's."""
    ours = read("baseline/results.json")
    return history_curves(
        ours["history"],
        "FERModel0, 20 epochs, against the original's table",
        references={"original": read("original.json")["history"]},
        val_split=ours["val_split"],
    )


def frontier() -> Figure:
    """Plot accuracy on PrivateTest against size and speed, for our networks and the measured peers."""
    networks = read("peers/peers.json")["networks"]
    accuracies = {name: row["splits"]["PrivateTest"]["accuracy"] for name, row in networks.items() if row["splits"]}
    # Networks that are not shipped were timed with untrained weights; their accuracy comes from their runs.
    accuracies["fast"] = fmean(
        read(f"fast/seed{seed}.json")["without_tta"]["PrivateTest"]["accuracy"] for seed in range(5)
    )
    accuracies["baseline"] = read("baseline/results.json")["last_epoch"]["PrivateTest"]["accuracy"]
    figure = Figure(figsize=(12, 4.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    speed = "images/s, one at a time on one CPU thread"
    for axes, label, ticks, number in (
        (left, "parameters", (50_000, 100_000, 200_000, 500_000), lambda row: row["parameters"]),
        (right, speed, (100, 300, 1000, 3000), lambda row: row["images_per_second"]["median"]),
    ):
        for name, row in networks.items():
            peer = name in ("fer", "face-api")
            colour, marker = THEIRS if peer else OURS
            axes.plot(number(row), accuracies[name], marker, color=colour, markersize=9)
            text = f"{name} {accuracies[name]:.1%}"
            # fer and tiny have the same size and nearly the same accuracy, so their labels would overlap.
            place = {"fer": (0, -8, "center", "top")}
            x, y, across, down = place.get(name if axes is left else "", (0, 8, "center", "bottom"))
            spot = (number(row), accuracies[name])
            axes.annotate(text, spot, (x, y), textcoords="offset points", ha=across, va=down)
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.15)
        axes.set_xticks(ticks)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(label, size=12)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("accuracy on PrivateTest", size=12)
    left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for (colour, marker), label in ((OURS, "ours"), (THEIRS, "other packages")):
        left.plot([], [], marker, color=colour, label=label)
    left.legend(loc="lower left", frameon=False)
    return figure


for name, figure in (("baseline", baseline()), ("frontier", frontier())):
    write_png(pixels(figure), HERE / "figures" / f"{name}.png")
