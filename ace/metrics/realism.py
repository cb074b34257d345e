"""Whether counterfactuals look like images of the domain: Fréchet distances between features of both sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ace.metrics.base import CounterfactualMetric, Network, joined

INCEPTION = "inception"
"""Name of the extractor, the FID Inception with 2048 features, whose Fréchet distance may be called FID."""

_CHUNK = 1024


def frechet_distance(real: Tensor, generated: Tensor) -> Tensor:
    """Fréchet distance of two Gaussians with the features' means and covariances (Heusel et al. 2017), in float64.

    Args:
        real, generated: features, shape (N, D) and (M, D); N and M at least 2.

    Raises:
        ValueError: the features are not finite, differ in number, or there are too few images.
    """
    return _distance(_statistics(real), real.split(_CHUNK), generated.split(_CHUNK))


def split_frechet_distances(real: Tensor, generated: Tensor, index: Tensor, order: Tensor) -> Tensor:
    """Fréchet distances between one half of the originals and the counterfactuals of the other half (Jeanneret 2023).

    Counterfactuals differ little from their originals, so the distance to all of them is small by construction.

    Args:
        real: features of the originals, shape (N, D).
        generated: features of the counterfactuals, shape (M, D); an original may have none.
        index: the row in `real` of the original of each counterfactual, shape (M,).
        order: the originals shuffled, a permutation of N. The halves are the first and the last N // 2.

    Returns:
        Distance of the last originals to the first counterfactuals, and of the first originals to the last
        counterfactuals; shape (2,), float64.
    """
    return _split_distances(_statistics(real), real, generated, index, order)


def _split_distances(
    statistics: FrechetInceptionDistance, real: Tensor, generated: Tensor, index: Tensor, order: Tensor
) -> Tensor:
    half = len(real) // 2
    first, last = order[:half], order[len(real) - half :]
    distances = []
    for own, other in ((last, first), (first, last)):
        others = torch.isin(index, other).nonzero()[:, 0]
        distances.append(_distance(statistics, _parts(real, own), _parts(generated, others)))
    return torch.stack(distances)


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance between originals and counterfactuals, from running sums in float64.

    It is a FID only by Inception's features; report it under its `name`. As input to `update` the metric takes

    - `imgs`: images of shape (N, C, H, W) in [0, 1], or without a network their features, shape (N, D),
    - `real`: whether they are originals.

    As output of `compute` it gives the distance, a float64 number.

    Args:
        num_features: D, 2048 for Inception.
        extractor: name of the network.
        network: gives the features of images; None if `update` is given the features themselves.
        min_images: how many originals, and how many counterfactuals, it takes at least; None for D + 1, with fewer
            the covariances are singular and the distance tells of the number of images. Published results on a few
            hundred images, such as ImageNet's, can be compared with by a smaller one.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: fewer than two images would be enough.
    """

    def __init__(
        self,
        num_features: int,
        extractor: str,
        network: Network | None = None,
        min_images: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(_Features(num_features, network), **kwargs)
        self.orig_dtype = torch.float64  # that of the result; a process without images does not find out
        self.name = _name("f", extractor)
        self.extractor, self.min_images = extractor, _min_images(min_images, num_features)

    def update(self, imgs: Tensor, real: bool) -> None:
        for part in imgs.split(_CHUNK):  # features are twice as large in float64
            super().update(part, real)

    def compute(self) -> Tensor:
        """The distance.

        Raises:
            ValueError: there are too few images.
        """
        counts = int(self.real_features_num_samples), int(self.fake_features_num_samples)
        _check_counts(self.name, counts, self.min_images, self.extractor)
        return super().compute().clamp(min=0)


class SplitFrechetDistance(CounterfactualMetric):
    """The sFID of Jeanneret et al. 2023, repeated: mean of `split_frechet_distances` over seeded random halves.

    It is an sFID only by Inception's features; report it under its `name`. As input to `update` the metric takes

    - `images`: shape (N, C, H, W), in [0, 1], or without a network their features, shape (N, D),
    - `real`: whether they are originals,
    - `index`: number of each image, shape (N,), the same for an original and its counterfactual. An image keeps it
      whatever the batches and processes are, and so its place in the splits.

    Every image needs its original; as in the published script, those that were not flipped may lack a counterfactual.
    As output of `compute` it gives mean and standard deviation over the repetitions, of which each is the mean of two
    distances; see `distances`. The published script makes one split, unseeded: `repetitions=1`, without deviation.

    Args:
        num_features, extractor, network: as for `FrechetDistance`.
        repetitions: how many times the images are split.
        seed: of the splits.
        min_images: how many originals and how many counterfactuals a half holds at least; None for D + 1, see
            `FrechetDistance`.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: no repetition, or fewer than two images would be enough.
    """

    higher_is_better = False

    def __init__(
        self,
        num_features: int,
        extractor: str,
        network: Network | None = None,
        repetitions: int = 10,
        seed: int = 0,
        min_images: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if repetitions < 1:
            raise ValueError(f"repetitions must be at least 1, got {repetitions}")
        self.network = _Features(num_features, network, self.dtype)
        self.extractor, self.min_images = extractor, _min_images(min_images, num_features)
        self.name = _name("sf", extractor)
        self.repetitions, self.seed = repetitions, seed
        for kind in ("real", "generated"):
            self.add_state(f"{kind}_features", [], dist_reduce_fx="cat")
            self.add_state(f"{kind}_index", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool, index: Tensor) -> None:
        if index.shape != (len(images),) or (len(index) and not 0 <= index.min() <= index.max() < 2**24):
            raise ValueError(
                f"index of shape {tuple(index.shape)} for {len(images)} images: give each image its number, "
                "from 0 to 2**24 - 1"  # a float32 holds no larger ones
            )
        kind = "real" if real else "generated"
        # Vectors of floats, as in `RowMetric.add`.
        getattr(self, f"{kind}_features").append(self.network(images).detach().flatten())
        getattr(self, f"{kind}_index").append(index.to(images.device, self.dtype))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the distance, float64; the deviation is NaN for one repetition.

        Raises:
            ValueError: there are too few images, two with the same number, or a counterfactual without its original.
        """
        each = self._distances(*self._gathered()).mean(1)
        return each.mean(), each.std() if self.repetitions > 1 else each.new_tensor(torch.nan)

    def distances(self) -> Tensor:
        """The `split_frechet_distances` of each repetition, shape (repetitions, 2), float64.

        Raises:
            ValueError: as for `compute`.
        """
        with self.synced():
            data = self._gathered()
        return self._distances(*data)

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and numbers of the originals, then those of the counterfactuals."""
        parts = []
        for kind in ("real", "generated"):
            for name in (f"{kind}_features", f"{kind}_index"):
                merged = joined(getattr(self, name))
                setattr(self, name, [merged])  # or the features would be in memory twice
                parts.append(merged)
            parts[-2:] = parts[-2].view(-1, self.network.num_features), parts[-1].long()
        return tuple(parts)

    def _distances(self, real: Tensor, numbers: Tensor, generated: Tensor, generated_numbers: Tensor) -> Tensor:
        numbers, rows = numbers.sort()
        _check_numbers(numbers, generated_numbers)
        index = rows[torch.searchsorted(numbers, generated_numbers)]
        generator = torch.Generator().manual_seed(self.seed)
        half, results, statistics = len(rows) // 2, [], _statistics(real)
        for _ in range(self.repetitions):
            order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            smaller = min(int(torch.isin(index, part).sum()) for part in (order[:half], order[len(rows) - half :]))
            _check_counts(f"each half of {self.name}", (half, smaller), self.min_images, self.extractor)
            results.append(_split_distances(statistics, real, generated, index, order))
        return torch.stack(results)


def _parts(table: Tensor, rows: Tensor) -> Iterator[Tensor]:
    return (table[part] for part in rows.split(_CHUNK))


def _statistics(features: Tensor) -> FrechetInceptionDistance:
    """Means and covariances of two sets of such features, for `_distance`.

    Two matrices of D x D in float64, and their initial values, stay in memory until Python's garbage collection.
    """
    # For this process alone, even where the caller has gathered the features of several.
    network = _Features(features.shape[1], None)
    return FrechetInceptionDistance(network, sync_on_compute=False).to(features.device)


def _distance(metric: FrechetInceptionDistance, real: Iterable[Tensor], generated: Iterable[Tensor]) -> Tensor:
    """Fréchet distance of features that come in parts, because in float64 they are twice as large."""
    metric.reset()
    for parts, is_real in ((real, True), (generated, False)):
        for part in parts:
            metric.update(part, is_real)
    counts = int(metric.real_features_num_samples), int(metric.fake_features_num_samples)
    if min(counts) < 2:
        raise ValueError(f"a covariance needs two images, got {counts[0]} originals and {counts[1]} counterfactuals")
    return metric.compute().clamp(min=0)


class _Features(nn.Module):
    """The extractor as torchmetrics wants it: a module that knows its number of features.

    It rounds its result to the type of the features, hence float64.
    """

    def __init__(self, num_features: int, network: Network | None, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.num_features, self.dtype = num_features, dtype
        self.network = network or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images).flatten(1)
        if features.shape != (len(images), self.num_features):
            raise ValueError(
                f"features of {len(images)} images have shape {tuple(features.shape)}, num_features is "
                f"{self.num_features}: give the number that the network gives"
            )
        if not features.isfinite().all():
            raise ValueError("features are not finite: mend the images or the network, or run it in float32")
        return features.to(self.dtype)


def _name(prefix: str, extractor: str) -> str:
    return f"{prefix}id" if extractor == INCEPTION else f"{prefix}d_{extractor}"


def _min_images(min_images: int | None, num_features: int) -> int:
    if min_images is not None and min_images < 2:
        raise ValueError(f"min_images must be at least 2, a covariance needs two images, got {min_images}")
    return min_images or num_features + 1


def _check_numbers(numbers: Tensor, generated_numbers: Tensor) -> None:
    for found in (numbers, generated_numbers):
        values, counts = found.unique(return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"the number {values[counts > 1][0]} came twice: update with each image once")
    alone = generated_numbers[~torch.isin(generated_numbers, numbers)]
    if len(alone):
        raise ValueError(f"no original came for the counterfactual {alone[0]}: update with all originals, not by flips")


def _check_counts(name: str, counts: tuple[int, int], needed: int, extractor: str) -> None:
    if min(counts) < needed:
        raise ValueError(
            f"{name} needs at least {needed} originals and {needed} counterfactuals, by default one more than the "
            f"features of {extractor}, got {counts[0]} and {counts[1]}: add images, take an extractor with fewer "
            "features, or lower min_images to compare with numbers that were published for so few"
        )
