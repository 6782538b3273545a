"""A trained network to call from Python: faces in, probabilities out. Lightning and Hydra are not needed for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.inference.faces import DetectedFace
from fer_lightning.inference.photos import Key, predict_faces, read_photo
from fer_lightning.models.checkpoint import InputSpec, net_from, read_checkpoint
from fer_lightning.models.tta import check_tta, predict_logits

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

FaceImages = npt.NDArray[np.uint8] | Tensor | Image.Image | Sequence[Image.Image]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of N faces."""

    probabilities: npt.NDArray[np.float32]  # (N, 7), in the order of emotions.EMOTIONS

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The most probable emotion of each face: (N,), an index into emotions.EMOTIONS."""
        labels: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1).astype(np.int64)
        return labels

    @property
    def names(self) -> list[str]:
        """The most probable emotion of each face by name: N of them."""
        return [EMOTIONS[label] for label in self.labels]


class Classifier:
    """A trained network with what it takes to feed it.

    Args:
        net: float32 (B, 1, image_size, image_size), normalised -> logits (B, 7).
        inputs: what `net` expects.
        device: where it runs, e.g. "cpu" or "cuda:1"; "auto" takes the GPU if there is one.
        val_split: name of the split that its run selected it on, where that is known.

    Raises:
        UserError: there is no such device.
    """

    def __init__(
        self, net: nn.Module, inputs: InputSpec, device: str = "auto", val_split: str | None = None
    ) -> None:
        if device.partition(":")[0] not in ("auto", "gpu", "cpu", "cuda", "mps", "xpu"):
            raise UserError(f"device={device} does not exist: give auto, cpu, cuda, cuda:1 or mps.")
        try:
            self.device = torch.device(hardware.accelerator(device))
            self.net = net.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device={device} will not do: {first_line(error)}") from error
        self.inputs = inputs
        self.val_split = val_split

    def predict(self, faces: FaceImages, tta: str = "none", batch_size: int = 256) -> Prediction:
        """Tells the emotion of each face.

        Args:
            faces: uint8 (N, H, W) or a single (H, W), grey, as an array or a tensor; or PIL images of any mode and
                size, one or a list. Each is one upright face cut out of its photo, as in FER-2013; it is resized to
                what the network takes.
            tta: test-time augmentation, a key of tta.VIEWS.
            batch_size: faces that go through the network at once; it changes the speed, not the result.

        Raises:
            UserError: no faces, or not of that form; no such `tta`.
        """
        check_tta(tta)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        checked = _checked(faces)
        probabilities = []
        with torch.inference_mode():
            for start in range(0, len(checked), batch_size):
                logits = predict_logits(self.net, self.net_input(checked[start : start + batch_size]), tta)
                probabilities.append(logits.softmax(dim=1))
            return Prediction(torch.cat(probabilities).cpu().numpy())

    def predict_photos(
        self, photos: Sequence[str | Path | BinaryIO | Image.Image], detect: bool = True, tta: str = "none"
    ) -> list[list[DetectedFace]]:
        """Finds the faces of whole photos and tells the emotion of each.

        Args:
            photos: N paths, open binary files or PIL images of any mode.
            detect: look for faces, which needs ``pip install -e ".[photo]"``; otherwise each photo is one face, cut
                out already. A photo of up to photos.WHOLE pixels always is.
            tta: test-time augmentation, a key of tta.VIEWS.

        Returns:
            For each of the N photos the list of its faces, which may be empty: `box` is (x, y, width, height) in
            pixels of the upright photo; `emotion`, its `confidence`, and `probabilities` by emotion.

        Raises:
            UserError: a photo cannot be read; the detector is not installed; no such `tta`.
        """
        check_tta(tta)
        if isinstance(photos, str | Path):
            raise UserError(f"{photos} is a single path: give a list of them, e.g. [{str(photos)!r}].")
        named = ((None, _read(photo)) for photo in photos)
        return [faces for _, _, faces in self.predict_stream(named, detect, tta)]

    def predict_stream(
        self,
        photos: Iterable[tuple[Key, Image.Image]],
        detect: bool = True,
        tta: str = "none",
        batch_size: int = 64,
    ) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
        """Do as `predict_photos` does, photo by photo as they come.

        Args:
            photos: upright RGB photos, each with a key of the caller's choice.
            detect: look for faces.
            tta: test-time augmentation, a key of tta.VIEWS.
            batch_size: photos or faces after which results are yielded, at the latest after a second.

        Yields:
            Key, photo and faces of each photo, in the order in which they came.

        Raises:
            UserError: the detector is not installed; no such `tta`.
        """
        return predict_faces(lambda crops: self.predict(crops, tta).probabilities, photos, detect, batch_size)

    def net_input(self, faces: FaceImages) -> Tensor:
        """What the network gets for N faces: float32 (N, 1, image_size, image_size), normalised, on the device."""
        return normalise(self._resized(_checked(faces)), self.inputs.mean, self.inputs.std)

    def _resized(self, faces: npt.NDArray[np.uint8] | Tensor | list[Image.Image]) -> Tensor:
        """Uint8 (B, H, W) or B images -> float32 (B, 1, image_size, image_size) in [0, 1] on the device."""
        if isinstance(faces, list):  # each of its own size
            return torch.cat([self._resized(_grey(face)[None]) for face in faces])
        # A copy, for a tensor cannot share an array that is read-only or runs backwards.
        pixels = faces if isinstance(faces, Tensor) else torch.from_numpy(faces.copy())
        return resize(pixels.to(self.device).unsqueeze(1), self.inputs.image_size)


def load_checkpoint(path: str | Path, device: str = "auto") -> Classifier:
    """The network of a run's checkpoint, ready to predict.

    Args:
        path: such as runs/baseline/NAME/checkpoints/best.ckpt. Nothing in it can execute.
        device: where it runs, e.g. "cpu" or "cuda:1"; "auto" takes the GPU if there is one.

    Raises:
        UserError: no such file or not a checkpoint of this project; no such device.
    """
    checkpoint = read_checkpoint(path)
    return Classifier(net_from(checkpoint), checkpoint.inputs, device, checkpoint.val_split)


def pretrained_names() -> list[str]:
    """The names that `load_pretrained` takes."""
    return sorted(path.stem for path in WEIGHTS.glob("*.pt"))


def checkpoint_path(name: str) -> str:
    """The file of a shipped network that is called by its name; any other name is a path already."""
    return str(WEIGHTS / f"{name}.pt") if name in pretrained_names() else name


def load_pretrained(name: str = "best", device: str = "auto") -> Classifier:
    """A trained network that ships with the package; weights/README.md is its card.

    Args:
        name: one of `pretrained_names`, e.g. "best".
        device: where it runs, e.g. "cpu" or "cuda:1"; "auto" takes the GPU if there is one.

    Raises:
        UserError: no network of that name ships; no such device.
    """
    names = pretrained_names()
    if name not in names:
        raise UserError(
            f"No network called {name!r} ships with fer-lightning.{did_you_mean(name, names)} "
            f"There are: {', '.join(names)}; a checkpoint of your own is read by load_checkpoint."
        )
    return load_checkpoint(WEIGHTS / f"{name}.pt", device)


def _read(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    if not (isinstance(file, str | Path | Image.Image) or hasattr(file, "read")):
        raise UserError(
            f"A photo is {type(file).__name__}: give paths, open binary files or PIL images; arrays of faces cut "
            "out go to predict."
        )
    try:
        return read_photo(file)
    except UserError as error:
        name = file if isinstance(file, str | Path) else "The picture"
        raise UserError(f"{name} cannot be read: {error}.") from error


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(_read(image).convert("L"))


def _checked(faces: FaceImages) -> npt.NDArray[np.uint8] | Tensor | list[Image.Image]:
    """The faces as uint8 (N, H, W) or a list of N images; UserError for anything else."""
    if isinstance(faces, np.ndarray | Tensor):
        dtype = str(faces.dtype).removeprefix("torch.")
        if dtype != "uint8":
            raise UserError(
                f"The faces are {dtype}: give pixels from 0 to 255 as uint8; those of [0, 1] as "
                "(255 * faces).round() in uint8."
            )
        if faces.ndim not in (2, 3) or faces.shape[-1] in (1, 3, 4):
            raise UserError(
                f"The faces have the shape {tuple(faces.shape)}: give (N, H, W), grey, or (H, W) for a single one; "
                "colour images as PIL.Image.fromarray(face)."
            )
        stack = faces if faces.ndim == 3 else faces[None]
        if 0 in stack.shape:
            raise UserError(f"There is no face in the shape {tuple(faces.shape)}: give at least one.")
        return stack
    images = [faces] if isinstance(faces, Image.Image) else faces
    if not isinstance(images, list | tuple):
        raise UserError(f"The faces are {type(faces).__name__}: give a uint8 array or tensor, or PIL images.")
    for number, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise UserError(
                f"faces[{number}] is {type(image).__name__}: a list holds PIL images; open files with "
                "PIL.Image.open, and put arrays together with numpy.stack."
            )
    if not images:
        raise UserError("There is no face in the list: give at least one.")
    return list(images)
