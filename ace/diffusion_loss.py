"""The training loss of a DDPM."""

from __future__ import annotations

import math
from typing import Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ace.parametrisation import check_types, estimated_x0, learns_variance, ranged_log_variance
from ace.schedule import schedule_tables

VLB_WEIGHT = 0.001


class DiffusionLoss(nn.Module):
    """Mean squared error of the prediction, and for learned variances the variational bound too.

    For ``learned_range`` this is L_hybrid = L_simple + 0.001 L_vlb of Nichol and Dhariwal 2021 (equation 16), where the
    bound trains the variance alone: the mean's gradient is stopped in it.

    Args:
        scheduler: noise schedule, prediction and variance type.
        weighting: of the timesteps in the squared error: ``none``, or ``min_snr`` (Hang et al. 2023).
        gamma: where ``min_snr`` cuts the signal-to-noise ratio off.

    Raises:
        ValueError: a prediction or variance type that cannot be trained, an unknown weighting, or gamma not positive.
    """

    def __init__(
        self, scheduler: DDPMScheduler, weighting: Literal["none", "min_snr"] = "none", gamma: float = 5.0
    ) -> None:
        super().__init__()
        config = scheduler.config
        check_types(scheduler)
        if config.variance_type == "learned":
            raise ValueError("variance_type 'learned' cannot be trained: use learned_range, or a fixed variance")
        if weighting not in ("none", "min_snr"):
            raise ValueError(f"unknown weighting {weighting!r}: use none or min_snr")
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        self.scheduler, self.prediction_type = scheduler, config.prediction_type
        self.learns_variance = learns_variance(scheduler)
        self.weighting, self.gamma = weighting, gamma
        self.steps = config.num_train_timesteps
        for name, table in schedule_tables(scheduler, range(self.steps)).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, unet: nn.Module, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Loss of each image, shape (N,).

        Args:
            unet: the denoiser.
            images: shape (N, C, H, W), in [0, 1].
            noise: same shape, standard normal.
            timesteps: shape (N,).
        """
        clean = images * 2 - 1
        x = self.scheduler.add_noise(clean, noise, timesteps)
        output = unet(x, timesteps).sample.float()
        output, variance = output.chunk(2, dim=1) if self.learns_variance else (output, None)
        error = (output - self._goal(clean, noise, timesteps)).square().flatten(1).mean(1)
        loss = self._weight(timesteps) * error
        if variance is not None:
            loss = loss + VLB_WEIGHT * self.steps * self._bound(clean, x, output.detach(), variance, timesteps)
        return loss

    def _at(self, table: str, timesteps: Tensor) -> Tensor:
        """A table's entries, shape (N, 1, 1, 1)."""
        return getattr(self, table)[timesteps][:, None, None, None]

    def _goal(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        return self.scheduler.get_velocity(clean, noise, timesteps)

    def _weight(self, timesteps: Tensor) -> Tensor:
        if self.weighting == "none":
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = (self.sqrt_alpha_bar[timesteps] / self.sqrt_one_minus_alpha_bar[timesteps]).square()
        cut = snr.clamp(max=self.gamma)
        share = (self.gamma / snr).clamp(max=1)  # cut / snr, and 1 where no signal is left
        return {"epsilon": share, "sample": cut, "v_prediction": cut / (snr + 1)}[self.prediction_type]

    def _bound(self, clean: Tensor, x: Tensor, output: Tensor, variance: Tensor, timesteps: Tensor) -> Tensor:
        """One term of the variational bound, in bits a dimension: a divergence, or at step 0 the likelihood."""
        mean_from_x0, mean_from_xt = self._at("mean_from_x0", timesteps), self._at("mean_from_xt", timesteps)
        log_variance = self._at("log_variance", timesteps)
        log_predicted = ranged_log_variance(variance, log_variance, self._at("log_beta", timesteps))
        signal, sigma = self._at("sqrt_alpha_bar", timesteps), self._at("sqrt_one_minus_alpha_bar", timesteps)
        pred_x0 = estimated_x0(self.scheduler.config, x, output, signal, sigma)
        mean = mean_from_x0 * pred_x0 + mean_from_xt * x
        true_mean = mean_from_x0 * clean + mean_from_xt * x
        divergence = normal_kl(true_mean, log_variance, mean, log_predicted)
        likelihood = -discretised_log_likelihood(clean, mean, 0.5 * log_predicted)
        first = (timesteps == 0)[:, None, None, None]
        return torch.where(first, likelihood, divergence).flatten(1).mean(1) / math.log(2)


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Divergence KL(N || N') of normal distributions, elementwise, in nats."""
    ratio = (log_variance - other_log_variance).exp()
    shift = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + ratio + shift - 1)


def discretised_log_likelihood(clean: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of 8-bit values under a normal distribution, elementwise (Ho et al. 2020, equation 13).

    Args:
        clean: values on the grid of 256 levels, in [-1, 1]; the outermost bins reach to infinity.
        mean, log_std: of the distribution.
    """
    half_bin = 1 / 255
    upper = torch.special.ndtr((clean - mean + half_bin) * (-log_std).exp())
    lower = torch.special.ndtr((clean - mean - half_bin) * (-log_std).exp())
    upper = torch.where(clean > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(clean < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()
