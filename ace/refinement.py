"""The second stage: keep the change where it is, take everything else from the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ace.diffusion_filter import DiffusionFilter


def change_map(original: Tensor, pre_explanation: Tensor) -> Tensor:
    """Relative change of each pixel: the channel-summed |x' - x| over its maximum in the image.

    Args:
        original, pre_explanation: shape (N, C, H, W), in [0, 1].

    Returns:
        Shape (N, 1, H, W), in [0, 1]; zero everywhere for an unchanged image.
    """
    change = (pre_explanation - original).abs().sum(1, keepdim=True)
    largest = change.amax((1, 2, 3), keepdim=True)
    return torch.where(largest > 0, change / largest, change)


@dataclass(frozen=True)
class Refinement:
    """ACE's refinement (section 3.3): a mask of the change, and one inpainting pass of the filter inside it.

    Args:
        threshold: relative change from which a pixel is repainted, in [0, 1]; 0 repaints a changed image entirely.
        dilation: odd size, in pixels, of the square over which the change is spread before thresholding.
    """

    threshold: float = 0.15
    dilation: int = 15

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], a share of the largest change, got {self.threshold}")
        if self.dilation < 1 or self.dilation % 2 == 0:
            raise ValueError(f"dilation must be an odd number of pixels, 1 for none, got {self.dilation}")

    def mask(self, original: Tensor, pre_explanation: Tensor, scale: Tensor | None = None) -> Tensor:
        """Boolean mask of the pixels to repaint, shape (N, 1, H, W); empty for an unchanged image.

        Args:
            original, pre_explanation: shape (N, C, H, W), in [0, 1].
            scale: factor of each image's threshold, shape (N,).
        """
        change = change_map(original, pre_explanation)
        dilated = F.max_pool2d(change, self.dilation, stride=1, padding=self.dilation // 2)
        threshold = self.threshold if scale is None else self.threshold * scale.view(-1, 1, 1, 1)
        return (dilated >= threshold) & (change.amax((1, 2, 3), keepdim=True) > 0)

    def noise_steps(self, diffusion_filter: DiffusionFilter) -> int:
        """How many draws of noise `refine` uses for each image."""
        return 2 * diffusion_filter.steps

    def refine(
        self,
        diffusion_filter: DiffusionFilter,
        original: Tensor,
        pre_explanation: Tensor,
        noise: Tensor | None = None,
        scale: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Counterfactuals, shape (N, C, H, W), in [0, 1], and their masks, shape (N, 1, H, W).

        Outside the mask a counterfactual equals the original bit for bit.

        Args:
            diffusion_filter: the filter used in the attack.
            original, pre_explanation: shape (N, C, H, W), in [0, 1].
            noise: shape (2 * steps, N, C, H, W), see `DiffusionFilter.inpaint`.
            scale: factor of each image's threshold, shape (N,).
            allowed: where it may be repainted, boolean, shape (N, 1, H, W); everywhere by default.
        """
        mask = self.mask(original, pre_explanation, scale)
        mask = mask if allowed is None else mask & allowed
        return diffusion_filter.inpaint(pre_explanation, original, mask, noise), mask
