"""How long a run will take, and how much memory, from its first iterations."""

from __future__ import annotations

import math
import time
from datetime import timedelta

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from ace.memory import peak_memory

PROBED = 2  # iterations: the first also loads kernels, the second is timed


class RunEstimate(Callback):
    """Time the second iteration of the first batch, and print what it means for all images.

    Args:
        dry_run: stop there.
    """

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.times: list[float] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images = math.ceil(len(trainer.predict_dataloaders.dataset) / trainer.world_size)
        pl_module.explainer.pool.listeners.append(lambda: self._note(pl_module))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why a dry run has gone through all images."""
        if self.dry_run and len(self.times) < PROBED:
            rank_zero_info("Dry run: all images together need fewer than two iterations, there is nothing to time.")

    def _note(self, pl_module: LightningModule) -> None:
        if len(self.times) == PROBED:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) == PROBED:
            rank_zero_info(self.describe(pl_module))
            if self.dry_run:
                raise SystemExit(0)

    def describe(self, pl_module: LightningModule) -> str:
        """The estimate in a sentence."""
        explainer = pl_module.explainer
        seconds, iterations = self.times[-1] - self.times[-2], explainer.pool.attack.iterations
        waves = math.ceil(self.images / explainer.slots)
        total = timedelta(seconds=round(waves * iterations * seconds))
        return (
            f"{self.images} images for each device, {explainer.slots} at a time: about {total} "
            f"(up to {iterations} iterations of {seconds:.2g} s) and {peak_memory(pl_module.device) / 2**30:.1f} GiB"
        )
