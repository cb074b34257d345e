"""How far the distribution of counterfactuals is from that of originals, as measurements."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ace.measurement import Measurement
from ace.metrics.realism import FrechetDistance, SplitFrechetDistance


def measure_realism(
    before: Tensor,
    after: Tensor,
    kept: Tensor,
    extractor: str,
    subset: str,
    convention: str,
    min_images: int | None,
    splits: int,
) -> dict[str, Measurement]:
    """FID and sFID, or what they are by other features, by name.

    Args:
        before: features of all originals, shape (N, D).
        after: features of the counterfactuals that count, shape (M, D).
        kept: which of the images these are, boolean, shape (N,).
        extractor: name of the network that gave the features.
        subset, convention: for the measurements.
        min_images: see `FrechetDistance`.
        splits: random halves that sFID is averaged over.

    Warns:
        UserWarning: one is left out, as there are too few images for it.
    """
    found = {}
    fid = FrechetDistance(before.shape[1], extractor, min_images=min_images)
    with _left_out(fid.name):
        fid.update(before, True)
        fid.update(after, False)
        found[fid.name] = Measurement(fid.compute().item(), len(after), subset, None, convention)
    del fid  # with its covariances
    index = torch.arange(len(before))
    split = SplitFrechetDistance(before.shape[1], extractor, repetitions=splits, min_images=min_images)
    with _left_out(split.name):
        split.update(before, True, index)
        split.update(after, False, index[kept])
        mean, deviation = split.compute()
        over = "one split" if splits == 1 else f"standard deviation {deviation:.3g} over {splits} splits"
        found[split.name] = Measurement(mean.item(), len(after), subset, None, f"{convention}; {over}")
    return found


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        warnings.warn(f"{name} is left out: {error}", stacklevel=2)
