"""The filter F_tau: noise an image a little, denoise it with a diffusion model of the domain."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace.parametrisation import (
    check_channels,
    check_types,
    check_unconditional,
    estimated_x0,
    learns_variance,
    ranged_log_variance,
)
from ace.schedule import respaced_timesteps, schedule_tables


class Posterior(NamedTuple):
    """One reverse step p(x_{t-1} | x_t): mean and standard deviation, and the estimate of x_0; all in [-1, 1] units."""

    mean: Tensor
    std: Tensor
    pred_x0: Tensor


@dataclass
class PassCount:
    """UNet passes of a batch made so far: each counts once for every image in the batch."""

    forwards: int = 0
    backwards: int = 0


def filter_steps(steps: int | float, respacing: int) -> int:
    """Number of respaced steps of the filter: ``steps`` itself, or a fraction of the chain given as a float."""
    count = int(steps * respacing + 1e-9) if isinstance(steps, float) and steps <= 1 else steps
    if not (float(count).is_integer() and 1 <= count <= respacing):
        raise ValueError(
            f"tau (steps={steps!r}) must be a whole number in [1, {respacing}] or a fraction in (0, 1] that keeps "
            f"at least one of the {respacing} respaced steps"
        )
    return int(count)


def segment_bounds(steps: int, segments: int) -> list[tuple[int, int]]:
    """First step of each segment, and the one behind its last."""
    return list(pairwise(round(k * steps / segments) for k in range(segments + 1)))


class DiffusionFilter(nn.Module):
    """F_tau of ACE (Jeanneret et al. 2023, section 3.2): the last ``steps`` of a ``respacing``-step DDPM chain.

    An image is noised to step ``steps - 1`` of the respaced chain and denoised by ancestral steps; the last one adds no
    noise. Images are in [0, 1] outside and in [-1, 1] inside. The gradient with respect to the image is exact.
    The UNet is put in evaluation mode and frozen.

    Args:
        unet: pixel-space denoiser.
        scheduler: its noise schedule, `DDPMScheduler` or one with such a configuration, `DDIMScheduler` say; every
            ``prediction_type`` and ``variance_type`` of diffusers.
        steps: tau, as a count of respaced steps or as a fraction (float) of ``respacing``.
        respacing: number of steps that the whole chain is respaced to, as in guided-diffusion.
        stochastic: whether noise is added; without it the image is only scaled, as by the published code then.
        segments: memory of the gradient. 1 keeps all activations: ``steps`` forward passes. More keep the chain's state
            at the start of each segment and recompute the segment once in the backward pass, except for the last one:
            fewer than ``2 * steps`` forward passes for 1/segments of the memory.

    Raises:
        ValueError: a setting out of range, a UNet that is class-conditional or in half precision, or dynamic
            thresholding.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        steps: int | float = 5,
        respacing: int = 50,
        stochastic: bool = True,
        segments: int = 1,
    ) -> None:
        super().__init__()
        if (dtype := getattr(unet, "dtype", None)) in (torch.float16, torch.bfloat16):
            raise ValueError(f"the UNet's weights are {dtype}: load it in float32, and use torch.autocast for speed")
        if not isinstance(scheduler, DDPMScheduler):  # DDIM's, say: the schedule and what is predicted are the same
            scheduler = DDPMScheduler.from_config(scheduler.config)
        self.timesteps = respaced_timesteps(scheduler.config.num_train_timesteps, respacing)
        self.steps = filter_steps(steps, respacing)
        if not 1 <= segments <= self.steps:
            raise ValueError(f"segments must be in [1, {self.steps}], the filter's steps, got {segments}")
        if scheduler.config.thresholding:
            raise ValueError("dynamic thresholding is for latent and upsampling models: set thresholding=False")
        check_types(scheduler)
        check_channels(unet, scheduler)
        check_unconditional(unet)
        self.unet = unet.eval().requires_grad_(False)
        self._compiled: Callable | None = None
        self.config = scheduler.config
        self.stochastic, self.segments = stochastic, segments
        self.learns_variance = learns_variance(scheduler)
        for name, table in schedule_tables(scheduler, self.timesteps).items():
            self.register_buffer(name, table, persistent=False)
        # As a tensor on the device: a number would be copied there in every pass.
        self.register_buffer("timestep", torch.tensor(self.timesteps), persistent=False)
        self.passes = PassCount()

    def with_steps(self, steps: int | float) -> DiffusionFilter:
        """The filter of another tau on the same chain; it shares the network, and counts passes of its own.

        Raises:
            ValueError: the steps are out of range.
        """
        other = copy.copy(self)
        other.steps = filter_steps(steps, len(self.timesteps))
        other.segments = min(self.segments, other.steps)
        other.passes = PassCount()
        return other

    def compile_unet(self, images: Tensor) -> None:
        """Let torch compile the UNet, with and without its gradient, for batches of this shape and autocast.

        Others are compiled when they come. Where it fails, with one warning, the UNet stays as it is.

        Args:
            images: any, shape (N, C, H, W), on the UNet's device.
        """
        self._compiled = torch.compile(self.unet.forward, dynamic=False)
        passes, self.passes = self.passes, PassCount()
        try:
            with torch.no_grad():
                self._predict(images, self.timestep[0])
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                torch.autograd.grad(self._predict(images, self.timestep[0]).sum(), images)
        except Exception as error:  # compilers fail in many ways
            self._compiled = None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"the UNet could not be compiled, going on without: {reason}", stacklevel=2)
        finally:
            self.passes = passes

    def forward(self, images: Tensor, noise: Tensor | None = None, passes: int | None = None) -> Tensor:
        """F_tau(images), shape (N, C, H, W), in [0, 1] up to the noise of the last mean (not clamped).

        Args:
            images: shape (N, C, H, W), in [0, 1].
            noise: shape (steps, N, C, H, W), standard normal: for noising the image, then for each step but the last.
                None stands for zeros; a filter that is not stochastic ignores it.
            passes: of the UNet, if fewer than ``steps``: the last one's estimate of x_0 stands for the rest.
        """
        noise = noise if self.stochastic else None
        x = self.q_sample(images * 2 - 1, self.steps - 1, None if noise is None else noise[0])
        if passes is not None and passes < self.steps:
            x = self._denoise(x, 0, passes - 1, noise)
            return self.p_mean_std(x, self.steps - passes).pred_x0 / 2 + 0.5
        for start, stop in segment_bounds(self.steps, self.segments):
            if stop < self.steps and torch.is_grad_enabled() and x.requires_grad:
                x = checkpoint(self._denoise, x, start, stop, noise, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._denoise(x, start, stop, noise)
        return x / 2 + 0.5

    @torch.no_grad()
    def inpaint(self, images: Tensor, original: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """One pass of the filter in which everything outside ``mask`` follows the noised original.

        Args:
            images: start of the chain, the pre-explanations, shape (N, C, H, W), in [0, 1].
            original: shape (N, C, H, W), in [0, 1].
            mask: shape (N, 1, H, W), boolean, true where the image is repainted.
            noise: shape (2 * steps, N, C, H, W), in the order of use: for ``images``; then at each step for the
                original, and (except the last) for the step. None stands for zeros.

        Returns:
            Shape (N, C, H, W), in [0, 1]; outside the mask equal to ``original`` bit for bit.
        """
        draws = iter(repeat(None) if noise is None or not self.stochastic else noise)
        clean = original * 2 - 1
        x = self.q_sample(images * 2 - 1, self.steps - 1, next(draws))
        for index in reversed(range(self.steps)):
            x = torch.where(mask, x, self.q_sample(clean, index, next(draws)))
            x = self.p_sample(x, index, next(draws) if index else None)
        return torch.where(mask, (x / 2 + 0.5).clamp(0, 1), original)

    def q_sample(self, clean: Tensor, index: int, noise: Tensor | None) -> Tensor:
        """Noise ``clean`` to step ``index`` of the respaced chain: a draw of q(x_t | x_0)."""
        x = self.sqrt_alpha_bar[index] * clean
        return x if noise is None else x + self.sqrt_one_minus_alpha_bar[index] * noise

    def p_sample(self, x: Tensor, index: int, noise: Tensor | None) -> Tensor:
        """One reverse step from ``index`` to ``index - 1``; step 0 gives the mean."""
        posterior = self.p_mean_std(x, index)
        return posterior.mean if noise is None or index == 0 else posterior.mean + posterior.std * noise

    def p_mean_std(self, x: Tensor, index: int) -> Posterior:
        """The reverse step p(x_{t-1} | x_t) at ``index`` of the respaced chain (Ho et al. 2020, equations 7 and 15)."""
        output = self._predict(x, self.timestep[index])
        output, variance = output.chunk(2, dim=1) if self.learns_variance else (output, None)
        pred_x0 = self._pred_x0(x, output, index)
        mean = self.mean_from_x0[index] * pred_x0 + self.mean_from_xt[index] * x
        return Posterior(mean, self._std(variance, index), pred_x0)

    def _predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.passes.forwards += 1
        output = (self._compiled or self.unet)(x, timestep).sample.float()
        if output.requires_grad:
            output.register_hook(self._count_backward)
        return output

    def _count_backward(self, gradient: Tensor) -> None:
        self.passes.backwards += 1

    def _pred_x0(self, x: Tensor, output: Tensor, index: int) -> Tensor:
        signal, sigma = self.sqrt_alpha_bar[index], self.sqrt_one_minus_alpha_bar[index]
        return estimated_x0(self.config, x, output, signal, sigma)

    def _std(self, predicted: Tensor | None, index: int) -> Tensor:
        """Standard deviation of the reverse step."""
        match self.config.variance_type:
            case "fixed_small" | "fixed_small_log":
                return (0.5 * self.log_variance[index]).exp()
            case "fixed_large" | "fixed_large_log":
                return (0.5 * self.log_beta[index]).exp()
            case "learned":
                return predicted.clamp(min=1e-20).sqrt()
            case "learned_range":
                return (0.5 * ranged_log_variance(predicted, self.log_variance[index], self.log_beta[index])).exp()

    def _denoise(self, x: Tensor, start: int, stop: int, noise: Tensor | None) -> Tensor:
        """Steps number ``start`` to ``stop`` of the chain, counted from its noisy end."""
        for position in range(start, stop):
            index = self.steps - 1 - position
            x = self.p_sample(x, index, noise[position + 1] if noise is not None and index else None)
        return x
