"""What every domain shares: the sample, the data loaders, and which images a predict run still has to do."""

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NotRequired, Protocol, TypedDict

import lightning
import torch
from torch.distributed import HashStore, distributed_c10d
from torch.utils.data import DataLoader, DistributedSampler, Subset

from datamodules.loading import (
    KeyedDataset,
    KeyedSampler,
    ReadableDataset,
    ResumableLoader,
    heed_parent_alone,
    run_seed,
)
from datamodules.work_queue import WorkQueue

Split = Literal["train", "val", "test"]


class Sample(TypedDict):
    """One image with its label; a domain may add keys.

    Attributes:
        image: float32 tensor [C, H, W] in [0, 1].
        label: class index, or float32 tensor [A] of 0/1 for attribute data; left out where it is not known.
        id: stable, unique and safe as a file name.
    """

    image: torch.Tensor
    label: NotRequired[int | torch.Tensor]
    id: str


class ImageDataset(Protocol):
    """A map-style data set that knows the ids of its images without reading them."""

    ids: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, which one number stands for if they are equal."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _no_ids() -> set[str]:
    return set()


# Arguments that say how much is read and how, not what an image looks like: runs may differ in them.
LOADING_ARGUMENTS = ("batch_size", "num_workers", "num_images", "cache_dir")


class ImageDataModule(lightning.LightningDataModule, ABC):
    """Base of every domain: give it `dataset(split)` and the first three attributes, it makes the loaders.

    Attributes:
        image_size: Height and width of the images in pixels; one number if they are square.
        channels: Number of image channels.
        class_names: Names of the classes; for attribute data, names of the attributes.
        finished_ids: Called when the predict loader is made; returns the ids that need no more work.
    """

    image_size: int | tuple[int, int]
    channels: int
    class_names: list[str]

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int | None = None,
        predict_split: Split = "test",
        num_images: int | None = None,
    ) -> None:
        """Check and keep the settings; nothing is read yet.

        Args:
            batch_size: Images per batch on each device, at least 1.
            num_workers: Processes that load data for one device; 0 loads in the training process, None takes
                the device's share of the processor cores, less one, at most 8.
            predict_split: The split whose images are explained.
            num_images: Explain the first so many images of the split; all of them if None.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}: give 0 (load in the main process) or more.")
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images is {num_images}: give at least 1, or leave it out for all images.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.predict_split: Split = predict_split
        self.num_images = num_images
        self.finished_ids: Callable[[], set[str]] = _no_ids
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, int] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self.channels, *sides(self.image_size)

    @abstractmethod
    def dataset(self, split: Split) -> ImageDataset:
        """The images of a split, each the same whenever it is read: it may be explained."""

    def training_dataset(self) -> ImageDataset:
        """The images of the train split as the training sees them; a domain may transform them by chance."""
        return self.dataset("train")

    def train_dataloader(self) -> DataLoader:
        """Whole batches of the train split in random order; a training that goes on gets the rest of its epoch.

        Raises:
            ValueError: See `check`.
        """
        rank, world_size = self._place()
        self.check("train", world_size)
        dataset = self.training_dataset()
        sampler = KeyedSampler(dataset, self.batch_size, run_seed(), rank, world_size)
        self._train_loader = ResumableLoader(KeyedDataset(dataset), sampler, **self._options())
        if self._position:
            self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def check(self, split: Split, devices: int) -> None:
        """Check that a split has enough images for a training, or an evaluation, on so many devices.

        Raises:
            ValueError: If it is empty, or has less than a full batch (train) or one image (val, test) for each device.
        """
        count = len(self._non_empty(split))
        if split == "train" and count < self.batch_size * devices:
            raise ValueError(
                f"The train split has {count} images, fewer than batch_size={self.batch_size} for each of "
                f"{devices} devices: lower batch_size or add images."
            )
        if count < devices:  # a device without images would leave the others waiting for its numbers
            raise ValueError(f"The {split} split has {count} images for {devices} devices: add images, or use fewer.")

    def state_dict(self) -> dict[str, int]:
        """The place in the training data, for a checkpoint."""
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next training at a checkpoint's place.

        Lightning gives the loader its state back too, but not where it has to count the batches of an epoch first.
        """
        self._position = state_dict

    def val_dataloader(self) -> DataLoader:
        """Batches of this device's share of the val split, in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of this device's share of the test split, in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> WorkQueue:
        """The images still to be explained; every process takes from them what it has time for, or nothing."""
        finished, name = self.finished_ids(), f"predict-{uuid.uuid4().hex}"
        todo = [index for index, image_id in enumerate(self.predict_ids()) if image_id not in finished]
        _, processes = self._place()
        store = HashStore()
        if processes > 1:
            # All count in the list of the first: a shared disk may show the records of an earlier run late.
            todo, name = self.trainer.strategy.broadcast((todo, name))
            store = distributed_c10d._get_default_store()
        options = self._options()
        options.pop("persistent_workers")  # there is one pass
        return WorkQueue(
            ReadableDataset(self.dataset(self.predict_split), todo),
            store=store,
            key=name,
            processes=processes,
            **options,
        )

    def predict_ids(self) -> Sequence[str]:
        """Ids of all images to explain, finished or not.

        Raises:
            ValueError: If the split is empty, or `num_images` is more than it has.
        """
        ids = self._non_empty(self.predict_split).ids
        if self.num_images is not None and self.num_images > len(ids):
            raise ValueError(
                f"num_images is {self.num_images}, but the {self.predict_split} split has {len(ids)}: "
                "lower num_images or leave it out."
            )
        return ids[: self.num_images]

    def _non_empty(self, split: Split) -> ImageDataset:
        dataset = self.dataset(split)
        if len(dataset) == 0:
            raise ValueError(
                f"The {split} split of {type(self).__name__} is empty: check where its images come from, and if it is "
                "a share of them, whether they are enough."
            )
        return dataset

    def _evaluation(self, split: Split) -> DataLoader:
        rank, world_size = self._place()
        self.check(split, world_size)
        dataset = self.dataset(split)
        share = Subset(dataset, range(rank, len(dataset), world_size))
        # A sampler that says that this is already a share keeps Lightning from dividing it once more, and from
        # repeating images to make the shares equal.
        sampler = DistributedSampler(share, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(share, sampler=sampler, **self._options())

    def _options(self) -> dict[str, Any]:
        """How batches are read."""
        workers = self.num_workers
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = max(0, min(8, cores // (self.trainer.num_devices if self.trainer else 1) - 1))
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
            "worker_init_fn": heed_parent_alone,
        }

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
