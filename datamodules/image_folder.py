"""The user's own images: one folder a split, in it one folder a class; either level may be missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities import rank_zero_warn
from torchvision.datasets.folder import make_dataset

from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule, check_shares, hashed_order, hashed_split, image_id
from datamodules.layout import EXTENSIONS, UNREAD_EXTENSIONS, image_names, some

UNLABELLED = "images"  # the one class of images that lie in no class folder
SPLIT_LIKE = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}  # in lower case


class ImageFolderDataModule(ImageFilesDataModule):
    """``ROOT/{train,val,test}/CLASS/*.jpg``: images of any size, upright and in RGB.

    Without class folders all images are of one class, "images", which is enough for a diffusion model. Without
    the folders train, val and test an image's split is drawn by a hash of its path below ROOT: it stays the same
    whatever other images come or go. Where only val is missing, it is drawn in this way from the images in train, and
    they are no longer trained on. The classes are those of train; val and test may lack some. Names that begin with a
    dot are passed over. The order is that of a hash too: the first ``num_images`` are of all classes.

    Args:
        root: folder of the splits, of the classes, or of the images.
        val_share: share of the images to validate on, where ROOT has no folders of splits, or train but no val.
        test_share: share of the images to test on and explain, where ROOT has no folders of splits.
        horizontal_flip: mirror half of the training images; not what has a left and a right, as text, digits or roads.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: no such folder, or neither folders nor images in it.
        ValueError: splits with other names or with classes that train has not, or a setting out of range.
    """

    def __init__(
        self,
        root: str,
        val_share: float = 0.1,
        test_share: float = 0.1,
        horizontal_flip: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(horizontal_flip=horizontal_flip, **settings)
        check_shares(val_share, test_share)
        self.root, self._shares = Path(root).expanduser(), (val_share, test_share)
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {root!r}: give the one that holds your images.")
        _refuse_other_split_names(self.root)
        self._splits = [split for split in get_args(Split) if (self.root / split).is_dir()]
        folders = [self.root / split for split in self._splits] or [self.root]
        self.class_names = _class_names(folders[0])
        self._unlabelled_test: str | None = None  # what is wrong with it
        for folder in folders[1:]:
            self._check_classes(folder, folders[0])
        for folder in {self.root, *folders}:
            _warn_of_loose_images(folder)

    def _check_classes(self, folder: Path, first: Path) -> None:
        """Refuse classes that the first split lacks; a test split without labels only where it is asked for."""
        _class_names(folder)  # there are some, or images
        found = _subfolders(folder)
        unknown = [name for name in found if name not in self.class_names]
        if self.class_names != [UNLABELLED] and found == unknown and len(found) < 2:
            told = f"The images in {folder} lie in none of the class folders of {first}: sort them into these"
            if folder.name == "test":
                remedy = f"explain them without labels (--data datamodules.ImagePathsDataModule --data.paths {folder})"
                self._unlabelled_test = f"{told}, or {remedy}."
                return
            if not found:
                raise ValueError(f"{told}, or move {folder} elsewhere.")
        if unknown:
            raise ValueError(
                f"{folder} holds classes that {first} has not ({some(unknown)}): give {first} all class folders; "
                "the others may lack some."
            )

    def entries(self, split: Split) -> list[Entry]:
        """The image files of a split.

        Raises:
            FileNotFoundError: If the split is missing, and not drawn by a hash, or is a test split without labels.
            ValueError: If a class has no images to train on.
        """
        if split == "test" and self._unlabelled_test:
            raise FileNotFoundError(self._unlabelled_test)
        drawn_from_train = "train" in self._splits and "val" not in self._splits and split != "test"
        if not self._splits or drawn_from_train:
            return self._hashed[split]
        folder = self.root / split
        if split not in self._splits:
            remedy = " or explain another split (for example --data.predict_split val)" if split == "test" else ""
            raise FileNotFoundError(
                f"There is no folder {str(folder)!r}: the {split} split is missing, make that folder{remedy}."
            )
        return [entry for _, entry in self._listed(folder, allow_empty=split != "train")]

    @cached_property
    def _hashed(self) -> dict[Split, list[Entry]]:
        """The splits that a hash draws: all of them from ROOT, or train and val from the folder train."""
        folder, shares = (self.root / "train", (self._shares[0], 0.0)) if self._splits else (self.root, self._shares)
        splits: dict[Split, list[Entry]] = {split: [] for split in get_args(Split)}
        for name, entry in self._listed(folder):
            splits[hashed_split(name, *shares)].append(entry)
        return splits

    def _listed(self, folder: Path, allow_empty: bool = False) -> Iterator[tuple[str, Entry]]:
        """The images below a folder, in the order of `hashed_order`, each with its path from there."""
        prefix = len(os.path.join(folder, ""))
        unread: Counter[str] = Counter()

        def is_image(path: str) -> bool:
            if f"{os.sep}." in path[prefix - 1 :]:  # hidden
                return False
            unread.update(ending for ending in UNREAD_EXTENSIONS if path.lower().endswith(ending))
            return path.lower().endswith(EXTENSIONS)

        # An empty name stands for the folder itself.
        names = [""] if self.class_names == [UNLABELLED] and not _subfolders(folder) else self.class_names
        places = {name: index for index, name in enumerate(names)}
        try:
            samples = make_dataset(str(folder), places, is_valid_file=is_image, allow_empty=allow_empty)
        except FileNotFoundError as error:  # torchvision's word for a class without images
            raise ValueError(f"{folder}: {error}Images end in {', '.join(EXTENSIONS)}.") from error
        for ending, count in unread.items():
            rank_zero_warn(f"{count} images in {folder} are left out: {ending} is not read, convert them, to JPEG say.")
        named = [(path[prefix:].replace(os.sep, "/"), path, label) for path, label in samples]
        for name, path, label in sorted(named, key=lambda sample: hashed_order(sample[0])):
            yield name, Entry(path, label, image_id(name))


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
    if not names and not image_names(folder):
        raise FileNotFoundError(
            f"{folder} holds neither folders nor images: put images there ({', '.join(EXTENSIONS)}), in one folder a "
            "class if a classifier is to learn from them."
        )
    return names or [UNLABELLED]


def _refuse_other_split_names(root: Path) -> None:
    """Refuse folders that are meant as splits: they would be taken for classes, or be passed over."""
    found = [name for name in _subfolders(root) if name.lower() in SPLIT_LIKE and name not in get_args(Split)]
    if found:
        raise ValueError(
            f"{root} holds folders that look like splits ({', '.join(found)}): rename them to train, val and test; if "
            "they are classes, move them into a folder train."
        )


def _warn_of_loose_images(folder: Path) -> None:
    if _subfolders(folder) and (loose := image_names(folder)):
        rank_zero_warn(
            f"{len(loose)} images in {folder} are left out, {loose[0]} for one, because there are folders beside them: "
            "move them into one of these, or the folders elsewhere."
        )


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
