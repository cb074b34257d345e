"""Stop a training at any moment and go on later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from callbacks.finite_loss import REMEDY
from callbacks.stop_signals import StopSignals


class LastCheckpoint(Checkpoint):
    """Keep ``<folder>/last.ckpt``: every n steps, at the end, and when the training is told to stop.

    A scheduler's SIGTERM, or ctrl-C, ends the training after the step in hand (a second signal: at once). Where a
    validation follows, what is due is saved in front of it, lest it fail, and once more behind it: a training that goes
    on from there has the validation's results too.

    Args:
        folder: of the checkpoint; ``train.py`` gives its output folder's.
        every_n_train_steps: optimiser steps between two checkpoints.

    Raises:
        ValueError: ``every_n_train_steps`` is not positive.
        RuntimeError: a weight is NaN or infinite when it is to be saved; the checkpoint stays as it is.
    """

    def __init__(self, folder: str, every_n_train_steps: int = 500) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        self.path, self.every_n_train_steps = last_checkpoint(folder), every_n_train_steps
        self._signals = StopSignals()
        self._step, self._saved, self._whole, self._due, self._fresh = 0, 0, False, False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO):
            trainer.strategy.checkpoint_io = WholeFileIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        self._signals.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After a checkpoint: only by now have the loggers heard of its step."""
        self._step = trainer.global_step
        if self._fresh:
            self._fresh = False
            for logger in trainer.loggers:
                logger.save()
            if self._told_to_stop(trainer):
                self._stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time. Accumulated gradients are not in a checkpoint: only whole steps count."""
        self._whole = trainer.global_step != self._step
        if self._whole:
            self._due = trainer.global_step % self.every_n_train_steps == 0 or self._told_to_stop(trainer)
            self._save_what_is_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._whole:
            self._due = self._saved == trainer.global_step or self._told_to_stop(trainer)
            self._save_what_is_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the training: a longer one can go on from it."""
        self._due = trainer.fit_loop.done and self._saved != trainer.global_step
        self._save_what_is_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._signals.restore()

    def _save_what_is_due(self, trainer: Trainer) -> None:
        if self._due and not trainer.fast_dev_run:
            self._check_weights(trainer)
            trainer.save_checkpoint(self.path)
            self._saved, self._due, self._fresh = trainer.global_step, False, True

    def _check_weights(self, trainer: Trainer) -> None:
        """Look at the weights: gradients can spoil them behind a finite loss, and those of another process do."""
        finite = all(bool(weight.isfinite().all()) for weight in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(finite):
            raise RuntimeError(
                f"the weights are no finite numbers any more at step {trainer.global_step}: {REMEDY}; "
                f"--ckpt_path last continues from the last good checkpoint ({self.path})"
            )

    def _stop(self) -> None:
        rank_zero_info(
            f"Stopped at step {self._saved}, all of it is in {self.path}: "
            "the same command with --ckpt_path last goes on from there."
        )
        raise SystemExit(self._signals.exit_code)

    def _told_to_stop(self, trainer: Trainer) -> bool:
        """Whether any process was: they save together."""
        return trainer.strategy.reduce_boolean_decision(self._signals.received != 0, all=False)


class WholeFileIO(TorchCheckpointIO):
    """Checkpoints that replace their predecessor in one instant, wherever the system keeps temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def last_checkpoint(folder: str | Path) -> Path:
    """Where `LastCheckpoint` writes."""
    return Path(folder) / "last.ckpt"
