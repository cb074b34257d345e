"""The published algorithm in its plain form, to measure against: one image at a time, nothing stopped, nothing shared.

ACE's main loop (Jeanneret et al. 2023) written down with diffusers' own scheduler steps: autograd through the whole
chain in every iteration, weights that require gradients, the default memory layout.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F


class PublishedLoop:
    """Explains one image.

    Args:
        unet, scheduler: the diffusion model.
        classifier: maps images in [0, 1] to one logit, shape (1, 1).
        steps: tau, in respaced steps.
        respacing: respaced steps of the whole chain.
        iterations: of PGD.
        half: whether the UNet's weights and inputs are float16, as in the published scripts.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        classifier: nn.Module,
        steps: int,
        respacing: int,
        iterations: int,
        half: bool = False,
    ) -> None:
        self.unet = unet.half() if half else unet
        self.classifier, self.iterations, self.half = classifier, iterations, half
        self.scheduler = DDPMScheduler.from_config(scheduler.config, timestep_spacing="linspace")
        self.scheduler.set_timesteps(respacing)
        self.timesteps = self.scheduler.timesteps[-steps:]

    def __call__(self, image: Tensor, target: float, step: float = 1 / 255, weight: float = 0.001) -> Tensor:
        """The counterfactual of an image in [0, 1], shape (1, C, H, W)."""
        attacked = image.clone()
        for _ in range(self.iterations):
            attacked.requires_grad_()
            logit = self.classifier(self._denoise(self._noised(attacked * 2 - 1)) / 2 + 0.5)
            loss = F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))
            loss = loss + weight * (attacked - image).abs().sum()
            (gradient,) = torch.autograd.grad(loss, attacked)
            attacked = (attacked.detach() - step * gradient.sign()).clamp(0, 1)
        return self._refine(image, attacked)

    @torch.no_grad()
    def _refine(self, image: Tensor, attacked: Tensor, threshold: float = 0.15, dilation: int = 15) -> Tensor:
        change = (attacked - image).abs().sum(1, keepdim=True)
        mask = F.max_pool2d(change / change.amax(), dilation, stride=1, padding=dilation // 2) >= threshold
        x = self._noised(attacked * 2 - 1)
        for timestep in self.timesteps:
            x = torch.where(mask, x, self.scheduler.add_noise(image * 2 - 1, torch.randn_like(x), timestep[None]))
            x = self._step(x, timestep)
        return torch.where(mask, x / 2 + 0.5, image)

    def _noised(self, x: Tensor) -> Tensor:
        return self.scheduler.add_noise(x, torch.randn_like(x), self.timesteps[:1])

    def _denoise(self, x: Tensor) -> Tensor:
        for timestep in self.timesteps:
            x = self._step(x, timestep)
        return x

    def _step(self, x: Tensor, timestep: Tensor) -> Tensor:
        output = self.unet(x.half() if self.half else x, timestep.to(x.device)).sample.float()
        return self.scheduler.step(output, timestep, x).prev_sample
