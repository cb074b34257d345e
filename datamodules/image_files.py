"""Images in files, whatever their format: reading, resizing, and what is done about files that cannot be read."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from tqdm import tqdm

from ace.images import from_uint8
from datamodules.base import ImageDataModule, Sample, Split, sides
from datamodules.loading import Mirrored
from datamodules.resizing import Resample, Resize, resized

Corrupt = Literal["refuse", "skip"]
Channels = Literal[1, 3]
Label = int | tuple[int, ...]  # a class index, or 0/1 attributes

_REMEDY = ": remove or replace the file, or set corrupt to 'skip'."
_CHUNK = 1024  # files that are checked between two steps of the progress bar
_NAMED = 20  # unreadable files that are reported by name
_PROBED = 8  # files that are searched for 16-bit grey
_LOW = 4095  # the highest value of 12 bits


class UnreadableImageError(ValueError):
    """A file that is no image, or not a whole one."""


class Entry(NamedTuple):
    """One image file; an attribute label is a tuple, as a million small tensors are slow to hand to the workers.

    The label is None where it is not known.
    """

    path: str
    label: Label | None
    id: str


def read_image(path: str | Path, channels: Channels = 3) -> Image.Image:
    """Read an image as it is meant to be seen: upright by its EXIF tag, in 8-bit RGB or grey.

    Transparent parts are laid on white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.

    Raises:
        UnreadableImageError: the file is missing, broken, too large for Pillow's limit or no image.
    """
    with _opened(path) as image:
        rgb = _to_rgb(ImageOps.exif_transpose(image))
        return rgb.convert("L") if channels == 1 else rgb


def read_header(path: str | Path) -> tuple[int, int, str]:
    """Height, width and colour mode of an image as seen upright; no pixel is decoded.

    Raises:
        UnreadableImageError: the file is missing, too large for Pillow's limit or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        # Without the first test a PNG file would be decoded in search of the tag. TIFF sizes are upright already.
        lies = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (width, height, image.mode) if lies else (height, width, image.mode)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # decoders answer broken data with errors of every kind
        raise UnreadableImageError(f"{path} cannot be read: {_reason(path, error)}{_REMEDY}") from error


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if os.path.getsize(path) == 0 else "it is no image that Pillow knows"
    return str(error).rstrip(".") or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and what is white is unknown")
    if image.mode.startswith("I"):  # Pillow clips these when it converts them
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"its pixels go from {levels.min()} to {levels.max()}, which is not 16-bit grey")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # 65535 is 255 * 257
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class ImageFiles(Dataset):
    """Image files of one size in memory, whatever their size on disk.

    Chance, that of ``random_crop``, comes from torch's global generator alone.

    Args:
        entries: the files with their labels and ids; none is opened before it is asked for.
        image_size: height and width, or one number for both.
        resize, resample: see `resized`.
        channels: 3 for RGB, 1 for grey.

    Attributes:
        ids, paths: one for each image, known without reading it.
        labels: too; there is no such attribute where a label is not known.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        image_size: int | tuple[int, int],
        resize: Resize = "crop",
        resample: Resample = "bilinear",
        channels: Channels = 3,
    ) -> None:
        self.paths = [entry.path for entry in entries]
        self.ids = [entry.id for entry in entries]
        self._labels = [entry.label for entry in entries]
        if None not in self._labels:
            self.labels = self._labels
        self._size = sides(image_size)
        self._resize, self._resample, self._channels = resize, resample, channels

    def resized_by(self, resize: Resize) -> Self:
        """The same files, resized in another way."""
        other = copy.copy(self)
        other._resize = resize
        return other

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        whole = read_image(self.paths[index], self._channels)
        pixels = np.asarray(resized(whole, self._size, self._resize, self._resample))
        image = from_uint8(pixels.reshape(*self._size, self._channels))
        label, sample = self._labels[index], {"image": image, "id": self.ids[index]}
        if label is None:
            return sample
        return sample | {"label": label if isinstance(label, int) else torch.tensor(label, dtype=torch.float32)}


def readable(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Decode every file once, on all processor cores.

    Returns:
        The entries whose files are whole images, and a sentence on each of the other files.
    """
    good, bad = [], []
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(entries), _CHUNK), desc="Checking images", disable=None):
            chunk = entries[start : start + _CHUNK]
            for entry, complaint in zip(chunk, pool.map(_complaint, chunk), strict=True):
                if complaint is None:
                    good.append(entry)
                else:
                    bad.append(complaint)
    return good, bad


def _complaint(entry: Entry) -> str | None:
    try:
        read_image(entry.path)
    except UnreadableImageError as error:
        return str(error).removesuffix(_REMEDY)
    return None


def warn_of_low_bits(paths: Sequence[str]) -> None:
    """Look at a few files, evenly spaced.

    Warns:
        UserWarning: there is 16-bit grey among them, and all of it uses 12 bits or fewer: it will look black.
    """
    highest: dict[str, int] = {}
    for index in np.linspace(0, len(paths) - 1, min(len(paths), _PROBED)).astype(int):
        with suppress(UnreadableImageError), _opened(paths[index]) as image:  # what is broken is told when it is used
            if image.mode.startswith("I"):
                highest[paths[index]] = int(np.asarray(image).max())
    if highest and max(highest.values()) <= _LOW:
        brightest = max(highest, key=highest.__getitem__)
        rank_zero_warn(
            f"16-bit images have values up to {highest[brightest]} ({brightest}), and white is 65535: they are seen as "
            "almost black. Scale their values to 0..65535, or save them in 8 bits."
        )


class ImageFilesDataModule(ImageDataModule):
    """Base of the domains that are image files: give it `entries(split)` and `class_names`.

    Args:
        image_size: height and width that the networks see, or one number for both.
        horizontal_flip: mirror half of the training images; not what has a left and a right, as text, digits or roads.
        resize: ``crop`` scales to cover the size and cuts the centre out, ``squash`` changes the proportions,
            ``random_crop`` takes 80 % to 100 % of the largest crop from a random place for training, and is ``crop``
            elsewhere.
        corrupt: what to do with a file that cannot be read. ``refuse`` stops when it is reached. ``skip`` reads
            all files of a split when it is first used, names the bad ones and leaves them out.
        resample: filter of the resizing.
        channels: 3 for RGB, 1 for grey, where the diffusion model has one channel; a classifier of three takes both.
        settings: arguments of `ImageDataModule`.

    Raises:
        ValueError: a setting out of range.

    Warns:
        UserWarning: 16-bit grey that uses the low bits alone: its values are divided by 65535.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        horizontal_flip: bool = True,
        resize: Resize = "crop",
        corrupt: Corrupt = "refuse",
        resample: Resample = "bilinear",
        channels: Channels = 3,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if min(sides(image_size)) < 1:
            raise ValueError(f"image_size is {image_size}: give the height and width in pixels.")
        choices = {
            "resize": (resize, Resize),
            "corrupt": (corrupt, Corrupt),
            "resample": (resample, Resample),
            "channels": (channels, Channels),
        }
        for name, (value, known) in choices.items():
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}: give one of {', '.join(map(str, get_args(known)))}.")
        self.image_size, self.horizontal_flip = image_size, horizontal_flip
        self.resize, self.corrupt, self.resample, self.channels = resize, corrupt, resample, channels
        self._datasets: dict[Split, ImageFiles] = {}

    @abstractmethod
    def entries(self, split: Split) -> list[Entry]:
        """The image files of a split."""

    def dataset(self, split: Split) -> ImageFiles:
        """The images of a split; its files are listed when it is first asked for."""
        if split not in self._datasets:
            entries = self.entries(split)
            if not self._datasets:  # once a data module
                warn_of_low_bits([entry.path for entry in entries])
            if self.corrupt == "skip":
                entries, bad = readable(entries)
                if bad:
                    more = f"\n... and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
                    rank_zero_warn("\n".join([f"{len(bad)} images of {split} are left out:", *bad[:_NAMED]]) + more)
            resize = "crop" if self.resize == "random_crop" else self.resize
            self._datasets[split] = ImageFiles(entries, self.image_size, resize, self.resample, self.channels)
        return self._datasets[split]

    def training_dataset(self) -> Dataset:
        """The images of the train split, cropped and mirrored by chance if so asked."""
        files = self.dataset("train").resized_by(self.resize)
        return Mirrored(files) if self.horizontal_flip else files


def image_id(name: str) -> str:
    """A file-name-safe id: the readable part of a relative path (with slashes), and a hash of the whole of it."""
    readable_part = re.sub(r"[^A-Za-z0-9]+", "-", os.path.splitext(name)[0]).strip("-")[-80:].lstrip("-")
    digest = _sha256(name).hex()[:8]
    return f"{readable_part}-{digest}" if readable_part else digest


def hashed_split(name: str, val_share: float, test_share: float) -> Split:
    """The split that owns a relative path (with slashes): it depends on nothing but the path and the shares."""
    position = int.from_bytes(_sha256(name)[-8:], "big") / 2**64
    return "test" if position < test_share else "val" if position < test_share + val_share else "train"


def hashed_order(name: str) -> bytes:
    """A sort key of relative paths (with slashes): it mixes folders, and depends on nothing but the path."""
    return _sha256(name)


def check_shares(val_share: float, test_share: float) -> None:
    """Check the shares of `hashed_split`.

    Raises:
        ValueError: one is negative, or they leave nothing to train on.
    """
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise ValueError(
            f"val_share is {val_share} and test_share {test_share}: give shares from 0 that sum to less than 1."
        )


def _sha256(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
