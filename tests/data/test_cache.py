"""The disk cache: hits, damaged entries, concurrent writers and unwritable folders."""

import errno
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fer_lightning.data import cache
from fer_lightning.data.faces import Faces, fingerprint


def some_faces(n: int = 5, notes: tuple[str, ...] = ("2 images were converted.",)) -> Faces:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 48, 48), dtype=np.uint8)
    labels = rng.integers(0, 7, n)
    usage = rng.integers(0, 3, n).astype(np.uint8)
    ids = tuple(f"train/fröhlich/{i}, \udcff\n.jpg" for i in range(n))  # names may hold any byte but NUL and /
    return Faces(images, labels, usage, ids, "FER-2013", "x.zip", fingerprint(images, labels, usage), notes=notes)


def assert_same(actual: Faces, expected: Faces) -> None:
    for name in ("images", "labels", "usage"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
        assert getattr(actual, name).dtype == getattr(expected, name).dtype
    for name in ("ids", "dataset", "source", "fingerprint", "split_names", "notes"):
        assert getattr(actual, name) == getattr(expected, name)


def never() -> Faces:
    raise AssertionError("read again although it is cached")


def the_entry(directory: Path) -> Path:
    (entry,) = directory.glob("faces-v*/*")
    return entry


def test_hit_returns_the_built_faces_memory_mapped(tmp_path: Path) -> None:
    first = cache.load_or_build("key", some_faces, tmp_path)
    second = cache.load_or_build("key", never, tmp_path)
    assert_same(first, some_faces())
    assert_same(second, some_faces())
    for faces in (first, second):
        assert isinstance(faces.images, np.memmap)
        assert not faces.images.flags.writeable


def test_other_key_or_format_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.load_or_build("key", some_faces, tmp_path)
    assert len(cache.load_or_build("other", lambda: some_faces(3), tmp_path)) == 3
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert len(cache.load_or_build("key", lambda: some_faces(4), tmp_path)) == 4


def test_entry_holds_no_pickles(tmp_path: Path) -> None:
    cache.load_or_build("key", some_faces, tmp_path)
    files = sorted(path.name for path in the_entry(tmp_path).iterdir())
    assert files == ["ids.npy", "images.npy", "labels.npy", "meta.json", "usage.npy"]
    for path in the_entry(tmp_path).glob("*.npy"):
        np.load(path, allow_pickle=False)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, make_empty, Path.unlink])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "usage.npy", "ids.npy", "meta.json"])
def test_damaged_entry_is_replaced_with_one_note(tmp_path: Path, name: str, damage: object) -> None:
    cache.load_or_build("key", some_faces, tmp_path)
    damage(the_entry(tmp_path) / name)  # type: ignore[operator]
    rebuilt = cache.load_or_build("key", some_faces, tmp_path)
    assert [("was damaged" in note) for note in rebuilt.notes] == [False, True]
    assert_same(replace(rebuilt, notes=rebuilt.notes[:1]), some_faces())
    assert_same(cache.load_or_build("key", never, tmp_path), some_faces())


def test_failing_build_stores_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="read again"):
        cache.load_or_build("key", never, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_interrupted_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def interrupted(path: Path, array: object, **settings: object) -> None:
        if path.name == "labels.npy":
            raise KeyboardInterrupt
        save(path, array, **settings)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.load_or_build("key", some_faces, tmp_path)
    assert not list(tmp_path.glob("faces-v*/*"))


def test_only_old_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / f"faces-v{cache.FORMAT}"
    old, young = folder / ".writing-old", folder / ".writing-young"
    for leftover in (old, young):
        leftover.mkdir(parents=True)
        (leftover / "images.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.load_or_build("key", some_faces, tmp_path)
    assert not old.exists()
    assert young.exists()


def test_unwritable_cache_keeps_faces_in_memory_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")  # instead of a read-only disk: root can write anywhere
    faces = cache.load_or_build("key", some_faces, tmp_path / "file" / "cache")
    assert "kept in memory only" in faces.notes[-1]
    assert_same(replace(faces, notes=faces.notes[:-1]), some_faces())


def test_full_disk_keeps_faces_in_memory_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    faces = cache.load_or_build("key", some_faces, tmp_path)
    assert "No space left on device" in faces.notes[-1]
    assert_same(replace(faces, notes=faces.notes[:-1]), some_faces())
    assert not list(tmp_path.glob("faces-v*/*"))


def test_entry_written_meanwhile_by_another_process_is_used(tmp_path: Path) -> None:
    def build_while_another_finishes() -> Faces:
        cache.load_or_build("key", some_faces, tmp_path)
        return some_faces()

    assert_same(cache.load_or_build("key", build_while_another_finishes, tmp_path), some_faces())
    assert [path.name for path in tmp_path.glob("faces-v*/*")] == ["key"]


def _build_with_others(directory: str, barrier: object, results: object) -> None:
    def build() -> Faces:
        barrier.wait(60)  # type: ignore[attr-defined]  # no process writes before all have missed
        return some_faces(500)

    faces = cache.load_or_build("key", build, directory)
    results.put((faces.fingerprint, faces.notes, type(faces.images).__name__))  # type: ignore[attr-defined]


def test_concurrent_writers_all_get_the_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_build_with_others, args=(str(tmp_path), barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    expected = some_faces(500)
    for _ in processes:
        assert results.get(timeout=60) == (expected.fingerprint, expected.notes, "memmap")
    for process in processes:
        process.join(60)
    assert [path.name for path in tmp_path.glob("faces-v*/*")] == ["key"]
    assert_same(cache.load_or_build("key", never, tmp_path), expected)


def test_removed_entry_is_built_again(tmp_path: Path) -> None:
    cache.load_or_build("key", some_faces, tmp_path)
    shutil.rmtree(the_entry(tmp_path))
    assert_same(cache.load_or_build("key", some_faces, tmp_path), some_faces())


@pytest.mark.skipif(os.name == "nt", reason="Windows has LOCALAPPDATA")
def test_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / "fer_lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / ".cache" / "fer_lightning"
