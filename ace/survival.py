"""How many decisions survive the filter: the price of a larger tau."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ace.decision import Decision
from ace.diffusion_filter import DiffusionFilter
from ace.noise import draw, generator
from ace.objective import Classifier, logits_of


@torch.no_grad()
def survives(
    classifier: Classifier,
    decisions: Sequence[Decision],
    diffusion_filter: DiffusionFilter,
    images: Tensor,
    ids: Sequence[str],
    seed: int = 0,
) -> Tensor:
    """Whether C(F_tau(x)) = C(x), for each decision and image: boolean, shape (D, N).

    Args:
        classifier: maps images in [0, 1], shape (N, C, H, W), to logits.
        decisions: how the logits are read.
        diffusion_filter: F_tau.
        images: shape (N, C, H, W), in [0, 1].
        ids: the images' identities; with the seed they determine the noise.
        seed: of the noise.
    """
    streams = [generator(seed, image_id, "filter check") for image_id in ids]
    noise = draw(streams, diffusion_filter.steps, images.shape[1:], images.device)
    before, after = (logits_of(classifier, shown) for shown in (images, diffusion_filter(images, noise)))
    return torch.stack([decision.prediction(before) == decision.prediction(after) for decision in decisions])
