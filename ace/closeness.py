"""How little a counterfactual changes: of images in [0, 1], shape (N, C, H, W), one number each, shape (N,)."""

from __future__ import annotations

from torch import Tensor


def l1(original: Tensor, counterfactual: Tensor) -> Tensor:
    """Mean absolute difference over C, H, W, in [0, 1]."""
    return (counterfactual - original).flatten(1).abs().mean(1)


def l2(original: Tensor, counterfactual: Tensor) -> Tensor:
    """Euclidean norm of the difference over C, H, W."""
    return (counterfactual - original).flatten(1).norm(dim=1)


def linf(original: Tensor, counterfactual: Tensor) -> Tensor:
    """Largest absolute difference, in [0, 1]."""
    return (counterfactual - original).flatten(1).abs().amax(1)


def changed_area(original: Tensor, counterfactual: Tensor, tolerance: float = 0.0) -> Tensor:
    """Share of the pixels of which a channel differs by more than `tolerance`."""
    return ((counterfactual - original).abs().amax(1) > tolerance).flatten(1).float().mean(1)
