"""The console command: fast help, error messages with suggestions instead of tracebacks, and audit."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from fake_fer2013 import FakeFace, fake_faces, write_folder, write_zip
from PIL import Image
from project import ROOT

from fer_lightning.__main__ import COMMANDS, main
from fer_lightning.audit.findings import DEFAULT_KINDS, KINDS
from fer_lightning.data.faces import TRAIN
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.errors import UserError
from fer_lightning.inference import detector
from fer_lightning.inference.faces import Region


def with_copy() -> list[FakeFace]:
    """Return fake faces plus a copy of the first training face under another label."""
    faces = fake_faces()
    first = next(face for face in faces if face.usage == TRAIN)
    copy = FakeFace("train/sad/Training_1.jpg", 4, TRAIN, first.jpeg, first.pixels)
    return [*faces, copy]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return write_zip(tmp_path / "fer2013.zip", with_copy())


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the error message of a command that exits with 1."""
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("length", [1, 1_000_000])
def test_a_closed_pipe_ends_the_command_quietly(length: int) -> None:
    command = f"lambda _: print('x' * {length}) or 0"
    code = f"import sys\nfrom fer_lightning.exit import exit_code\nsys.exit(exit_code({command}, []))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("output", "code"), [(">/dev/full", 1), (">&-", 0)])
def test_unwritable_output(output: str, code: int) -> None:
    program = (
        "import sys; from fer_lightning.exit import exit_code; sys.exit(exit_code(lambda _: print(1) or 0, []))"
    )
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {output}', sys.executable, program], stderr=subprocess.PIPE)
    message = b"error: cannot write the output: no space left on device.\n" if code else b""
    assert (done.returncode, done.stderr) == (code, message)


def test_help_lists_the_commands_and_imports_nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\nfrom fer_lightning.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*{'torch', 'lightning', 'hydra', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules))"
    )
    monkeypatch.setenv("COLUMNS", "80")
    own = [name for name in COMMANDS if name != "train"]  # test_config.py checks its help
    for arguments in (["--help"], *([name, "--help"] for name in own)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        *text, imported = done.stdout.splitlines()
        assert imported == ""
        name = arguments[0] if arguments[1:] else "audit"
        assert any(line.strip().startswith(name) or f"fer-lightning {name}" in line for line in text)
        assert max(map(len, text)) <= 80


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["fer-lightning"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_paths_may_have_any_name_and_start_in_the_home_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "josé (1)"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))  # Windows
    copy = data.rename(tmp_path / "fer=[1], 人脸 #2.zip")
    assert main(["audit", str(copy), "--json=~/a [1].json", "--exclude=b~.txt"]) == 0
    assert [path.name for path in home.iterdir()] == ["a [1].json"]
    assert [path.name for path in Path().iterdir()] == ["b~.txt"]


def test_python_m_shows_an_error_without_a_traceback() -> None:
    command = [sys.executable, "-m", "fer_lightning", "audti"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"error: unknown command 'audti'. Did you mean audit? Choose from {', '.join(COMMANDS)}.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], f"unknown command 'frobnicate'. Choose from {', '.join(COMMANDS)}."),
        ([], "the following arguments are required: COMMAND. See fer-lightning --help."),
        (["--model", "tiny", "evaluate"], "unknown command '--model'. Choose from train, predict, "),
        (
            ["audit", "--reprot", "x"],
            "fer-lightning audit: unknown argument '--reprot'. Did you mean --report? See",
        ),
        (["audit", "--reprot=x"], "fer-lightning audit: unknown argument '--reprot=x'. Did you mean --report? See"),
        (["audit", "--rep", "x"], "fer-lightning audit: unknown argument '--rep'."),
        (["audit", "a", "b"], "fer-lightning audit: unknown argument 'b'. See fer-lightning audit --help."),
        (["demo", "--port", "few"], "argument --port: invalid int value: 'few'. See fer-lightning demo --help."),
        (["audit", "--csv"], "argument --csv: expected one argument."),
        (["audit", "--near", "4"], "fer-lightning audit: unknown argument '--near'."),
        (["audit", "--mislabels", "--probabilities", "x"], "not allowed with argument --mislabels."),
        (["audit", "--kinds", "leaks,copy_"], "unknown kind 'copy_'. Choose from leaks, "),
    ],
)
def test_user_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [["a.jpg", "--csv", "./-b.jpg"], ["--csv", "--", "a.jpg", "-b.jpg"]],
)
def test_options_may_appear_between_paths(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    errors = error_of(capsys, "predict", *arguments).splitlines()
    assert [line.split(": ")[-2] for line in errors] == ["a.jpg", arguments[-1]]


def test_audit_help_names_kinds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["audit", "--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for kind in KINDS:
        assert kind in text
    assert f"default: {','.join(DEFAULT_KINDS)}" in text.replace("- ", "")


def test_audit_writes_the_requested_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--report", "a.html", "--json", "to/a.json", "--csv", "a.csv", "--exclude", "a.txt"]
    command = ["audit", str(data), *outputs]
    for _ in range(2):  # a second run replaces the files of the first
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert f"FER-2013 from {data}\n57 images, 56 distinct" in out
        assert out.endswith("written: a.html\nwritten: to/a.json\nwritten: a.csv\nwritten: a.txt\n")
        findings = json.loads(Path("to/a.json").read_text())["findings"]
        assert {key: finding["images"] for key, finding in findings.items() if finding["images"]} == {
            "copies": 1,
            "conflicts": 2,
        }
        assert Path("a.html").read_text().startswith("<!doctype html>")
        assert sorted(load_faces(data, exclude="a.txt").ids) == sorted(
            set(load_faces(data).ids) - set(findings["conflicts"]["ids"])
        )
        assert len(Path("a.csv").read_text().splitlines()) == 58
        written = sorted(path.name for path in Path().rglob("*") if path.is_file())
        assert written == ["a.csv", "a.html", "a.json", "a.txt"]


def test_kinds_choose_what_is_excluded(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(data), "--exclude", "a.txt", "--kinds", "copies"]) == 0
    assert len(load_faces(data, exclude="a.txt")) == 56


def test_audit_finds_the_data_as_train_py_does(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "FER-2013 was not found" in error_of(capsys, "audit")
    Path("data").mkdir()
    write_zip(Path("data/fer2013.zip"), fake_faces())
    assert main(["audit"]) == 0
    assert "56 images, 56 distinct" in capsys.readouterr().out
    monkeypatch.setenv("FER2013_PATH", str(data))
    assert main(["audit"]) == 0
    assert "57 images, 56 distinct" in capsys.readouterr().out
    assert "does not exist" in error_of(capsys, "audit", "nowhere")


def test_unreadable_images_are_listed_and_the_rest_is_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "a", with_copy())
    (folder / "train" / "sad" / "Training_2.jpg").write_bytes(b"")
    assert main(["audit", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "note: train/sad/Training_2.jpg: empty file (0 bytes)" in out
    assert "57 images, 56 distinct" in out


def test_user_supplied_probabilities(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = load_faces(data)
    probabilities = np.eye(7)[faces.labels]
    probabilities[5] = np.roll(probabilities[5], 1)
    np.savez("p.npz", ids=np.array(faces.ids), probabilities=probabilities)
    assert main(["audit", str(data), "--probabilities", "p.npz", "--json", "a.json"]) == 0
    assert json.loads(Path("a.json").read_text())["findings"]["mislabels"]["ids"] == [faces.ids[5]]
    assert "suspect labels, from predictions with 98% accuracy" in capsys.readouterr().out
    assert "p.txt cannot be read" in error_of(capsys, "audit", str(data), "--probabilities", "p.txt")


def test_suggested_labels_can_be_trained_with(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = load_faces(data)
    row = int(np.flatnonzero(faces.usage == TRAIN)[5])
    probabilities = np.eye(7)[faces.labels]
    probabilities[row] = np.roll(probabilities[row], 1)
    np.savez("p.npz", ids=np.array(faces.ids), probabilities=probabilities)
    assert main(["audit", str(data), "--probabilities", "p.npz", "--relabel", "labels.csv"]) == 0
    assert capsys.readouterr().out.endswith("written: labels.csv\n")
    after = load_faces(data, relabel="labels.csv")
    assert np.flatnonzero(after.labels != faces.labels).tolist() == [row]
    assert after.labels[row] == (faces.labels[row] + 1) % 7
    assert "--relabel needs predictions" in error_of(capsys, "audit", str(data), "--relabel", "b.csv")
    assert not Path("b.csv").exists()


def test_images_without_a_face_are_searched_for_on_request(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detector, "require_detector", lambda: None)
    images = load_faces(data).images.astype(int)

    def find_faces(photo: Image.Image, try_turns: bool) -> list[Region]:
        # The photos are searched by several threads, in any order. Each shows four images enlarged 4 times.
        upper_left = np.asarray(photo.crop((32, 32, 224, 224)).resize((48, 48)), int)
        is_first = np.abs(images - upper_left).mean(axis=(1, 2)).argmin() == 0
        return [Region((0, 0, 256, 256))] if is_first else []

    monkeypatch.setattr(detector, "find_faces", find_faces)
    assert main(["audit", str(data), "--faces", "--json", "a.json"]) == 0
    assert "images in which the face detector finds nothing" in capsys.readouterr().out
    findings = json.loads(Path("a.json").read_text())["findings"]
    assert findings["faceless"]["ids"] == list(load_faces(data).ids[1:])


def test_a_missing_face_detector_is_reported_before_the_audit(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise UserError("Detecting faces needs ONNX Runtime")

    monkeypatch.setattr(detector, "require_detector", missing)
    assert error_of(capsys, "audit", str(data), "--faces", "--csv", "a.csv").startswith(
        "Detecting faces needs ONNX Runtime"
    )
    assert not Path("a.csv").exists()


def test_too_few_images_for_out_of_fold_predictions(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "57 images are too few: searching for suspect labels needs at least 100" in error_of(
        capsys, "audit", str(data), "--mislabels"
    )
    assert "mislabels needs predictions" in error_of(capsys, "audit", str(data), "--kinds", "mislabels")


def test_unwritable_files_give_an_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("no folder")
    assert error_of(capsys, "audit", str(data), "--json", "file/a.json").startswith("file/a.json cannot be written")
    Path("folder").mkdir()
    assert error_of(capsys, "audit", str(data), "--json", "folder").startswith("folder cannot be written")
