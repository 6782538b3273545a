"""Export a trained network to ONNX, torch.export's pt2 or TorchScript.

The exported graph maps uint8 faces of any size to probabilities; it includes resizing, normalisation and softmax.
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
from fer_lightning.inference.stderr import silent_stderr
from fer_lightning.models.checkpoint import InputSpec
from fer_lightning.models.small_vgg import MirroredBatchNorm2d, MirroredConv2d

Pixels = npt.NDArray[np.uint8]
Exported = Callable[[Pixels], npt.NDArray[np.float32]]  # (N, 1, H, W) -> (N, C)

# The largest difference of a probability that a different summation order in float32 can explain.
TOLERANCE = 1e-4

_METADATA_FILE = "metadata.json"  # inside a pt2 or TorchScript archive
_QUANTISED_OPERATORS = ["Conv", "Gemm", "MatMul"]  # these hold nearly all weights and computation


class FaceGraph(nn.Module):
    """The module to export: computes the same probabilities as Classifier.predict, from pixels on.

    Args:
        net: float (B, 1, image_size, image_size), normalised -> logits (B, C).
        inputs: image size and normalisation that `net` expects.
    """

    def __init__(self, net: nn.Module, inputs: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.inputs = inputs

    def forward(self, faces: Tensor) -> Tensor:
        """Compute the probabilities, float32 (N, C), of faces, uint8 (N, 1, H, W)."""
        # data.augment.resize without its shortcut for faces of the right size, which would fix that size in the
        # graph. Resizing an image to its own size does not change it.
        size = (self.inputs.image_size, self.inputs.image_size)
        images = F.interpolate(faces.float() / 255, size=size, mode="bilinear", antialias=True)
        logits: Tensor = self.net(normalise(images, self.inputs.mean, self.inputs.std))
        return logits.softmax(dim=1)


def metadata(inputs: InputSpec) -> dict[str, str]:
    """Return the metadata of an exported file: metadata_props in ONNX, a JSON file in the archive otherwise."""
    return {
        "classes": ",".join(inputs.classes),  # in the order of the probabilities
        "input": "faces: uint8 (N, 1, H, W), grey, upright and cropped; resized inside",
        "output": f"probabilities: float32 (N, {len(inputs.classes)})",
        "image_size": str(inputs.image_size),
        "mean": str(inputs.mean),
        "std": str(inputs.std),
    }


def export(clf: Classifier, file_format: str) -> bytes:
    """Return the content of the exported file; the graph accepts any number of faces of any size.

    Args:
        clf: classifier on any device; the graph is exported from the CPU.
        file_format: one of FORMATS.

    Raises:
        UserError: `file_format` is "onnx" and the packages it needs are not installed.
    """
    graph = FaceGraph(_with_plain_layers(deepcopy(clf.net).cpu()), clf.inputs).eval().requires_grad_(False)
    # Dynamic dimensions need an example size of at least 2, because torch.export treats 1 as a constant.
    example = torch.zeros(2, 1, 48, 48, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation, and warnings from inside the exporters
        return _WRITERS[file_format](graph, example, metadata(clf.inputs))


def _with_plain_layers(net: nn.Module) -> nn.Module:
    """Replace, in place, layers that build their weights from fewer parameters on every call by ordinary ones.

    Otherwise the exported graph would repeat that work, and quantisation would not recognise the weights.
    """
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, (MirroredConv2d, MirroredBatchNorm2d)):
                setattr(parent, name, layer.plain())
    return net


def _onnx(graph: FaceGraph, example: Tensor, properties: dict[str, str]) -> bytes:
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
    program.model.metadata_props.update(properties)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _pt2(graph: FaceGraph, example: Tensor, properties: dict[str, str]) -> bytes:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
    file = BytesIO()
    torch.export.save(program, file, extra_files={_METADATA_FILE: json.dumps(properties)})
    return file.getvalue()


def _torchscript(graph: FaceGraph, example: Tensor, properties: dict[str, str]) -> bytes:
    traced = torch.jit.trace(graph, example)  # type: ignore[no-untyped-call]
    file = BytesIO()
    torch.jit.save(traced, file, _extra_files={_METADATA_FILE: json.dumps(properties)})
    return file.getvalue()


_WRITERS = {"onnx": _onnx, "pt2": _pt2, "torchscript": _torchscript}
FORMATS = tuple(_WRITERS)


def load_exported(content: bytes, file_format: str) -> Exported:
    """Load an exported file the way another program would, and return its network as a function on the CPU.

    Args:
        content: content of the file.
        file_format: one of FORMATS.

    Raises:
        UserError: `file_format` is "onnx" and the packages it needs are not installed.
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
    """Return the largest absolute difference between an exported network's probabilities and the classifier's.

    The faces (N, H, W) are compared at their own size, enlarged to 100 x 80, and with the first one alone.
    """
    enlarged = np.stack([np.asarray(Image.fromarray(face).resize((80, 100))) for face in faces])
    n = 32  # faces per batch: more would need gigabytes with a large network
    return max(
        float(np.abs(probabilities(exported, batch, n) - clf.predict(batch, batch_size=n).probabilities).max())
        for batch in (faces, enlarged, faces[:1])
    )


def probabilities(exported: Exported, faces: Pixels, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """Return an exported network's probabilities for faces (N, H, W): float32 (N, C)."""
    return np.concatenate([exported(batch) for batch in _batches(faces, batch_size)])


def _batches(faces: Pixels, size: int) -> Iterator[Pixels]:
    """Split faces (N, H, W) into batches (B, 1, H, W)."""
    return (faces[start : start + size, None] for start in range(0, len(faces), size))


def quantise(onnx_file: bytes, calibration: Pixels) -> bytes:
    """Quantise the weights and activations of an ONNX file's convolutions and linear layers to int8.

    Weights are scaled per channel, activations by their range on the calibration faces (onnxruntime's static
    quantisation). Resizing, normalisation and softmax are not quantised.

    Args:
        onnx_file: content of a file from `export`.
        calibration: (N, H, W), training faces; 500 are enough.

    Returns:
        Content of the quantised ONNX file.

    Raises:
        UserError: the packages that ONNX needs are not installed.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _batches(calibration, 64)

        def get_next(self) -> dict[str, Pixels] | None:
            return next(({"faces": batch} for batch in self.batches), None)

    level = logging.root.level
    # onnxruntime recommends preprocessing that torch's exporter has already done.
    logging.root.setLevel(logging.ERROR)
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
                # x86 processors without VNNI add two products in 16 bits, which overflows with 8-bit weights.
                reduce_range=True,
                op_types_to_quantize=_QUANTISED_OPERATORS,
            )
            return path.read_bytes()
    finally:
        logging.root.setLevel(level)


def require_onnx() -> None:
    """Raise UserError if a package that ONNX needs is not installed."""
    try:
        with silent_stderr():  # on some machines without a GPU it warns that it has not found one
            import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'ONNX needs {error.name}, which is not installed: pip install -e ".[export]", or use --format pt2.'
        ) from error
