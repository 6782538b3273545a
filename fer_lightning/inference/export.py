"""A trained network as a file for other programs: ONNX, torch.export's pt2 or TorchScript.

The graph takes uint8 faces of any size and gives probabilities: resizing, normalising and the softmax are inside.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fer_lightning.data.augment import normalise
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.small_vgg import MirroredBatchNorm2d, MirroredConv2d

Pixels = npt.NDArray[np.uint8]
Exported = Callable[[Pixels], npt.NDArray[np.float32]]  # (N, 1, H, W) -> (N, 7)

# The largest difference of a probability that another order of float32 sums explains.
TOLERANCE = 1e-4

_METADATA_FILE = "metadata.json"  # inside a pt2 or TorchScript archive
_QUANTISED_OPERATORS = ["Conv", "Gemm", "MatMul"]  # where nearly all weights and work are


class FaceGraph(nn.Module):
    """What is exported: the same numbers as Classifier.predict's, from pixels to probabilities.

    Args:
        net: float (B, 1, image_size, image_size), normalised -> logits (B, 7).
        inputs: what `net` expects.
    """

    def __init__(self, net: nn.Module, inputs: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.inputs = inputs

    def forward(self, faces: Tensor) -> Tensor:  # uint8 (N, 1, H, W) -> float32 (N, 7)
        # data.augment.resize without its shortcut for faces of the right size, which would fix that size in the
        # graph. Resizing to the size that they have changes nothing.
        size = (self.inputs.image_size, self.inputs.image_size)
        images = F.interpolate(faces.float() / 255, size=size, mode="bilinear", antialias=True)
        logits: Tensor = self.net(normalise(images, self.inputs.mean, self.inputs.std))
        return logits.softmax(dim=1)


def metadata(inputs: InputSpec) -> dict[str, str]:
    """What an exported file says of itself: in ONNX its metadata_props, else a JSON file in the archive."""
    return {
        "classes": ",".join(inputs.classes),  # in the order of the probabilities
        "input": "faces: uint8 (N, 1, H, W), grey, upright and cropped; resized inside",
        "output": "probabilities: float32 (N, 7)",
        "image_size": str(inputs.image_size),
        "mean": str(inputs.mean),
        "std": str(inputs.std),
    }


def export(clf: Classifier, file_format: str) -> bytes:
    """The classifier as the content of a file; number and size of the faces stay free.

    Args:
        clf: on any device; the graph is for the CPU and up.
        file_format: a key of FORMATS.

    Raises:
        UserError: ONNX without the extra packages that it takes.
    """
    graph = FaceGraph(_plain(deepcopy(clf.net).cpu()), clf.inputs).eval().requires_grad_(False)
    # At least two of all that is to stay free: torch.export takes a 1 for a constant.
    example = torch.zeros(2, 1, 48, 48, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what becomes of TorchScript, and of the exporters' own insides
        return _WRITERS[file_format](graph, example, metadata(clf.inputs))


def _plain(net: nn.Module) -> nn.Module:
    """Has ordinary layers in place of those that make their weights from fewer parameters at every call.

    Exporters would take that work into the file, and quantisation does not see such weights.
    """
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, (MirroredConv2d, MirroredBatchNorm2d)):
                setattr(parent, name, layer.plain())
    return net


def _onnx(graph: FaceGraph, example: Tensor, about: dict[str, str]) -> bytes:
    require_onnx()
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["faces"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "N", 2: "H", 3: "W"},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _pt2(graph: FaceGraph, example: Tensor, about: dict[str, str]) -> bytes:
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
    file = BytesIO()
    torch.export.save(program, file, extra_files={_METADATA_FILE: json.dumps(about)})
    return file.getvalue()


def _torchscript(graph: FaceGraph, example: Tensor, about: dict[str, str]) -> bytes:
    traced = torch.jit.trace(graph, example)  # type: ignore[no-untyped-call]
    file = BytesIO()
    torch.jit.save(traced, file, _extra_files={_METADATA_FILE: json.dumps(about)})
    return file.getvalue()


_WRITERS = {"onnx": _onnx, "pt2": _pt2, "torchscript": _torchscript}
FORMATS = tuple(_WRITERS)


def load_exported(content: bytes, file_format: str) -> Exported:
    """The file's own network, run as another program would run it, on the CPU.

    Raises:
        UserError: ONNX without the extra packages that it takes.
    """
    if file_format == "onnx":
        require_onnx()
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda faces: session.run(["probabilities"], {"faces": faces})[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = BytesIO(content)
        load_torchscript: Callable[[BytesIO], Callable[[Tensor], Tensor]] = torch.jit.load
        run = torch.export.load(file).module() if file_format == "pt2" else load_torchscript(file)
    return lambda faces: run(torch.from_numpy(faces)).numpy()


def largest_difference(exported: Exported, clf: Classifier, faces: Pixels) -> float:
    """How far a probability is from the classifier's, at most.

    The faces (N, H, W) are asked for in their own size, in another one (100 x 80) and one alone.
    """
    enlarged = np.stack([np.asarray(Image.fromarray(face).resize((80, 100))) for face in faces])
    n = 32  # at once: more would take gigabytes of a large network
    return max(
        float(np.abs(probabilities(exported, batch, n) - clf.predict(batch, batch_size=n).probabilities).max())
        for batch in (faces, enlarged, faces[:1])
    )


def probabilities(exported: Exported, faces: Pixels, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """What an exported network says of faces (N, H, W): (N, 7)."""
    return np.concatenate([exported(batch) for batch in _batches(faces, batch_size)])


def _batches(faces: Pixels, size: int) -> Iterator[Pixels]:
    """(N, H, W) in parts of (B, 1, H, W)."""
    return (faces[start : start + size, None] for start in range(0, len(faces), size))


def quantise(onnx_file: bytes, calibration: Pixels) -> bytes:
    """An exported ONNX file with the weights and activations of its convolutions and linear layers in int8.

    Weights are scaled channel by channel, activations by the range that they take on the calibration faces
    (onnxruntime's static quantisation). Resizing, normalising and the softmax stay as they are.

    Args:
        onnx_file: what `export` gave.
        calibration: (N, H, W), training faces; 500 are enough.

    Raises:
        UserError: the extra packages are missing.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _batches(calibration, 64)

        def get_next(self) -> dict[str, Pixels] | None:
            return next(({"faces": batch} for batch in self.batches), None)

    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a preparation that torch's exporter has done already
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                onnx.load_from_string(onnx_file),
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=_QUANTISED_OPERATORS,
            )
            return path.read_bytes()
    finally:
        logging.root.setLevel(before)


def require_onnx() -> None:
    """Raises UserError unless what ONNX takes is installed."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs packages that are not installed ({error.name}): "
            'pip install -e ".[export]", or take --format pt2.'
        ) from error
