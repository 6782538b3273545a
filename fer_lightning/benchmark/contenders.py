"""Contenders of the benchmark, each run in its own process, which prints its numbers as one line of JSON.

    python -m fer_lightning.benchmark.contenders NAME '{"argument": value}' [SETTING=VALUE ...]

The settings are those of train.py, so that every contender uses the recipe of an actual run.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import count, cycle, islice
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fer_lightning import hardware
from fer_lightning.benchmark.plain_script import train_transform
from fer_lightning.config.cli import main
from fer_lightning.config.compose import build
from fer_lightning.config.schema import Settings, data_arguments
from fer_lightning.data import cache
from fer_lightning.data.augment import normalise, resize
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.faces import GENERIC_SPLITS, TRAIN, Faces, fingerprint
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.experiment.record import git_commit, versions
from fer_lightning.experiment.trainer import resolve_trainer_arguments
from fer_lightning.files import Json
from fer_lightning.models import build_model
from fer_lightning.training.optim import build_optimizer

SECONDS = 3.0  # duration of a measurement that is not given as a number of training steps
WARMUP_STEPS = 20  # enough for the allocator and the clock frequency to settle
SAMPLE = 2048  # images that the data section cycles through


def describe(cfg: Settings) -> Json:
    """Return the machine and the recipe that the other contenders and the plain script use."""
    arguments, machine = resolve_trainer_arguments(cfg.trainer)
    return {
        "hardware": machine,
        "versions": versions(),
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        "device": _device(cfg),
        "precision": arguments["precision"],
        "channels_last": cfg.channels_last,
        "model": cfg.model,
        "batch_size": cfg.data.batch_size,
        "image_size": cfg.data.image_size,
    }


def write_images(cfg: Settings, folder: str, n_drawn: int | None = None) -> Json:
    """Write faces as JPEGs to folder/<train|validation|test>/<emotion>/, for contenders that read image files.

    Args:
        cfg: the settings that name the data.
        folder: folder to create.
        n_drawn: synthetic training faces to write instead of the data of `cfg`; an eighth in the other splits.
    """
    n_held_out = (n_drawn or 0) // 8
    faces = synthetic_faces(n_drawn, n_held_out, n_held_out) if n_drawn else _data(cfg).faces
    for row, (image, label, usage) in enumerate(zip(faces.images, faces.labels, faces.usage, strict=True)):
        path = Path(folder, GENERIC_SPLITS[usage], EMOTIONS[label], f"{row}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)
    return {"dataset": faces.dataset, "n_train": int((faces.usage == TRAIN).sum())}


def augmentation(cfg: Settings, batch_size: int, device: str) -> Json:
    """Measure our augmentation: uint8 batches in memory -> augmented, normalised floats at the network's size."""
    data = _data(cfg)
    images = torch.tensor(data.faces.images[: max(SAMPLE, batch_size)]).unsqueeze(1).to(device)
    rows = cycle(torch.arange(len(images), device=device).split(batch_size))  # type: ignore[no-untyped-call]

    def step() -> int:
        index = next(rows)
        out = data.augment(images[index], index, data.seed, 0, data.image_size)
        return len(normalise(out, data.mean, data.std))

    return {"images_per_second": _rate(step, device)}


class _Files(Dataset[Tensor]):
    """Endless dataset of images transformed one by one by torchvision, from JPEG bytes or from PIL images."""

    def __init__(self, folder: str, image_size: int, decode: bool) -> None:
        self.files = [path.read_bytes() for path in islice(Path(folder).glob("train/*/*.jpg"), SAMPLE)]
        self.images = None if decode else [Image.open(BytesIO(file)).convert("L") for file in self.files]
        self.transform = train_transform(image_size)

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, row: int) -> Tensor:
        index = row % len(self.files)
        image = self.images[index] if self.images else Image.open(BytesIO(self.files[index])).convert("RGB")
        return self.transform(image)  # type: ignore[no-any-return]


def per_image(cfg: Settings, folder: str, workers: int, decode: bool) -> Json:
    """Measure torchvision's transforms of PIL images; `decode` starts from JPEGs, as ImageFolder does."""
    files = _Files(folder, cfg.data.image_size, decode)
    batches = iter(DataLoader(files, cfg.data.batch_size, num_workers=workers))
    return {"images_per_second": _rate(lambda: len(next(batches)), "cpu")}


def pipeline(cfg: Settings) -> Json:
    """Measure the whole data path of a run: shuffling, reading and augmentation."""
    data, device = _data(cfg), _device(cfg)
    batches = _batches(data, device)
    return {
        "images_per_second": _rate(lambda: len(next(batches)[1]), device),
        "memory_mapped": isinstance(data.faces.images, np.memmap),
    }


def raw_loop(cfg: Settings, steps: int) -> Json:
    """Measure a run's data, network and optimizer in a bare loop, without Trainer, metrics and logging."""
    data, device = _data(cfg), _device(cfg)
    precision = resolve_trainer_arguments(cfg.trainer)[0]["precision"]
    layout = _layout(cfg.channels_last)
    net = _net(cfg, device, cfg.channels_last)
    if cfg.compile:
        net.compile(dynamic=False)
    optimizer, schedule = _optimizer(net, cfg)
    batches = _batches(data, device)

    def step() -> int:
        images, labels = next(batches)
        _train(net, optimizer, images.contiguous(memory_format=layout), labels, precision)
        schedule.step()
        return len(labels)

    return {"images_per_second": _rate(step, device, steps=steps)}


class _BareModule(LightningModule):
    """Minimal LightningModule: a network, a loss, an optimizer and its schedule."""

    def __init__(self, cfg: Settings) -> None:
        super().__init__()
        self.cfg = cfg
        self.layout = _layout(cfg.channels_last)
        self.net = _net(cfg, "cpu", cfg.channels_last)
        self.epoch_ends_s: list[float] = []  # perf_counter() at the end of each epoch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch["images"].contiguous(memory_format=self.layout))
        return F.cross_entropy(logits, batch.get("targets", batch["labels"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer, schedule = _optimizer(self.net, self.cfg)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        _synchronise(self.device.type)
        self.epoch_ends_s.append(perf_counter())


def bare_trainer(cfg: Settings, steps: int) -> Json:
    """Measure the raw loop under Lightning's Trainer, without callbacks, loggers or metrics."""
    data = _data(cfg)
    arguments, _ = resolve_trainer_arguments(cfg.trainer)
    module = _BareModule(cfg)
    extras = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    disabled = dict.fromkeys((*extras, "use_distributed_sampler"), False)
    epochs = {"max_epochs": 3, "limit_train_batches": steps, "limit_val_batches": 0}
    Trainer(**(arguments | epochs | disabled)).fit(module, datamodule=data)
    seconds = np.diff(module.epoch_ends_s)  # leaves out the first epoch
    images = min(steps * data.batch_size, len(data.rows(data.train_usages)))
    return {"images_per_second": images / float(np.median(seconds))}


def floor(cfg: Settings, modes: list[str], steps: int) -> Json:
    """Measure training on a single batch that stays on the device, without data path, metrics and Trainer.

    Args:
        cfg: the settings that name network, optimizer, batch size and image size.
        modes: each "bf16-mixed" or "32-true", then any of "channels_last", "compiled" (with torch.compile) and
            "captured" (the whole step, including the optimizer, replayed as one CUDA graph).
        steps: number of steps to measure in each mode.

    Returns:
        images_per_second of the fastest mode, and of each in "by_mode".
    """
    torch.backends.cudnn.benchmark = True
    rates = {mode: _floor_rate(cfg, mode, steps) for mode in modes}
    return {"images_per_second": max(rates.values()), "by_mode": rates}


def _floor_rate(cfg: Settings, mode: str, steps: int) -> float:
    device, size = _device(cfg), cfg.data.image_size
    n: int = cfg.data.batch_size
    precision, *flags = mode.split()
    channels_last = "channels_last" in flags
    net = _net(cfg, device, channels_last)
    if "compiled" in flags:
        net.compile(dynamic=False)
    optimizer, _ = _optimizer(net, cfg, captured="captured" in flags)
    images = torch.randn(n, 1, size, size, device=device).contiguous(memory_format=_layout(channels_last))
    labels = torch.randint(len(EMOTIONS), (n,), device=device)
    step: Callable[[], object] = partial(_train, net, optimizer, images, labels, precision)
    if "captured" in flags:
        step = _capture(step)

    def counted() -> int:
        step()
        return n

    return _rate(counted, device, steps=steps)


def captured_loop(cfg: Settings, steps: int, k: int) -> Json:
    """Measure k whole steps, from the gather to the optimizer, replayed as one CUDA graph. Experimental.

    Augmentation repeats epoch 0's draws and the learning rate is constant; without CUDA, steps run one by one.
    """
    torch.backends.cudnn.benchmark = True
    data, device = _data(cfg), _device(cfg)
    data.device = torch.device(device)
    loader = data.train_dataloader()
    precision = resolve_trainer_arguments(cfg.trainer)[0]["precision"]
    layout = _layout(cfg.channels_last)
    net = _net(cfg, device, cfg.channels_last)
    optimizer, _ = _optimizer(net, cfg, captured=device == "cuda")
    n = data.batch_size
    if device == "cuda" and loader.store.home.type != device:
        raise UserError("the dataset does not fit in GPU memory, where a CUDA graph has to read its batches from.")
    parts = torch.cat(list(loader.sampler)).split(k * n)  # type: ignore[no-untyped-call]
    order = cycle([part for part in parts if len(part) == k * n])
    rows = next(order).clone()  # overwritten before each replay

    def k_steps() -> None:
        gathered = loader.store.gather(rows)
        images = loader.prepare(gathered["images"], rows, 0).contiguous(memory_format=layout)
        for batch in zip(images.split(n), gathered["labels"].split(n), strict=True):  # type: ignore[no-untyped-call]
            _train(net, optimizer, *batch, precision)

    replay = _capture(k_steps) if device == "cuda" else k_steps

    def counted() -> int:
        rows.copy_(next(order))
        replay()
        return k * n

    return {"images_per_second": _rate(counted, device, steps=max(1, steps // k))}


def inference(cfg: Settings, batch_size: int) -> Json:
    """Measure inference from uint8 faces on the host to probabilities on the host, one call after the other."""
    data, device = _data(cfg), _device(cfg)
    precision = resolve_trainer_arguments(cfg.trainer)[0]["precision"]
    layout = _layout(cfg.channels_last)
    net = _net(cfg, device, cfg.channels_last).eval()
    images = data.faces.images[:batch_size]
    faces = torch.from_numpy(np.resize(images, (batch_size, *images.shape[1:]))).unsqueeze(1)

    @torch.inference_mode()
    def step() -> Tensor:
        batch = normalise(resize(faces.to(device), data.image_size), data.mean, data.std)
        with _autocast(device, precision):
            logits = net(batch.contiguous(memory_format=layout))
        return logits.float().softmax(dim=1).cpu()  # type: ignore[no-any-return]

    latencies_ms: list[float] = []
    for _ in range(WARMUP_STEPS):
        step()
    deadline = perf_counter() + SECONDS
    while (started := perf_counter()) < deadline:
        step()
        latencies_ms.append(1000 * (perf_counter() - started))
    percentiles = dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(latencies_ms, (50, 90, 99)), strict=True))
    return {
        "images_per_second": 1000 * batch_size / float(np.mean(latencies_ms)),
        **{name: float(value) for name, value in percentiles.items()},
    }


CONTENDERS: dict[str, Callable[..., Json]] = {
    contender.__name__: contender
    for contender in (
        describe,
        write_images,
        augmentation,
        per_image,
        pipeline,
        raw_loop,
        bare_trainer,
        floor,
        captured_loop,
        inference,
    )
}


def many_faces(n_train: int, n_val: int, n_test: int, seed: int) -> Faces:
    """Build a dataset of any size by repeating synthetic faces, memory-mapped from the cache like decoded ones."""

    def repeat() -> Faces:
        faces = synthetic_faces(512, 128, 128, seed)
        rows = np.concatenate(
            [np.resize(np.flatnonzero(faces.usage == usage), n) for usage, n in enumerate((n_train, n_val, n_test))]
        )
        images, labels, usage = faces.images[rows], faces.labels[rows], faces.usage[rows]
        return Faces(
            images=images,
            labels=labels,
            usage=usage,
            ids=tuple(f"{row}" for row in range(len(rows))),
            dataset=faces.dataset,
            source=faces.source,
            fingerprint=fingerprint(images, labels, usage),
            split_names=faces.split_names,
        )

    return cache.load_or_build(f"many-{n_train}-{n_val}-{n_test}-{seed}", repeat)


def _data(cfg: Settings) -> FaceDataModule:
    return FaceDataModule(build(cfg.data.source), build(cfg.augment), **data_arguments(cfg))


def _batches(data: FaceDataModule, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the network's training batches, epoch after epoch."""
    data.device = torch.device(device)
    loader = data.train_dataloader()
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield batch["images"], batch.get("targets", batch["labels"])


def _net(cfg: Settings, device: str, channels_last: bool) -> nn.Module:
    net = build_model(image_size=cfg.data.image_size, **cfg.model)
    return net.to(device, memory_format=_layout(channels_last))  # type: ignore[call-overload, no-any-return]


def _optimizer(
    net: nn.Module, cfg: Settings, captured: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Build the recipe's optimizer with a constant learning rate; `captured` prepares it for a CUDA graph."""
    options = dict(cfg.optim)
    if captured and options["name"] != "sgd":  # SGD has no such option and needs none
        options["capturable"] = True
    return build_optimizer(net.parameters(), 10**9, 10**9, **options)


def _train(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, precision: str
) -> None:
    optimizer.zero_grad()
    with _autocast(images.device.type, precision):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _capture(step: Callable[[], object]) -> Callable[[], object]:
    """Capture a step as a CUDA graph, after the warm-up on a side stream that torch.cuda.graph requires."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _rate(step: Callable[[], int], device: str, steps: int | None = None) -> float:
    """Return the images per second of `step`, which returns its number of images, over `steps` or SECONDS."""

    def run(n: int) -> tuple[int, float]:
        _synchronise(device)
        started = perf_counter()
        images = sum(step() for _ in range(n))
        _synchronise(device)
        return images, perf_counter() - started

    run(WARMUP_STEPS)
    if steps is None:
        _, warm_seconds = run(WARMUP_STEPS)
        steps = ceil(SECONDS / (warm_seconds / WARMUP_STEPS))
    images, seconds = run(steps)
    return images / seconds


def _device(cfg: Settings) -> str:
    return hardware.accelerator(str(cfg.trainer["accelerator"]))


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast context that Lightning uses for bf16-mixed and 32-true."""
    if precision not in ("bf16-mixed", "32-true"):
        raise UserError(f"trainer.precision={precision}: expected bf16-mixed or 32-true.")
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")


def _job(name: str, arguments: Json, cfg: Settings, run_dir: Path) -> None:
    hardware.keep_freed_memory()
    torch.manual_seed(cfg.seed)
    print(json.dumps(CONTENDERS[name](cfg, **arguments)))


if __name__ == "__main__":
    sys.exit(main(partial(_job, sys.argv[1], json.loads(sys.argv[2])), sys.argv[3:]))
