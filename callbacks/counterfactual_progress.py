"""A progress bar that counts images, not batches, of all processes together."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from ace.run_progress import RunProgress


class CounterfactualProgress(ProgressBar):
    """Images done, flip rate so far, speed and time left; moves with every iteration of the attack.

    Args:
        progress: of the run; only the process that shows the bar reads it.
    """

    def __init__(self, progress: RunProgress) -> None:
        super().__init__()
        self.progress = progress
        self._enabled = True

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Hide the bar; Lightning calls this on all ranks but zero."""
        self._enabled = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        terminal = sys.stdout.isatty()
        self.bar = tqdm(
            total=self.progress.total,
            delay=1e-9,  # not before there is a description
            file=sys.stdout if terminal else PlainLines(),
            disable=not self._enabled,
            mininterval=0.1 if terminal else 30,  # a log file gets a line now and then
            bar_format="{desc} {percentage:3.0f}% " + ("|{bar}| " if terminal else "") + "{elapsed} < {remaining}",
        )
        self._pool, self._processes = pl_module.explainer.pool, trainer.world_size
        self._pool.listeners.append(self._show)
        self._show()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count what is finished."""
        self._show(at_once=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._show(at_once=True)
        self.bar.refresh()
        self.bar.close()

    def _show(self, at_once: bool = False) -> None:
        """Set the bar; images in work count by the share of their iterations that is done, here as elsewhere."""
        if self.bar.disable:
            return
        progress = self.progress
        progress.update(at_once)
        in_work = self._pool.progress * self._processes
        self.bar.n = min(max(progress.done + in_work, self.bar.n), self.bar.total)
        rate = "none flipped yet" if progress.flip_rate is None else f"{progress.flip_rate:.0%} flipped"
        speed = f", {progress.images_per_second:.2g} images/s" if progress.done else ""
        self.bar.set_description_str(f"{progress.done}/{self.bar.total} images, {rate}{speed}", refresh=False)
        self.bar.update(0)


class PlainLines:
    """Writes each state of a bar to the standard output as a line of its own, without control characters."""

    last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line not in ("", self.last):  # tqdm draws the end again when it closes
            print(line)
            self.last = line

    def flush(self) -> None:
        sys.stdout.flush()
