"""Measure the sections of the benchmark, and format the report."""

import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import product
from statistics import median

from fer_lightning.benchmark.processes import Bench, Turns, contender, imports, plain, take_turns, train
from fer_lightning.errors import UserError
from fer_lightning.files import Json
from fer_lightning.text import format_table

N_DRAWN = 5600  # synthetic training faces if no data are given
N_TRAINING = 28_709  # training images of FER-2013
FACTORS = (1, 4, 16)  # dataset sizes in the section growth, as multiples of N_TRAINING
IMAGE_SIZES = (64, 128, 224)  # pixels
EXPERIMENT = "8 steps a CUDA graph"

Samples = list[float]


# ---------------------------------------------------------------------------------------------------------
# Numbers


def columns(turns: Turns, key: str, names: Iterable[str] | None = None) -> dict[str, Samples]:
    """Return one number per turn for each of the named contenders, by default all."""
    return {name: [turn[key] for turn in turns[name]] for name in (turns if names is None else names)}


def ratio(numerators: Samples, denominators: Samples) -> Samples:
    """Return the ratio of two contenders in each turn."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def difference(minuends: Samples, subtrahends: Samples) -> Samples:
    """Return the difference of two contenders in each turn."""
    return [a - b for a, b in zip(minuends, subtrahends, strict=True)]


def spread(samples: Samples) -> Json:
    """Return the median, lowest and highest sample, and the samples themselves."""
    return {"median": median(samples), "low": min(samples), "high": max(samples), "samples": samples}


# ---------------------------------------------------------------------------------------------------------
# Sections. Each returns quantity -> row -> one number per turn, with ratios first; "notes" is a list of sentences.


def data(bench: Bench) -> Json:
    """Compare batch augmentation with torchvision's per-image transforms."""
    n_all = bench.machine["threads"]
    sizes = (bench.machine["batch_size"], 1024)
    measures = {}
    for n in dict.fromkeys((1, n_all)):
        for source in ("PIL", "JPEG"):
            options: Json = {"folder": str(bench.images), "workers": n if n > 1 else 0, "decode": source == "JPEG"}
            measures[f"{source}, {_threads(n)}"] = contender(bench, "per_image", threads=1, **options)
        for size in sizes:
            options = {"batch_size": size, "device": "cpu"}
            measures[f"batch {size}, {_threads(n)}"] = contender(bench, "augmentation", threads=n, **options)
    for size in sizes if bench.machine["device"] == "cuda" else ():
        measures[f"batch {size}, GPU"] = contender(bench, "augmentation", batch_size=size, device="cuda")
    rates = columns(take_turns(bench, measures), "images_per_second")
    ratios = {}
    for ours in (name for name in rates if name.startswith("batch")):
        place = ours.partition(", ")[2].replace("GPU", _threads(n_all))
        for source in ("PIL", "JPEG"):
            ratios[f"{ours} / {source}"] = ratio(rates[ours], rates[f"{source}, {place}"])
    return {
        "ratio": ratios,
        "images_per_second": rates,
        "notes": [
            "PIL: torchvision's per-image transforms, images in memory; JPEG: plus decoding.",
            "1 thread is compared with 1, all threads and the GPU with one worker per thread.",
        ],
    }


def training(bench: Bench) -> Json:
    """Compare train.py with the plain script, a bare training loop and the floor."""
    steps = bench.steps
    executions = ["eager"] + ["compiled"] * bench.compile
    if bench.machine["device"] == "cuda":
        executions += [f"{execution} captured" for execution in executions]
    parts_of_modes = product(executions, ("bf16-mixed", "32-true"), ("channels_last", "contiguous"))
    modes = [f"{precision} {layout} {execution}" for execution, precision, layout in parts_of_modes]
    print(f"  floor in {len(modes)} modes", file=sys.stderr, flush=True)
    floor_rates = contender(bench, "floor", modes=modes, steps=steps)()["by_mode"]
    fastest = max(floor_rates, key=lambda mode: floor_rates[mode])
    limits = (f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=1", "trainer.max_epochs=3")
    turns = take_turns(
        bench,
        {
            "ours": train(bench, "stages=[fit]", *limits),
            "plain script": plain(bench, epochs=2, steps=steps),
            "raw loop": contender(bench, "raw_loop", steps=steps),
            "floor": contender(bench, "floor", modes=[fastest], steps=steps),
        },
    )
    rates = columns(turns, "images_per_second")
    step_ms = _step_ms(bench, rates)
    parts = {
        "Trainer, metrics, logging": difference(step_ms["ours"], step_ms["raw loop"]),
        "data and augmentation": difference(step_ms["raw loop"], step_ms["floor"]),
    }
    shares = {part: ratio(ms, step_ms["ours"]) for part, ms in parts.items()}
    experiment, note = {}, []
    if bench.machine["device"] == "cuda":
        try:
            captured = take_turns(bench, {EXPERIMENT: contender(bench, "captured_loop", steps=steps, k=8)})
            experiment = columns(captured, "images_per_second")
            note = [f"{EXPERIMENT}: experimental, includes augmentation."]
        except UserError as error:  # the other results are still valid
            note = [f"{EXPERIMENT}: failed, {str(error).splitlines()[0]}"]
    return {
        "ratio": {f"ours / {name}": ratio(rates["ours"], rates[name]) for name in rates if name != "ours"},
        "percent_of_our_step": {part: [100 * share for share in shares[part]] for part in shares},
        "step_ms": step_ms | parts,
        "images_per_second": rates | experiment | {mode: [rate] for mode, rate in floor_rates.items()},
        "notes": [
            "raw loop: our data and settings, without Trainer, metrics and logging.",
            f"floor: one batch kept on the device, {fastest}.",
            *note,
        ],
    }


def overhead(bench: Bench) -> Json:
    """Measure the cost of a step apart from the network, which has one channel at 8 px and is nearly free."""
    minimal = ("model=fer_model0", "model.channels=[1]", "data.image_size=8", "augment=none")
    steps = max(1, N_TRAINING // bench.machine["batch_size"])
    limits = ("stages=[fit]", "trainer.limit_val_batches=1", "trainer.max_epochs=3")
    turns = take_turns(
        bench,
        {
            "network": contender(bench, "floor", *minimal, modes=[_floor_mode(bench)], steps=steps),
            "network, data": contender(bench, "raw_loop", *minimal, steps=steps),
            "network, data, Lightning": contender(bench, "bare_trainer", *minimal, steps=steps),
            "all but callbacks": train(bench, *minimal, *limits, "callbacks=none", "logger=none"),
            "all": train(bench, *minimal, *limits),
        },
    )
    rates = columns(turns, "images_per_second")
    step_ms = _step_ms(bench, rates)
    network, data, lightning, no_callbacks, everything = step_ms.values()
    parts = {
        "Lightning": difference(lightning, data),
        "ours: data": difference(data, network),
        "ours: module, history, checkpoints": difference(no_callbacks, lightning),
        "ours: drawing callbacks, TensorBoard": difference(everything, no_callbacks),
    }
    return {
        "ratio": {"all / Lightning alone": ratio(everything, lightning)},
        "step_ms": step_ms,
        "ms_of_a_step": parts,
        "notes": ["One channel at 8 px, augment=none; time spent drawing is excluded."],
    }


def start(bench: Bench) -> Json:
    """Measure the time from process start to the end of the first training step."""
    warm = train(bench, "stages=[fit]", "trainer.max_steps=1", "trainer.limit_val_batches=0")

    def cold() -> Json:
        shutil.rmtree(bench.work / "cache" / "fer_lightning", ignore_errors=True)
        return warm()

    cold()  # not counted, because it reads the program's files from the disk
    turns = take_turns(bench, {"imports": imports(bench), "cold cache": cold, "warm cache": warm})
    import_seconds = columns(turns, "seconds", ["imports"])["imports"]
    first_step = columns(turns, "first_step_seconds", ["warm cache", "cold cache"])
    return {
        "ratio": {f"{name} / imports": ratio(seconds, import_seconds) for name, seconds in first_step.items()},
        "seconds_beyond_imports": {
            name: difference(seconds, import_seconds) for name, seconds in first_step.items()
        },
        "seconds": {"import torch, lightning": import_seconds}
        | {f"to the first step, {name}": seconds for name, seconds in first_step.items()},
    }


def memory(bench: Bench) -> Json:
    """Measure the peak memory of short but complete runs: fit, validation, test, checkpoints, figures."""
    few = [f"trainer.limit_{stage}_batches=20" for stage in ("train", "val", "test", "predict")]
    turns = take_turns(
        bench,
        {
            "import torch, lightning": imports(bench),
            "ours": train(bench, "trainer.max_epochs=1", *few),
            "plain script": plain(bench, epochs=1, steps=20),
        },
    )
    peak_mib = columns(turns, "peak_mib")
    return {
        "ratio": {"ours / plain script": ratio(peak_mib["ours"], peak_mib["plain script"])},
        "peak_mib_beyond_imports": {"ours": difference(peak_mib["ours"], peak_mib["import torch, lightning"])},
        "peak_mib": peak_mib,
        "peak_gpu_mib": columns(turns, "peak_gpu_mib", ["ours"] * (bench.machine["device"] == "cuda")),
        "notes": ["plain script: only its largest process, without workers."],
    }


def inference(bench: Bench) -> Json:
    """Measure inference from uint8 faces to probabilities, including preprocessing."""
    n_all = bench.machine["threads"]
    places = {"GPU": n_all} if bench.machine["device"] == "cuda" else {_threads(n): n for n in (1, n_all)}
    single, many = ({place: f"batch {size}, {place}" for place in places} for size in (1, 256))
    turns = take_turns(
        bench,
        {single[place]: contender(bench, "inference", threads=places[place], batch_size=1) for place in places}
        | {many[place]: contender(bench, "inference", threads=places[place], batch_size=256) for place in places},
    )
    rates = columns(turns, "images_per_second")
    latencies = {percent: columns(turns, f"p{percent}_ms", single.values()) for percent in (50, 90, 99)}
    return {
        "ratio": {f"{many[p]} / batch 1": ratio(rates[many[p]], rates[single[p]]) for p in places},
        "images_per_second": rates,
        "latency_ms": {
            f"{name}, p{percent}": ms for percent, each in latencies.items() for name, ms in each.items()
        },
    }


def growth(bench: Bench) -> Json:
    """Measure the effect of dataset size (1x, 4x and 16x FER-2013), and of image size on the network's speed."""
    machine = bench.machine
    few = ("stages=[fit]", "trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.limit_val_batches=1")
    sizes = (f"data.batch_size={machine['batch_size']}", f"data.image_size={machine['image_size']}")
    pipelines, runs = {}, {}
    for factor in FACTORS:
        n = factor * N_TRAINING
        source = "data._target_=fer_lightning.benchmark.contenders.many_faces"
        faces = ("data=synthetic", source, f"data.n_train={n}", *sizes)
        pipelines[f"data path, {factor}x"] = contender(bench, "pipeline", *faces)
        pipelines[f"data path, {factor}x"]()  # not counted, because it fills the cache
        runs[f"{factor}x: {n:,} faces"] = train(bench, *faces, *few)
    networks = {
        f"network, {size} px": contender(
            bench, "floor", f"data.image_size={size}", mode=_floor_mode(bench), steps=bench.steps
        )
        for size in IMAGE_SIZES
    }
    turns = take_turns(bench, pipelines | runs | networks)
    rates = columns(turns, "images_per_second", [*pipelines, *networks])
    seconds = columns(turns, "first_step_seconds", runs)
    smallest, *_, largest = pipelines
    smallest_run, *_, largest_run = runs
    factors = f"{FACTORS[-1]}x / {FACTORS[0]}x"
    mapped = all(turn["memory_mapped"] for name in pipelines for turn in turns[name])
    return {
        "ratio": {
            f"images/s of the data path, {factors}": ratio(rates[largest], rates[smallest]),
            f"seconds to first step, {factors}": ratio(seconds[largest_run], seconds[smallest_run]),
        },
        "images_per_second": rates,
        "seconds_to_first_step": seconds,
        "peak_mib": columns(turns, "peak_mib", runs),
        "notes": [f"The images are {'' if mapped else 'NOT '}memory-mapped."],
    }


def _step_ms(bench: Bench, rates: dict[str, Samples]) -> dict[str, Samples]:
    """Convert images per second into milliseconds per step."""
    return {name: [1000 * bench.machine["batch_size"] / rate for rate in rates[name]] for name in rates}


def _floor_mode(bench: Bench) -> str:
    """Return the `mode` of the contender `floor` that matches train.py on this machine."""
    layout = " channels_last" if bench.machine["channels_last"] else ""
    return f"{bench.machine['precision']}{layout}"


def _threads(n: int) -> str:
    """Return a number of threads in words."""
    return "1 thread" if n == 1 else f"{n} threads"


SECTIONS: dict[str, Callable[[Bench], Json]] = {
    section.__name__: section for section in (data, training, overhead, start, memory, inference, growth)
}


def measure(name: str, bench: Bench) -> Json:
    """Measure a section, and return the spread of each row, with notes."""
    quantities = SECTIONS[name](bench)
    notes = quantities.pop("notes", [])
    if bench.machine["device"] != "cuda":
        notes.append(f"Not measured on a GPU: run fer-lightning benchmark {name} there.")
    return {
        **{
            quantity: {row: spread(samples) for row, samples in rows.items()}
            for quantity, rows in quantities.items()
        },
        "notes": notes,
    }


def format_report(report: Json) -> str:
    """Return the report as text at most 80 columns wide: the machine, then a table for each section."""
    machine, _, precision = report["hardware"].partition("; ")
    drawn = " (no --data, no FER2013_PATH)" if report["dataset"] == "synthetic" else ""
    parts = [
        f"machine:  {machine}\n"
        f"          {precision}; {report['device']}, {_threads(report['threads'])}\n"
        f"data:     {report['dataset']}{drawn}, {report['n_train']:,} training images\n"
        f"repeats:  {report['repeats']}, median and lowest .. highest; {report['steps']} training steps per epoch"
    ]
    for name, section in report["sections"].items():
        rows = []
        for quantity, measured in section.items():
            if quantity == "notes" or not measured:
                continue
            rows.append([quantity.replace("_", " "), "", ""])
            for row, numbers in measured.items():
                span = f"{_number(numbers['low'])} .. {_number(numbers['high'])}"
                rows.append([f"  {row}", _number(numbers["median"]), span if len(numbers["samples"]) > 1 else ""])
        parts.append("\n".join([format_table([name, "median", "lowest .. highest"], rows), *section["notes"]]))
    return "\n\n".join(parts)


def _number(value: float) -> str:
    """Format a number with up to two decimals: none from 100, one from 10."""
    decimals = sum(abs(value) < limit for limit in (10, 100))
    return f"{value:,.{decimals}f}"
