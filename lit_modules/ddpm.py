"""Train the diffusion model of the domain."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torchmetrics import MeanMetric

from ace.diffusion_loss import DiffusionLoss
from ace.models.unet import load_diffusion
from ace.noise import generator
from ace.parametrisation import check_channels, check_unconditional
from ace.preflight import check_unet
from datamodules.base import ImageDataModule
from lit_modules.training import TrainingModule

# Shares of the chain whose validation loss is logged on its own: ACE filters with the first of them.
BUCKETS = (0.0, 0.05, 0.1, 0.5, 1.0)
FOCUS_SHARE = 0.75


class LitDDPM(TrainingModule):
    """A denoising diffusion model (Ho et al. 2020), with epsilon, sample or v prediction, fixed or learned variance.

    Args:
        unet: the denoiser, trained from scratch.
        scheduler: noise schedule; its ``prediction_type`` decides what the network is trained to output, its
            ``variance_type`` whether it learns the variance too (``learned_range``, twice as many output channels).
        pretrained: what the weights start from. A diffusers folder, or a name on the Hugging Face hub: its network and
            noise schedule take the place of ``unet`` and ``scheduler``. Or a ``.ckpt`` file of ``train.py``, for the
            ``unet`` that it was made with: its averaged weights if it has some.
        freeze: parts of the UNet that keep their weights, by the beginning of their parameters' names.
        weighting: of the timesteps in the loss, ``none`` or ``min_snr``, see `DiffusionLoss`.
        gamma: where ``min_snr`` cuts the signal-to-noise ratio off.
        focus: train the beginning of the chain more often: three in four images draw their timestep below this one, the
            rest from the whole chain. An explanation noises to tau only and never asks the network about more.
        lr: of AdamW, after a linear warm-up, at the start of a cosine decay to 0.
        weight_decay: of AdamW.
        warmup_steps: steps of the warm-up.
        channels_last: memory format of the network, about 1.5 times faster for convolutions on CPUs; not used where
            parts are frozen.
        compile: run the UNet through ``torch.compile``.

    Raises:
        ValueError: neither a network with its schedule nor a pretrained model, settings that cannot be trained, weights
            of another network, or a frozen part that does not exist.
        FileNotFoundError: there is no such model.
    """

    def __init__(
        self,
        unet: UNet2DModel | None = None,
        scheduler: DDPMScheduler | None = None,
        pretrained: str | None = None,
        freeze: list[str] | None = None,
        weighting: Literal["none", "min_snr"] = "none",
        gamma: float = 5.0,
        focus: int | None = None,
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_steps)
        if pretrained is not None and not pretrained.endswith(".ckpt"):
            unet, scheduler = load_diffusion(pretrained)
        if unet is None or scheduler is None:
            raise ValueError("give unet and scheduler to train from scratch, or pretrained to fine-tune a model")
        if pretrained is not None and pretrained.endswith(".ckpt"):
            _load_checkpoint(unet, Path(pretrained))
        self.loss = DiffusionLoss(scheduler, weighting, gamma)
        check_channels(unet, scheduler)
        check_unconditional(unet)
        if focus is not None and not 1 <= focus <= self.loss.steps:
            raise ValueError(f"focus must be a timestep from 1 to {self.loss.steps}, got {focus}")
        self.focus = focus
        # On CPUs torch 2.12 crashes in GroupNorm's backward for a channels-last input that needs no gradient.
        channels_last = channels_last and not freeze
        self.unet = unet.to(memory_format=torch.channels_last) if channels_last else unet
        self.scheduler = scheduler
        _freeze(self.unet, freeze or [])
        if compile:
            self.unet.compile()
        self.edges = [round(share * scheduler.config.num_train_timesteps) for share in BUCKETS]
        # Lightning's own mean over processes is exact only where they have equally many images. That of torchmetrics
        # leaves out what is no number, unless told to: a broken network would look good.
        self.mean_loss = MeanMetric(nan_strategy=math.nan)
        self.bucket_losses = nn.ModuleList(MeanMetric(nan_strategy=math.nan) for _ in self.edges[1:])

    def check(self, data: ImageDataModule) -> None:
        """Check that the UNet takes images of this shape."""
        check_unet(self.unet, *data.shape)

    def setup(self, stage: str) -> None:
        """Check that the images of the data module fit the network; what it learns from, it is made for and samples."""
        data = self.trainer.datamodule
        if data is not None:
            self.check(data)
            if stage == "fit":
                self.unet.register_to_config(sample_size=data.image_size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["image"]
        timesteps = self.draw_timesteps(len(images))
        loss = self.loss(self.unet, images, torch.randn_like(images), timesteps).mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def draw_timesteps(self, count: int) -> Tensor:
        """Timesteps of a training batch, shape (count,), uniform or by ``focus``."""
        timesteps = torch.randint(self.loss.steps, (count,), device=self.device)
        if self.focus is None:
            return timesteps
        early = torch.randint(self.focus, (count,), device=self.device)
        return torch.where(torch.rand(count, device=self.device) < FOCUS_SHARE, early, timesteps)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss at one noise and timestep an image, fixed by its id: curves compare between epochs and runs."""
        images = batch["image"]
        streams = [generator(0, image_id, "validation") for image_id in batch["id"]]
        noise = torch.stack([torch.randn(image.shape, generator=s) for image, s in zip(images, streams, strict=True)])
        timesteps = torch.cat([torch.randint(self.loss.steps, (1,), generator=s) for s in streams]).to(images.device)
        losses = self.loss(self.unet, images, noise.to(images), timesteps)
        self.mean_loss.update(losses)
        for bucket, first, stop in zip(self.bucket_losses, self.edges[:-1], self.edges[1:], strict=True):
            bucket.update(losses[(timesteps >= first) & (timesteps < stop)])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_losses("val")

    def on_test_epoch_end(self) -> None:
        self._log_losses("test")

    def _log_losses(self, stage: str) -> None:
        """Log the loss, and that of each bucket of timesteps that the images fall into."""
        self.log(f"{stage}/loss", self.mean_loss.compute(), prog_bar=True)
        self.mean_loss.reset()
        for bucket, first, stop in zip(self.bucket_losses, self.edges[:-1], self.edges[1:], strict=True):
            if not (loss := bucket.compute()).isnan():
                self.log(f"{stage}/loss_t{first:04d}-{stop - 1:04d}", loss)
            bucket.reset()

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the diffusers folder (`DDPMPipeline`, safetensors) that ``explain.py`` reads."""
        unet = nn.Module.to(copy.deepcopy(self.unet), dtype)  # diffusers' own `to` warns of layers this UNet lacks
        unet.register_to_config(_name_or_path="")  # where a fine-tuning began, on this machine
        DDPMPipeline(unet, self.scheduler).save_pretrained(folder)


def _load_checkpoint(unet: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give a .ckpt file that train.py has written")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
        unet.load_state_dict(weights)
    except Exception as error:  # pickle, zipfile and torch each raise their own kinds
        first = " ".join(str(error).split("\n")[:2])  # torch names every tensor
        raise ValueError(
            f"cannot start from {str(path)!r} ({first}): the file is damaged, or of another network than unet"
        ) from error


def _freeze(unet: nn.Module, prefixes: list[str]) -> None:
    unet.train().requires_grad_(True)
    for prefix in prefixes:
        frozen = [parameter for name, parameter in unet.named_parameters() if name.startswith(prefix)]
        if not frozen:
            parts = ", ".join(name for name, _ in unet.named_children())
            raise ValueError(f"freeze: the UNet has no part {prefix!r}, its parts are {parts}")
        for parameter in frozen:
            parameter.requires_grad_(False)
