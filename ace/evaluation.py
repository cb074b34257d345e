"""Metrics of a run, or of results in the published layout, with their subsets and intervals."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ace.closeness import changed_area, l1, l2, linf
from ace.judges import EXPLAINED, Judges
from ace.measurement import Measurement, measure_mean, measure_share
from ace.memory import gather
from ace.metrics.diversity import mean_pairwise_distance
from ace.plain_values import flatten, write_json
from ace.record import Record
from ace.results import Result, batches, published_results, results_of_run
from ace.run_store import RunStore

ATTEMPTED = "attempted"
_NUMBERS = {
    "l1": "mean absolute difference, range [0, 1]",
    "l2": "Euclidean norm",
    "linf": "largest difference, range [0, 1]",
    "changed_area": "share of the pixels inside the mask",
    "p_before": "probability of the target, original",
    "p_attack": "probability of the target, pre-explanation",
    "p_after": "probability of the target, as saved",
    "iterations": "an image",
    "unet_forwards": "an image",
    "unet_backwards": "an image",
    "seconds": "an image",
    "peak_memory": "bytes, of the device, or of the process on a CPU: the most until the image was done",
}
_BKL = "1 - probability of the target"
_CLOSENESS = "1 - l1 where flipped, else 0: what to maximise, flips first"
_DISTANCES = {"l1": l1, "l2": l2, "linf": linf, "changed_area": partial(changed_area, tolerance=1.5 / 255)}


def evaluate(
    store: RunStore, judges: Judges | None = None, shared: Mapping[str, Measurement] | None = None
) -> dict[str, Any]:
    """Metrics of a run; also written to ``metrics.json``.

    Args:
        store: the run.
        judges: networks that judge it. What others judged before stays, while the records are the same.
        shared: metrics of several runs, this one among them, that were measured before.

    Returns:
        ``metrics``: measurements (`ace.measurement.Measurement` as a dictionary) by name; the flip rate is of the
        images attempted: skipped ones do not count, failed ones count as not flipped. ``directions``: number of
        images, flip rate and means of each question. ``status``: how many images ended in which way, with the reason
        of skipped and failed ones. ``n``: number of images attempted.
    """
    records = store.merge()
    attempted = [record for record in records if record.attempted]
    directions: dict[str, list[Record]] = {}
    for record in attempted:
        directions.setdefault(store.direction(record), []).append(record)
    metrics = {
        "n": len(attempted),
        "metrics": {name: asdict(measurement) for name, measurement in _of_records(attempted).items()},
        "directions": {name: _summary(directions[name]) for name in sorted(directions)},
        "status": dict(sorted(Counter(record.status for record in records).items())),
    }
    judged = judges.measure(results_of_run(store)) | dict(shared or {}) if judges is not None else {}
    now = {name: asdict(measurement) for name, measurement in judged.items()}
    metrics["metrics"] |= _judged_before(store, metrics) | now
    store.write_json("metrics.json", metrics)
    return metrics


def evaluate_published(root: str | Path, experiment: str, judges: Judges) -> dict[str, Any]:
    """Metrics of results in the layout of the published code, see `ace.results.published_results`.

    They are also written to ``root/Results/EXPERIMENT/metrics.json``. With a classifier among the judges, what flips
    is decided anew, from the files as saved; without one the folders tell.

    Raises:
        FileNotFoundError: there are no such results.
        ValueError: they cannot be judged with their classifier, see `Judges.decided`.
        WriteError: the metrics cannot be written.
    """
    results = published_results(root, experiment)
    if judges.classifier is not None:
        results = judges.decided(results)
    measurements = _of_images(results, judges.batch_size) | judges.measure(results)
    metrics = {"n": len(results), "metrics": {name: asdict(value) for name, value in measurements.items()}}
    write_json(Path(root) / "Results" / experiment / "metrics.json", metrics)
    return metrics


def measure_diversity(stores: Sequence[RunStore], judges: Judges) -> dict[str, Measurement]:
    """How different the counterfactuals of the same image are between runs, by every perceptual distance.

    Images that are explained in all the runs count, flipped or not. Left out, with a warning, where the runs differ in
    more than their seed and the earlier runs they avoid or are repelled by: it would tell methods apart, not draws.
    """
    if any(_but_seed(store) != _but_seed(stores[0]) for store in stores):
        warnings.warn("diversity is left out: the runs differ in more than their seed", stacklevel=2)
        return {}
    by_id = [{result.id: result for result in results_of_run(store)} for store in stores]
    shared = sorted(set.intersection(*(set(run) for run in by_id)))

    def counterfactuals(run: dict[str, Result], ids: list[str]) -> Tensor:
        return torch.stack([run[id].images()[1] for id in ids]).to(judges.device)

    found = {}
    for name, distance in judges.distances.items():
        parts = (
            [mean_pairwise_distance([counterfactuals(run, ids) for run in by_id], distance)]
            for ids in (shared[start : start + judges.batch_size] for start in range(0, len(shared), judges.batch_size))
        )
        for values in gather(parts, len(shared)):
            convention = f"{name}, mean over pairs of the runs {', '.join(store.folder.name for store in stores)}"
            found[f"diversity_{name}"] = measure_mean(values, "explained in all runs", convention)
    return found


def _of_records(attempted: list[Record]) -> dict[str, Measurement]:
    flips = torch.tensor([record.flipped for record in attempted], dtype=torch.bool)
    closeness = torch.tensor([1 - record.l1 if record.flipped else 0.0 for record in attempted], dtype=torch.float64)
    found = {
        "flip_rate": measure_share(flips, ATTEMPTED, "as saved"),
        "valid_closeness": measure_mean(closeness, ATTEMPTED, _CLOSENESS),
    }
    explained = [record for record in attempted if record.explained]
    for name, convention in _NUMBERS.items():
        values = torch.tensor(_values(explained, name), dtype=torch.float64)
        found[name] = measure_mean(values, EXPLAINED, convention)
        if name == "p_after":
            found["bkl"] = measure_mean(1 - values, EXPLAINED, _BKL)
    return {name: measurement for name, measurement in found.items() if measurement is not None}


def _of_images(results: list[Result], batch_size: int) -> dict[str, Measurement]:
    """The same, as far as images without records tell."""
    flips = torch.tensor([result.flipped for result in results])
    decided = results[0].target is not None
    found = {"flip_rate": measure_share(flips, EXPLAINED, "as saved" if decided else "by the folders")}
    if decided:
        p_after = torch.tensor([result.p_after for result in results])
        found["p_after"] = measure_mean(p_after, EXPLAINED, _NUMBERS["p_after"])
        found["bkl"] = measure_mean(1 - p_after, EXPLAINED, _BKL)
    parts = ([distance(*pair) for distance in _DISTANCES.values()] for pair in batches(results, batch_size))
    conventions = _NUMBERS | {"changed_area": "share of the pixels changed by more than a grey level"}
    for name, values in zip(_DISTANCES, gather(parts, len(results)), strict=True):
        found[name] = measure_mean(values, EXPLAINED, conventions[name])
    return found


def _judged_before(store: RunStore, metrics: dict[str, Any]) -> dict[str, Any]:
    """What networks judged in an earlier evaluation of the same records: those that give the same numbers."""
    path = store.folder / "metrics.json"
    if not path.exists():
        return {}
    stored, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(metrics))
    judged = {name: value for name, value in stored.get("metrics", {}).items() if name not in now["metrics"]}
    now["metrics"] |= judged
    if stored != now:
        return {}
    return {name: measured for name, measured in judged.items() if measured["value"] is not None}  # it was not finite


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    explained = [record for record in records if record.explained]
    means = {name: fmean(values) for name in _NUMBERS if (values := _values(explained, name))}
    return {"n": len(records), "flip_rate": fmean(record.flipped for record in records), **means}


def _values(records: Sequence[Record], name: str) -> list[float]:
    """Records of older versions lack some."""
    return [float(value) for record in records if (value := getattr(record, name)) is not None]


def _but_seed(store: RunStore) -> dict[str, Any]:
    drawn = ("model.seed", "earlier.", "refined_from")
    return {name: value for name, value in flatten(store.settings).items() if not name.startswith(drawn)}
