"""What to do where the memory was not enough after all: fewer images at a time, then more segments of the filter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from ace.memory import is_out_of_memory
from ace.slots import fixed_batch

if TYPE_CHECKING:
    from ace.explainer import CounterfactualExplainer

T = TypeVar("T")


def within_memory(explainer: CounterfactualExplainer, work: Callable[[], T]) -> T:
    """Do some work of an explainer, again with a smaller one as often as the memory is not enough.

    Raises:
        torch.OutOfMemoryError: the explainer cannot be made smaller.

    Warns:
        UserWarning: each time.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            diffusion_filter = explainer.diffusion_filter
            smaller = next_smaller(
                explainer.slots, diffusion_filter.segments, diffusion_filter.steps, explainer.deterministic
            )
            if smaller is None:
                raise torch.OutOfMemoryError(str(error)) from error
        _shrink(explainer, *smaller)  # outside of the handler: the error holds on to the tensors of its frames


def next_smaller(slots: int, segments: int, steps: int, fixed_shape: bool) -> tuple[int, int] | None:
    """Slots and segments that need less memory; None if there are none.

    Args:
        slots, segments: what the memory was not enough for.
        steps: of the filter, the most segments.
        fixed_shape: whether batches are filled up to `fixed_batch`.
    """
    if slots > 1:
        fewer = slots // 2
        while fixed_shape and fewer > 1 and fixed_batch(fewer) == fixed_batch(slots):
            fewer //= 2  # the same rows would be computed
        return fewer, segments
    return (1, min(2 * segments, steps)) if segments < steps else None


def _shrink(explainer: CounterfactualExplainer, slots: int, segments: int) -> None:
    if slots < explainer.slots:
        change = f"{explainer.slots} images at a time: going on with {slots}"
    else:
        change = f"one image: going on with {segments} segments of the filter"
    warnings.warn(f"the memory is not enough for {change}", stacklevel=3)
    explainer.diffusion_filter.segments = segments
    explainer.resize(slots)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
