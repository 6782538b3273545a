"""The project's folder, and the settings of a run that takes about a second."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMALL = [
    "data=synthetic",
    "data.n_train=112",
    "data.n_val=21",
    "data.n_test=14",
    "data.batch_size=16",
    "data.image_size=24",
    "model.channels=[4,8]",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.max_epochs=3",
    "logger=none",
    "callbacks=none",
]
