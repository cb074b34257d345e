"""Metrics of how little counterfactuals change, by `ace.closeness` or a perceptual distance."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ace.closeness import changed_area, l1, l2, linf
from ace.metrics.base import Distance, PerImageMetric, paired_distances


class ImagePairMetric(PerImageMetric):
    """Mean of a distance between original and counterfactual.

    As input to `update` the metric takes `original` and `counterfactual`, shape (N, C, H, W), in [0, 1].
    As output of `compute` it gives the mean, of `values` the distance of each pair, shape (N,).
    """

    higher_is_better = False

    @abstractmethod
    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        """The distance of each pair, N numbers."""

    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        self.add(paired_distances(self.distance, original, counterfactual))


class L1(ImagePairMetric):
    """Mean absolute difference over C, H, W, in [0, 1]."""

    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        return l1(original, counterfactual)


class L2(ImagePairMetric):
    """Euclidean norm of the difference."""

    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        return l2(original, counterfactual)


class Linf(ImagePairMetric):
    """Largest absolute difference, in [0, 1]."""

    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        return linf(original, counterfactual)


class ChangedArea(ImagePairMetric):
    """Share of the pixels that differ.

    Args:
        tolerance: the largest difference that does not count, in [0, 1]. The published code cuts grey levels off
            when it saves, which lowers a quarter of the levels by one where nothing was changed: use 1.5 / 255 there.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: the tolerance is not in [0, 1).
    """

    def __init__(self, tolerance: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), a difference between images in [0, 1], got {tolerance}")
        self.tolerance = tolerance

    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        return changed_area(original, counterfactual, self.tolerance)


class PerceptualDistance(ImagePairMetric):
    """Mean of a perceptual distance such as LPIPS; report it under the name of the network.

    Args:
        network: gives the distance of each pair.
        kwargs: those of `torchmetrics.Metric`.
    """

    def __init__(self, network: Distance, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network

    def distance(self, original: Tensor, counterfactual: Tensor) -> Tensor:
        return self.network(original, counterfactual)
