"""A metric's value with all that is needed to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
_CHUNK = 2**20  # indices drawn at a time


@dataclass(frozen=True)
class Measurement:
    """One metric of a set of counterfactuals.

    Attributes:
        value: the metric.
        n: number of images that it was computed from.
        subset: which images these are.
        interval: 95 % of the bootstrap's values lie in it; None where there is none.
        convention: what else a reader must know, such as the network.
    """

    value: float
    n: int
    subset: str
    interval: tuple[float, float] | None = None
    convention: str = ""


def measure_mean(values: Tensor, subset: str, convention: str = "") -> Measurement | None:
    """The mean of one value an image, shape (N,), with its bootstrap interval; None for no images."""
    if not len(values):
        return None
    values = values.detach().cpu().double()
    return Measurement(values.mean().item(), len(values), subset, bootstrap(values), convention)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927): it has a width even where all of the images, or none, hit."""
    z, share = 1.959964, hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == count else centre + half


def bootstrap(values: Tensor, statistic: Callable[[Tensor], Tensor] | None = None) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of a statistic over images drawn with replacement (Efron 1979).

    Args:
        values: one row an image.
        statistic: of such rows; by default the mean of numbers, shape (N,).
    """
    stream = torch.Generator().manual_seed(0)
    if statistic is not None:
        draws = (torch.randint(len(values), (len(values),), generator=stream) for _ in range(RESAMPLES))
        found = torch.stack([statistic(values[indices]) for indices in draws])
    else:
        size = max(1, _CHUNK // len(values))
        chunks = [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
        found = torch.cat(
            [values[torch.randint(len(values), (count, len(values)), generator=stream)].mean(1) for count in chunks]
        )
    low, high = found.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
