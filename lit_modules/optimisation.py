"""The optimiser shared by the training modules: AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


def warmup_cosine_adamw(
    parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, warmup_steps: int, total_steps: int
) -> OptimizerLRScheduler:
    """AdamW whose rate rises linearly over ``warmup_steps`` and falls to zero on a cosine over the rest.

    The warm-up takes at most half of the training, so that a trial of a few steps works too.

    Raises:
        ValueError: ``warmup_steps`` is negative.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    warmup_steps = min(warmup_steps, total_steps // 2)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    decay = CosineAnnealingLR(optimizer, T_max=total_steps - warmup_steps)
    if warmup_steps:
        warmup = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps)
        decay = SequentialLR(optimizer, [warmup, decay], milestones=[warmup_steps])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}
