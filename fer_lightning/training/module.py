"""The LightningModule: steps, metrics and optimizer. It draws no figures and writes no files."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics.metric import jit_distributed_available
from torchmetrics.utilities.distributed import gather_all_tensors

from fer_lightning.data.datamodule import Batch, FaceDataModule
from fer_lightning.errors import UserError
from fer_lightning.evaluation.scores import Predictions, score, score_classes
from fer_lightning.models.checkpoint import Checkpoint, InputSpec, net_from
from fer_lightning.models.tta import check_tta, predict_logits
from fer_lightning.training.compat import HOOK_NAME
from fer_lightning.training.distillation import Teacher
from fer_lightning.training.optim import parameter_groups, steps_per_epoch_of

StepOutput = tuple[Tensor, Tensor, Tensor]  # index (B,), logits (B, C), labels (B,)
OptimizerFactory = Callable[..., tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]


def logged_metrics(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that every epoch logs; each of them can be the monitor of the best checkpoint."""
    return (
        *(f"{name}/{stage}" for name in ("loss", "accuracy") for stage in ("train", "val")),
        "macro_f1/val",
        *(f"{name}/{class_name}" for name in ("precision", "recall") for class_name in classes),
    )


def gather(outputs: Iterable[StepOutput]) -> Predictions:
    """Merge the step outputs of all processes into predictions on the CPU, in the order of the dataset's rows."""
    index, logits, labels = (_gather_processes(torch.cat(parts)) for parts in zip(*outputs, strict=True))
    order = index.argsort()
    return Predictions(index[order].cpu(), logits[order].cpu(), labels[order].cpu())


def _gather_processes(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, whose numbers may differ: (n, ...) -> (N, ...)."""
    return torch.cat(gather_all_tensors(rows)) if jit_distributed_available() else rows


class EmotionClassifier(LightningModule):
    """A network with its training by cross-entropy, its evaluation and its metrics.

    Every epoch logs ``loss/train``, ``accuracy/train``, ``loss/val``, ``accuracy/val``, ``macro_f1/val``,
    ``recall/<class>`` and ``precision/<class>``, with the epoch as the step. Training also logs ``step/loss``
    and ``step/accuracy``, means since the last write, every ``trainer.log_every_n_steps`` steps.

    Args:
        net: float (B, 1, H, W) -> logits (B, C).
        optimizer: called with the parameters, total_steps and steps_per_epoch; returns the optimizer and its
            schedule. None for a module that is only tested.
        inputs: the input format and the classes of `net`.
        model: name and options that rebuild `net`, plain values only; saved in the checkpoint.
        channels_last: whether the network and its images use the channels_last memory format; affects only speed.
        compile: whether to compile the network with torch.compile; the first step takes a minute longer.
        label_smoothing: share of each training label that is spread over all classes, in [0, 1) (Szegedy et al.
            2016, "Rethinking the Inception architecture"); affects ``loss/train`` but not ``loss/val``.
        tta: test-time augmentation of tests and predictions, a key of tta.VIEWS; validation uses none.
        teacher: networks whose soft targets enter the training loss; they get the same images.
        class_weights: float32 (C,), factors of each image's loss by its class or soft target, for ``loss/train``
            but not ``loss/val``.
        backbone_lr_factor: learning rate of all layers of `net` but the last, as a fraction of the optimizer's.

    Attributes:
        held_out: the predictions of the last validation, test or prediction epoch, of all processes; None before.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory | None,
        inputs: InputSpec,
        model: dict[str, Any],
        channels_last: bool = False,
        compile: bool = False,
        label_smoothing: float = 0.0,
        tta: str = "none",
        teacher: Teacher | None = None,
        class_weights: Tensor | None = None,
        backbone_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing}: expected at least 0 and below 1.")
        check_tta(tta)
        self.label_smoothing = label_smoothing
        self.tta = tta
        self.teacher = teacher
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)  # moved to the network's device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compile:
            # In place, which keeps the names of the weights. Separate kernels for the smaller last batch are faster
            # than one dynamic kernel for all shapes.
            self.net.compile(dynamic=False)
        self.inputs = inputs
        if not 0 < backbone_lr_factor <= 1:
            raise UserError(f"finetune.backbone_lr_factor={backbone_lr_factor}: expected above 0, at most 1.")
        self.backbone_lr_factor = backbone_lr_factor
        if optimizer is not None:
            optimizer(self._parameter_groups(), total_steps=1, steps_per_epoch=1)  # fail now, not during the fit
        self.optimizer_factory = optimizer
        self.model = model
        self.held_out: Predictions | None = None
        self._outputs: list[StepOutput] = []
        # Loss (), logits (B, C) and labels (B,) of the steps since the last `_count_steps`. They stay on the device
        # because reading them in every step would make the host wait for it.
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []
        # Sums of the loss, of correct predictions and of images, over the epoch and since the last write; and the
        # number of the epoch's steps before the first with a loss that is not finite.
        self._epoch_sums = [0.0] * 3
        self._window_sums = [0.0] * 3
        self._finite_steps = 0.0
        self._saved_epoch: dict[str, Any] | None = None  # progress within the epoch, from the checkpoint

    def _parameter_groups(self) -> list[Any]:
        return parameter_groups(self.net, len(self.inputs.classes), self.backbone_lr_factor)

    def __setattr__(self, name: str, value: Any) -> None:
        # Skip nn.Module's lookup of parameters, submodules and buffers of that name, which is slow.
        if name == HOOK_NAME:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def _data(self) -> FaceDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, FaceDataModule)
        return data

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: float (B, 1, H, W) -> (B, C)."""
        return self.net(images.contiguous(memory_format=self.memory_format))  # type: ignore[no-any-return]

    def on_fit_start(self) -> None:
        """Move the teacher to the network's device."""
        if self.teacher is not None:
            self.teacher.to(self.device, self.memory_format)

    def on_train_start(self) -> None:
        """Restore the epoch's sums and prepare the teacher when resuming mid-epoch.

        Raises:
            UserError: the number of batches per epoch has changed.
        """
        if not self.trainer.fit_loop.restarted_mid_epoch:
            return
        # Lightning does not call on_train_epoch_start again for this epoch.
        assert self._saved_epoch is not None
        batches, now = self._saved_epoch["batches"], self.trainer.num_training_batches
        if batches != now:
            raise UserError(
                f"This run was stopped in an epoch of {batches} batches, but the epoch now has {now}. Resume with "
                "the same training images, data.batch_size and trainer.limit_train_batches."
            )
        # The checkpoint holds the sums over all processes, so only the first process may start from them.
        share = 1 if self.trainer.is_global_zero else 0
        epoch, window = ([share * value for value in self._saved_epoch[name]] for name in ("sums", "window"))
        self._epoch_sums, self._window_sums, self._finite_steps = epoch, window, self._saved_epoch["finite_steps"]
        self._prepare_teacher()

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's sums, and prepare the teacher."""
        self._prepare_teacher()
        self._steps = []
        self._epoch_sums, self._window_sums, self._finite_steps = [0.0] * 3, [0.0] * 3, 0.0

    def _prepare_teacher(self) -> None:
        """Have the teacher's soft targets ready before the steps of an epoch whose images repeat."""
        if self.teacher is None:
            return
        data, trainer = self._data, self.trainer
        # Of an epoch that is cut short, most images are not needed.
        is_whole = trainer.num_training_batches == len(data.train_dataloader())
        # Only the predictions are made in the steps' precision: their images, too, are augmented outside it.
        context = trainer.precision_plugin.train_step_context
        self.teacher.prepare_epoch(self.current_epoch, data.ordered_batches if is_whole else None, context)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed torch's generator from the seed, epoch, batch and rank."""
        # Dropout draws from this generator. Seeding it for each step makes resuming exact without saving its state.
        step = struct.pack("<4q", self._data.seed, self.current_epoch, batch_idx, self.global_rank)
        on_cpu = self.device.type == "cpu"
        generator: Any = torch.default_generator if on_cpu else torch.get_device_module(self.device)
        generator.manual_seed(int.from_bytes(blake2b(step, digest_size=8).digest(), "little"))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss to minimise, and keep the step's results for the metrics."""
        labels = batch["labels"]
        images = batch["images"].contiguous(memory_format=self.memory_format)
        logits = self(images)
        targets = batch.get("targets", labels)  # probabilities, if the data have them
        if self.class_weights is None:
            loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        else:
            # Not cross_entropy's own weights: it would divide by the sum of a batch's weights, so that an image's
            # share would depend on the others in its batch, and on the process.
            losses = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
            loss = (losses * self._image_weights(targets)).mean()
        if self.teacher is not None:
            taught = self.teacher.soft_targets(images, batch["index"])
            loss = self.teacher.loss(taught, logits, loss)
        self._steps.append((loss.detach(), logits.detach(), labels))
        if self.trainer.world_size > 1:
            # DDP averages the gradients of processes whose shares of a batch can differ by an image. Weighting each
            # loss by its share makes every image count equally.
            total = loss.new_full((), len(labels), dtype=torch.float32)
            torch.distributed.all_reduce(total)
            loss = loss * (len(labels) * self.trainer.world_size) / total
        return loss

    def _image_weights(self, targets: Tensor) -> Tensor:
        """Return the weight of each image's class, or the mean over its soft target: float32 (B,)."""
        assert self.class_weights is not None
        return targets @ self.class_weights if targets.is_floating_point() else self.class_weights[targets]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the step metrics when due, and stop a diverged fit before it is validated."""
        # global_step includes this step already, so log_every_n_steps=1 logs every step.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        step_done = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        due = every and step_done and self.global_step % every == 0
        if due or self.trainer.is_last_batch:
            self.train_metrics()  # raises if the fit has diverged
        if due and self.loggers:
            loss, accuracy, _ = self._means(self._window_sums)
            self._window_sums = [0.0] * 3
            for logger in self.loggers:
                logger.log_metrics({"step/loss": loss, "step/accuracy": accuracy}, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics."""
        loss, accuracy, _ = self.train_metrics()
        self.log_at_epoch({"loss/train": loss, "accuracy/train": accuracy})

    def train_metrics(self) -> tuple[float, float, int]:
        """Compute loss, accuracy and number of images of the epoch so far, over all processes.

        Raises:
            UserError: the loss of a step was NaN or infinite.
        """
        self._count_steps()
        loss, accuracy, n = self._means(self._epoch_sums)
        if not isfinite(loss):
            [finite_steps] = self._reduce([self._finite_steps], "min")
            step = int(finite_steps) + 1
            raise self._divergence_error(f"The loss of step {step} of {self.trainer.num_training_batches}")
        return loss, accuracy, n

    def _count_steps(self) -> None:
        """Add the steps since the last call to the sums, with a single read from the device."""
        if not self._steps:
            return
        losses, logits, labels = zip(*self._steps, strict=True)
        self._steps = []
        correct = (torch.cat(logits).argmax(dim=1) == torch.cat(labels)).sum()
        dtype = torch.promote_types(losses[0].dtype, torch.float32)  # float32 counts exactly to 16 million
        *values, n_correct = torch.cat([torch.stack(losses).to(dtype), correct.to(dtype).view(1)]).tolist()
        sizes = [len(batch) for batch in labels]
        added = (sum(loss * n for loss, n in zip(values, sizes, strict=True)), n_correct, sum(sizes))
        if isfinite(self._epoch_sums[0]):
            self._finite_steps += next((n for n, loss in enumerate(values) if not isfinite(loss)), len(values))
        for sums in (self._epoch_sums, self._window_sums):
            sums[:] = [total + new for total, new in zip(sums, added, strict=True)]

    def _means(self, sums: list[float]) -> tuple[float, float, int]:
        """Return mean loss, accuracy and number of images over all processes."""
        loss_sum, correct, n = self._reduce(sums, "sum")
        return loss_sum / n, correct / n, int(n)

    def _reduce(self, values: list[float], how: str) -> list[float]:
        """Return the "sum" or "min" of each value over all processes."""
        if self.trainer.world_size == 1:
            return values
        # MPS does not support float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        reduced = self.trainer.strategy.reduce(torch.tensor(values, dtype=dtype, device=self.device), reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced.tolist()

    def _divergence_error(self, quantity: str) -> UserError:
        return UserError(
            f"{quantity} in epoch {self.current_epoch} is NaN or infinite: the fit has diverged. checkpoints/ "
            "keeps the earlier weights. Try a lower optim.lr, optim.warmup_epochs=1, trainer.gradient_clip_val=1 "
            "or trainer.precision=32-true, from scratch or from those weights with ckpt=."
        )

    def on_validation_epoch_start(self) -> None:
        """Discard the previous epoch's outputs."""
        self._outputs = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the batch's logits, without test-time augmentation."""
        self._outputs.append(self._evaluate(batch, "none"))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        self.held_out = gather(self._outputs)
        logits, labels = self.held_out.logits, self.held_out.labels
        scores, classes = score(logits, labels), score_classes(logits, labels, self.inputs.classes)
        if not isfinite(scores["loss"]):
            raise self._divergence_error("The validation loss")
        metrics = {f"{name}/val": scores[name] for name in ("loss", "accuracy", "macro_f1")}
        for name in ("precision", "recall"):
            metrics |= {f"{name}/{class_name}": values[name] for class_name, values in classes.items()}
        self.log_at_epoch(metrics)

    def on_test_epoch_start(self) -> None:
        """Discard the previous epoch's outputs."""
        self._outputs = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the batch's logits, with the module's test-time augmentation."""
        self._outputs.append(self._evaluate(batch, self.tta))

    def on_test_epoch_end(self) -> None:
        """Gather the predictions of all processes in `held_out`."""
        self.held_out = gather(self._outputs)

    # predict() also leaves its outputs in `held_out`, because what Lightning returns is one process's share.
    on_predict_epoch_start = on_test_epoch_start
    on_predict_epoch_end = on_test_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Collect the batch's logits as in a test, and return them."""
        self.test_step(batch, batch_idx)
        return self._outputs[-1]

    def _evaluate(self, batch: Batch, tta: str) -> StepOutput:
        return batch["index"], predict_logits(self, batch["images"], tta), batch["labels"]

    def log_at_epoch(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Log metrics with the epoch as TensorBoard's x axis, by way of Lightning's special key "step"."""
        if not self.trainer.sanity_checking:
            self.log_dict({**metrics, "step": float(self.current_epoch)})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and its schedule, which is stepped with every optimizer step."""
        assert self.optimizer_factory is not None
        total_steps = self.trainer.estimated_stepping_batches  # infinite for max_epochs=-1
        self.trainer.fit_loop.setup_data()  # the line above skips this when max_steps suffices
        optimizer, schedule = self.optimizer_factory(
            self._parameter_groups(), total_steps=total_steps, steps_per_epoch=steps_per_epoch_of(self.trainer)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilding the network and resuming need: plain values, loadable with weights_only=True.

        Raises:
            UserError: a weight is NaN or infinite; such weights must not replace a good checkpoint.
        """
        if not all(value.isfinite().all() for value in self.net.state_dict().values()):
            self.train_metrics()  # raises an error that names the step if its loss was not finite either
            raise self._divergence_error("A weight")
        self._count_steps()
        inputs = self.inputs
        checkpoint["fer_lightning"] = {
            "model": self.model,
            "image_size": inputs.image_size,
            "mean": inputs.mean,
            "std": inputs.std,
            "classes": list(inputs.classes),
            "val_split": self._data.val_split,
            "data_fingerprint": self._data.faces.fingerprint,
            "tta": self.tta,
            "epoch": {
                "batches": self.trainer.num_training_batches,
                "sums": self._reduce(self._epoch_sums, "sum"),
                "window": self._window_sums,
                "finite_steps": self._finite_steps,
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's progress for `on_train_start`."""
        self._saved_epoch = checkpoint["fer_lightning"].get("epoch")


def classifier_from(checkpoint: Checkpoint, channels_last: bool = False, tta: str = "none") -> EmotionClassifier:
    """Build the module of a checkpoint's network, weights and input format, ready to test."""
    net = net_from(checkpoint)
    return EmotionClassifier(net, None, checkpoint.inputs, checkpoint.model, channels_last, tta=tta).eval()
