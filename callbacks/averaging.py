"""Average the weights of a training, and reach the average outside of its validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMAWithWarmup(WeightAveraging):
    """Exponential moving average of the weights: what is validated, sampled and exported.

    The average begins with the weights after the first step. After n steps its decay is min(decay, (1 + n) / (10 + n)),
    as in diffusers' `EMAModel`: so it forgets the weights of the beginning in a short training too.

    Args:
        decay: share of the average that a step keeps, in a long training.

    Raises:
        ValueError: ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")

        def average(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
            kept = ((1 + steps) / (10 + steps)).clamp(max=decay)
            if averaged[0].is_floating_point():  # all are of one type; on a GPU a few kernels for all
                kept = kept.to(averaged[0].dtype)
                torch._foreach_mul_(averaged, kept)
                torch._foreach_add_(averaged, torch._foreach_mul(current, 1 - kept))
            else:
                for mean, value in zip(averaged, current, strict=True):
                    mean.copy_(kept * mean + (1 - kept) * value)

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the average where the training computes: here Lightning has not moved the module there yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """The module holds the averaged weights inside, and its own again, bit for bit, behind.

    For hooks of a training outside of its validation, say `on_validation_end`. After `on_train_end`, when both are the
    averaged ones, and without a `WeightAveraging` callback nothing changes.
    """
    averagings = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    for averaging in averagings:
        averaging.on_validation_epoch_start(trainer, pl_module)
    try:
        yield
    finally:
        for averaging in reversed(averagings):
            averaging.on_validation_epoch_end(trainer, pl_module)
