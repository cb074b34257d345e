"""The result: everything that is known of one explained image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ace.closeness import l1, l2, linf
from ace.decision import Decision
from ace.memory import peak_memory
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


def costs(query: Query) -> dict[str, Any]:
    """What an image has cost so far, but for its repairs."""
    names = ("iterations", "unet_forwards", "unet_backwards", "seconds", "peak_memory")
    return {name: getattr(query, name) for name in names}


def query_facts(query: Query) -> dict[str, Any]:
    """What is known of an image before its result: its question and its cost."""
    names = ("id", "prediction", "target", "label", "p_before", "repairs")
    return {"original": query.image, **{name: getattr(query, name) for name in names}, **costs(query)}


def failure(query: Query, reason: str) -> Explanation:
    """The outcome of an image that cannot be explained."""
    return Explanation(status=f"failed: {reason}", **query_facts(query))


def judge(
    queries: list[Query],
    original: Tensor,
    pre_explanation: Tensor,
    counterfactual: Tensor,
    mask: Tensor,
    classify: Callable[[Tensor], Tensor],
    decision: Decision,
    started: float,
) -> list[Explanation]:
    """Ask the classifier about the images as they are saved, and gather what is known of each.

    Args:
        queries: what was asked, N of them.
        original, pre_explanation, counterfactual: shape (N, C, H, W), in [0, 1], rounded to 8 bits.
        mask: boolean, shape (N, 1, H, W).
        classify: gives logits.
        decision: how they are read.
        started: when the second stage of these images began, by `time.perf_counter`.
    """
    target = torch.tensor([query.target for query in queries], device=original.device)
    logits = classify(counterfactual)
    numbers = {
        "p_attack": decision.probability(classify(pre_explanation), target),
        "p_after": decision.probability(logits, target),
        "l1": l1(original, counterfactual),
        "l2": l2(original, counterfactual),
        "linf": linf(original, counterfactual),
        "changed_area": mask.flatten(1).float().mean(1),
    }
    flipped = decision.flipped(logits, target).tolist()
    rows = torch.stack(list(numbers.values()), dim=1).tolist()  # waits for the device
    for query in queries:
        query.seconds += (time.perf_counter() - started) / len(queries)
        query.peak_memory = max(query.peak_memory, peak_memory(original.device))  # a stored one was made elsewhere
    explanations = []
    for row, (query, values) in enumerate(zip(queries, rows, strict=True)):
        if not all(map(math.isfinite, values)):
            explanations.append(failure(query, "the result, or the classifier's output for it, is not finite"))
            continue
        images = {"counterfactual": counterfactual, "pre_explanation": pre_explanation, "mask": mask}
        images = {kind: batch[row].clone() for kind, batch in images.items()}  # no longer a part of the batch's memory
        status = "flipped" if flipped[row] else "not_flipped"
        explanations.append(
            Explanation(status=status, **images, **query_facts(query), **dict(zip(numbers, values, strict=True)))
        )
    return explanations
