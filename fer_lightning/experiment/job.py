"""A run from its configuration to its results: plan, build, announce, fit, test, report."""

from functools import partial
from pathlib import Path

from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger

from fer_lightning import hardware
from fer_lightning.arguments import check_options
from fer_lightning.callbacks.checkpoints import checkpoints
from fer_lightning.callbacks.dashboard import Dashboard
from fer_lightning.callbacks.history import History
from fer_lightning.config.compose import build, to_yaml
from fer_lightning.config.schema import Settings, to_dict
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.evaluation.report import format_results
from fer_lightning.experiment.plan import Plan, make_plan, own_input, own_settings, teacher
from fer_lightning.experiment.record import announce, hparams, new_record, recorded, summary, texts
from fer_lightning.experiment.test import test, test_ensemble
from fer_lightning.experiment.trainer import build_callbacks, fit, for_this_machine, make_trainer
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import InputSpec, load_weights
from fer_lightning.training.module import EmotionClassifier, classifier_from
from fer_lightning.training.optim import build_optimizer


def run(cfg: Settings, run_dir: Path, started: float) -> None:
    """Do one run.

    Args:
        cfg: the configuration.
        run_dir: the run's folder.
        started: ``time.perf_counter()`` at the beginning.

    Raises:
        UserError: settings or data that a run cannot be made of, or a fit that has diverged.
    """
    plan = make_plan(cfg, run_dir)
    keep = checkpoints(run_dir, cfg.monitor, cfg.checkpoint.every_n_minutes) if plan.fit else []

    hardware.keep_freed_memory()
    hardware.prepare_cublas()
    seed_everything(cfg.seed, verbose=False)
    datas = build_data(cfg, plan)
    modules = build_modules(cfg, plan, datas[0])

    trainer_arguments, machine = for_this_machine(cfg.trainer)
    record = new_record(cfg, datas[0], modules, plan.tested, machine)
    used = to_dict(cfg) | (own_settings(cfg, plan.tested) if plan.tested else {})
    history = History(datas[0].val_split)
    dashboard = Dashboard(texts(to_yaml(used), record), hparams(used))
    # History comes after what draws, so that its clock leaves drawing out.
    callbacks = [*build_callbacks(cfg.callbacks), history, dashboard, *keep]
    trainer = make_trainer(build_logger(cfg, plan, run_dir) or False, callbacks, run_dir, trainer_arguments)
    record.processes = trainer.world_size

    announce(datas[0], modules, record, run_dir)
    last = plan.resumed
    with recorded(trainer, run_dir, to_yaml(used), record, started, last.global_step if last else None):
        if plan.fit:
            fit(modules[0], datas[0], trainer, history, record, last.path if last else None)
        if plan.test:
            if len(modules) > 1:
                test_ensemble(modules, datas, trainer, record)
            else:
                test(modules[0], datas[0], trainer, record)
            print(f"\n{format_results(record.to_json())}")
        dashboard.report(trainer, summary(record))
    print(f"results: {run_dir / 'results.json'}")


def build_data(cfg: Settings, plan: Plan) -> list[FaceDataModule]:
    """Read the faces, and make batches of them for each network: as it was trained, if it is only tested.

    Raises:
        UserError: no data, data with faults, other data than the resumed run's, or settings out of range.
    """
    batching = to_dict(cfg.data)
    del batching["source"]
    faces = build(cfg.data.source)
    if plan.resumed and plan.resumed.data_fingerprint not in (None, faces.fingerprint):
        raise UserError(
            f"resume: this run was trained on other data than {faces.source}: set data.path to its own."
        )
    augment = build(cfg.augment)
    inputs_of = [own_input(checkpoint) for checkpoint in plan.tested] or [{}]
    return [FaceDataModule(faces, augment, seed=cfg.seed, **(batching | own)) for own in inputs_of]


def build_modules(cfg: Settings, plan: Plan, data: FaceDataModule) -> list[EmotionClassifier]:
    """Build the network to train, or those of the checkpoints to test.

    Raises:
        UserError: a network or optimizer that cannot be built, or weights that do not fit.
    """
    if plan.tested:
        return [classifier_from(checkpoint, cfg.channels_last, cfg.tta) for checkpoint in plan.tested]
    inputs = InputSpec(data.image_size, data.mean, data.std)
    net = build_model(image_size=data.image_size, **cfg.model)
    check_options(build_optimizer, "optim", cfg.optim, [], 1, 1)
    module = EmotionClassifier(
        net,
        partial(build_optimizer, **cfg.optim),
        inputs,
        cfg.model,
        cfg.channels_last,
        cfg.compile,
        cfg.label_smoothing,
        cfg.tta,
        teacher(cfg.distill, plan.teachers, inputs, data),
    )
    for start in plan.starts:  # one at most
        load_weights(net, start)
    return [module]


def build_logger(cfg: Settings, plan: Plan, run_dir: Path) -> Logger | None:
    """Build the logger, writing into the run's folder; None if the configuration has none."""
    if not cfg.logger:
        return None
    # Steps of an epoch that was cut short are done again: TensorBoard forgets their first showing.
    first_step = plan.resumed.global_step + 1 if plan.resumed else 0 if cfg.resume else None
    logger: Logger = build(
        cfg.logger,
        save_dir=run_dir.parent,
        name=run_dir.name,
        version="",
        default_hp_metric=False,
        purge_step=first_step,
    )
    return logger
