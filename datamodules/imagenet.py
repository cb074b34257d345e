"""ImageNet: photographs of 1000 classes, and of these the ones that a question is about."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.models import ResNet50_Weights

from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule
from datamodules.layout import find, image_names

WNIDS = (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()  # sorted: their places are the classes
NAMES = ResNet50_Weights.DEFAULT.meta["categories"]  # torchvision's, in the same order
_SOURCE = "get ImageNet (ILSVRC2012, https://image-net.org) in torchvision's layout, with one folder a class"


class ImageNetDataModule(ImageFilesDataModule):
    """ImageNet (ILSVRC2012), in the layout of ``torchvision.datasets.ImageNet``.

    The layout::

        ROOT/{train,val}/n02391049/*.JPEG

    A label is the place of the class among the 1000 sorted WordNet ids, the one that torchvision's networks give;
    ``class_names`` are torchvision's. The pairs of the paper are zebra and sorrel, cheetah and cougar, Egyptian cat
    and Persian cat. As in the published code of ACE (``get_dataset`` in ``guided_diffusion/image_datasets.py``), the
    shorter side is resized to 256 pixels with the bilinear filter, and the centre is cropped. The val split is
    explained; images come in the order of their file names, which are their ids, so that the first images of val are
    of all classes in turn. The labels of the test split are not published: there is none here.

    Args:
        root: folder of train and val.
        classes: names, WordNet ids or indices of the classes whose images are used; by default all that have a folder.
        image_size: height and width that the networks see, or one number for both.
        predict_split: the split whose images are explained.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no such class, a folder that is none of ImageNet's, or a setting out of range.
    """

    def __init__(
        self,
        root: str,
        classes: list[int | str] | None = None,
        image_size: int | tuple[int, int] = 256,
        predict_split: Split = "val",
        **settings: Any,
    ) -> None:
        super().__init__(image_size=image_size, predict_split=predict_split, **settings)
        self.class_names = list(NAMES)
        self._classes = None if classes is None else class_indices(classes)
        self._root = Path(root).expanduser()
        find(self._root, ("train", "val"), _SOURCE)

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, by file name.

        Raises:
            FileNotFoundError: the split or the folder of a class is missing.
            ValueError: a folder that is none of ImageNet's classes.
        """
        if split == "test":
            raise FileNotFoundError("The labels of ImageNet's test images are not published: use the val split.")
        folder = find(self._root, (split,), _SOURCE)
        entries = []
        for index in self._classes or _class_folders(folder):
            images = find(folder, (WNIDS[index],), _SOURCE)
            entries += [Entry(str(images / name), index, Path(name).stem) for name in image_names(images)]
        return sorted(entries, key=lambda entry: entry.id)


def class_indices(classes: Sequence[int | str]) -> list[int]:
    """Indices of classes that are given by torchvision's name, by WordNet id or by index.

    Raises:
        ValueError: none is given, one twice, or one does not exist.
    """
    indices = []
    for given in classes:
        if given in WNIDS:
            index = WNIDS.index(given)
        elif given in NAMES:
            index = NAMES.index(given)
        else:
            index = given
        if not (isinstance(index, int) and 0 <= index < len(NAMES)):
            close = difflib.get_close_matches(str(given), NAMES)
            hint = f"do you mean {' or '.join(close)}? " if close else ""
            raise ValueError(
                f"ImageNet has no class {given!r}: {hint}Give a name as torchvision writes it, a WordNet id, or an "
                f"index from 0 to {len(NAMES) - 1}."
            )
        indices.append(index)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"classes is {list(classes)}: name one class or more, each once.")
    return indices


def _class_folders(folder: Path) -> list[int]:
    """Indices of the classes that have a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder} holds no folders: {_SOURCE}.")
    if strange := [name for name in names if name not in WNIDS]:
        raise ValueError(f"{folder / strange[0]} is named after none of ImageNet's WordNet ids: move it elsewhere.")
    return [WNIDS.index(name) for name in names]
