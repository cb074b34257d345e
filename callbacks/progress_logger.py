"""Tell the loggers how far a run of explanations is."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ace.run_progress import RunProgress


class ProgressLogger(Callback):
    """Logs the images done, flip rate, mean distances, iterations and speed of all processes; on rank zero.

    Args:
        progress: of the run; the step of a logged value is the count of all images done, so that a run that goes on
            goes on in the curves too.
    """

    def __init__(self, progress: RunProgress) -> None:
        self.progress = progress
        self._logged = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.explainer.pool.listeners.append(lambda: self._log_progress(trainer))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log_progress(trainer, at_once=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_progress(trainer, at_once=True)

    def _log_progress(self, trainer: Trainer, at_once: bool = False) -> None:
        if not trainer.is_global_zero or not trainer.loggers:
            return
        self.progress.update(at_once)
        if self.progress.done > self._logged:
            self._logged = self.progress.done
            for logger in trainer.loggers:
                logger.log_metrics(self.progress.metrics(), step=self.progress.before + self.progress.done)
