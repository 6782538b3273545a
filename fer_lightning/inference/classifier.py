"""Trained networks for use from Python: faces in, probabilities out. Imports neither Lightning nor Hydra."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from fer_lightning import hardware
from fer_lightning.arguments import first_line
from fer_lightning.data.augment import normalise, resize
from fer_lightning.data.classes import columns_of
from fer_lightning.errors import UserError, check_at_least_one, check_probability, did_you_mean
from fer_lightning.inference.faces import DetectedFace
from fer_lightning.inference.photos import Key, predict_faces, read_photo
from fer_lightning.models.checkpoint import InputSpec, SelectClasses, net_from, read_checkpoint
from fer_lightning.models.tta import check_tta, predict_logits

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

FaceImages = npt.NDArray[np.uint8] | Tensor | Image.Image | Sequence[Image.Image]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predicted probabilities of N faces.

    Attributes:
        probabilities: float32 (N, C).
        classes: the names of the C classes.
    """

    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The most probable class of each face as an index into `classes`, int64 (N,)."""
        labels: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1).astype(np.int64)
        return labels

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each face, N strings."""
        return [self.classes[label] for label in self.labels]


class Classifier:
    """A trained network and the preprocessing of its input.

    Args:
        net: float32 (B, 1, image_size, image_size), normalised -> logits (B, C).
        inputs: image size and normalisation that `net` expects, and its classes.
        device: device to run on, e.g. "cpu" or "cuda:1"; "auto" selects the GPU if there is one.
        val_split: name of the split on which the training run selected the weights, if known.
        data_fingerprint: fingerprint of the dataset that it was trained on, if known.
        own_tta: the network's own test-time augmentation, a key of tta.VIEWS; see `Checkpoint.tta`. `fer-lightning
            evaluate` reports the accuracy with it beside that with one view; predictions use it only if asked to.

    Raises:
        UserError: the device is unknown or cannot be used, or `own_tta` is unknown.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: InputSpec,
        device: str = "auto",
        val_split: str | None = None,
        data_fingerprint: str | None = None,
        own_tta: str = "none",
    ) -> None:
        if device.partition(":")[0] not in ("auto", "gpu", "cpu", "cuda", "mps", "xpu"):
            raise UserError(f"device={device}: expected auto, cpu, cuda, cuda:1 or mps.")
        try:
            self.device = torch.device(hardware.accelerator(device))
            self.net = net.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device={device} cannot be used: {first_line(error)}") from error
        check_tta(own_tta)
        self.inputs = inputs
        self.val_split = val_split
        self.data_fingerprint = data_fingerprint
        self.own_tta = own_tta

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of the probabilities."""
        return self.inputs.classes

    def restricted_to(self, classes: Sequence[str]) -> "Classifier":
        """Return this network with some of its classes, in the given order and spelling, as its only answers."""
        if tuple(classes) == self.classes:
            return self
        net = SelectClasses(self.net, columns_of(classes, self.classes))
        inputs = replace(self.inputs, classes=tuple(classes))
        return Classifier(net, inputs, str(self.device), self.val_split, self.data_fingerprint, self.own_tta)

    def predict(self, faces: FaceImages, tta: str = "none", batch_size: int = 256) -> Prediction:
        """Predict the emotion of each face.

        Args:
            faces: a grey uint8 array or tensor, (N, H, W), (N, 1, H, W), or (H, W) for one face; or one PIL image
                or a list of them, of any mode and size. Each is one upright face, cropped as in FER-2013. Faces are
                resized to the network's input size.
            tta: test-time augmentation, a key of tta.VIEWS.
            batch_size: faces per forward pass; it changes the speed, not the result.

        Raises:
            UserError: `faces` is empty or of another form, `tta` is unknown, or `batch_size` is below 1.
        """
        check_tta(tta)
        check_at_least_one("batch_size", batch_size)
        batch = _check_faces(faces)
        probabilities = []
        with torch.inference_mode():
            for start in range(0, len(batch), batch_size):
                logits = predict_logits(self.net, self.net_input(batch[start : start + batch_size]), tta)
                probabilities.append(logits.softmax(dim=1))
            return Prediction(torch.cat(probabilities).cpu().numpy(), self.classes)

    def predict_photos(
        self,
        photos: Sequence[str | Path | BinaryIO | Image.Image],
        detect: bool = True,
        tta: str = "none",
        min_confidence: float = 0.0,
    ) -> list[list[DetectedFace]]:
        """Detect the faces in whole photos and predict the emotion of each.

        Args:
            photos: N paths, open binary files or PIL images of any mode.
            detect: detect faces, which needs ``pip install -e ".[photo]"``; otherwise treat each photo as one
                cropped face. Photos of up to photos.MAX_CROP_SIDE pixels are always treated as one.
            tta: test-time augmentation, a key of tta.VIEWS.
            min_confidence: probability below which the `doubt` of a face is "unsure".

        Returns:
            A list of faces for each of the N photos, empty if none was detected. A face has its `box` (x, y, width,
            height) in pixels of the upright photo, `emotion`, `confidence`, and `probabilities` by emotion. Its
            `doubt` is None, "too small" for faces of less than faces.SMALLEST_JUDGED pixels, or "unsure".

        Raises:
            UserError: a photo cannot be read, the detector is not installed, `tta` is unknown, or `min_confidence`
                is not a probability.
        """
        check_tta(tta)
        if isinstance(photos, str | Path):
            raise UserError(f"photos={photos}: expected a list of paths, e.g. [{str(photos)!r}].")
        keyed = ((None, _read_image(photo)) for photo in photos)
        return [faces for *_, faces in self.predict_stream(keyed, detect, tta, min_confidence=min_confidence)]

    def predict_stream(
        self,
        photos: Iterable[tuple[Key, Image.Image]],
        detect: bool = True,
        tta: str = "none",
        batch_size: int = 64,
        try_turns: bool = True,
        min_confidence: float = 0.0,
    ) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
        """Predict like `predict_photos`, but lazily, for photos that arrive one by one.

        Args:
            photos: upright RGB photos, each with a key of the caller's choice.
            detect: detect faces.
            tta: test-time augmentation, a key of tta.VIEWS.
            batch_size: photos or faces to collect before yielding their results, for a second at most.
            try_turns: also try photos without a clear face in quarter turns.
            min_confidence: as in `predict_photos`.

        Yields:
            The key, photo and faces of each photo, in input order.

        Raises:
            UserError: the detector is not installed, `tta` is unknown, or `min_confidence` is not a probability.
        """
        check_probability("min_confidence", min_confidence)
        return predict_faces(
            lambda crops: self.predict(crops, tta).probabilities,
            self.classes,
            photos,
            detect,
            batch_size,
            try_turns,
            min_confidence,
        )

    def net_input(self, faces: FaceImages) -> Tensor:
        """Return the input for N faces: normalised float32 (N, 1, image_size, image_size) on the device."""
        return normalise(self._resize(_check_faces(faces)), self.inputs.mean, self.inputs.std)

    def _resize(self, faces: npt.NDArray[np.uint8] | Tensor | list[Image.Image]) -> Tensor:
        """Convert B faces to float32 (B, 1, image_size, image_size) in [0, 1] on the device."""
        if isinstance(faces, list):  # images may differ in size
            return torch.cat([self._resize(_to_grey(face)[None]) for face in faces])
        # Copy, because a tensor cannot share memory with a read-only array or one with negative strides.
        pixels = faces if isinstance(faces, Tensor) else torch.from_numpy(faces.copy())
        return resize(pixels.to(self.device).unsqueeze(1), self.inputs.image_size)


def load_checkpoint(path: str | Path, device: str = "auto") -> Classifier:
    """Load a run's checkpoint.

    Args:
        path: checkpoint file, e.g. runs/baseline/NAME/checkpoints/best.ckpt. Loading executes no code from it.
        device: device to run on, e.g. "cpu" or "cuda:1"; "auto" selects the GPU if there is one.

    Raises:
        UserError: the file does not exist or is not a checkpoint of this project, or the device is unknown or not
            available.
    """
    checkpoint = read_checkpoint(path)
    return Classifier(
        net_from(checkpoint),
        checkpoint.inputs,
        device,
        checkpoint.val_split,
        checkpoint.data_fingerprint,
        checkpoint.tta,
    )


def pretrained_names() -> list[str]:
    """Return the names that `load_pretrained` accepts, sorted."""
    return sorted(path.stem for path in WEIGHTS.glob("*.pt"))


def checkpoint_path(name: str) -> str:
    """Return the file of the pretrained network with this name; return any other string unchanged, as a path."""
    return str(WEIGHTS / f"{name}.pt") if name in pretrained_names() else name


def load_pretrained(name: str = "best", device: str = "auto") -> Classifier:
    """Load a pretrained network that ships with the package; weights/README.md is its model card.

    Args:
        name: one of `pretrained_names`, e.g. "best".
        device: device to run on, e.g. "cpu" or "cuda:1"; "auto" selects the GPU if there is one.

    Raises:
        UserError: no pretrained network has this name, or the device is unknown or cannot be used.
    """
    names = pretrained_names()
    if name not in names:
        raise UserError(
            f"unknown pretrained network {name!r}.{did_you_mean(name, names)} Choose from {', '.join(names)}; "
            "use --ckpt or load_checkpoint for your own checkpoint."
        )
    return load_checkpoint(WEIGHTS / f"{name}.pt", device)


def _read_image(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    if not (isinstance(file, str | Path | Image.Image) or hasattr(file, "read")):
        raise UserError(
            f"photos: expected paths, open binary files or PIL images, got {type(file).__name__}. Pass arrays of "
            "cropped faces to predict."
        )
    try:
        return read_photo(file)
    except UserError as error:
        name = file if isinstance(file, str | Path) else "The image"
        raise UserError(f"{name} cannot be read: {error}.") from error


def _to_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(_read_image(image).convert("L"))


def _check_faces(faces: FaceImages) -> npt.NDArray[np.uint8] | Tensor | list[Image.Image]:
    """Return the faces as uint8 (N, H, W) or a list of N images; raise UserError for anything else."""
    if isinstance(faces, np.ndarray | Tensor):
        dtype = str(faces.dtype).removeprefix("torch.")
        if dtype != "uint8":
            raise UserError(
                f"faces: expected uint8 pixels from 0 to 255, got {dtype}. Convert pixels in [0, 1] with "
                "(255 * faces).round() and a cast to uint8."
            )
        if faces.ndim == 4 and faces.shape[1] == 1:
            faces = faces[:, 0]
        if faces.ndim == 2 and faces.shape[1] == 48 * 48:
            raise UserError(
                f"faces: shape {tuple(faces.shape)} looks like rows of 2,304 pixels, as in fer2013.csv. Pass "
                "faces.reshape(-1, 48, 48)."
            )
        if faces.ndim not in (2, 3) or faces.shape[-1] in (1, 3, 4):
            raise UserError(
                f"faces: expected grey (N, H, W) or (N, 1, H, W), or (H, W) for one face, got shape "
                f"{tuple(faces.shape)}. Pass colour images as PIL.Image.fromarray(face)."
            )
        batch = faces if faces.ndim == 3 else faces[None]
        if 0 in batch.shape:
            raise UserError(f"faces: expected at least one face, got shape {tuple(faces.shape)}.")
        return batch
    images = [faces] if isinstance(faces, Image.Image) else faces
    if not isinstance(images, list | tuple):
        raise UserError(f"faces: expected a uint8 array or tensor, or PIL images, got {type(faces).__name__}.")
    for number, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise UserError(
                f"faces[{number}]: expected a PIL image, got {type(image).__name__}. Open files with "
                "PIL.Image.open; combine arrays with numpy.stack."
            )
    if not images:
        raise UserError("faces: expected at least one face, got an empty list.")
    return list(images)
