"""Checks before a run: name what would otherwise be found out hours later."""

from __future__ import annotations

import torch

from ace.explainer import CounterfactualExplainer


def check_networks(explainer: CounterfactualExplainer, channels: int, image_size: int | tuple[int, int]) -> None:
    """Check that the UNet and the classifier take images of this kind.

    Args:
        explainer: what is going to be run.
        channels: channels of the images.
        image_size: height and width of the images, one number if square.

    Raises:
        ValueError: wrong channel count, or a size that the UNet cannot halve often enough.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    config = explainer.diffusion_filter.unet.config
    if channels != config.in_channels:
        raise ValueError(f"the images have {channels} channels, the diffusion model takes {config.in_channels}")
    factor = 2 ** (len(config.block_out_channels) - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"the diffusion model cannot take images of {height}x{width}: both sides must be multiples of {factor}; "
            f"resize them (it was made for {config.sample_size})"
        )
    device = next(explainer.diffusion_filter.unet.parameters()).device
    image = torch.full((1, channels, height, width), 0.5, device=device)
    try:
        logits = explainer.classifier(image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the classifier cannot take images of {channels}x{height}x{width}: {error}") from error
    explainer.decision.check(logits)
