"""The precisions of the networks; weights, images, gradients and masks are float32 in all of them."""

from __future__ import annotations

import torch

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""By Lightning's names, what the networks compute in by autocast."""


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """A context in which the networks compute in a precision, as Lightning's trainer makes them."""
    half = PRECISIONS[precision]
    return torch.autocast(torch.device(device).type, half, enabled=half is not None)
