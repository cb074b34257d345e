"""Networks to measure images with: frozen, in float32, always in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class FrozenNetwork(nn.Module):
    """A network that takes images in [0, 1] and owns their preparation: resizing, normalisation, order of channels.

    Args:
        name: under which its measurements are reported.
        network: takes prepared images; is frozen here.
        prepare: maps images in [0, 1] to what the network was trained on.
        channels: of the images.
    """

    def __init__(self, name: str, network: nn.Module, prepare: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.prepare = prepare
        self.channels = channels
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the model around does: batch statistics would mix the images."""
        return super().train(False)

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input for images in [0, 1]; an RGB network is shown grey ones in RGB.

        Raises:
            TypeError: the images are not a floating-point tensor.
            ValueError: they have another shape than (N, channels, H, W).
        """
        if not images.is_floating_point():
            raise TypeError(
                f"{self.name} takes floating-point images in [0, 1], got {images.dtype}: "
                "`ace.images.from_uint8` converts 8-bit ones"
            )
        if images.ndim == 4 and images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"{self.name} takes images of shape (N, {self.channels}, H, W), got {tuple(images.shape)}")
        return self.prepare(images.to(torch.float32))


class Encoder(FrozenNetwork):
    """A network that gives a feature vector for each image.

    Args:
        name, network, prepare, channels: see `FrozenNetwork`; what the network gives is flattened.
        dimension: length of a feature vector.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        dimension: int,
        channels: int = 3,
    ) -> None:
        super().__init__(name, network, prepare, channels)
        self.dimension = dimension

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape (N, dimension), float32, of images in [0, 1], shape (N, channels, H, W)."""
        return self.network(self.prepared(images)).flatten(1)
