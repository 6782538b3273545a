"""Draws the README's curves from the results files beside this script: python results/draw.py."""

import json
from pathlib import Path

from fer_lightning import plots

HERE = Path(__file__).resolve().parent

ours = json.loads((HERE / "baseline" / "results.json").read_text(encoding="utf-8"))
original = json.loads((HERE / "original.json").read_text(encoding="utf-8"))
figure = plots.history_curves(
    ours["history"],
    "FERModel0, 20 epochs, against the original's table",
    references={"original": original["history"]},
    val_split=ours["val_split"],
)
plots.write_png(plots.pixels(figure), HERE / "figures" / "baseline.png")
