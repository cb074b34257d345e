"""The images of a prediction, drawn by all processes from one counter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.distributed import Store
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import collate_readable

_READ_AHEAD = 1  # batches that each loading worker keeps ready
_IN_HAND = 2  # batches beside those of the workers: the one that is worked on, and Lightning's look at the next


class WorkQueue:
    """Batches of the images that are left to do: every process draws its next ones from a shared counter.

    So a process that is faster, or whose images are finished sooner, does more of them. Towards the end the draws get
    smaller, so that no process holds more than its equal share of what is left. For Lightning this is an iterable of
    unknown length, which it neither divides nor counts.

    Args:
        dataset: what is left to do, in the same order in every process.
        batch_size: most images of a draw.
        store: what the processes share.
        key: name of the counter in it, of this queue alone.
        processes: how many draw from it.
        num_workers: loading processes of this one; 0 loads here.
        options: further arguments of the `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        store: Store,
        key: str,
        processes: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        self.dataset, self.batch_size, self.processes, self.num_workers = dataset, batch_size, processes, num_workers
        self._store, self._key, self._options = store, key, options

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator, which draws nothing before it is asked: Lightning makes an iterator that it does not use.
        yield from DataLoader(
            self.dataset,
            batch_sampler=self._draws(),
            collate_fn=collate_readable,
            num_workers=self.num_workers,
            prefetch_factor=_READ_AHEAD if self.num_workers else None,
            **self._options,
        )

    def _draws(self) -> Iterator[range]:
        total = len(self.dataset)
        while (start := self._store.add(self._key, 0)) < total:
            size = self._size(total - start)
            start = self._store.add(self._key, size) - size  # another process may have drawn in between
            if indices := range(start, min(start + size, total)):
                yield indices

    def _size(self, left: int) -> int:
        if self.processes == 1:
            return self.batch_size
        held = self.processes * (self.num_workers * _READ_AHEAD + _IN_HAND)
        return max(1, min(self.batch_size, left // held))
