"""Memory that a computation needs, and how not to need more of it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: on the device by tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gather(parts: Iterable[Sequence[Tensor]], count: int) -> list[Tensor]:
    """Join tables whose rows come in parts, into tensors in host memory that are made at the first part.

    Small results that stay where batches of images come and go leave holes in the heap that no batch fits into: the
    memory would grow with every one.

    Args:
        parts: in each some rows of every table.
        count: of all rows together.

    Returns:
        The tables, shape (count, ...); none if there is no part.
    """
    tables, start = [], 0
    for part in parts:
        tables = tables or [rows.new_empty(count, *rows.shape[1:], device="cpu") for rows in part]
        for table, rows in zip(tables, part, strict=True):
            table[start : start + len(rows)] = rows
        start += len(part[0])
    return tables
