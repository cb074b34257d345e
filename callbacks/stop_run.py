"""End a run of explanations when it is told to stop."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed import distributed_c10d

from callbacks.counterfactual_writer import CounterfactualWriter
from callbacks.stop_signals import StopSignals

ARRIVED = "processes that have finished a run"
WAIT_FOR_OTHERS = 60  # seconds that the processes which this one has started get to stop


class StopRun(Callback):
    """On SIGTERM or ctrl-C finish the iteration in hand, drop the images under way, and say how to go on.

    What is finished is written first. A second signal takes effect at once. The processes that this one has started
    stop with it, and it with any of them that fails; one that has lost the process that started it stops too, lest it
    write beside the next run.

    Args:
        writer: writes into the run folder.
        total: number of images of the run.
    """

    def __init__(self, writer: CounterfactualWriter, total: int) -> None:
        self.writer, self.total = writer, total
        self._signals, self._parent = StopSignals(), os.getppid()
        self._launched: list[subprocess.Popen] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Off the list that Lightning watches, which kills this process when one of them ends early, told or not.
        watched = getattr(trainer.strategy.launcher, "procs", [])
        self._launched = watched.copy()
        watched.clear()
        self._signals.install(relayed=trainer.world_size > 1 and not self._launched)
        pl_module.explainer.pool.listeners.append(lambda: self._stop_if_told(trainer))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_if_told(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until all processes are done; callbacks behind this one see the whole run."""
        try:
            if trainer.world_size > 1:
                self._wait_for_others(trainer)
        finally:
            self._signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """After a signal Lightning puts the handlers back: its own, which talks to the other processes, stays out."""
        if not self._signals.received:
            self._signals.restore()

    def _wait_for_others(self, trainer: Trainer) -> None:
        """A barrier alone is deaf to signals, and on GPUs a process that is in one cannot end before the others."""
        store = distributed_c10d._get_default_store()
        arrived = store.add(ARRIVED, 1)
        everyone = math.ceil(arrived / trainer.world_size) * trainer.world_size  # there may be several runs
        while store.add(ARRIVED, 0) < everyone:
            self._stop_if_told(trainer)
            time.sleep(0.1)
        trainer.strategy.barrier()  # the first process, which keeps the store, stays until all have looked

    def _stop_if_told(self, trainer: Trainer) -> None:
        orphaned = trainer.global_rank > 0 and os.getppid() != self._parent
        failed = [process.returncode for process in self._launched if process.poll()]
        if not (self._signals.received or orphaned or failed):
            return
        _stop(self._launched)
        self.writer.flush()
        done, told = len(self.writer.store.finished_ids()), self._signals.received or orphaned
        why = "" if told else f", since another process has failed (exit code {failed[0]}),"
        rank_zero_info(f"Stopped{why} with {done} of {self.total} images done: the same command goes on from there.")
        raise SystemExit(self._signals.exit_code if told else 1)


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(WAIT_FOR_OTHERS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
