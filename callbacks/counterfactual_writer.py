"""Write explanations into the run folder as they are finished, while the next ones are made."""

from __future__ import annotations

import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ace.explanation import Explanation
from ace.files import WriteError
from ace.run_store import RunStore
from ace.saving import as_stored

PENDING = 64  # explanations that may wait for the disk: 0.7 MB each at 256x256


class CounterfactualWriter(Callback):
    """Stores each explanation's images and record, in their order, in a thread: the device does not wait for the disk.

    The run waits when `PENDING` are not written yet, and, however it ends, until all are. What goes wrong with one is
    raised in the run, after the next iteration at the latest; the others are written nevertheless.

    Args:
        store: the run folder; during the run nothing else adds to it.
        seed: the run's seed, for the records.
    """

    def __init__(self, store: RunStore, seed: int) -> None:
        self.store, self.seed = store, seed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: deque[Future[None]] = deque()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the number of slots, if it was left open: with it the run goes on, and is repeated or refined."""
        explainer = pl_module.explainer
        explainer.pool.listeners.append(lambda: self._store(explainer.take_finished()))  # of a step that goes on
        store = self.store
        if trainer.is_global_zero and store.names_networks and store.config["model"].get("slots") is None:
            store.config["model"]["slots"] = explainer.slots
            store.write_config()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Explanation],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._store(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush()
        self._thread.shutdown()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what is finished. Errors in that are told, not raised, lest they hide the one that ends the run."""
        self._hand_over(pl_module.explainer.take_finished())
        self._thread.shutdown()
        errors = [error for future in self._pending if (error := future.exception())]
        if errors and not isinstance(exception, WriteError):
            warnings.warn(f"{len(errors)} finished images could not be stored: {errors[0]}", stacklevel=2)

    def flush(self) -> None:
        """Wait until all explanations are written.

        Raises:
            WriteError, ValueError: as for `RunStore.add`.
        """
        self._settle(0)

    def _store(self, explanations: list[Explanation]) -> None:
        self._hand_over(explanations)
        self._settle(PENDING)

    def _hand_over(self, explanations: list[Explanation]) -> None:
        """Queue all of them, whatever goes wrong with one; wait where too many are pending."""
        for explanation in explanations:
            if len(self._pending) >= PENDING:
                wait([self._pending[-PENDING]])  # they are written in their order
            # Converted here: what waits holds no memory of the device.
            self._pending.append(self._thread.submit(self.store.add, *as_stored(explanation, self.seed)))

    def _settle(self, most: int) -> None:
        """Wait until at most so many explanations are pending; raise what went wrong with one that is not any more."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()
