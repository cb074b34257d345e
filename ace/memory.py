"""Memory that a computation needs, and how not to need more of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: on the device by tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
                  "unable to find an engine to execute this computation")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory was not enough; libraries of a GPU have words of their own for that."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    return told or isinstance(error, torch.OutOfMemoryError)


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process can still take: of its GPU, or its share of what the machine has.

    Args:
        device: where it computes.
        processes: how many of the run are on this machine; without a GPU each they share its memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min([psutil.virtual_memory().available, *_left_by_limits()]) // processes


# Of a control group: its limit, what it uses, and how much of that is cached files that can be dropped.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _left_by_limits(
    groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Bytes left in each control group around this process that has a limit: a container, a job of a cluster."""
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        name = "memory" if "memory" in controllers.split(",") else controllers
        if name not in _GROUP_FILES:
            continue
        limit, usage, cached = _GROUP_FILES[name]
        own = Path(path.lstrip("/"))
        for group in (groups / name / parent for parent in (own, *own.parents)):
            # In a container the group's own folder may stand where the machine has the root's.
            if not (group / limit).exists() or (group / limit).read_text().strip() == "max":
                continue
            used, stat = int((group / usage).read_text()), dict(map(str.split, (group / "memory.stat").open()))
            yield max(0, int((group / limit).read_text()) - used + int(stat[cached]))


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
