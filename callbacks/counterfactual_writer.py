"""Write explanations into the run folder as they are finished."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ace.explanation import Explanation
from ace.images import to_uint8
from ace.record import Record
from ace.run_store import RunStore

_SHARED = {field.name for field in fields(Record)} & {field.name for field in fields(Explanation)}


class CounterfactualWriter(Callback):
    """Stores each explanation's images and record.

    Args:
        store: the run folder.
        seed: the run's seed, for the records.
    """

    def __init__(self, store: RunStore, seed: int) -> None:
        self.store, self.seed = store, seed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the number of slots, if it was left open: with it the run goes on, and is repeated or refined."""
        method = self.store.config["model"]
        if trainer.is_global_zero and method.get("slots") is None:
            method["slots"] = pl_module.explainer.slots
            self.store.write_config()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Explanation],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for explanation in outputs:
            write_explanation(self.store, explanation, self.seed)


def write_explanation(store: RunStore, explanation: Explanation, seed: int) -> None:
    """Add one explanation to a run: its images, then its record."""
    known = {name: getattr(explanation, name) for name in _SHARED}
    pictures = {
        "original": explanation.original,
        "pre_explanation": explanation.pre_explanation,
        "counterfactual": explanation.counterfactual,
        "mask": None if explanation.mask is None else explanation.mask.float(),
    }
    images = {kind: to_uint8(picture.cpu()) for kind, picture in pictures.items() if picture is not None}
    store.add(Record(**known, flipped=explanation.flipped, seed=seed), images)
