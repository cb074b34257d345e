"""Train the diffusion model of the domain."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from ace.noise import generator
from lit_modules.optimisation import warmup_cosine_adamw


class LitDDPM(LightningModule):
    """A denoising diffusion model (Ho et al. 2020), with epsilon, sample or v prediction.

    Images arrive in [0, 1] and are mapped to [-1, 1] here, in the training step.

    Args:
        unet: the denoiser.
        scheduler: noise schedule; its ``prediction_type`` decides what the network is trained to output.
        lr, weight_decay, warmup_steps: AdamW with linear warm-up and cosine decay.
        channels_last: memory format of the network; about 1.5 times faster for convolutions on CPUs.

    Raises:
        ValueError: another prediction type, or a UNet with other output than input channels.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if scheduler.config.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(
                f"prediction_type {scheduler.config.prediction_type!r} cannot be trained: "
                "choose epsilon, sample or v_prediction"
            )
        if unet.config.in_channels != unet.config.out_channels:
            raise ValueError(
                f"the UNet maps {unet.config.in_channels} channels to {unet.config.out_channels}: "
                "the training needs as many out as in"
            )
        self.unet = unet.to(memory_format=torch.channels_last) if channels_last else unet
        self.scheduler = scheduler
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps

    def loss(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of the prediction, one value an image, shape (N,)."""
        clean = images * 2 - 1
        prediction = self.unet(self.scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        return F.mse_loss(prediction, self._regression_target(clean, noise, timesteps), reduction="none").mean(
            (1, 2, 3)
        )

    def _regression_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return clean
            case "v_prediction":
                return self.scheduler.get_velocity(clean, noise, timesteps)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["image"]
        timesteps = torch.randint(len(self.scheduler.betas), (len(images),), device=self.device)
        loss = self.loss(images, torch.randn_like(images), timesteps).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss at one noise and timestep an image, fixed by its id: curves compare between epochs and runs."""
        images, steps = batch["image"], len(self.scheduler.betas)
        streams = [generator(0, image_id, "validation") for image_id in batch["id"]]
        noise = torch.stack([torch.randn(image.shape, generator=s) for image, s in zip(images, streams, strict=True)])
        timesteps = torch.cat([torch.randint(steps, (1,), generator=s) for s in streams])
        loss = self.loss(images, noise.to(images), timesteps.to(images.device))
        self.log("val/loss", loss.mean(), prog_bar=True, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = int(self.trainer.estimated_stepping_batches)
        return warmup_cosine_adamw(self.parameters(), self.lr, self.weight_decay, self.warmup_steps, steps)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the diffusers folder (`DDPMPipeline`, safetensors) that ``explain.py`` reads."""
        unet = nn.Module.to(copy.deepcopy(self.unet), dtype)  # diffusers' own `to` warns of layers this UNet lacks
        DDPMPipeline(unet, self.scheduler).save_pretrained(folder)
