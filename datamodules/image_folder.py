"""The user's own images: one folder a split, in it one folder a class."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from datamodules.base import ImageDataModule, Sample, Split


class ImageFolderDataset(Dataset):
    """The images of one split, resized on the short side and cropped at the centre.

    Args:
        folder: holds one folder a class.
        image_size: height and width after the crop.
        flip: mirror half of the images, chosen anew each time.
    """

    def __init__(self, folder: Path, image_size: int, flip: bool) -> None:
        steps = [v2.ToImage(), v2.Resize(image_size), v2.CenterCrop(image_size)]
        steps += [v2.RandomHorizontalFlip()] if flip else []
        steps += [v2.ToDtype(torch.float32, scale=True)]
        self.folder = datasets.ImageFolder(str(folder), transform=v2.Compose(steps))
        self.ids = [image_id(Path(path).relative_to(folder)) for path, _ in self.folder.samples]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.folder[index]
        return {"image": image.as_subclass(torch.Tensor), "label": label, "id": self.ids[index]}


class ImageFolderDataModule(ImageDataModule):
    """``ROOT/{train,val,test}/CLASS/*.jpg``: RGB images of any size, square after the crop.

    Args:
        root: folder of the splits.
        image_size: height and width that the networks see.
        horizontal_flip: mirror half of the training images.
        batch_size, num_workers, predict_split, num_images: see `ImageDataModule`.

    Raises:
        FileNotFoundError: no split is there.
        ValueError: splits with different classes.
    """

    channels = 3

    def __init__(
        self,
        root: str,
        image_size: int = 64,
        horizontal_flip: bool = True,
        batch_size: int = 32,
        num_workers: int = 0,
        predict_split: Split = "test",
        num_images: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, predict_split, num_images)
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: give the height and width in pixels.")
        self.root, self.image_size, self.horizontal_flip = Path(root), image_size, horizontal_flip
        folders = [self.root / split for split in ("train", "val", "test") if (self.root / split).is_dir()]
        if not folders:
            raise FileNotFoundError(f"There is no folder train, val or test in {root!r}: give the root of the splits.")
        self.class_names = _class_folders(folders[0])
        for folder in folders:
            if _class_folders(folder) != self.class_names:
                raise ValueError(
                    f"The classes in {folder} are {_class_folders(folder)}, those in {folders[0]} are "
                    f"{self.class_names}: give every split the same class folders."
                )
        self._datasets: dict[Split, ImageFolderDataset] = {}

    def dataset(self, split: Split) -> ImageFolderDataset:
        """The images of a split; its folders are read when it is first asked for.

        Raises:
            FileNotFoundError: If the split is missing.
            ValueError: If a class has no images.
        """
        folder = self.root / split
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r}: the {split} split is missing.")
        if split not in self._datasets:
            try:
                flip = self.horizontal_flip and split == "train"
                self._datasets[split] = ImageFolderDataset(folder, self.image_size, flip)
            except FileNotFoundError as error:  # torchvision's word for a class without images
                raise ValueError(f"{folder}: {error}") from error
        return self._datasets[split]


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def image_id(path: Path) -> str:
    """A file-name-safe id: the readable part of a relative path, and a hash of the whole of it."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", path.with_suffix("").as_posix()).strip("-")[-80:].lstrip("-")
    digest = hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name}-{digest}" if name else digest
