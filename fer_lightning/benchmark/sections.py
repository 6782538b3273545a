"""The sections of the benchmark: what each measures, and the tables of what was measured."""

import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import product
from statistics import median

from fer_lightning.benchmark.processes import Bench, Turns, contender, imports, plain, take_turns, train
from fer_lightning.errors import UserError
from fer_lightning.files import Json
from fer_lightning.text import format_table

N_DRAWN = 5600  # training faces where there are no data
N_TRAINING = 28_709  # FER-2013's training images
FACTORS = (1, 4, 16)  # times that, in the section growth
IMAGE_SIZES = (64, 128, 224)  # pixels
EXPERIMENT = "8 steps a CUDA graph"

Samples = list[float]


# ---------------------------------------------------------------------------------------------------------
# Numbers


def columns(turns: Turns, key: str, names: Iterable[str] | None = None) -> dict[str, Samples]:
    """One number of some contenders, or of all, turn by turn."""
    return {name: [turn[key] for turn in turns[name]] for name in (turns if names is None else names)}


def ratio(over: Samples, under: Samples) -> Samples:
    """One contender over another, turn by turn."""
    return [a / b for a, b in zip(over, under, strict=True)]


def difference(more: Samples, less: Samples) -> Samples:
    """One contender minus another, turn by turn."""
    return [a - b for a, b in zip(more, less, strict=True)]


def spread(samples: Samples) -> Json:
    """Median, lowest and highest."""
    return {"median": median(samples), "low": min(samples), "high": max(samples), "samples": samples}


# ---------------------------------------------------------------------------------------------------------
# Sections: quantity -> row -> one number a turn, ratios first; "notes" is a list of sentences.


def data(bench: Bench) -> Json:
    """Batch augmentation against torchvision, image by image."""
    n_all = bench.machine["threads"]
    sizes = (bench.machine["batch_size"], 1024)
    measures = {}
    for n in dict.fromkeys((1, n_all)):
        for source in ("PIL", "JPEG"):
            how: Json = {"folder": str(bench.images), "workers": n if n > 1 else 0, "decode": source == "JPEG"}
            measures[f"{source}, {_threads(n)}"] = contender(bench, "per_image", threads=1, **how)
        for size in sizes:
            how = {"batch_size": size, "device": "cpu"}
            measures[f"batch {size}, {_threads(n)}"] = contender(bench, "augmentation", threads=n, **how)
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
            "PIL: torchvision, image by image, from images in memory; JPEG: decoding as well.",
            "One thread against one, all against as many workers; a GPU against all.",
        ],
    }


def training(bench: Bench) -> Json:
    """The recipe under our Trainer, against the plain script, a bare loop and the floor."""
    steps = bench.steps
    modes = ["eager"] + ["compiled"] * bench.compile
    if bench.machine["device"] == "cuda":
        modes += [f"{mode} captured" for mode in modes]
    race = {}
    for words in product(("bf16-mixed", "32-true"), ("channels_last", "contiguous"), modes):
        way = " ".join(words)
        print(f"  floor: {way}", file=sys.stderr, flush=True)
        race[way] = contender(bench, "floor", way=way, steps=steps)()["images_per_second"]
    fastest = max(race, key=lambda way: race[way])
    limits = (f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=1", "trainer.max_epochs=3")
    turns = take_turns(
        bench,
        {
            "ours": train(bench, "stages=[fit]", *limits),
            "plain script": plain(bench, epochs=2, steps=steps),
            "raw loop": contender(bench, "raw_loop", steps=steps),
            "floor": contender(bench, "floor", way=fastest, steps=steps),
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
            note = [f"{EXPERIMENT}: an experiment, augmentation included."]
        except UserError as error:  # which takes nothing from the others
            note = [f"{EXPERIMENT}: failed, {str(error).splitlines()[0]}"]
    return {
        "ratio": {f"ours / {name}": ratio(rates["ours"], rates[name]) for name in rates if name != "ours"},
        "percent_of_our_step": {part: [100 * share for share in shares[part]] for part in shares},
        "step_ms": step_ms | parts,
        "images_per_second": rates | experiment | {way: [rate] for way, rate in race.items()},
        "notes": [
            "raw loop: our data and settings, without Trainer, metrics and logging.",
            f"floor: one batch that stays in place, {fastest}.",
            *note,
        ],
    }


def overhead(bench: Bench) -> Json:
    """What a step costs beside the network: the recipe with one channel at 8 px, which hardly takes any time."""
    hardly = ("model=fer_model0", "model.channels=[1]", "data.image_size=8", "augment=none")
    steps = max(1, N_TRAINING // bench.machine["batch_size"])
    limits = ("stages=[fit]", "trainer.limit_val_batches=1", "trainer.max_epochs=3")
    turns = take_turns(
        bench,
        {
            "network": contender(bench, "floor", *hardly, way=_way(bench), steps=steps),
            "network, data": contender(bench, "raw_loop", *hardly, steps=steps),
            "network, data, Lightning": contender(bench, "bare_trainer", *hardly, steps=steps),
            "all but callbacks": train(bench, *hardly, *limits, "callbacks=none", "logger=none"),
            "all": train(bench, *hardly, *limits),
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
        "notes": ["One channel at 8 px, augment=none; the drawing itself is left out."],
    }


def start(bench: Bench) -> Json:
    """Process start to the end of the first training step."""
    warm = train(bench, "stages=[fit]", "trainer.max_steps=1", "trainer.limit_val_batches=0")

    def cold() -> Json:
        shutil.rmtree(bench.work / "cache" / "fer_lightning", ignore_errors=True)
        return warm()

    cold()  # not counted: it reads the program's files from the disk
    turns = take_turns(bench, {"imports": imports(bench), "cold cache": cold, "warm cache": warm})
    alone = columns(turns, "seconds", ["imports"])["imports"]
    first_step = columns(turns, "first_step_seconds", ["warm cache", "cold cache"])
    return {
        "ratio": {f"{name} / imports": ratio(seconds, alone) for name, seconds in first_step.items()},
        "seconds_beyond_imports": {name: difference(seconds, alone) for name, seconds in first_step.items()},
        "seconds": {"import torch, lightning": alone}
        | {f"to the first step, {name}": seconds for name, seconds in first_step.items()},
    }


def memory(bench: Bench) -> Json:
    """Peak memory of short but whole runs: fit, validation, test, checkpoints, figures."""
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
        "notes": ["plain script: its largest process alone, so without its workers."],
    }


def inference(bench: Bench) -> Json:
    """uint8 faces to probabilities, preprocessing included."""
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
    """More data: 1x, 4x and 16x FER-2013; and larger images."""
    machine = bench.machine
    few = ("stages=[fit]", "trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.limit_val_batches=1")
    sizes = (f"data.batch_size={machine['batch_size']}", f"data.image_size={machine['image_size']}")
    pipelines, runs = {}, {}
    for factor in FACTORS:
        n = factor * N_TRAINING
        source = "data._target_=fer_lightning.benchmark.contenders.many_faces"
        faces = ("data=synthetic", source, f"data.n_train={n}", *sizes)
        pipelines[f"data path, {factor}x"] = contender(bench, "pipeline", *faces)
        pipelines[f"data path, {factor}x"]()  # not counted: it fills the cache
        runs[f"{factor}x: {n:,} faces"] = train(bench, *faces, *few)
    networks = {
        f"network, {size} px": contender(
            bench, "floor", f"data.image_size={size}", way=_way(bench), steps=bench.steps
        )
        for size in IMAGE_SIZES
    }
    turns = take_turns(bench, pipelines | runs | networks)
    rates = columns(turns, "images_per_second", [*pipelines, *networks])
    seconds = columns(turns, "first_step_seconds", runs)
    first, *_, last = pipelines
    least, *_, most = runs
    factors = f"{FACTORS[-1]}x / {FACTORS[0]}x"
    mapped = all(turn["memory_mapped"] for name in pipelines for turn in turns[name])
    return {
        "ratio": {
            f"images/s of the data path, {factors}": ratio(rates[last], rates[first]),
            f"seconds to first step, {factors}": ratio(seconds[most], seconds[least]),
        },
        "images_per_second": rates,
        "seconds_to_first_step": seconds,
        "peak_mib": columns(turns, "peak_mib", runs),
        "notes": [f"The images are {'' if mapped else 'NOT '}memory-mapped."],
    }


def _step_ms(bench: Bench, rates: dict[str, Samples]) -> dict[str, Samples]:
    """Milliseconds of a step, turn by turn, from images a second."""
    return {name: [1000 * bench.machine["batch_size"] / rate for rate in rates[name]] for name in rates}


def _way(bench: Bench) -> str:
    """How train.py trains on this machine, as the contender `floor` takes it."""
    layout = " channels_last" if bench.machine["channels_last"] else ""
    return f"{bench.machine['precision']}{layout}"


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


SECTIONS: dict[str, Callable[[Bench], Json]] = {
    section.__name__: section for section in (data, training, overhead, start, memory, inference, growth)
}


def measure(name: str, bench: Bench) -> Json:
    """A section, its samples with their median and range, and a word on what only a GPU could tell."""
    quantities = SECTIONS[name](bench)
    notes = quantities.pop("notes", [])
    if bench.machine["device"] != "cuda":
        notes.append(f"On a GPU: not measured; fer-lightning benchmark {name}")
    return {
        **{
            quantity: {row: spread(samples) for row, samples in rows.items()}
            for quantity, rows in quantities.items()
        },
        "notes": notes,
    }


def format_report(report: Json) -> str:
    """The machine, and a table for each section with its ratios first; at most 80 columns wide."""
    machine, _, precision = report["hardware"].partition("; ")
    drawn = " (no --data, no FER2013_PATH)" if report["dataset"] == "synthetic" else ""
    parts = [
        f"machine:  {machine}\n"
        f"          {precision}; {report['device']}, {_threads(report['threads'])}\n"
        f"data:     {report['dataset']}{drawn}, {report['n_train']:,} training images\n"
        f"repeats:  {report['repeats']}, median and lowest .. highest; {report['steps']} training steps an epoch"
    ]
    for name, section in report["sections"].items():
        rows = []
        for quantity, measured in section.items():
            if quantity == "notes" or not measured:
                continue
            rows.append([quantity.replace("_", " "), "", ""])
            for row, of in measured.items():
                spanned = f"{_number(of['low'])} .. {_number(of['high'])}" if len(of["samples"]) > 1 else ""
                rows.append([f"  {row}", _number(of["median"]), spanned])
        parts.append("\n".join([format_table([name, "median", "lowest .. highest"], rows), *section["notes"]]))
    return "\n\n".join(parts)


def _number(value: float) -> str:
    """To three digits, whole from 100 up."""
    decimals = sum(abs(value) < limit for limit in (10, 100))
    return f"{value:,.{decimals}f}"
