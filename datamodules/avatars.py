"""The bundled domain: cartoon faces with 0/1 attributes, drawn on the machine itself. Needs no download."""

import hashlib
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from ace.images import from_uint8
from datamodules.avatar_faces import ATTRIBUTES, FACTORS, RENDERER_VERSION, Face, region, render, sample_face
from datamodules.base import ImageDataModule, Sample, Split
from datamodules.loading import Mirrored

_POOL_FROM = 2000  # starting processes takes longer than drawing fewer faces than this
_MAX_PROCESSES = min(16, os.cpu_count() or 1)


class AvatarSample(Sample):
    """A sample with the factors its face was drawn from."""

    factors: dict[str, str]


class AvatarsDataset(Dataset):
    """The first `size` faces of a split.

    A face depends on its position and the settings alone, so the first n faces are the same whatever the
    size. They are cached as files of the first n; a face that no file holds is drawn when it is asked for.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        cache_dir: str = "data/avatars",
        correlated: tuple[str, str] | None = None,
        correlation: float = 0.0,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            split: "train", "val" or "test".
            size: Number of faces.
            seed: Another seed gives other faces.
            cache_dir: Where drawn faces are kept.
            correlated: See `avatar_faces.sample_face`.
            correlation: See `avatar_faces.sample_face`.
        """
        self._draw = (seed, split, correlated, correlation)
        name = ["avatars"]
        if seed != 0:
            name.append(f"seed{seed}")
        if correlated is not None:
            name.append(f"{correlated[0]}-{correlated[1]}-{correlation:g}")
        name.append(split)
        self.ids: Sequence[str] = [f"{'-'.join(name)}-{index:06d}" for index in range(size)]
        settings = repr((RENDERER_VERSION, FACTORS, self._draw))
        self._folder = Path(cache_dir) / f"{split}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
        self._images: np.ndarray | None = None
        self._faces: dict[int, Face] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be copied whole into every worker process; each maps the file for itself.
        return self.__dict__ | {"_images": None}

    def __getitem__(self, index: int) -> AvatarSample:
        """Read or draw one face.

        Returns:
            "image" float32 [3, 64, 64] in [0, 1], "label" float32 [A] of 0/1 in the order of `ATTRIBUTES`,
            "id", and "factors", the value of each factor by name.
        """
        if self._images is None:
            self._images = self._cached()
        face = self.face(index)
        pixels = self._images[index] if index < len(self._images) else render(face.factors)
        image = from_uint8(np.asarray(pixels))
        label = torch.tensor([float(face.attributes[name]) for name in ATTRIBUTES])
        return {"image": image, "label": label, "id": self.ids[index], "factors": face.factors}

    def face(self, index: int) -> Face:
        """Attributes and factors of one face, without its picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"Face {index} of {len(self)}.")
        if index not in self._faces:
            seed, split, correlated, correlation = self._draw
            self._faces[index] = sample_face(seed, split, index, correlated, correlation)
        return self._faces[index]

    @cached_property
    def labels(self) -> list[tuple[int, ...]]:
        """0/1 values of all faces in the order of `ATTRIBUTES`, without drawing them; 0.1 ms a face."""
        return [tuple(self.face(index).attributes[name] for name in ATTRIBUTES) for index in range(len(self))]

    def query_region(self, image_id: str, attribute: str) -> np.ndarray:
        """Where the picture can change if this attribute alone becomes the other, see `avatar_faces.region`."""
        return region(self.face(self.ids.index(image_id)), attribute)

    def draw_first(self, count: int) -> None:
        """Have the first `count` faces in the cache, drawing on all processor cores if they are many."""
        cached = self._cached()
        if len(cached) >= count:
            return
        missing = [self.face(index).factors for index in range(len(cached), count)]
        if len(missing) < _POOL_FROM:
            drawn = list(map(render, missing))
        else:
            rank_zero_info(f"Drawing {len(missing)} faces for {self._folder}, once; about 10 ms each and core.")
            with ProcessPoolExecutor(_MAX_PROCESSES, mp_context=get_context("spawn")) as pool:
                drawn = list(pool.map(render, missing, chunksize=64))
        self._save(np.concatenate([cached, np.stack(drawn)]))
        self._images = None

    def _cached(self) -> np.ndarray:
        """The longest cached run of first faces, memory-mapped, uint8 [N, 64, 64, 3]; N may be 0."""
        files = sorted(self._folder.glob("first-*.npy"))
        return np.load(files[-1], mmap_mode="r") if files else np.empty((0, 64, 64, 3), np.uint8)

    def _save(self, images: np.ndarray) -> None:
        """Write under a temporary name, then rename: no process ever sees half a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
        with temporary.open("wb") as file:
            np.save(file, images)
        os.replace(temporary, self._folder / f"first-{len(images):09d}.npy")


class AvatarsDataModule(ImageDataModule):
    """Cartoon faces, 64 x 64 RGB, with independent 0/1 attributes; index 0 is "smiling".

    No picture occurs in two splits, by construction (see `avatar_faces.split_of`).
    """

    image_size = 64
    channels = 3

    def __init__(
        self,
        cache_dir: str = "data/avatars",
        seed: int = 0,
        train_size: int = 20000,
        val_size: int = 1000,
        test_size: int = 1000,
        horizontal_flip: bool = False,
        correlated: tuple[str, str] | None = None,
        correlation: float = 0.0,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        """Check and keep the settings; nothing is drawn yet.

        Args:
            cache_dir: Where drawn faces are kept; safe to delete.
            seed: Another seed gives other faces.
            train_size: Number of faces to train on.
            val_size: Number of faces to validate on.
            test_size: Number of faces to test on.
            horizontal_flip: Mirror half of the training faces, chosen anew each time.
            correlated: Two attributes (first, second) to tie together, in the train split only.
            correlation: Probability that the second copies the first, in [0, 1]; otherwise it is independent.
            num_workers: Processes that load data for one device; 0 loads in the training process.
            settings: Further arguments of `ImageDataModule`.

        Raises:
            ValueError: If a number is out of range or an attribute unknown.
        """
        super().__init__(num_workers=num_workers, **settings)
        self.class_names = list(ATTRIBUTES)
        self._sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        for split, size in self._sizes.items():
            if size < 1:
                raise ValueError(f"{split}_size is {size}: give at least 1.")
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more.")
        if not 0 <= correlation <= 1:
            raise ValueError(f"correlation is {correlation}: give a probability from 0 to 1.")
        if correlated is None and correlation > 0:
            raise ValueError(f"correlation is {correlation} but correlated is missing: name two attributes.")
        if correlated is not None and not (len(set(correlated)) == 2 and set(correlated) <= set(ATTRIBUTES)):
            raise ValueError(f"correlated is {correlated}: name two different ones of {', '.join(ATTRIBUTES)}.")
        self.horizontal_flip = horizontal_flip
        shared = {"seed": seed, "cache_dir": cache_dir}
        tied = {"correlated": correlated, "correlation": correlation}
        self._datasets = {
            split: AvatarsDataset(split, size, **shared, **(tied if split == "train" else {}))
            for split, size in self._sizes.items()
        }

    def dataset(self, split: Split) -> AvatarsDataset:
        """The faces of a split."""
        return self._datasets[split]

    def training_dataset(self) -> Dataset:
        """The faces of the train split, mirrored by chance if so asked."""
        faces = self.dataset("train")
        return Mirrored(faces) if self.horizontal_flip else faces

    def prepare_data(self) -> None:
        """Draw what the trainer's present task needs and the cache lacks; without a trainer, everything."""
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
        }
        task = self.trainer.state.fn if self.trainer else None
        if task == "predict":
            dataset = self.dataset(self.predict_split)
            dataset.draw_first(min(self.num_images or len(dataset), len(dataset)))
            return
        for split in needed.get(task, ("train", "val", "test")):
            self.dataset(split).draw_first(len(self.dataset(split)))
