"""The LightningModule: steps, metrics and the optimizer hook. It draws nothing and writes no files."""

import struct
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from math import ceil, isfinite
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics.metric import jit_distributed_available
from torchmetrics.utilities.distributed import gather_all_tensors

from fer_lightning.data.datamodule import Batch, FaceDataModule
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.evaluation.scores import Predictions, score, score_classes
from fer_lightning.models.checkpoint import Checkpoint, InputSpec, net_from
from fer_lightning.models.tta import answer, check_tta
from fer_lightning.training.compat import HOOK_NAME
from fer_lightning.training.distillation import Teacher

Answer = tuple[Tensor, Tensor, Tensor]  # index (B,), logits (B, 7), labels (B,)
OptimizerFactory = Callable[..., tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]


# Every metric that an epoch logs, and that can choose the best checkpoint.
LOGGED = (
    *(f"{name}/{stage}" for name in ("loss", "accuracy") for stage in ("train", "val")),
    "macro_f1/val",
    *(f"{name}/{emotion}" for name in ("precision", "recall") for emotion in EMOTIONS),
)


def gather(answers: Iterable[Answer]) -> Predictions:
    """The batches' answers as one, those of every process together, in the order of the rows."""
    index, logits, labels = (_everyones(torch.cat(parts)) for parts in zip(*answers, strict=True))
    order = index.argsort()
    return Predictions(index[order].cpu(), logits[order].cpu(), labels[order].cpu())


def _everyones(part: Tensor) -> Tensor:
    """(n, ...) -> (N, ...): this process's rows and those of the others, of which each may have another n."""
    return torch.cat(gather_all_tensors(part)) if jit_distributed_available() else part


class EmotionClassifier(LightningModule):
    """Trains a network with cross-entropy.

    Logs, at the end of each epoch and with the epoch as the step: ``loss/train``, ``accuracy/train``,
    ``loss/val``, ``accuracy/val``, ``macro_f1/val``, ``recall/<emotion>`` and ``precision/<emotion>``. While it
    trains: ``step/loss`` and ``step/accuracy``, means since the last write, every ``trainer.log_every_n_steps``.

    Args:
        net: float (B, 1, H, W) -> logits (B, 7).
        optimizer: called with the parameters, total_steps and steps_per_epoch; returns the optimizer and its
            schedule. None for a module that only tests.
        inputs: what `net` expects.
        model: name and options that rebuild `net`, plain values only; saved in the checkpoint.
        channels_last: memory layout of the network and its images, a matter of speed alone.
        compile: whether torch.compile makes kernels for the network; the first step takes a minute longer.
        label_smoothing: part of each training label that is spread over all classes (Szegedy et al. 2016,
            "Rethinking the Inception architecture"); it is in ``loss/train``, not in ``loss/val``.
        tta: test-time augmentation, a key of tta.VIEWS; validation goes without.
        teacher: networks whose answers count in the training loss beside the labels; they get the same images.
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
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing} is out of range: it goes from 0 to below 1.")
        check_tta(tta)
        self.label_smoothing = label_smoothing
        self.tta = tta
        self.teacher = teacher
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compile:
            # In place, which keeps the weights' names; a shape of its own for the last, smaller batch is faster
            # than one kernel for all.
            self.net.compile(dynamic=False)
        if optimizer is not None:
            optimizer(net.parameters(), total_steps=1, steps_per_epoch=1)  # a wrong one fails here, not in the fit
        self.optimizer_factory = optimizer
        self.inputs = inputs
        self.model = model
        self.held_out: Predictions | None = None
        self._seen: list[Answer] = []
        # Loss (), logits (B, 7) and labels (B,) of the steps since `_count_steps`. They stay on the device: reading
        # one in its step would make the host wait for the device.
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []
        # Sums of the loss, of right answers and of images, over the epoch and since the last write; and the epoch's
        # steps before the first whose loss was not finite.
        self._epoch_sums = [0.0] * 3
        self._window_sums = [0.0] * 3
        self._finite_steps = 0.0
        self._behind: dict[str, Any] | None = None  # what a run that goes on had done of its epoch

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would first look for a parameter, a module and a buffer of that name.
        if name == HOOK_NAME:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def _data(self) -> FaceDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, FaceDataModule)
        return data

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, 7)
        return self.net(images.contiguous(memory_format=self.memory_format))  # type: ignore[no-any-return]

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device, self.memory_format)

    def on_train_start(self) -> None:
        if not self.trainer.fit_loop.restarted_mid_epoch:
            return
        # on_train_epoch_start is not called again.
        assert self._behind is not None
        batches, now = self._behind["batches"], self.trainer.num_training_batches
        if batches != now:
            raise UserError(
                f"This run was stopped in an epoch of {batches} batches, and now it has {now}: go on with the same "
                "training images, data.batch_size and trainer.limit_train_batches."
            )
        mine = 1 if self.trainer.is_global_zero else 0  # all processes' sums are in the checkpoint of the first
        epoch, window = ([mine * value for value in self._behind[name]] for name in ("sums", "window"))
        self._epoch_sums, self._window_sums, self._finite_steps = epoch, window, self._behind["finite_steps"]

    def on_train_epoch_start(self) -> None:
        self._steps = []
        self._epoch_sums, self._window_sums, self._finite_steps = [0.0] * 3, [0.0] * 3, 0.0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from torch's generator. Seeded for each step, it needs nothing saved to go on exactly.
        step = struct.pack("<4q", self._data.seed, self.current_epoch, batch_idx, self.global_rank)
        on_cpu = self.device.type == "cpu"
        generator: Any = torch.default_generator if on_cpu else torch.get_device_module(self.device)
        generator.manual_seed(int.from_bytes(blake2b(step, digest_size=8).digest(), "little"))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        labels = batch["labels"]
        images = batch["images"].contiguous(memory_format=self.memory_format)
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            said = self.teacher.answer(images, batch["index"], self.current_epoch)
            loss = self.teacher.loss(said, logits, loss)
        self._steps.append((loss.detach(), logits.detach(), labels))
        if self.trainer.world_size > 1:
            # The processes' gradients are averaged, and their shares of a batch can differ by an image: each counts
            # by its size, so that every image counts the same.
            total = loss.new_full((), len(labels), dtype=torch.float32)
            torch.distributed.all_reduce(total)
            loss = loss * (len(labels) * self.trainer.world_size) / total
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # global_step has counted this step already, so that log_every_n_steps=1 writes each.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        step_done = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        due = every and step_done and self.global_step % every == 0
        if due or self.trainer.is_last_batch:
            self.train_metrics()  # stops a fit that has diverged before it is validated
        if due and self.logger is not None:
            loss, accuracy, _ = self._means(self._window_sums)
            self._window_sums = [0.0] * 3
            self.logger.log_metrics({"step/loss": loss, "step/accuracy": accuracy}, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        loss, accuracy, _ = self.train_metrics()
        self.log_at_epoch({"loss/train": loss, "accuracy/train": accuracy})

    def train_metrics(self) -> tuple[float, float, int]:
        """Loss, accuracy and number of images of the epoch so far, all processes together.

        Raises:
            UserError: the loss of a step was NaN or infinite.
        """
        self._count_steps()
        loss, accuracy, n = self._means(self._epoch_sums)
        if not isfinite(loss):
            [finite_steps] = self._reduced([self._finite_steps], "min")
            step = int(finite_steps) + 1
            raise self._diverged(f"The loss of step {step} of {self.trainer.num_training_batches}")
        return loss, accuracy, n

    def _count_steps(self) -> None:
        """Add the steps since the last call to the sums, with one read of the device for all of them."""
        if not self._steps:
            return
        losses, logits, labels = zip(*self._steps, strict=True)
        self._steps = []
        right = (torch.cat(logits).argmax(dim=1) == torch.cat(labels)).sum()
        dtype = torch.promote_types(losses[0].dtype, torch.float32)  # which counts exactly to 16 million
        *values, n_right = torch.cat([torch.stack(losses).to(dtype), right.to(dtype).view(1)]).tolist()
        sizes = [len(of_step) for of_step in labels]
        counted = (sum(loss * n for loss, n in zip(values, sizes, strict=True)), n_right, sum(sizes))
        if isfinite(self._epoch_sums[0]):
            self._finite_steps += next((n for n, loss in enumerate(values) if not isfinite(loss)), len(values))
        for sums in (self._epoch_sums, self._window_sums):
            sums[:] = [total + new for total, new in zip(sums, counted, strict=True)]

    def _means(self, sums: list[float]) -> tuple[float, float, int]:
        loss_sum, right, n = self._reduced(sums, "sum")
        return loss_sum / n, right / n, int(n)

    def _reduced(self, values: list[float], how: str) -> list[float]:
        """Return the sum or the minimum of each value over all processes."""
        if self.trainer.world_size == 1:
            return values
        # MPS has no float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        reduced = self.trainer.strategy.reduce(torch.tensor(values, dtype=dtype, device=self.device), reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced.tolist()

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"{what} in epoch {self.current_epoch} is NaN or infinite: the fit has diverged. checkpoints/ keeps "
            "the weights from before. Try a lower optim.lr, optim.warmup_epochs=1, trainer.gradient_clip_val=1 or "
            "trainer.precision=32-true, from the beginning or from those weights by ckpt=."
        )

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._seen.append(self._answer(batch, "none"))

    def on_validation_epoch_end(self) -> None:
        self.held_out = gather(self._seen)
        logits, labels = self.held_out.logits, self.held_out.labels
        scores, classes = score(logits, labels), score_classes(logits, labels)
        if not isfinite(scores["loss"]):
            raise self._diverged("The validation loss")
        metrics = {f"{name}/val": scores[name] for name in ("loss", "accuracy", "macro_f1")}
        for name in ("precision", "recall"):
            metrics |= {f"{name}/{emotion}": of_class[name] for emotion, of_class in classes.items()}
        self.log_at_epoch(metrics)

    def on_test_epoch_start(self) -> None:
        self._seen = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._seen.append(self._answer(batch, self.tta))

    def on_test_epoch_end(self) -> None:
        self.held_out = gather(self._seen)

    # A prediction leaves its answers in `held_out` too, where those of all processes are.
    on_predict_epoch_start = on_test_epoch_start
    on_predict_epoch_end = on_test_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Answer:
        self.test_step(batch, batch_idx)
        return self._seen[-1]

    def _answer(self, batch: Batch, tta: str) -> Answer:
        return batch["index"], answer(self, batch["images"], tta), batch["labels"]

    def log_at_epoch(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Logs with the epoch as TensorBoard's x axis (what the key "step" does in Lightning)."""
        if not self.trainer.sanity_checking:
            self.log_dict({**metrics, "step": float(self.current_epoch)})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert self.optimizer_factory is not None
        total_steps = self.trainer.estimated_stepping_batches  # infinite for max_epochs=-1
        self.trainer.fit_loop.setup_data()  # which the line above leaves out when max_steps says it all
        steps_per_epoch = ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        optimizer, schedule = self.optimizer_factory(
            self.net.parameters(), total_steps=total_steps, steps_per_epoch=steps_per_epoch
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what it takes to rebuild and to feed the network: plain values, loadable with weights_only=True.

        Raises:
            UserError: a weight is NaN or infinite; such a network does not take the place of a sound one.
        """
        if not all(value.isfinite().all() for value in self.net.state_dict().values()):
            self.train_metrics()  # knows the step, where the loss shows it already
            raise self._diverged("A weight")
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
            "epoch": {
                "batches": self.trainer.num_training_batches,
                "sums": self._reduced(self._epoch_sums, "sum"),
                "window": self._window_sums,
                "finite_steps": self._finite_steps,
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._behind = checkpoint["fer_lightning"].get("epoch")


def classifier_from(checkpoint: Checkpoint, channels_last: bool = False, tta: str = "none") -> EmotionClassifier:
    """The checkpoint's own network with its weights and its input, ready to test."""
    net = net_from(checkpoint)
    return EmotionClassifier(net, None, checkpoint.inputs, checkpoint.model, channels_last, tta=tta).eval()
