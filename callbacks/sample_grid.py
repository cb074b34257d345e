"""Pictures drawn by the diffusion model while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchvision.utils import make_grid

from ace.images import save_png, to_uint8
from ace.noise import draw, generator
from callbacks.due import first_batch_of_due_epoch
from callbacks.log_media import log_image
from datamodules.base import sides


class SampleGrid(Callback):
    """Write a grid of samples, from the same noise every time, at the validation of every n-th epoch.

    Validation runs with the averaged weights if `EMAWithWarmup` is used. The PNGs lie in
    ``<default_root_dir>/samples``; W&B and TensorBoard get the same picture.

    Args:
        every_n_epochs: pause between two grids.
        count: number of samples.
        inference_steps: steps of the DDIM sampler; of a shorter diffusion chain all.

    Raises:
        ValueError: one of them is less than 1.
    """

    def __init__(self, every_n_epochs: int = 1, count: int = 64, inference_steps: int = 50) -> None:
        numbers = {"every_n_epochs": every_n_epochs, "count": count, "inference_steps": inference_steps}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.every_n_epochs, self.count, self.inference_steps = every_n_epochs, count, inference_steps

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        due = first_batch_of_due_epoch(trainer, self.every_n_epochs, batch_idx, dataloader_idx)
        if not (due and trainer.is_global_zero):
            return
        grid = to_uint8(make_grid(self.sample(pl_module), nrow=int(self.count**0.5), pad_value=1))
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        save_png(grid, folder / f"step-{trainer.global_step:07d}.png")
        log_image(trainer.loggers, "samples", grid, trainer.global_step)

    @torch.no_grad()
    def sample(self, pl_module: LightningModule) -> Tensor:
        """Samples in [0, 1], shape (count, C, H, W)."""
        unet, scheduler = pl_module.unet, sampler(pl_module.scheduler)
        scheduler.set_timesteps(min(self.inference_steps, scheduler.config.num_train_timesteps), pl_module.device)
        shape = (unet.config.in_channels, *sides(unet.config.sample_size))
        streams = [generator(0, str(index), "sample grid") for index in range(self.count)]
        images = draw(streams, 1, shape, pl_module.device)[0]
        for timestep in scheduler.timesteps:
            prediction = unet(images, timestep).sample[:, : shape[0]]  # behind it stands a variance that is learnt
            images = scheduler.step(prediction, timestep, images).prev_sample
        return (images / 2 + 0.5).clamp(0, 1)


def sampler(scheduler: DDPMScheduler) -> DDIMScheduler:
    """DDIM on the chain of a training; by its betas, as DDIM does not know every schedule by name."""
    known = {"trained_betas": scheduler.betas.tolist(), "beta_schedule": "linear", "rescale_betas_zero_snr": False}
    return DDIMScheduler.from_config(scheduler.config, **known)
