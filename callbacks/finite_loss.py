"""Stop a training whose loss is no number any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

REMEDY = "lower lr, lengthen warmup_steps or clip the gradients (trainer.gradient_clip_val)"


class FiniteLoss(Callback):
    """End the training at the first loss that is NaN or infinite, before anything is saved.

    Lightning lets checkpoints save after all other callbacks, so the last checkpoint is from before.

    Raises:
        RuntimeError: with the step and what helps.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the step."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor) and not bool(loss.isfinite().all()):
            raise RuntimeError(
                f"the loss is {loss.item()} at step {trainer.global_step}: {REMEDY}; "
                "--ckpt_path last continues from the last good checkpoint"
            )
