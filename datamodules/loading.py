"""Loaders for training and prediction.

The order and the random flips of training follow from seed, epoch and position: a restart repeats them. Prediction
goes on past images that cannot be read.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate


def run_seed() -> int:
    """The seed of the run, where Lightning's ``seed_everything`` leaves it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def heed_parent_alone(worker: int) -> None:
    """Keep a loading process alive through the signals that tell a run to stop; for `DataLoader`'s ``worker_init_fn``.

    Ctrl-C and many schedulers send them to all processes of a run, which needs its loading ones until it has finished
    the step in hand. They end with their parent, or when it says so, by SIGTERM.

    Args:
        worker: number of the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: the system says who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # of this thread, and of those that it starts
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does


class KeyedSampler(DistributedSampler):
    """Yields (index, key): this process's share of a shuffled epoch, from a position on, and a random seed an image.

    Args:
        dataset: what is shuffled.
        batch_size: of one process; an epoch consists of whole batches on all of them.
        seed: of the order and the keys.
        rank, world_size: of this process. Step n sees the same images in any number of processes, if they take as
            many in all.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)
        self.batches = len(dataset) // (batch_size * world_size)
        self.num_samples, self.start = self.batches * batch_size, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        stream = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=stream).tolist()
        keys = torch.randint(2**62, (len(order),), generator=stream).tolist()
        share = list(zip(order, keys, strict=True))[self.rank :: self.num_replicas][: self.num_samples]
        yield from share[self.start :]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one that a checkpoint has put us in the middle of."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0


class KeyedDataset(Dataset):
    """A data set whose random transforms follow from a key, in whatever process they run."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        index, key = place
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(key)
            return self.dataset[index]


class Mirrored(Dataset):
    """A data set of which half of the images are mirrored, chosen anew each time by torch's global generator."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        return sample | {"image": sample["image"].flip(-1)} if torch.rand(()) < 0.5 else sample


class ResumableLoader(DataLoader):
    """Batches of a `KeyedSampler`; Lightning keeps the position in its checkpoints and gives it back.

    Args:
        dataset: the training images.
        sampler: their order.
        options: further arguments of the `DataLoader`.
    """

    def __init__(self, dataset: Dataset, sampler: KeyedSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, **options)
        self.handed_out = 0

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[Any]:
        self.handed_out = self.sampler.start // self.batch_size
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch
        self.sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        epoch, batches = self.sampler.epoch, self.handed_out
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        finished = state["batches"] >= len(self)
        self.sampler.epoch = state["epoch"] + finished
        self.sampler.start = 0 if finished else state["batches"] * self.batch_size


class Unreadable(NamedTuple):
    """What a data set gives for an image that it cannot read."""

    id: str
    reason: str


class ReadableDataset(Dataset):
    """Some images of a data set; one that cannot be read comes out as `Unreadable`, and stops nothing.

    Args:
        dataset: with the `ids` of its images.
        indices: which of them.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            reason = str(error).encode(errors="backslashreplace").decode()  # names of files are not always text
            return Unreadable(self.dataset.ids[index], reason)


def collate_readable(samples: list[Any]) -> dict[str, Any]:
    """A batch of the images that could be read; the others stand under "unreadable"."""
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    batch = default_collate(read) if read else {"id": []}
    return batch | {"unreadable": [sample for sample in samples if isinstance(sample, Unreadable)]}
