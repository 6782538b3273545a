"""fer-lightning predict: every kind of source and output, and results that survive a bad file."""

import csv
import io
import json
import math
import os
import struct
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from fake_clips import noise, write_clip
from fake_networks import Brightness
from PIL import Image

from fer_lightning.__main__ import main
from fer_lightning.commands import clips, predict
from fer_lightning.commands.clips import Names
from fer_lightning.data.images import FORMAT_NAMES
from fer_lightning.drawing import boxes, style
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import Stopped
from fer_lightning.inference import photos, video
from fer_lightning.inference.classifier import Classifier
from fer_lightning.inference.faces import DetectedFace, Region
from fer_lightning.inference.opencv import opencv
from fer_lightning.inference.video import VideoWriter
from fer_lightning.models.checkpoint import InputSpec


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Run in an empty folder with a network that predicts from brightness."""
    monkeypatch.chdir(tmp_path)
    clf = Classifier(Brightness(), InputSpec(48, 0.0, 1.0), "cpu")
    monkeypatch.setattr(predict, "load_network", lambda args: clf)


def face(path, shade=255, size=48):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (shade,) * 3).save(path)
    return path


def printed(capsys, *arguments):
    """Return the JSON that a command prints, its exit code and its stderr."""
    code = main(["predict", "--json", *arguments])
    out, err = capsys.readouterr()
    return json.loads(out), code, err


def test_json_has_the_documented_keys(capsys):
    face("a.png")
    (result,), code, err = printed(capsys, "a.png")
    assert (code, err) == (0, "")
    assert list(result) == ["path", "error", "faces"]
    assert (result["path"], result["error"]) == ("a.png", None)
    (detected,) = result["faces"]
    assert list(detected) == ["box", "emotion", "confidence", "probabilities"]
    assert (detected["box"], detected["emotion"]) == ([0, 0, 48, 48], "happy")
    assert detected["confidence"] == detected["probabilities"]["happy"]
    assert tuple(detected["probabilities"]) == EMOTIONS
    assert sum(detected["probabilities"].values()) == pytest.approx(1)


def test_files_folders_patterns_and_stdin_keep_their_order(capsys, monkeypatch):
    for path in ("b/2.png", "b/deep/3.JPG", "b/1.jpg", "x1.png", "x2.png", "a.png"):
        face(path)
    Path("b/notes.txt").write_text("no photo")
    stdin = io.BytesIO(Path(face("s.png", 0)).read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
    results, code, err = printed(capsys, "b", "a.png", "-", "x*.png")
    assert code == 0
    assert [Path(result["path"]).as_posix() for result in results] == [
        "b/1.jpg",
        "b/2.png",
        "b/deep/3.JPG",
        "a.png",
        "-",
        "x1.png",
        "x2.png",
    ]
    assert results[4]["faces"][0]["emotion"] == "sad"
    assert err == "note: b: skipped files that are neither photos nor videos or were written by --save (1)\n"


def test_failures_are_reported_and_the_rest_is_predicted(capsys):
    face("a.png")
    face("z.png", 0)
    Path("broken.jpg").write_bytes(b"no")
    Path("empty").mkdir()
    results, code, err = printed(capsys, "a.png", "broken.jpg", "nowhere.png", "empty", "z.png")
    assert code == 1
    assert [result["path"] for result in results if not result["error"]] == ["a.png", "z.png"]
    errors = {result["path"]: result for result in results if result["error"]}
    assert list(errors) == ["nowhere.png", "empty", "broken.jpg"]
    assert all(result["faces"] == [] for result in errors.values())
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("error: broken.jpg: not an image")


def test_every_image_in_a_folder_is_a_photo(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.jfif", "b.JPE", "c.dib", "d.pgm", "e.jp2"):
        jpeg = io.BytesIO()
        Image.new("L", (48, 48), 255).save(jpeg, "JPEG")
        Path("in").mkdir(exist_ok=True)
        Path("in", name).write_bytes(jpeg.getvalue())
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    for name in ("f.HEIC", "g.heif", "h.jpg"):
        Path("in", name).write_bytes(heic)
    results, code, err = printed(capsys, "in")
    assert code == 1
    assert [Path(result["path"]).suffix for result in results if not result["error"]] == [
        ".jfif",
        ".JPE",
        ".dib",
        ".pgm",
        ".jp2",
    ]
    lines = err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["in/f.HEIC", "in/g.heif", "in/h.jpg"]
    assert all('reading HEIC needs pillow-heif: pip install -e ".[heic]", or convert' in line for line in lines)


def test_a_folder_without_photos_and_videos_names_the_formats(capsys):
    Path("in").mkdir()
    Path("in/notes.txt").write_text("no photo")
    _, code, err = printed(capsys, "in")
    assert (code, err) == (1, f"error: in: no photos ({FORMAT_NAMES}) or videos in this folder\n")


def test_a_jpeg_that_lacks_its_last_bytes_is_predicted_with_a_note(capsys):
    whole = Path(face("whole.jpg")).read_bytes()
    Path("cut.jpg").write_bytes(whole[:-2])
    (cut, complete), code, err = printed(capsys, "cut.jpg", "whole.jpg")
    assert (code, err) == (0, f"note: cut.jpg: {photos.TRUNCATED_NOTE}\n")
    assert cut == complete | {"path": "cut.jpg"}


@pytest.mark.parametrize("argument", ["x" * 300, "folders/*"])
def test_paths_that_match_no_file(argument, capsys):
    Path("folders/one").mkdir(parents=True)
    face("a.png")
    results, code, err = printed(capsys, argument, "a.png")
    assert code == 1
    assert [bool(result["error"]) for result in results] == [True, False]
    assert err == f"error: {argument}: no such file or folder, and no file matches it as a pattern\n"


def test_results_are_printed_when_pictures_cannot_be_written(capsys, monkeypatch):
    face("a.png")

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(predict, "write_atomically", full)
    assert main(["predict", "a.png", face("b.png", 0), "--save", "out"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["a.png", "b.png"]  # printed all the same
    assert err.splitlines()[0] == "error: a.png: out/a.emotions.jpg cannot be written: No space left on device"


def test_frames_appear_at_their_own_time():
    pytest.importorskip("cv2")
    cv2 = opencv()  # before FFmpeg's first use, when it reads its log level from the environment
    with VideoWriter(Path("v.webm"), 10) as writer:
        for seconds, shade in ((0.0, 0), (1.0, 255), (1.02, 0), (1.1, 255)):
            writer.write(seconds, Image.new("RGB", (64, 64), (shade,) * 3))
    capture = cv2.VideoCapture("v.webm")
    frames = [frame.mean() for ok, frame in (capture.read() for _ in range(20)) if ok]
    assert [bool(shade > 127) for shade in frames] == [False] * 10 + [True] * 2


def test_table_and_csv(capsys):
    face("a.png")
    face("a_folder_with_a_name_that_is_much_too_long_for_a_table/b.png", 0)
    names = ["a.png", "a_folder_with_a_name_that_is_much_too_long_for_a_table/b.png"]
    assert main(["predict", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[0] == "a.png"
    assert lines[2].split()[1:5] == ["0,", "0,", "48", "happy"]
    assert lines[3].startswith("...")
    assert "b.png" in lines[3]
    assert max(map(len, lines)) <= 80
    assert main(["predict", "--csv", *names]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == names
    assert [row["emotion"] for row in rows] == ["happy", "sad"]
    assert [rows[0][key] for key in ("x", "y", "width", "height", "error")] == ["0", "0", "48", "48", ""]
    assert sum(float(rows[1][emotion]) for emotion in EMOTIONS) == pytest.approx(1)


def test_a_photo_without_faces_is_not_an_error(capsys, monkeypatch):
    monkeypatch.setattr(photos, "find_faces", lambda *_: [])
    face("wall.png", size=200)
    results, code, _ = printed(capsys, "wall.png")
    assert (results, code) == ([{"path": "wall.png", "error": None, "faces": []}], 0)
    assert main(["predict", "wall.png"]) == 0
    assert "no face" in capsys.readouterr().out
    results, _, _ = printed(capsys, "wall.png", "--no-detect")
    assert results[0]["faces"][0]["box"] == [0, 0, 200, 200]


def test_saved_pictures_do_not_overwrite_photos(capsys):
    for path in ("in/a.png", "in/more/a.jpg", "in/b.png"):
        face(path)
    before = {path: path.read_bytes() for path in Path("in").rglob("*.*")}
    assert main(["predict", "in", "--save", "in"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    drawn = sorted(path.name for path in Path("in").glob("*.emotions.jpg"))
    assert drawn == ["a-2.emotions.jpg", "a.emotions.jpg", "b.emotions.jpg"]
    with Image.open("in/a.emotions.jpg") as picture:
        assert np.asarray(picture.convert("L")).min() < 40  # the label's black
    Path("file").write_text("no folder")
    capsys.readouterr()
    assert main(["predict", "in", "--save", "file"]) == 1
    assert "file cannot be written: File exists" in capsys.readouterr().err


def test_results_before_ctrl_c_are_printed(capsys, monkeypatch):
    names = [face(f"{number}.png") for number in range(90)]
    read = photos.read_photo

    def interrupted(path):
        if path == "80.png":  # threads have begun with photos before this one
            raise Stopped(2)
        return read(path)

    monkeypatch.setattr(photos, "read_photo", interrupted)
    monkeypatch.setattr(photos, "perf_counter", lambda: 0.0)
    results, code, err = printed(capsys, *names)
    assert code == 130
    assert [result["path"] for result in results] == names[:64]  # a batch
    assert all(len(result["faces"]) == 1 for result in results)
    assert "stopped by SIGINT" in err


def test_photos_wait_for_their_batch_for_a_second_at_most(capsys, monkeypatch):
    """A photo takes 0.6 s here, so results come after every second photo."""
    names = [face(f"{number}.png") for number in range(40)]

    def stopped_at_the_last(path):
        if path == "39.png":
            raise Stopped(2)
        return Image.open(path).convert("RGB")

    monkeypatch.setattr(photos, "read_photo", stopped_at_the_last)
    # It is read once for each photo and each batch.
    monkeypatch.setattr(photos, "perf_counter", count(0.0, 0.6).__next__)
    sizes, predict_batch = [], Classifier.predict
    monkeypatch.setattr(
        Classifier, "predict", lambda clf, crops, tta: sizes.append(len(crops)) or predict_batch(clf, crops, tta)
    )
    results, code, _ = printed(capsys, *names, "--save", "out")
    assert code == 130
    assert sizes == [2] * (len(results) // 2)
    assert len(results) >= 20  # threads had begun with the others
    assert [result["path"] for result in results] == names[: len(results)]
    assert len(list(Path("out").iterdir())) == len(results)


def test_a_second_run_reports_replaced_pictures_and_skips_them_as_input(capsys):
    face("in/a.png")
    Path("in/more").mkdir()
    assert main(["predict", "in", "--save", "in"]) == 0
    assert capsys.readouterr().err == "pictures: in\n"
    assert main(["predict", "in", "--save", "in"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["in/a.png"]
    assert err == (
        "note: in: skipped files that are neither photos nor videos or were written by --save (1)\n"
        "pictures: in (replaced 1 from an earlier run)\n"
    )


def test_unusual_file_names(capsys):
    names = ["a$1_$2.png", "new\nline.png", "esc\x1b[31m.png", "latin\udce9.png", "gone.png"]
    for name in names[:4]:
        face(f"in/{name}")
    Path("in/gone.png").symlink_to("nowhere")
    os.mkfifo("in/fifo.png")
    assert main(["predict", "in", "--save", "out"]) == 1
    out, err = capsys.readouterr()
    shown = sorted(line.split()[0] for line in out.splitlines()[2:])
    assert shown == ["in/a$1_$2.png", "in/esc\\x1b[31m.png", "in/latin\\udce9.png", "in/new\\nline.png"]
    assert "error: in/gone.png: No such file or directory" in err
    assert len(list(Path("out").iterdir())) == 4


def test_an_unreadable_folder_is_reported(capsys, monkeypatch):
    face("in/a.png")
    scan = os.scandir

    def deny(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    Path("in/closed").mkdir()
    monkeypatch.setattr(os, "scandir", deny)
    results, code, _ = printed(capsys, "in")
    assert code == 1
    assert [(result["path"], result["error"]) for result in results] == [
        ("in/closed", "Permission denied"),
        ("in/a.png", None),
    ]


def test_a_pipe_is_read_and_a_closed_stdin_is_an_error(capsys, monkeypatch):
    read_end, write_end = os.pipe()
    os.write(write_end, Path(face("a.png")).read_bytes())
    os.close(write_end)
    (result,), code, _ = printed(capsys, f"/dev/fd/{read_end}")
    os.close(read_end)
    assert (code, result["faces"][0]["emotion"]) == (0, "happy")
    monkeypatch.setattr(sys, "stdin", None)
    (result,), code, _ = printed(capsys, "-")
    assert (code, result["error"]) == (1, "stdin is closed")


@pytest.mark.parametrize("arguments", [["v\udce9.mp4"], ["a$1_$2.mp4", "--save", "out\udce9"]])
def test_a_video_path_that_is_not_utf_8(arguments, capsys):
    pytest.importorskip("cv2")
    write_clip("a$1_$2.mp4", [frame(0)], size=(48, 48))
    os.link("a$1_$2.mp4", "v\udce9.mp4")
    results, code, _ = printed(capsys, *arguments, face("a.png"))
    assert code == 1
    assert "is not valid UTF-8, which OpenCV needs" in results[0]["error"]
    assert results[1]["faces"]
    assert main(["predict", "a$1_$2.mp4", "--save", "out"]) == 0  # "$" in the title is not read as a formula
    assert Path("out/a$1_$2.timeline.png").exists()


def frame(shade, blue=0, size=(160, 120)):
    return Image.new("RGB", size, (shade, shade, max(blue, shade)))


def test_a_video_frame_by_frame(capfd, monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setattr(
        photos,
        "find_faces",
        lambda photo, _: [] if photo.getpixel((2, 2))[2] > 200 else [Region((0, 0, 90, 90))],
    )
    shades = [frame(0)] * 4 + [frame(130)] * 6 + [frame(255)] * 2
    write_clip("clip.mp4", shades, size=(161, 121))
    Path("bad.mp4").write_bytes(b"no video")
    results, code, err = printed(capfd, "clip.mp4", "bad.mp4", "--save", "out")
    assert code == 1
    assert err == "error: bad.mp4: not a video that OpenCV can read\npictures: out\n"  # and nothing from OpenCV
    frames, bad = results[:-1], results[-1]
    assert bad["path"] == "bad.mp4"
    assert [entry["seconds"] for entry in frames] == pytest.approx([number / 10 for number in range(12)], abs=0.002)
    emotions = [[face["emotion"] for face in entry["faces"]] for entry in frames]
    assert emotions == [["sad"]] * 4 + [["happy"]] * 6 + [[]] * 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip.emotions.webm", "clip.timeline.png"]
    capture = opencv().VideoCapture("out/clip.emotions.webm")
    assert sum(capture.read()[0] for _ in range(20)) == 12
    assert main(["predict", "clip.mp4", "--smooth", "0"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "clip.mp4: 12 frames in 1.1 s, faces in 10"
    assert [line.split() for line in lines[1::2]] == [
        ["id", "seconds", "frames", "emotion", "next"],
        ["1", "0.0", "-", "0.9", "10", "happy", "60%", "sad", "40%"],
    ]
    assert max(map(len, lines)) <= 80


def test_faces_in_doubt(capsys, monkeypatch):
    """Brightness gives happy 95% for a white face and 22% for one of the grey level 140."""
    boxes = {"a.png": (0, 0, 31, 31), "b.png": (0, 0, 32, 32), "c.png": (0, 0, 100, 100)}
    for path, shade in zip(boxes, (255, 255, 140), strict=True):
        face(path, shade, size=100)
    find = {100: iter(boxes.values())}
    monkeypatch.setattr(photos, "map_ahead", map)
    monkeypatch.setattr(photos, "find_faces", lambda photo, _: [Region(next(find[photo.width]))])
    results, code, err = printed(capsys, *boxes, "--min-confidence", "0.5")
    assert (code, err) == (0, "")
    found = [detected for result in results for detected in result["faces"]]
    assert [detected.get("doubt") for detected in found] == ["too small", None, "unsure"]
    assert [detected["emotion"] for detected in found] == ["happy"] * 3
    find[100] = iter(boxes.values())
    assert main(["predict", *boxes, "--min-confidence", "0.5"]) == 0
    assert [line.split()[4:] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["too", "small", "happy", "95%"],
        ["happy", "95%", "angry", "1%"],
        ["unsure", "happy", "22%"],
    ]
    find[100] = iter(boxes.values())
    assert main(["predict", *boxes, "--csv"]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["doubt"] for row in rows] == ["too small", "", ""]
    assert main(["predict", "a.png", "--min-confidence", "50"]) == 1
    assert "--min-confidence=50: expected a probability from 0 to 1, e.g. 0.5." in capsys.readouterr().err


def test_doubt_in_videos(capsys):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(255)] * 3 + [frame(140)] * 3)
    arguments = ("clip.mp4", "--no-detect", "--min-confidence", "0.5", "--smooth", "0")
    results, code, _ = printed(capsys, *arguments)
    assert code == 0
    assert [detected.get("doubt") for result in results for detected in result["faces"]] == [None] * 3 + [
        "unsure"
    ] * 3
    assert main(["predict", *arguments]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split()[5:] == ["happy", "50%", "unsure", "50%"]


def test_smoothed_probabilities_stand_beside_the_frames_own(capsys):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(0)] * 3 + [frame(255)] * 3)
    face("a.png")
    results, code, _ = printed(capsys, "clip.mp4", "a.png", "--no-detect", "--smooth", "0.2")
    assert code == 0
    *frames, (photo,) = (entry["faces"] for entry in results)
    assert list(photo) == ["box", "emotion", "confidence", "probabilities"]
    assert "seconds" not in results[-1]
    faces = [detected for (detected,) in frames]
    assert [detected["id"] for detected in faces] == [1] * 6
    mean = faces[0]["probabilities"]
    assert faces[0]["smoothed"] == mean
    for detected in faces[1:]:
        kept = math.exp(-0.1 / 0.2)
        mean = {name: kept * mean[name] + (1 - kept) * value for name, value in detected["probabilities"].items()}
        assert detected["smoothed"] == pytest.approx(mean, abs=1e-6)
        assert detected["emotion"] == max(detected["probabilities"], key=detected["probabilities"].get)
    assert main(["predict", "clip.mp4", "a.png", "--no-detect", "--smooth", "0.2", "--csv"]) == 0
    *rows, last = csv.DictReader(io.StringIO(capsys.readouterr().out))
    for row, detected in zip(rows, faces, strict=True):
        assert row["id"] == "1"
        assert {name: float(row[name]) for name in EMOTIONS} == detected["probabilities"]
        assert {name: float(row[f"smoothed_{name}"]) for name in EMOTIONS} == detected["smoothed"]
    assert list(last)[-10:] == ["neutral", "id", *(f"smoothed_{name}" for name in EMOTIONS), "doubt"]
    assert [last["id"], last["smoothed_happy"], last["seconds"]] == ["", "", ""]


def test_what_is_drawn_is_smoothed_and_numbered(monkeypatch):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(0)] + [frame(255)] * 2)
    drawn = []
    monkeypatch.setattr(boxes, "annotate", lambda photo, faces: drawn.extend(faces) or photo)
    assert main(["predict", "clip.mp4", "--no-detect", "--save", "out", "--smooth", "5"]) == 0
    assert [(detected.id, detected.emotion) for detected in drawn] == [(1, "sad")] * 3


def test_fps_looks_at_some_frames(capsys):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(20 * number) for number in range(12)])
    results, code, _ = printed(capsys, "clip.mp4", "--no-detect", "--fps", "5", "--save", "out")
    assert code == 0
    assert [entry["seconds"] for entry in results] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    capture = opencv().VideoCapture("out/clip.emotions.webm")
    assert capture.get(opencv().CAP_PROP_FPS) == 5
    assert sum(capture.read()[0] for _ in range(20)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--smooth", "-1"], "--smooth=-1: expected seconds, 0 or more, e.g. 0.5; 0 turns smoothing off."),
        (["--smooth", "nan"], "--smooth=nan: expected seconds, 0 or more, e.g. 0.5; 0 turns smoothing off."),
        (["--fps", "0"], "--fps=0: expected frames a second, more than 0, e.g. 5."),
        (["--fps", "inf"], "--fps=inf: expected frames a second, more than 0, e.g. 5."),
    ],
)
def test_impossible_settings_of_videos(arguments, message, capsys):
    assert main(["predict", "clip.mp4", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_folder_holds_photos_and_videos(capsys):
    pytest.importorskip("cv2")
    face("in/c.png")
    write_clip("in/b.MKV", [frame(0)])
    os.rename(write_clip("clip.mp4", [frame(255)] * 2), "in/d.mp4")
    face("in/a.jpg")
    frames = [Image.new("RGB", (48, 48), (shade,) * 3) for shade in (0, 255)]
    frames[0].save("in/e.gif", save_all=True, append_images=frames[1:], duration=500)
    Path("in/script.ts").write_text("export {}")
    Path("in/notes.txt").write_text("no photo")
    for number in range(2):
        results, code, err = printed(capsys, "in", "--save", "in", "--no-detect")
        assert code == 0
        paths = [entry["path"] for entry in results]
        assert paths == ["in/a.jpg", "in/b.MKV", "in/c.png", "in/d.mp4", "in/d.mp4", "in/e.gif", "in/e.gif"]
        # The first run writes two pictures, three videos and three timelines.
        skipped = f"skipped files that are neither photos nor videos or were written by --save ({2 + 8 * number})"
        replaced = " (replaced 8 from an earlier run)" * number
        assert err == f"note: in: {skipped}\npictures: in{replaced}\n"
    animation = [(entry["seconds"], entry["faces"][0]["emotion"]) for entry in results[-2:]]
    assert animation == [(0, "sad"), (0.5, "happy")]
    Path("clips").mkdir()
    os.rename("in/d.mp4", "clips/d.mp4")
    assert main(["predict", "clips", "--no-detect"]) == 0
    assert capsys.readouterr().err == ""


def test_a_transport_stream_is_read_if_it_is_named(capfd):
    pytest.importorskip("cv2")
    write_clip("clip.ts", [frame(0)] * 3)
    capfd.readouterr()
    results, code, err = printed(capfd, "clip.ts", "--no-detect")
    assert ([entry["seconds"] for entry in results], code, err) == ([0, 0.1, 0.2], 0, "")


def test_frames_before_the_end_of_a_cut_video_are_answered(capfd):
    pytest.importorskip("cv2")
    whole = write_clip("clip.avi", noise(20), "MJPG").read_bytes()
    Path("clip.avi").write_bytes(whole[: len(whole) // 2])
    results, code, err = printed(capfd, "clip.avi", face("a.png"), "--no-detect", "--save", "out")
    *frames, damaged, photo = results
    assert code == 1
    assert all(entry["faces"] and entry["error"] is None for entry in [*frames, photo])
    assert 5 < len(frames) < 15
    assert damaged["faces"] == []
    assert damaged["error"].startswith(f"damaged: after {(len(frames) - 1) / 10} s the file ends, ")
    assert err == f"error: clip.avi: {damaged['error']}\npictures: out\n"
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.emotions.jpg",
        "clip.emotions.webm",
        "clip.timeline.png",
    ]


def test_an_unreachable_stream_and_camera_are_errors_without_passwords(capfd):
    pytest.importorskip("cv2")
    url = "rtsp://admin:secret@127.0.0.1:1/live"
    assert main(["predict", url, "99", face("a.png"), "--save", "out"]) == 1
    out, err = capfd.readouterr()
    assert "a.png" in out
    assert err.splitlines() == [
        "error: rtsp://***@127.0.0.1:1/live: no stream can be read here: check the address and the password, and "
        "that the sender is running",
        "error: camera 99: no camera with this index",
        "pictures: out",
    ]


def test_inputs_are_never_overwritten(capsys):
    pytest.importorskip("cv2")
    Path("own").mkdir()
    inputs = [face("own/a.jpg"), face("own/a.emotions.jpg", 0), write_clip("own/b.avi", [frame(0)] * 2)]
    inputs.append(face("own/b.timeline.png", 0))
    before = [Path(path).read_bytes() for path in inputs]
    assert main(["predict", *map(str, inputs), "--no-detect", "--save", "own"]) == 0
    assert [Path(path).read_bytes() for path in inputs] == before
    written = {path.name for path in Path("own").iterdir()} - {Path(path).name for path in inputs}
    assert written == {
        "a-2.emotions.jpg",
        "a.emotions.emotions.jpg",
        "b-2.emotions.webm",
        "b-2.timeline.png",
        "b.timeline.emotions.jpg",
    }


def test_a_video_whose_copy_cannot_be_written_is_still_predicted(capfd):
    pytest.importorskip("cv2")
    clip = write_clip("clip.avi", [frame(255)] * 2)
    Path("out/clip.emotions.webm").mkdir(parents=True)
    results, code, err = printed(capfd, str(clip), face("a.png"), "--no-detect", "--save", "out")
    assert code == 1
    assert [entry["path"] for entry in results if entry["faces"]] == ["clip.avi", "clip.avi", "a.png"]
    assert err.splitlines()[0] == "error: clip.avi: out/clip.emotions.webm cannot be written: Is a directory"
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.emotions.jpg",
        "clip.emotions.webm",
        "clip.timeline.png",
    ]


def test_what_is_no_video_is_named(capfd):
    pytest.importorskip("cv2")
    os.mkfifo("pipe.mp4")
    Path("empty.mp4").touch()
    Path("broken.mp4").symlink_to("nowhere.mp4")
    Path("folder").mkdir()
    os.rename("broken.mp4", "folder/broken.mp4")
    Path("zero.gif").touch()
    arguments = ("pipe.mp4", "empty.mp4", "folder", "99999999999", "ftp://bob:secret@host/x.mp4", "zero.gif")
    results, code, err = printed(capfd, *arguments)
    assert code == 1
    assert sorted((entry["path"], entry["error"]) for entry in results) == [
        ("camera 99999999999", "no camera with this index"),
        ("empty.mp4", "the file is empty"),
        ("folder/broken.mp4", "No such file or directory"),
        ("ftp://***@host/x.mp4", "unknown kind of address: use rtsp:// or http://"),
        ("pipe.mp4", "not a file: save the video to one first"),
        ("zero.gif", f"not an image of type {FORMAT_NAMES}"),
    ]
    assert "secret" not in err


def test_long_pauses_are_shortened_in_the_saved_video(capfd):
    pytest.importorskip("cv2")
    frames = [Image.new("RGB", (64, 48), (shade,) * 3) for shade in (0, 120, 255)]
    frames[0].save("slow.gif", save_all=True, append_images=frames[1:], duration=[60_000, 500, 500])
    results, code, err = printed(capfd, "slow.gif", "--no-detect", "--save", "out")
    assert (code, [entry["seconds"] for entry in results]) == (0, [0, 60, 60.5])
    assert (
        err == "note: slow.gif: in out/slow.emotions.webm, pauses of more than 10 s are shortened\npictures: out\n"
    )
    capture = opencv().VideoCapture("out/slow.emotions.webm")
    n_frames = 0
    while capture.grab():
        n_frames += 1
    assert (
        n_frames == 1 + 10 * 50 + 1 + 24 + 1
    )  # at 50 frames a second: 10 s after the first frame, 0.5 s after the second


def test_saved_files_of_a_stream_are_named_after_its_address():
    names = Names(None, [])
    assert names.stem("rtsp://***@10.0.0.7:554/live/1?x=2") == "10_0_0_7_554_live_1_x_2"
    assert names.stem("http://10.0.0.7:554/live/1?x=2") == "10_0_0_7_554_live_1_x_2-2"


def test_a_full_disk_keeps_the_predictions_of_videos(capfd, monkeypatch):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(0), frame(255)])

    def full(picture, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(video, "is_finished_webm", lambda path: False)
    monkeypatch.setattr(style, "write_png", full)
    capfd.readouterr()
    assert main(["predict", "clip.mp4", face("a.png"), "--no-detect", "--save", "out"]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines()[2].startswith("a.png")
    assert out.splitlines()[3] == "clip.mp4: 2 frames in 0.1 s, faces in 2"
    assert err.splitlines() == [
        "error: clip.mp4: out/clip.emotions.webm cannot be written: the disk may be full",
        "error: clip.mp4: out/clip.timeline.png cannot be written: No space left on device",
        "pictures: out",
    ]
    assert [path.name for path in Path("out").iterdir()] == ["a.emotions.jpg"]


def test_frames_before_ctrl_c_are_printed_and_saved(capsys, monkeypatch):
    pytest.importorskip("cv2")
    write_clip("clip.mp4", [frame(0)] * 70)
    read = video.Sampler.wants

    def interrupted(sampler, seconds):
        if seconds > 6.75:
            raise Stopped(2)
        return read(sampler, seconds)

    monkeypatch.setattr(video.Sampler, "wants", interrupted)
    monkeypatch.setattr(photos, "perf_counter", lambda: 0.0)
    results, code, _ = printed(capsys, "clip.mp4", "--no-detect", "--save", "out")
    assert (len(results), code) == (64, 130)  # a batch
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip.emotions.webm", "clip.timeline.png"]


def test_a_missing_opencv_is_an_error(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    Path("clip.mp4").write_bytes(b"no video")
    assert main(["predict", "clip.mp4"]) == 1
    assert 'pip install -e ".[photo]"' in capsys.readouterr().err


def test_thumbnails_of_a_crowd_are_limited(monkeypatch):
    monkeypatch.setattr(clips, "_MOST_THUMBNAILS", 4)
    thumbnails = clips._Thumbnails()
    picture = Image.new("RGB", (64, 48))

    def seen(*numbers):
        thumbnails.update(picture, [DetectedFace((0, 0, 20 + n, 20 + n), {"happy": 1.0}, id=n) for n in numbers])

    seen(1, 2)
    seen(1, 2)
    for number in range(3, 20):
        seen(number)
    assert set(thumbnails.pictures) >= {1, 2}
    assert len(thumbnails.pictures) <= 4
    for _ in range(3):
        seen(5)
    assert 5 in thumbnails.pictures  # although it had been dropped
