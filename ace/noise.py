"""One stream of random numbers per image, so that a result never depends on the image's company."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

WORTH_A_THREAD = 2**19  # numbers: a few milliseconds


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

    Much of it is drawn in as many threads as torch has. It reaches a GPU without making the program wait for it.
    """
    on_gpu, inference = torch.device(device).type == "cuda", torch.is_inference_mode_enabled()
    noise = torch.zeros(len(streams), steps, *shape, pin_memory=on_gpu)

    def fill(rows: Tensor, stream: torch.Generator) -> None:
        with torch.inference_mode(inference):  # each thread has a mode of its own
            rows.normal_(generator=stream)

    drawn = [(rows, stream) for rows, stream in zip(noise, streams, strict=True) if stream is not None]
    threads = min(torch.get_num_threads(), noise.numel() // WORTH_A_THREAD)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, *zip(*drawn, strict=True)))
    else:
        for rows, stream in drawn:
            fill(rows, stream)
    return noise.to(device, non_blocking=on_gpu).transpose(0, 1)
