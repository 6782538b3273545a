"""Trains and tests a network on FER-2013: python train.py --help."""

import sys
import time
from pathlib import Path

from fer_lightning.config import Config, build, main, to_yaml

# The first run of a sweep began with the process, imports included; the others begin when they begin.
process_start = [time.perf_counter()]


def job(cfg: Config, run_dir: Path) -> None:
    """One run: builds what the configuration names, fits, tests, reports."""
    started = process_start.pop() if process_start else time.perf_counter()
    # Imported here, so that --help and a typo need not wait for torch and lightning.
    from functools import partial

    from lightning.pytorch import seed_everything

    from fer_lightning import experiment
    from fer_lightning.callbacks.dashboard import Dashboard
    from fer_lightning.callbacks.history import History
    from fer_lightning.checkpoint import classifier_from, load_weights, read_checkpoint
    from fer_lightning.data.datamodule import FaceDataModule
    from fer_lightning.models import build_model
    from fer_lightning.module import EmotionClassifier, InputSpec
    from fer_lightning.optim import build_optimizer
    from fer_lightning.results import format_results

    fit, test = experiment.stages(cfg["stages"], cfg["ckpt"])
    experiment.check_seed(cfg["seed"])
    start = read_checkpoint(cfg["ckpt"]) if cfg["ckpt"] else None
    keep = experiment.checkpoints(run_dir, cfg["monitor"]) if fit else []
    resume_from = experiment.resume_point(run_dir) if cfg["resume"] else None
    last = read_checkpoint(resume_from) if resume_from else None

    seed_everything(cfg["seed"], verbose=False)
    batching = {key: cfg["data"][key] for key in FaceDataModule.SETTINGS if key in cfg["data"]}
    if start and not fit:  # a network that is only tested gets the input that it was trained on
        batching |= {
            "image_size": start.inputs.image_size,
            "mean": start.inputs.mean,
            "std": start.inputs.std,
        }
        cfg |= {"model": start.model, "data": cfg["data"] | batching}
    faces = build({key: value for key, value in cfg["data"].items() if key not in batching})
    data = FaceDataModule(faces, build(cfg["augment"]), seed=cfg["seed"], **batching)

    if start and not fit:
        module = classifier_from(start, cfg["channels_last"], cfg["tta"])
        val_split = start.val_split
    else:
        inputs = InputSpec(data.image_size, data.mean, data.std)
        net = build_model(image_size=data.image_size, **cfg["model"])
        optimizer = partial(build_optimizer, **cfg["optim"])
        module = EmotionClassifier(
            net,
            optimizer,
            inputs,
            cfg["model"],
            cfg["channels_last"],
            cfg["compile"],
            cfg["label_smoothing"],
            cfg["tta"],
        )
        val_split = data.val_split
        if start:
            load_weights(module, start)

    trainer_arguments, machine = experiment.for_this_machine(cfg["trainer"])
    results = experiment.new_results(cfg, data, module, val_split, machine)
    history = History(data.val_split)
    dashboard = Dashboard(experiment.texts(to_yaml(cfg), results), experiment.hparams(cfg))
    logger = cfg["logger"] and build(
        cfg["logger"],
        save_dir=run_dir.parent,
        name=run_dir.name,
        version="",
        default_hp_metric=False,
        # Steps of an epoch that was cut short are done again: TensorBoard forgets their first showing.
        purge_step=last.global_step + 1 if last else 0 if cfg["resume"] else None,
    )
    # History comes after what draws, so that its clock leaves drawing out.
    callbacks = [*(build(node) for node in cfg["callbacks"].values()), history, dashboard, *keep]
    trainer = experiment.make_trainer(logger or False, callbacks, run_dir, trainer_arguments)

    experiment.announce(data, module, results, run_dir)
    with experiment.recorded(run_dir, to_yaml(cfg), results, started):
        if fit:
            experiment.train(module, data, trainer, history, results, resume_from)
        if test:
            experiment.test(module, data, trainer, results)
            print(f"\n{format_results(results)}")
        dashboard.report(trainer, experiment.summary(results))
    print(f"results: {run_dir / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main(job))
