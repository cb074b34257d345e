"""What the output of a diffusion model stands for: an estimate of the clean image, and perhaps a variance."""

from __future__ import annotations

from diffusers import DDPMScheduler
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


def check_types(scheduler: DDPMScheduler) -> None:
    """Refuse what nobody defines.

    Raises:
        ValueError: an unknown prediction or variance type.
    """
    for name, known in (("prediction_type", PREDICTION_TYPES), ("variance_type", VARIANCE_TYPES)):
        if scheduler.config[name] not in known:
            raise ValueError(f"unknown {name} {scheduler.config[name]!r}: use {', '.join(known)}")


def learns_variance(scheduler: DDPMScheduler) -> bool:
    """Whether the second half of the network's output channels is a variance."""
    return scheduler.config.variance_type in ("learned", "learned_range")


def check_channels(unet: nn.Module, scheduler: DDPMScheduler) -> None:
    """Compare the network's output channels with what the schedule makes of them.

    Raises:
        ValueError: they are more or fewer.
    """
    expected = unet.config.in_channels * (2 if learns_variance(scheduler) else 1)
    if unet.config.out_channels != expected:
        raise ValueError(
            f"variance_type {scheduler.config.variance_type!r} needs a UNet with {expected} output channels, "
            f"this one has {unet.config.out_channels}"
        )


def check_unconditional(unet: nn.Module) -> None:
    """Refuse a network that asks for the class of an image.

    Raises:
        ValueError: it does.
    """
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError("the UNet is class-conditional: ACE needs an unconditional diffusion model of the domain")


def estimated_x0(config: FrozenDict, x: Tensor, output: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """The clean image, in [-1, 1] units, that an output of the network means; clipped where the scheduler says so.

    Args:
        config: of the scheduler.
        x: the noisy image, shape (N, C, H, W).
        output: of the network, without a variance; same shape.
        signal, sigma: shares of the clean image and of the noise in ``x``; for each image, or one for all.
    """
    match config.prediction_type:
        case "epsilon":
            pred_x0 = (x - sigma * output) / signal
        case "sample":
            pred_x0 = output
        case "v_prediction":
            pred_x0 = signal * x - sigma * output
    return pred_x0.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else pred_x0


def ranged_log_variance(output: Tensor, log_variance: Tensor, log_beta: Tensor) -> Tensor:
    """The ``learned_range`` variance that an output in [-1, 1] means (Nichol and Dhariwal 2021, equation 15)."""
    share = (output + 1) / 2
    return share * log_beta + (1 - share) * log_variance
