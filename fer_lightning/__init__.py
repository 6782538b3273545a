"""fer-lightning: facial emotion recognition on FER-2013 with PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING, Any

from fer_lightning.errors import UserError

__version__ = "0.1.0"

__all__ = ["Classifier", "Prediction", "UserError", "load_checkpoint", "load_pretrained"]

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier, Prediction, load_checkpoint, load_pretrained
else:

    def __getattr__(name: str) -> Any:
        # Imported on first use: these need torch, and `train.py --help` and typos should be answered without it.
        if name in __all__:
            from fer_lightning.inference import classifier

            return getattr(classifier, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
