"""Explanations as a run folder keeps them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ace.explanation import Explanation
from ace.images import to_uint8
from ace.record import Record
from ace.run_store import RunStore

_SHARED = {field.name for field in fields(Record)} & {field.name for field in fields(Explanation)}


def save_explanation(store: RunStore, explanation: Explanation, seed: int = 0) -> None:
    """Add one explanation to a run: its images, then its record.

    Args:
        store: the run folder.
        explanation: what an explainer gave.
        seed: the explainer's.

    Raises:
        ValueError: the id is not safe as a file name.
        WriteError: the disk is full, or the folder cannot be written.
    """
    store.add(*as_stored(explanation, seed))


def as_stored(explanation: Explanation, seed: int) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of an explanation and its images by kind, as `RunStore.add` takes them."""
    known = {name: getattr(explanation, name) for name in _SHARED}
    pictures = {
        "original": explanation.original,
        "pre_explanation": explanation.pre_explanation,
        "counterfactual": explanation.counterfactual,
        "mask": None if explanation.mask is None else explanation.mask.float(),
    }
    images = {kind: to_uint8(picture) for kind, picture in pictures.items() if picture is not None}
    return Record(**known, flipped=explanation.flipped, seed=seed), images
