"""Metrics of a run, computed from its merged records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ace.record import Record
from ace.run_store import RunStore

_MEANS = (
    "l1", "l2", "linf", "changed_area", "p_before", "p_attack", "p_after",
    "iterations", "unet_forwards", "unet_backwards", "seconds",
)  # fmt: skip


def evaluate(store: RunStore) -> dict[str, Any]:
    """Metrics of a run; also written to ``metrics.json``.

    Returns:
        ``n`` images attempted (skipped ones do not count), ``flip_rate`` among them (failed ones count as not flipped),
        the means of the explained images' numbers (distances in units of the [0, 1] range, areas as shares,
        probabilities of the target), the same for each direction, and how many images ended in which way
        (``status``; the reason of skipped and failed ones included).
    """
    records = store.merge()
    attempted = [record for record in records if record.attempted]
    directions: dict[str, list[Record]] = {}
    for record in attempted:
        directions.setdefault(store.direction(record), []).append(record)
    metrics = _summary(attempted)
    metrics["directions"] = {name: _summary(directions[name]) for name in sorted(directions)}
    metrics["status"] = dict(sorted(Counter(record.status for record in records).items()))
    store.write_json("metrics.json", metrics)
    return metrics


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    if not records:
        return {"n": 0}
    explained = [record for record in records if record.explained]
    means = {f"mean_{name}": fmean(getattr(record, name) for record in explained) for name in _MEANS if explained}
    return {"n": len(records), "flip_rate": fmean(record.flipped for record in records), **means}
