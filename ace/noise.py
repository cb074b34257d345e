"""One stream of random numbers per image, so that a result never depends on the image's company."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, image_id: str, stage: str) -> torch.Generator:
    """The stream of one image in one stage of the method.

    Its state is a stable hash of the three arguments: the same on every machine, device count and restart.
    It lives on the CPU so that the drawn numbers do not depend on the device either.
    """
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{stage}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def draw(streams: list[torch.Generator], steps: int, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Standard normal noise, shape (steps, N, *shape), each image's from its own stream."""
    noise = [torch.randn((steps, *shape), generator=stream) for stream in streams]
    return torch.stack(noise, dim=1).to(device)
