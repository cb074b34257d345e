"""What the two training modules share: the optimiser, and randomness that a restart repeats."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from datamodules.base import ImageDataModule
from datamodules.loading import run_seed
from lit_modules.optimisation import warmup_cosine_adamw


class TrainingModule(LightningModule):
    """A network in training.

    A training that was stopped goes on exactly as if it had not been: every step begins with a random state that
    follows from the seed (``seed_everything``), the epoch, the batch and the rank alone. And it goes on with the
    settings that it is given now: no hyper-parameters are kept in checkpoints to override them.

    Args:
        lr, weight_decay, warmup_steps: AdamW with linear warm-up and cosine decay.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, lr: float, weight_decay: float, warmup_steps: int) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps

    def check(self, data: ImageDataModule) -> None:
        """Check that the network can be trained on these images; by default there is nothing to check.

        Raises:
            ValueError: it cannot.
        """

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        steps = self.trainer.estimated_stepping_batches
        return warmup_cosine_adamw(trained, self.lr, self.weight_decay, self.warmup_steps, steps)

    def on_fit_start(self) -> None:
        """Begin the metrics anew: a validation before the training leaves them in inference mode."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()

    def on_train_start(self) -> None:
        """Put today's settings in the place of those that a checkpoint brought."""
        scheduler, optimizer = self.lr_schedulers(), self.optimizers()
        scheduler.base_lrs = [self.lr] * len(scheduler.base_lrs)
        for group in optimizer.param_groups:
            group |= {"initial_lr": self.lr, "weight_decay": self.weight_decay}
            group["lr"] = self.lr * scheduler.lr_lambdas[0](scheduler.last_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(step_seed(self.trainer.current_epoch, batch_idx, self.global_rank))

    def on_validation_start(self) -> None:
        """Give all processes the same batch statistics, the mean of theirs: the metrics are those of one network."""
        if self.trainer.world_size > 1:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                    for statistic in (layer.running_mean, layer.running_var):
                        statistic.copy_(self.trainer.strategy.reduce(statistic, reduce_op="mean"))


def step_seed(*place: int) -> int:
    """A seed for one place in the training, the same in every run with the same ``seed_everything``."""
    digest = hashlib.sha256("\0".join(map(str, (run_seed(), *place))).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
