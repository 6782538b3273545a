"""The benchmark: every contender runs, and the report is computed correctly. No test depends on timing."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest
import torch
import yaml
from fake_fer2013 import fake_faces, write_folder
from torchvision import transforms

from fer_lightning.__main__ import main
from fer_lightning.benchmark import contenders, plain_script, processes
from fer_lightning.benchmark import sections as benchmark
from fer_lightning.benchmark.processes import Bench
from fer_lightning.commands import benchmark as benchmark_command
from fer_lightning.config import cli as config
from fer_lightning.config.compose import CONF_DIR
from fer_lightning.data.augment import BatchAugment, normalise
from fer_lightning.errors import UserError

MACHINE = {
    "hardware": "2 x Intel(R) Xeon(R) Processor @ 2.80GHz; precision bf16-mixed (the CPU multiplies bfloat16)",
    "versions": {},
    "git_commit": None,
    "threads": 2,
    "device": "cpu",
    "precision": "bf16-mixed",
    "channels_last": True,
    "model": {"name": "fer_model0", "channels": [2, 3]},
    "batch_size": 32,
    "image_size": 16,
}
RATE = {"images_per_second": 1000.0}
NUMBERS = {
    "describe": MACHINE,
    "write_images": {"dataset": "FER-2013", "n_train": 28},
    "augmentation": RATE,
    "per_image": RATE,
    "pipeline": RATE | {"memory_mapped": True},
    "raw_loop": RATE,
    "bare_trainer": RATE,
    "captured_loop": RATE,
    "floor": RATE | {"by_mode": {}},
    "inference": RATE | {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0},
}
TRAINED = {"images_per_second": 1000.0, "first_step_seconds": 9.0, "peak_mib": 1024.0, "peak_gpu_mib": 0.0}
TINY = ("data.image_size=16", "data.batch_size=4", "model.channels=[2,3]", "trainer.accelerator=cpu")


@pytest.fixture
def images(tmp_path):
    """Write class folders below train/ and test/."""
    return write_folder(tmp_path / "images", fake_faces())


@pytest.fixture
def bench(tmp_path, images):
    return Bench(tmp_path, str(images), TINY, repeats=1, steps=2, machine=MACHINE | {"image_size": 16})


@pytest.fixture
def in_no_process(monkeypatch):
    """Replace the benchmark's processes by fixed numbers, which double with each call."""

    def measuring(numbers):
        factors = cycle((1.0, 2.0, 4.0))

        def measure():
            factor = next(factors)
            return {key: factor * value if type(value) is float else value for key, value in numbers.items()}

        return measure

    for module in (benchmark, benchmark_command):
        monkeypatch.setattr(
            module,
            "contender",
            lambda bench, name, *settings, modes=(), **arguments: measuring(
                NUMBERS[name] | {"by_mode": dict.fromkeys(modes, 1.0)}
            ),
        )
    monkeypatch.setattr(benchmark, "train", lambda bench, *settings: measuring(TRAINED))
    monkeypatch.setattr(benchmark, "plain", lambda bench, epochs, steps: measuring(TRAINED))
    monkeypatch.setattr(benchmark, "imports", lambda bench: measuring({"seconds": 3.0, "peak_mib": 512.0}))


def test_the_plain_script_learns_and_reports(images, capsys):
    torch.manual_seed(0)
    arguments = [str(images / "train"), "--test", str(images / "test"), "--epochs=12", "--workers=0"]
    plain_script.main([*arguments, "--batch-size=4", "--image-size=16", "--channels", "8", "8", "--device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    pattern = r"epoch \d+: loss ([\d.]+), accuracy [\d.]+%, ([\d.]+) s, ([\d.]+) images/s; test accuracy ([\d.]+)%"
    epochs = [[float(value) for value in re.fullmatch(pattern, line).groups()] for line in lines]
    assert len(epochs) == 12
    assert epochs[-1][0] < epochs[0][0]  # memorises 28 faces
    assert min(rate for _, _, rate, _ in epochs) > 0


def test_the_plain_script_can_cut_an_epoch_short(images, monkeypatch, capsys):
    batches = []
    monkeypatch.setattr(plain_script.FERModel0, "forward", _seen(plain_script.FERModel0.forward, batches))
    plain_script.main(
        [str(images / "train"), "--epochs=1", "--steps=2", "--batch-size=3", "--workers=0", "--device=cpu"]
    )
    assert [tuple(batch.shape) for batch in batches] == [(3, 1, 128, 128)] * 2


def _seen(forward, batches):
    def wrapper(self, images):
        batches.append(images)
        return forward(self, images)

    return wrapper


def test_the_plain_script_augments_like_the_baseline():
    ours = yaml.safe_load((CONF_DIR / "augment" / "baseline.yaml").read_text())
    theirs = {type(transform): transform for transform in plain_script.train_transform(128).transforms}
    assert theirs[transforms.RandomHorizontalFlip].p == ours["flip_prob"]
    assert theirs[transforms.RandomRotation].degrees == [-ours["rotation_deg"], ours["rotation_deg"]]
    affine = theirs[transforms.RandomAffine]
    assert affine.translate == (ours["translate_frac"],) * 2
    assert list(affine.scale) == ours["scale"]
    assert affine.shear == [-ours["shear_deg"], ours["shear_deg"]]
    jitter = theirs[transforms.ColorJitter]
    assert jitter.brightness == (1 - ours["brightness"], 1 + ours["brightness"])
    assert jitter.contrast == (1 - ours["contrast"], 1 + ours["contrast"])
    assert ours["erase_prob"] == 0  # the plain script does not erase


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("describe", {}),
        ("write_images", {"folder": "written"}),
        ("augmentation", {"batch_size": 8, "device": "cpu"}),
        ("per_image", {"folder": "images", "workers": 0, "decode": False}),
        ("per_image", {"folder": "images", "workers": 0, "decode": True}),
        ("pipeline", {}),
        ("raw_loop", {"steps": 2}),
        ("bare_trainer", {"steps": 2}),
        ("captured_loop", {"steps": 4, "k": 2}),
        ("floor", {"modes": ["bf16-mixed channels_last eager", "32-true contiguous eager"], "steps": 2}),
        ("inference", {"batch_size": 1}),
    ],
)
def test_a_contender_returns_its_numbers(name, arguments, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER2013_PATH", str(images))
    monkeypatch.setattr(sys, "argv", ["contenders"])
    monkeypatch.setattr(contenders, "SECONDS", 0.01)
    recipe = ["experiment=baseline", *TINY]
    assert config.main(partial(contenders._job, name, arguments), recipe) == 0, capsys.readouterr().err
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers.keys() == NUMBERS[name].keys()
    assert all(value > 0 for value in numbers.values() if isinstance(value, float))
    if name == "floor":
        assert list(numbers["by_mode"]) == arguments["modes"]
        assert numbers["images_per_second"] == max(numbers["by_mode"].values())
    if name == "describe":
        assert {key: numbers[key] for key in ("model", "batch_size", "image_size", "device")} == {
            "model": {"name": "fer_model0", "channels": [2, 3]},
            "batch_size": 4,
            "image_size": 16,
            "device": "cpu",
        }
    if name == "write_images":
        assert numbers == NUMBERS[name]
        assert len(list((tmp_path / "written" / "train").glob("*/*.jpg"))) == 28


def test_the_raw_loop_uses_the_batches_of_a_run(images, tmp_path, monkeypatch):
    monkeypatch.setenv("FER2013_PATH", str(images))
    data = contenders._data(_composed(monkeypatch, tmp_path))
    batches = contenders._batches(data, "cpu")
    steps = len(data.train_dataloader())
    seen = [next(batches) for _ in range(2 * steps)]
    assert sum(len(labels) for _, labels in seen[:steps]) == 28
    order = data.train_dataloader()
    order.sampler.set_epoch(1)
    first = next(iter(order))  # of the second epoch
    assert isinstance(data.augment, BatchAugment)
    faces = torch.from_numpy(data.faces.images[first["index"]]).unsqueeze(1)
    expected = normalise(data.augment(faces, first["index"], data.seed, 1, 16), data.mean, data.std)
    torch.testing.assert_close(seen[steps][0], expected)
    assert torch.equal(seen[steps][1], first["labels"])


def _composed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["contenders"])
    composed = []
    assert config.main(lambda cfg, run_dir: composed.append(cfg), ["experiment=baseline", *TINY]) == 0
    return composed[0]


def test_many_faces_are_memory_mapped_and_have_the_requested_counts():
    faces = contenders.many_faces(n_train=700, n_val=70, n_test=7, seed=0)
    assert [(faces.usage == usage).sum() for usage in range(3)] == [700, 70, 7]
    assert isinstance(faces.images, contenders.np.memmap)


@pytest.mark.slow
def test_train_measures_a_run_in_a_separate_process(bench):
    trained = processes.train(bench, "stages=[fit]", "trainer.max_epochs=1", "trainer.limit_train_batches=2")()
    assert trained.keys() == TRAINED.keys()
    assert trained["first_step_seconds"] > 0
    assert trained["images_per_second"] > 0
    assert trained["peak_mib"] > 100


def test_a_failed_process_reports_its_error(bench):
    with pytest.raises(UserError, match=r"too\nlong\n\(from python -c"):
        processes.run(bench, ["-c", "import sys; sys.exit('a warning\\nerror: too\\nlong')"])


def test_measuring_starts_without_torch():
    """The parent's memory would count towards the peak memory of its children."""
    code = "import sys, fer_lightning.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF_DIR.parent).returncode == 0


QUANTITIES = {
    "data": {"ratio", "images_per_second"},
    "training": {"ratio", "percent_of_our_step", "step_ms", "images_per_second"},
    "overhead": {"ratio", "step_ms", "ms_of_a_step"},
    "start": {"ratio", "seconds_beyond_imports", "seconds"},
    "memory": {"ratio", "peak_mib_beyond_imports", "peak_mib", "peak_gpu_mib"},
    "inference": {"ratio", "images_per_second", "latency_ms"},
    "growth": {"ratio", "images_per_second", "seconds_to_first_step", "peak_mib"},
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_section_reports_and_fits_80_columns(device, in_no_process, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(NUMBERS, "describe", MACHINE | {"device": device, "threads": 128})
    monkeypatch.setitem(NUMBERS, "augmentation", {"images_per_second": 654_321.0})
    assert main(["benchmark", "--repeats=3", "--compile"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["threads"] == 128
    assert {name: set(section) - {"notes"} for name, section in report["sections"].items()} == QUANTITIES
    for name, section in report["sections"].items():
        assert next(iter(section)) == "ratio"
        assert (f"fer-lightning benchmark {name}" in str(section["notes"])) == (device == "cpu")
        for row in section["ratio"].values():
            assert 0 < row["low"] <= row["median"] <= row["high"]
            assert len(row["samples"]) == 3
    assert ("GPU" in str(report["sections"]["data"]["ratio"])) == (device == "cuda")
    assert ("captured" in str(report["sections"]["training"]["images_per_second"])) == (device == "cuda")


def test_the_parts_of_a_training_step(bench, monkeypatch):
    """At batch size 32, our step takes 320 ms: 64 ms for the Trainer and 96 ms for the data."""
    floors = {"bf16-mixed channels_last eager": 200.0, "32-true contiguous eager": 80.0}

    def contender(bench, name, *settings, modes=(), **arguments):
        rates = {mode: floors.get(mode, 100.0) for mode in modes}
        return lambda: {"images_per_second": 125.0 if name == "raw_loop" else max(rates.values()), "by_mode": rates}

    monkeypatch.setattr(benchmark, "contender", contender)
    monkeypatch.setattr(benchmark, "train", lambda bench, *settings: lambda: {"images_per_second": 100.0})
    monkeypatch.setattr(benchmark, "plain", lambda bench, epochs, steps: lambda: {"images_per_second": 40.0})
    section = benchmark.training(bench)
    assert section["ratio"] == {
        "ours / plain script": [2.5],
        "ours / raw loop": [0.8],
        "ours / floor": [0.5],
    }
    assert section["step_ms"] == {
        "ours": [320],
        "plain script": [800],
        "raw loop": [256],
        "floor": [160],
        "Trainer, metrics, logging": [64],
        "data and augmentation": [96],
    }
    assert section["percent_of_our_step"] == {
        "Trainer, metrics, logging": [pytest.approx(20)],
        "data and augmentation": [pytest.approx(30)],
    }
    assert "bf16-mixed channels_last eager" in section["notes"][1]


def test_the_parts_of_the_overhead_of_a_step(bench, monkeypatch):
    rates = {"floor": 64_000.0, "raw_loop": 32_000.0, "bare_trainer": 16_000.0}
    trained = cycle((12_800.0, 8_000.0))  # without callbacks, and with
    monkeypatch.setattr(
        benchmark, "contender", lambda bench, name, *_, **__: lambda: {"images_per_second": rates[name]}
    )
    monkeypatch.setattr(benchmark, "train", lambda bench, *_: lambda: {"images_per_second": next(trained)})
    section = benchmark.overhead(bench)
    assert list(section["step_ms"].values()) == [[0.5], [1.0], [2.0], [2.5], [4.0]]
    assert section["ms_of_a_step"] == {
        "Lightning": [1.0],
        "ours: data": [0.5],
        "ours: module, history, checkpoints": [0.5],
        "ours: drawing callbacks, TensorBoard": [1.5],
    }
    assert section["ratio"] == {"all / Lightning alone": [2.0]}


def test_ratios_are_taken_within_a_turn():
    """A machine that is half as fast in the second turn does not change the ratios."""
    assert benchmark.ratio([300.0, 150.0], [100.0, 50.0]) == [3.0, 3.0]
    assert benchmark.difference([5.0, 9.0], [3.0, 3.0]) == [2.0, 6.0]
    assert benchmark.spread([4.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 4.0, "samples": [4.0, 1.0, 2.0]}


def test_contenders_take_turns(bench):
    order = []
    measures = {name: partial(lambda name: order.append(name) or {}, name) for name in "abc"}
    processes.take_turns(replace(bench, repeats=2), measures)
    assert order == list("abcabc")


def test_earlier_sections_are_kept_when_a_later_one_fails(in_no_process, monkeypatch, tmp_path, capsys):
    def fail(bench):
        raise UserError("no more")

    monkeypatch.setitem(benchmark.SECTIONS, "start", fail)
    assert main(["benchmark", "data", "start", "--repeats=1", f"--out={tmp_path / 'out.json'}"]) == 1
    assert "error: no more" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out.json").read_text())["sections"]) == ["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainnig"], "unknown section 'trainnig'. Did you mean training?"),
        (["--repeats=0"], "--repeats=0: expected at least 1"),
        (["--repeats=x"], "--repeats: invalid int value"),
        (["--data=nowhere.zip"], "--data='nowhere.zip' does not exist"),
        (["data.path=fer2013.zip"], "Use --data fer2013.zip instead"),
    ],
)
def test_a_user_error_prints_one_message(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
