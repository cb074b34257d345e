"""A metric's value with all that is needed to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ace.metrics.oracle import correlation_difference

RESAMPLES = 1000
_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_CHUNK = 2**20  # indices drawn at a time


@dataclass(frozen=True)
class Measurement:
    """One metric of a set of counterfactuals.

    Attributes:
        value: the metric.
        n: number of images that it was computed from.
        subset: which images these are.
        interval: 95 %: of a share Wilson's, of all else the bootstrap's; None where there is none.
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


def measure_share(happened: Tensor, subset: str, convention: str = "") -> Measurement | None:
    """The share of images of which something is true, boolean, shape (N,), with its interval; None for no images."""
    if not len(happened):
        return None
    count, n = int(happened.sum()), len(happened)
    return Measurement(count / n, n, subset, wilson(count, n), convention)


def bootstrap(values: Tensor, statistic: Callable[[Tensor], Tensor] | None = None) -> tuple[Any, Any]:
    """The 2.5th and the 97.5th percentile of a statistic over images drawn with replacement (Efron 1979).

    Args:
        values: one row an image.
        statistic: of such rows; by default the mean of numbers, shape (N,).

    Returns:
        Two numbers; two lists, where the statistic is a vector.
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
    low, high = found.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    return low, high


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, count of n, by Wilson (1927); of rare and of certain events, too, it has a width.

    Raises:
        ValueError: the count is not among 0 to n, or n is 0.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"{count} of {n} is no share: count at most all of at least one")
    centre, spread = count + _Z**2 / 2, _Z * math.sqrt(count * (n - count) / n + _Z**2 / 4)
    return max(0.0, (centre - spread) / (n + _Z**2)), min(1.0, (centre + spread) / (n + _Z**2))


def measure_correlations(
    changes: Tensor, correlations: Tensor, query: int, subset: str, convention: str = "the query counts"
) -> Measurement:
    """The CD of `attribute_changes`, see `correlation_difference`.

    It has no interval: chance makes a sum of absolute values larger, and resampling does so once more, so that a
    bootstrap's percentiles can lie above the value itself.
    """
    value = correlation_difference(changes, correlations, query).item()
    return Measurement(value, len(changes), subset, None, convention)
