"""Carry out a run, from its configuration to its results."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback, seed_everything

from fer_lightning import hardware
from fer_lightning.arguments import check_options
from fer_lightning.callbacks.checkpoints import check_monitor, checkpoints
from fer_lightning.callbacks.dashboard import Dashboard
from fer_lightning.callbacks.freezing import FreezeBackbone
from fer_lightning.callbacks.history import History
from fer_lightning.config.compose import build, to_yaml
from fer_lightning.config.schema import Settings, data_arguments, to_dict
from fer_lightning.data.classes import columns_of
from fer_lightning.data.datamodule import EpochBatches, FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.evaluation.report import format_results
from fer_lightning.experiment.loggers import build_loggers, connected
from fer_lightning.experiment.plan import (
    Plan,
    adopt_checkpoint,
    adopt_weights,
    build_teacher,
    check_classes,
    check_finetune,
    has_same_classes,
    input_settings,
    make_plan,
    resolve_folders,
    start_notes,
    start_of,
    starts_anew,
    tested_settings,
)
from fer_lightning.experiment.preflight import check_augmentation, check_network
from fer_lightning.experiment.record import (
    announce,
    hparams,
    new_record,
    record_outcome,
    run_texts,
    summary,
)
from fer_lightning.experiment.test import test, test_ensemble
from fer_lightning.experiment.trainer import build_callbacks, fit, make_trainer, resolve_trainer_arguments
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec, load_weights
from fer_lightning.models.pretrained import without_weights
from fer_lightning.models.transfer import last_layer, load_all_but_last, reorder_last
from fer_lightning.runs.folders import read_results
from fer_lightning.training.module import EmotionClassifier, classifier_from
from fer_lightning.training.optim import build_optimizer


def run(cfg: Settings, run_dir: Path, started: float) -> None:
    """Carry out one run: build it, fit, test, and write its results.

    Args:
        cfg: the configuration.
        run_dir: the run's folder.
        started: ``time.perf_counter()`` at the start of the run.

    Raises:
        UserError: invalid settings or data, or a fit that diverged.
    """
    cfg = resolve_folders(cfg)
    plan = make_plan(cfg, run_dir)
    cfg = adopt_weights(adopt_checkpoint(cfg, plan), plan)
    check_finetune(cfg, plan)
    checkpoint_callbacks = checkpoints(run_dir, cfg.monitor, cfg.checkpoint.every_n_minutes) if plan.fit else []

    hardware.keep_freed_memory()
    hardware.prepare_cublas()
    seed_everything(cfg.seed, verbose=False)
    datamodules = build_data(cfg, plan)
    if plan.fit:
        check_monitor(cfg.monitor, datamodules[0].faces.classes)
    check_classes(plan, datamodules[0].faces.classes)
    modules = build_modules(cfg, plan, datamodules[0])
    if plan.fit:
        check_augmentation(datamodules[0])
    for module in modules:
        check_network(module)

    trainer_arguments, machine = resolve_trainer_arguments(cfg.trainer)
    record = new_record(cfg, datamodules[0], modules, plan.tested, machine)
    earlier = read_results(run_dir) if plan.resumed else None
    record.start = earlier.get("start") if earlier else start_of(cfg, plan, datamodules[0].faces.classes)
    effective = to_dict(cfg) | (tested_settings(cfg, plan.tested) if plan.tested else {})
    history = History(datamodules[0].val_split)
    dashboard = Dashboard(run_texts(to_yaml(effective), record), hparams(effective))
    # History follows the callbacks that draw, so that the time they take is not counted as training.
    callbacks = [
        *build_callbacks(cfg.callbacks),
        *freezing(cfg, modules),
        history,
        dashboard,
        *checkpoint_callbacks,
    ]
    resumed = plan.resumed
    loggers = build_loggers(cfg, run_dir, resumed)
    trainer = make_trainer(list(loggers.values()), callbacks, run_dir, trainer_arguments)
    record.processes = trainer.world_size
    check_batches(plan, datamodules[0], trainer.world_size)

    with connected(loggers, run_dir, resumed):
        announce(datamodules[0], modules, record, run_dir, start_notes(cfg, plan, datamodules[0]))
        resumed_step = resumed.global_step if resumed else None
        with record_outcome(trainer, run_dir, to_yaml(effective), record, started, resumed_step):
            if plan.fit:
                fit(modules[0], datamodules[0], trainer, history, record, resumed.path if resumed else None)
            if plan.test:
                if len(modules) > 1:
                    test_ensemble(modules, datamodules, trainer, record)
                else:
                    test(modules[0], datamodules[0], trainer, record)
                print(f"\n{format_results(record.to_json())}")
            dashboard.report(trainer, summary(record))
    print(f"results: {run_dir / 'results.json'}")


def build_data(cfg: Settings, plan: Plan) -> list[FaceDataModule]:
    """Read the faces, and build a data module for each network.

    In a test-only run, each network gets the image size and normalisation that it was trained with.

    Raises:
        UserError: data that are missing or invalid, or differ from those of the resumed run, or settings out of
            range.
    """
    faces = build(cfg.data.source)
    if plan.resumed and plan.resumed.data_fingerprint not in (None, faces.fingerprint):
        raise UserError(
            f"resume: this run was trained on different data than {faces.source}, or an older version cut its "
            "splits differently. Set data.path and the other data settings as they were."
        )
    augment = build(cfg.augment)
    inputs = [input_settings(checkpoint) for checkpoint in plan.tested] or [{}]
    return [FaceDataModule(faces, augment, **(data_arguments(cfg) | each)) for each in inputs]


def check_batches(plan: Plan, data: FaceDataModule, processes: int) -> None:
    """Raise UserError if a batch has fewer images than the run has processes."""
    if plan.fit:
        EpochBatches(data.rows(data.train_usages), data.batch_size, world_size=processes)
    EpochBatches(data.rows(data.val_usages), data.eval_batch_size, world_size=processes)


def build_modules(cfg: Settings, plan: Plan, data: FaceDataModule) -> list[EmotionClassifier]:
    """Build the network to train, or the networks of the checkpoints to test.

    Raises:
        UserError: a network or optimizer that cannot be built, or weights that do not fit the network.
    """
    if plan.tested:
        return [classifier_from(checkpoint, cfg.channels_last, cfg.tta) for checkpoint in plan.tested]
    for name, source in (("image_size", "data.image_size"), ("n_classes", "the classes of the data")):
        if name in cfg.model:
            raise UserError(f"model.{name}={cfg.model[name]}: leave it out, it follows from {source}.")
    inputs = InputSpec(data.image_size, data.mean, data.std, data.faces.classes)
    plain = without_weights(cfg.model)
    net = build_model(
        image_size=data.image_size,
        n_classes=len(inputs.classes),
        **(cfg.model if starts_anew(plan) else plain),
    )
    check_options(build_optimizer, "optim", cfg.optim, [], 1, 1)
    module = EmotionClassifier(
        net,
        partial(build_optimizer, **cfg.optim),
        inputs,
        plain,
        cfg.channels_last,
        cfg.compile,
        cfg.label_smoothing,
        cfg.tta,
        build_teacher(cfg.distill, plan.teachers, inputs, data),
        data.class_weights,
        cfg.finetune.backbone_lr_factor,
    )
    for checkpoint in plan.initial:  # at most one
        own = checkpoint.inputs.classes
        if own == inputs.classes:
            load_weights(net, checkpoint)
        elif has_same_classes(own, inputs.classes):
            columns = columns_of(inputs.classes, own)
            load_weights(
                net, replace(checkpoint, state_dict=reorder_last(net, checkpoint.state_dict, columns, "net."))
            )
        else:
            weights = {name.removeprefix("net."): value for name, value in checkpoint.state_dict.items()}
            load_all_but_last(net, weights, f"ckpt={checkpoint.path}", len(inputs.classes))
    return [module]


def freezing(cfg: Settings, modules: Sequence[EmotionClassifier]) -> list[Callback]:
    """Return the callback that freezes all layers but the last at first, if there is anything to freeze."""
    if not cfg.finetune.freeze_epochs or "fit" not in cfg.stages:
        return []
    (module,) = modules
    return [FreezeBackbone(last_layer(module.net, len(module.inputs.classes)), cfg.finetune.freeze_epochs)]
