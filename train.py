"""Trains and tests a network on FER-2013: python train.py --help."""

import sys
import time
from pathlib import Path

import fer_lightning
from fer_lightning.config.cli import Config, build, main, to_yaml


def job(cfg: Config, run_dir: Path) -> None:
    """One run: builds what the configuration names, fits, tests, reports."""
    # Not a name of this module's: a launcher's process gets copies of those.
    started = fer_lightning.process_start.pop() if fer_lightning.process_start else time.perf_counter()
    # Imported here, so that --help and a typo need not wait for torch and lightning.
    from functools import partial

    from lightning.pytorch import seed_everything

    from fer_lightning import hardware
    from fer_lightning.arguments import check_options
    from fer_lightning.callbacks.dashboard import Dashboard
    from fer_lightning.callbacks.history import History
    from fer_lightning.data.datamodule import FaceDataModule
    from fer_lightning.errors import UserError
    from fer_lightning.evaluation.scores import format_results
    from fer_lightning.experiment import test as experiment
    from fer_lightning.models import build_model
    from fer_lightning.models.checkpoint import InputSpec, load_weights, read_checkpoint
    from fer_lightning.training.module import EmotionClassifier, classifier_from
    from fer_lightning.training.optim import build_optimizer

    ckpts = experiment.checkpoint_paths(cfg["ckpt"])
    fit, test = experiment.stages(cfg["stages"], ckpts, **cfg["checkpoint"])
    experiment.check_seed(cfg["seed"])
    last = experiment.resume_point(run_dir) if cfg["resume"] else None
    starts = [] if last and fit else [read_checkpoint(path) for path in ckpts]
    teachers = [read_checkpoint(path) for path in experiment.checkpoint_paths(cfg["distill"]["ckpt"])]
    keep = experiment.checkpoints(run_dir, cfg["monitor"], **cfg["checkpoint"]) if fit else []

    hardware.keep_freed_memory()
    hardware.prepare_cublas()
    seed_everything(cfg["seed"], verbose=False)
    batching = {key: value for key, value in cfg["data"].items() if key != "source"}
    tested = [] if fit else starts
    if tested:
        cfg |= experiment.own_settings(cfg["data"], tested)
    faces = build(cfg["data"]["source"])
    if last and last.data_fingerprint not in (None, faces.fingerprint):
        raise UserError(
            f"resume: this run was trained on other data than {faces.source}: set data.path to its own."
        )
    augment = build(cfg["augment"])
    # A network that is only tested gets the input that it was trained on.
    inputs_of = [experiment.own_input(checkpoint) for checkpoint in tested] or [{}]
    check_options(FaceDataModule, "data", batching, faces, augment)
    datas = [FaceDataModule(faces, augment, seed=cfg["seed"], **(batching | own)) for own in inputs_of]
    data = datas[0]

    if tested:
        modules = [classifier_from(checkpoint, cfg["channels_last"], cfg["tta"]) for checkpoint in tested]
    else:
        inputs = InputSpec(data.image_size, data.mean, data.std)
        net = build_model(image_size=data.image_size, **cfg["model"])
        check_options(build_optimizer, "optim", cfg["optim"], [], 1, 1)
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
            experiment.teacher(cfg["distill"], teachers, inputs, data),
        )
        for start in starts:  # one at most
            load_weights(net, start)
        modules = [module]

    trainer_arguments, machine = experiment.for_this_machine(cfg["trainer"])
    results = experiment.new_results(cfg, data, modules, tested, machine)
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
    callbacks = [*experiment.build_callbacks(cfg["callbacks"], build), history, dashboard, *keep]
    trainer = experiment.make_trainer(logger or False, callbacks, run_dir, trainer_arguments)
    results["processes"] = trainer.world_size

    experiment.announce(data, modules, results, run_dir)
    begun_at = last.global_step if last else None
    with experiment.recorded(trainer, run_dir, to_yaml(cfg), results, started, begun_at):
        if fit:
            experiment.train(modules[0], data, trainer, history, results, last and last.path)
        if test:
            if len(modules) > 1:
                experiment.test_ensemble(modules, datas, trainer, results)
            else:
                experiment.test(modules[0], data, trainer, results)
            print(f"\n{format_results(results)}")
        dashboard.report(trainer, experiment.summary(results))
    print(f"results: {run_dir / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main(job))
