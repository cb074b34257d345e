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
    """Metrics over all explained images of a run; also written to ``metrics.json``.

    Returns:
        ``n`` images explained, ``flip_rate`` among them, the means of the records' numbers (distances in units of the
        [0, 1] range, areas as shares, probabilities of the target), the same for each direction, and how many images
        ended in which way (``status``; the reason of skipped and failed ones included).
    """
    records = store.merge()
    explained = [record for record in records if record.status in ("flipped", "not_flipped")]
    directions: dict[str, list[Record]] = {}
    for record in explained:
        name = f"{store.class_name(record.prediction)} -> {store.class_name(record.target)}"
        directions.setdefault(name, []).append(record)
    metrics = _summary(explained)
    metrics["directions"] = {name: _summary(directions[name]) for name in sorted(directions)}
    metrics["status"] = dict(sorted(Counter(record.status for record in records).items()))
    store.write_json("metrics.json", metrics)
    return metrics


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    if not records:
        return {"n": 0}
    means = {f"mean_{name}": fmean(getattr(record, name) for record in records) for name in _MEANS}
    return {"n": len(records), "flip_rate": fmean(record.flipped for record in records), **means}
