"""Which images of a run to show where there is no room for all, and how they look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ace.images import load_png
from ace.record import Record
from ace.report.change import heat_map
from ace.run_store import RunStore

TINT = np.array((255, 0, 160))
"""Colour laid half transparent over what the refinement repainted: magenta, which skin, streets and animals lack."""


def choose_examples(store: RunStore, count: int) -> list[Record]:
    """Choose explained images evenly over outcomes and questions, and from the hardest to the easiest.

    The images are grouped by status and by pair of prediction and target, and every group gets the same number of
    places, as far as it has images; with more groups than places the largest are shown. The images of a group are
    spread evenly over its order of difficulty, the hardest and the easiest among them; one alone is the hardest. Of
    images that flipped those are harder that took more iterations, then a greater l1; of others those whose target has
    the lower probability.

    Args:
        store: the run.
        count: most images to choose.

    Returns:
        Their records, group by group, the hardest first.

    Raises:
        ValueError: the count is negative.
    """
    if count < 0:
        raise ValueError(f"the number of examples must not be negative, got {count}")
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in store.records():
        if record.explained:
            groups.setdefault((record.status, store.direction(record)), []).append(record)
    largest_first = sorted(groups, key=lambda name: (-len(groups[name]), name))
    places = dict(zip(largest_first, _places([len(groups[name]) for name in largest_first], count), strict=True))
    return [record for name in sorted(groups) for record in _spread(groups[name], places[name])]


def example_pictures(store: RunStore, record: Record) -> dict[str, np.ndarray]:
    """Pictures of an explained image, uint8, shape (H, W, C).

    Returns:
        ``original``, ``pre_explanation`` and ``counterfactual`` as stored; ``mask``: the original, tinted where the
        refinement repainted it; ``change``: heat map of the change.
    """
    kinds = ("original", "pre_explanation", "counterfactual")
    pictures = {kind: load_png(store.image_path(kind, record.id)) for kind in kinds}
    repainted = load_png(store.image_path("mask", record.id)) > 0
    pictures["mask"] = tinted(pictures["original"], repainted)
    pictures["change"] = heat_map(pictures["original"], pictures["counterfactual"])
    return pictures


def tinted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, half of it `TINT` inside the mask.

    Args:
        image: uint8, shape (H, W, 1) or (H, W, 3).
        mask: boolean, shape (H, W, 1).

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    return np.where(mask, (image + TINT) // 2, image).astype(np.uint8)


def _places(sizes: Sequence[int], count: int) -> list[int]:
    """How many of each group, one after the other as long as there are places and images."""
    places = [0] * len(sizes)
    for _ in range(min(count, sum(sizes))):
        rest = [index for index, size in enumerate(sizes) if places[index] < size]
        places[min(rest, key=lambda index: places[index])] += 1
    return places


def _spread(records: list[Record], count: int) -> list[Record]:
    ranked = sorted(records, key=_ease)
    return [ranked[index] for index in np.linspace(0, len(ranked) - 1, count).round().astype(int)]


def _ease(record: Record) -> tuple[float, float, str]:
    hardness = (record.iterations, record.l1) if record.flipped else (1 - record.p_after, 0.0)
    return (-hardness[0], -hardness[1], record.id)
