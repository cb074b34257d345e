"""The result: everything that is known of one explained image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ace.slots import Query


@dataclass(eq=False)  # not frozen: Lightning refuses to collect frozen predictions
class Explanation:
    """The counterfactual explanation of one image. Images have shape (C, H, W) and lie in [0, 1].

    Attributes:
        id: identity of the image.
        original: the image as an 8-bit file holds it; None if it could not be read.
        status: ``flipped``, ``not_flipped``, ``skipped: why`` or ``failed: why``; the last two leave much at None.
        prediction: class decided for the original.
        target: class asked for; for an untargeted question the class to leave.
        label: true class, if known.
        counterfactual: the explanation, as an 8-bit file holds it.
        pre_explanation: result of the attack, before the refinement, as an 8-bit file holds it.
        mask: where the refinement repainted, boolean, shape (1, H, W).
        p_before, p_attack, p_after: probability of the target for the three images.
        l1: mean absolute difference of counterfactual and original; l2: Euclidean norm; linf: largest.
        changed_area: share of the pixels inside the mask.
        iterations, repairs, unet_forwards, unet_backwards, seconds, peak_memory: what the image cost, see
            `ace.record.Record`.
    """

    id: str
    original: Tensor | None = field(repr=False)
    status: str
    prediction: int | None = None
    target: int | None = None
    label: int | None = None
    counterfactual: Tensor | None = field(default=None, repr=False)
    pre_explanation: Tensor | None = field(default=None, repr=False)
    mask: Tensor | None = field(default=None, repr=False)
    p_before: float | None = None
    p_attack: float | None = None
    p_after: float | None = None
    l1: float | None = None
    l2: float | None = None
    linf: float | None = None
    changed_area: float | None = None
    iterations: int = 0
    repairs: int = 0
    unet_forwards: int = 0
    unet_backwards: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    @property
    def flipped(self) -> bool:
        """Whether the counterfactual, as saved, is decided as asked."""
        return self.status == "flipped"

    @property
    def attempted(self) -> bool:
        """Whether a counterfactual was asked for: the image was not skipped."""
        return not self.status.startswith("skipped")


def query_facts(query: Query) -> dict[str, Any]:
    """What is known of an image before its result: its question and its cost."""
    names = (
        "id",
        "prediction",
        "target",
        "label",
        "p_before",
        "iterations",
        "repairs",
        "unet_forwards",
        "unet_backwards",
        "seconds",
        "peak_memory",
    )
    return {"original": query.image, **{name: getattr(query, name) for name in names}}


def failure(query: Query, reason: str) -> Explanation:
    """The outcome of an image that cannot be explained."""
    return Explanation(status=f"failed: {reason}", **query_facts(query))
