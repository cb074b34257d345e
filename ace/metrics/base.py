"""What the metrics of counterfactuals have in common: one value an image, kept for means and intervals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Network = Callable[[Tensor], Tensor]
"""From images of shape (N, C, H, W) in [0, 1] to one row an image: features, or logits."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""From two batches of images, (N, C, H, W) in [0, 1], to one number a pair, (N,), or (N, 1, 1, 1)."""


class CounterfactualMetric(Metric):
    """A metric whose result depends neither on the batches nor on the number of processes."""

    is_differentiable = False
    full_state_update = False

    def synced(self) -> AbstractContextManager:
        """While it is open, the states hold what all processes have seen; for results besides `compute`."""
        return self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)


class RowMetric(CounterfactualMetric):
    """Keeps a row of numbers for each image.

    The rows lie in a state that bears the name of the class. A `MetricCollection` takes metrics whose states have the
    same names and, after the first batch, the same numbers for one and the same: L1 and L2 of unchanged images.
    Give it `compute_groups=False` if it holds several metrics of one class, such as distances by several networks.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._state = f"{type(self).__name__}_rows"
        self.add_state(self._state, [], dist_reduce_fx="cat")

    def add(self, rows: Tensor) -> None:
        """Keep the rows of a batch, shape (N,) or (N, ...)."""
        # One dimension and one type, because torchmetrics gathers an empty float vector from a process without images.
        getattr(self, self._state).append(rows.detach().flatten().to(self.dtype))

    def rows(self) -> Tensor:
        """All that was added, in one dimension; that of all processes while `synced` is open."""
        return joined(getattr(self, self._state))


class PerImageMetric(RowMetric):
    """Mean of one value an image."""

    def per_image(self, rows: Tensor) -> Tensor:
        """The values, shape (N,), from the `rows`."""
        return rows

    def values(self) -> Tensor:
        """The value of each image, shape (N,), in the order of the updates; those of all processes, rank by rank."""
        with self.synced():
            return self.per_image(self.rows())

    def compute(self) -> Tensor:
        """Mean over the images, in float64.

        Raises:
            ValueError: there was no image.
        """
        values = self.per_image(self.rows())
        check_seen(self, values)
        # Sorted, the sum has the same bits in whatever order the images came.
        return values.cpu().double().sort().values.mean()


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """The content of a list state, before or after torchmetrics gathered it; of one part, that part and no copy."""
    if isinstance(state, list) and len(state) == 1:
        return state[0]
    return dim_zero_cat(state) if len(state) else torch.empty(0)


def paired_features(network: Network, original: Tensor, counterfactual: Tensor) -> tuple[Tensor, Tensor]:
    """Features of originals and counterfactuals, shape (N, D), in float32.

    Raises:
        ValueError: the two batches have different shapes.
    """
    check_shapes(original, counterfactual)
    return network(original).flatten(1).float(), network(counterfactual).flatten(1).float()


def paired_distances(distance: Distance, first: Tensor, second: Tensor) -> Tensor:
    """Distance of each pair of images, shape (N,), in float32.

    Raises:
        TypeError, ValueError: what is given are no batches of images, see `check_images`, or the distance is not one
            number a pair.
    """
    check_images(first, second)
    distances = distance(first.float(), second.float())
    if distances.numel() != len(first):
        raise ValueError(
            f"the distance of {len(first)} pairs has shape {tuple(distances.shape)}: "
            "give a function that reduces each pair to one number, and does not average over the batch"
        )
    return distances.flatten().float()


def check_seen(metric: Metric, rows: Tensor) -> None:
    """Raise a `ValueError` if there was no image."""
    if not len(rows):
        raise ValueError(f"{type(metric).__name__} has seen no image: update it before it is computed")


def check_shapes(original: Tensor, counterfactual: Tensor) -> None:
    """Raise a `ValueError` if the two batches differ in shape, which torch might broadcast."""
    if original.shape != counterfactual.shape:
        raise ValueError(
            f"originals of shape {tuple(original.shape)} and counterfactuals of shape {tuple(counterfactual.shape)}: "
            "give both in the same order and size"
        )


def check_images(original: Tensor, counterfactual: Tensor) -> None:
    """Refuse what are no two batches of images.

    Raises:
        TypeError: a batch is not of floating point.
        ValueError: the shapes differ or are not (N, C, H, W), or a value is outside [0, 1].
    """
    check_shapes(original, counterfactual)
    if original.ndim != 4:
        raise ValueError(f"images have shape (N, C, H, W), got {tuple(original.shape)}")
    for images in (original, counterfactual):
        if not images.is_floating_point():
            raise TypeError(f"images are float tensors in [0, 1], got {images.dtype}: from_uint8 makes them")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):  # false for NaN
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"images must lie in [0, 1], these lie in [{low:g}, {high:g}]: undo the normalisation")
