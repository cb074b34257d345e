"""The noise schedule of a DDPM: which steps a respaced chain keeps, and the constants of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, repeat

import torch
from diffusers import DDPMScheduler
from torch import Tensor


def respaced_timesteps(train_steps: int, respacing: int) -> list[int]:
    """The ``respacing`` timesteps kept of a chain of ``train_steps``, ascending, first and last included.

    The rule of guided-diffusion (Nichol and Dhariwal 2021), its order of float additions included.
    """
    if not 1 <= respacing <= train_steps:
        raise ValueError(
            f"respacing must be in [1, {train_steps}], the diffusion model's chain length, got {respacing}"
        )
    stride = (train_steps - 1) / max(respacing - 1, 1)
    return [round(step) for step in accumulate(repeat(stride, respacing - 1), initial=0.0)]


def schedule_tables(scheduler: DDPMScheduler, timesteps: Sequence[int]) -> dict[str, Tensor]:
    """Constants of the chain that visits ``timesteps`` (Ho et al. 2020, equations 4 and 7).

    Args:
        scheduler: noise schedule of the whole chain.
        timesteps: the kept timesteps, ascending.

    Returns:
        Float32 tables of shape (len(timesteps),), computed in float64: ``sqrt_alpha_bar`` and
        ``sqrt_one_minus_alpha_bar`` of q(x_t | x_0); ``mean_from_x0`` and ``mean_from_xt``, the coefficients of the
        posterior mean; ``log_variance`` of the posterior (at step 0, where it is zero, that of step 1); ``log_beta``.
    """
    alpha_bar = torch.cumprod(1 - scheduler.betas.double(), 0)[list(timesteps)]
    previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    beta = 1 - alpha_bar / previous
    variance = beta * (1 - previous) / (1 - alpha_bar)
    if len(variance) > 1:
        variance = torch.cat([variance[1:2], variance[1:]])
    tables = {
        "sqrt_alpha_bar": alpha_bar.sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        "mean_from_x0": beta * previous.sqrt() / (1 - alpha_bar),
        "mean_from_xt": (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
        "log_variance": variance.clamp(min=1e-20).log(),
        "log_beta": beta.log(),
    }
    return {name: table.float() for name, table in tables.items()}
