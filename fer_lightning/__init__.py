"""fer-lightning: facial emotion recognition on FER-2013 with PyTorch Lightning and Hydra."""

from time import perf_counter
from typing import TYPE_CHECKING, Any

from fer_lightning.errors import UserError

# As near to the process's start as train.py gets: importing this is its first act. The first run of a process began
# with it, imports included, and takes this away; the others begin when they begin.
process_start = [perf_counter()]

__all__ = ["Classifier", "Prediction", "UserError", "load_checkpoint", "load_pretrained"]

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier, Prediction, load_checkpoint, load_pretrained
else:

    def __getattr__(name: str) -> Any:
        # They need torch, which `train.py --help` and a typo should not wait for.
        if name in __all__:
            from fer_lightning.inference import classifier

            return getattr(classifier, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
