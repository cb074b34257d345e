"""One stream of random numbers per image, so that a result never depends on the image's company."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, image_id: str, stage: str) -> torch.Generator:
    """The stream of one image in one stage of the method.

    Its state is a stable hash of the three arguments: the same on every machine, device count and restart.
    It lives on the CPU so that the drawn numbers do not depend on the device either.
    """
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{stage}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def draw(
    streams: Sequence[torch.Generator | None], steps: int, shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Standard normal noise, shape (steps, N, *shape), each image's from its own stream; zeros where there is none.

    It reaches a GPU without making the program wait for it.
    """
    on_gpu = torch.device(device).type == "cuda"
    noise = torch.zeros(len(streams), steps, *shape, pin_memory=on_gpu)
    for rows, stream in zip(noise, streams, strict=True):
        if stream is not None:
            rows.normal_(generator=stream)
    return noise.to(device, non_blocking=on_gpu).transpose(0, 1)
