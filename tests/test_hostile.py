"""Untrusted files cause no traceback, hang, unbounded memory use, stray file or code execution."""

import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import hostile
import numpy as np
import pytest
import torch
from fake_fer2013 import fake_faces, write_folder, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from project import ROOT

from fer_lightning.callbacks.checkpoints import MovableCheckpoint
from fer_lightning.config.overrides import parse
from fer_lightning.config.saved import resumed
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.errors import UserError
from fer_lightning.inference.photos import read_photo
from fer_lightning.models.checkpoint import read_checkpoint

PARTS = st.one_of(
    st.binary(max_size=16),
    st.sampled_from(
        [b"\0" * 4, b"\xff" * 4, b"\n", b'"', b"PK\x05\x06", b"1e999", b"-1 ", b"[" * 64, b"${a}", b"&a *a"]
    ),
)


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Generate valid files with pieces removed, inserted, overwritten, spliced from each other, or truncated."""
    seed = st.sampled_from(seeds)
    spot = st.floats(0, 1, exclude_max=True)
    piece = st.one_of(
        PARTS,
        st.builds(lambda other, at, n: other[int(at * len(other)) :][:n], seed, spot, st.integers(1, 400)),
    )
    change = st.tuples(spot, st.one_of(st.integers(0, 8), st.integers(0, 2000)), piece)

    def apply(content: bytes, changes: list[tuple[float, int, bytes]], end: float) -> bytes:
        for at, n_removed, inserted in changes:
            start = int(at * len(content))
            content = content[:start] + inserted + content[start + n_removed :]
        return content[: len(content) - int(end * len(content))]

    return st.builds(apply, seed, st.lists(change, max_size=4), st.one_of(st.just(0.0), spot))


@pytest.mark.parametrize("name", hostile.READERS)
def test_valid_files_are_accepted_and_mutated_ones_accepted_or_refused(name):
    seeds = hostile.READERS[name].seeds()
    assert all(hostile.attempt(name, seed) for seed in seeds)

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutated(seeds))
    def feed(content):
        hostile.attempt(name, content)

    feed()


@pytest.fixture
def _little_memory():
    """Limit the memory of this process to one gigabyte more than it uses now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


HEADER = b"emotion,pixels,Usage\n"


def refused(name: str, content: bytes) -> None:
    assert not hostile.attempt(name, content)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    "rows",
    [b"1 " * 5_000_000, b'"\n",' * 500_000, b'0,"' + b"1 " * 5_000_000, b"," * 5_000_000],
    ids=["numbers", "a row of many lines", "a long field", "columns"],
)
def test_csv_that_would_fill_the_memory_is_refused(rows):
    refused("csv", HEADER + rows)


def test_reading_stops_after_too_many_faults(monkeypatch):
    monkeypatch.setattr("fer_lightning.data.gathering._MAX_FAULTS", 1000)
    refused("csv", HEADER + b"x\n" * 1100)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.usefixtures("_little_memory")
def test_zip_member_that_expands_beyond_its_declared_size_is_refused(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("fer2013.csv", HEADER + b"x\n" * 1000)
    refused("zip", file.getvalue())


def test_zip_that_expands_a_thousandfold_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("fer_lightning.data.archives._MAX_UNPACKED", 10**6)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", HEADER + b"\n" * 10**7)
    with pytest.raises(UserError, match="more than 100 times its size"):
        load_faces(tmp_path / "a.zip")


def test_zip_with_a_damaged_name_in_a_local_header_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", fake_faces())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[3].header_offset
    content[at + 6 : at + 8] = (0x800).to_bytes(2, "little")  # the flag for names in UTF-8
    content[at + 30] = 0xC4
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file name in its local header is damaged"):
        load_faces(path)


def test_nested_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(UserError, match="nested archives, which are not opened"):
        load_faces(tmp_path / "a.zip")


@pytest.mark.usefixtures("_little_memory")
def test_jpeg_that_declares_60000_pixels_per_side_is_refused():
    jpeg = io.BytesIO()
    Image.new("L", (48, 48)).save(jpeg, "JPEG")
    at = jpeg.getvalue().index(b"\xff\xc0") + 5
    huge = jpeg.getvalue()[:at] + (60000).to_bytes(2, "big") * 2 + jpeg.getvalue()[at + 4 :]
    with pytest.raises(UserError, match="too large"):
        read_photo(io.BytesIO(huge))
    assert hostile.attempt("image", huge)  # it is dropped and the other image kept


def test_dangling_links_devices_and_pipes_are_faults(tmp_path):
    write_folder(tmp_path / "a", fake_faces((1, 1, 1)))
    (tmp_path / "a/train/happy/Training_1.jpg").symlink_to("gone.jpg")
    (tmp_path / "a/train/happy/Training_2.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "a/train/happy/Training_3.jpg")
    with pytest.raises(UserError, match="3 faults"):
        load_faces(tmp_path / "a")
    assert "3 x" in str(load_faces(tmp_path / "a", skip_bad=True).notes).replace("2 x unreadable file, 1 x", "3 x")


def test_circular_links_and_deep_nesting_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_lightning.data.stores._MAX_FOLDERS", 500)
    for one in range(8):
        for other in range(8):
            (tmp_path / str(one)).mkdir(exist_ok=True)
            (tmp_path / str(one) / str(other)).symlink_to(tmp_path / str(other))
    with pytest.raises(UserError, match="circular links"):
        load_faces(tmp_path)
    (tmp_path / "deep" / "/".join("a" * 40)).mkdir(parents=True)
    with pytest.raises(UserError, match="32 levels of them"):
        load_faces(tmp_path / "deep")


def test_endless_or_unreadable_exclusion_list_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("fer_lightning.data.lists._MAX_LIST", 1000)
    write_folder(tmp_path / "a", fake_faces((1, 1, 1)))
    with pytest.raises(UserError, match="too large"):
        load_faces(tmp_path / "a", exclude="/dev/zero")
    with pytest.raises(UserError, match="cannot be read"):
        load_faces(tmp_path / "a", exclude="~nobody_of_this_name/list.txt")


def test_npy_with_an_invalid_header_is_refused():
    """NumPy parses the header as Python and raises a parser's errors, as the mutations above found."""
    for header in (b"{'descr': [[[[\n", b"{'descr': '<f8'", b"(" * 5000):
        npy = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header
        for number in range(5):
            assert hostile.attempt("cache", bytes([number]) + npy)  # the entry is rebuilt
        npz = io.BytesIO()
        with zipfile.ZipFile(npz, "w") as archive:
            archive.writestr("ids.npy", npy)
            archive.writestr("probabilities.npy", npy)
        refused("probabilities", npz.getvalue())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_pickles_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(5):
        refused("pickle", pickle.dumps({"state_dict": Payload()}, protocol))
        refused("checkpoint", pickle.dumps(Payload(), protocol))
    array = io.BytesIO()
    np.save(array, np.array([Payload()], dtype=object), allow_pickle=True)
    for number in range(5):
        hostile.attempt("cache", bytes([number]) + array.getvalue())
    refused("config", hostile.saved_config().encode() + b"\nx: !!python/object/apply:os.mkdir [executed]")
    assert not os.path.exists("executed")


def laughs():
    value: list = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


CLAIMS = {
    "an image of a million pixels a side": {"image_size": 10**6},
    "a layer of 2 GiB": {"image_size": 1000, "model": {"name": "fer_model0", "channels": [300]}},
    "a billion blocks": {"model": {"name": "resnet", "blocks": 10**9}},
    "a width of 2**70": {"model": {"name": "resnet", "channels": [2**70]}},
    "another network": {"model": {"name": "torchvision", "architecture": "vit_h_14"}, "image_size": 1008},
    "no name": {"model": {}},
    "two sizes": {"model": {"name": "fer_model0", "image_size": 3}},
    "infinity": {"image_size": float("inf")},
    "no number": {"mean": float("nan")},
    "no spread": {"std": 0.0},
    "a tensor": {"image_size": torch.zeros(2)},
    "classes of classes": {"classes": tuple(laughs())},
    "unknown views": {"tta": "everything"},
    "a number of views": {"tta": 18},
    "options of options": {"model": {"name": "fer_model0", "channels": laughs()}},
}


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("claim", CLAIMS)
def test_implausible_checkpoint_metadata_is_refused(claim):
    refused("checkpoint", hostile.checkpoint(**CLAIMS[claim]))


@pytest.mark.usefixtures("_little_memory")
def test_checkpoint_that_would_fill_the_memory_is_refused(tmp_path):
    refused("pickle", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.")
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(hostile.checkpoint())) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name) + b"\0" * 10**7)
    refused("checkpoint", file.getvalue())
    (tmp_path / "a.ckpt").write_bytes(hostile.checkpoint())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["state_dict"]["net.classifier.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="state_dict"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_checkpoint_of_a_single_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"not written by this project: expected a dict, got Tensor\.$"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_checkpoint_with_a_flipped_bit_is_refused(tmp_path):
    content = bytearray(hostile.checkpoint())
    weights = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]["net.classifier.weight"]
    place = content.index(weights.numpy().tobytes())
    content[place] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_non_finite_weights_is_refused(value, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(hostile.checkpoint())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["state_dict"]["net.classifier.weight"][0, 0] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="NaN or infinite"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_checkpoint_cannot_name_other_files_for_removal(tmp_path):
    keep = MovableCheckpoint(dirpath=tmp_path / "checkpoints", filename="best", monitor="accuracy/val")
    state = keep.state_dict()
    for path in ("/x/..", "/", "/x/config.yaml"):
        keep.load_state_dict(state | {"best_model_path": path, "best_k_models": {path: torch.tensor(1.0)}})
        assert keep.best_model_path == ""
        assert list(keep.best_k_models) == [""]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fer_lightning.callbacks.prediction_grid.PredictionGrid", "os.system", "_target_=os.system is not one"),
        ("fer_lightning.data.synthetic.synthetic_faces", "subprocess.run", "not one"),
        ("    n_train:", "    cache_dir: /etc\n    n_train:", "data.source.cache_dir=/etc"),
        ("    n_faces:", "    path: /etc\n    n_faces:", "callbacks.prediction_grid.path=/etc"),
        ("  tensorboard:\n", "  tensorboard:\n    sub_dir: /etc\n", "logger.tensorboard.sub_dir=/etc"),
        ("trainer:\n", "trainer:\n  default_root_dir: /etc\n", "trainer.default_root_dir=/etc"),
        ("seed: 0\nname", "seed: ${oc.env:HOME}\nname", "contains"),
        ("seed: 0\nname", "x: &x [1, 2]\nseed: *x\nname", "aliases"),
        ("seed: 0\nname", "seed: " + "[" * 5000 + "\nname", "nested"),
        ("\ntrainer:\n", "\ntrainers:\n", "damaged: .*trainer"),
        ("overrides:", "overruled:", "overrides"),
    ],
)
def test_tampered_configuration_is_refused(old, new, message, tmp_path):
    text = hostile.saved_config()
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        resumed(tmp_path, [])


@pytest.mark.parametrize("content", [b"", b"- a", b"3", b"a: \xff\xfe", b"\0"])
def test_file_that_is_not_a_configuration_is_refused(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|no run"):
        resumed(tmp_path, [])


def test_custom_callback_must_be_named_again_to_resume(tmp_path):
    text = hostile.saved_config().replace(
        "callbacks:\n", "callbacks:\n  mine:\n    _target_: mine.Mine\n    n: 3\n"
    )
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"callbacks.mine._target_=mine.Mine"):
        resumed(tmp_path, [])
    again = [parse("callbacks.mine._target_=mine.Mine"), parse("callbacks.mine.n=3")]
    assert resumed(tmp_path, again).callbacks["mine"] == {"_target_": "mine.Mine", "n": 3}


def test_file_name_that_is_not_utf_8_is_printed_escaped(tmp_path):
    name = os.fsdecode(b"bad\xff.jpg")
    Image.new("L", (48, 48)).save(tmp_path / name, "JPEG")
    completed = subprocess.run(
        [sys.executable, "-m", "fer_lightning", "predict", name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "bad\\udcff.jpg" in completed.stdout
