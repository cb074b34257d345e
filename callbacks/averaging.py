"""Reach the averaged weights of a training outside of its validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


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
