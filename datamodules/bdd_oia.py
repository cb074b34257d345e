"""BDD-OIA: street scenes, each with the actions that a driver may take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule
from datamodules.layout import find, image_names
from datamodules.resizing import Resample, Resize

ACTIONS = ("forward", "stop", "left", "right")
_SOURCE = "download BDD-OIA, the last frames (https://twizwei.github.io/bddoia_project)"


class BDDOIADataModule(ImageFilesDataModule):
    """BDD-OIA (Xu et al., CVPR 2020), as it is published.

    The layout::

        ROOT/data/c7ab8f1d-c5e5a05d.jpg
             {train,val,test}_25k_images_actions.json

    All of it may lie in ``ROOT/lastframe``. The file of actions holds ``images``, each with its ``file_name`` and its
    ``id``, which is its place in the list ``annotations``; there, ``category`` is 0 or 1 for each of forward, stop,
    left and right, and in most entries for "confusing" as well. As in the loaders of BDD-OIA's authors, of STEEX
    (``data/bdd_dataset.py``) and of ACE (``BDDOIADataset``), confusing images are left out, and so are images that
    are listed and were not published (this is reported). As in ACE, the val split is explained, and images are
    resized to 256 x 512 pixels (height x width) with the bicubic filter, which changes their proportions a little.
    They come in the order of their names, which are their ids. They are never mirrored: left would become right.

    Args:
        root: folder of the data set.
        image_size: height and width that the networks see, or one number for both.
        resize: ``squash`` changes the proportions, ``crop`` scales and cuts the centre out.
        resample: filter of the resizing.
        predict_split: the split whose images are explained.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: a file of actions, the folder of images, or all images of a split are missing.
        ValueError: a file of actions is damaged, or a setting out of range.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] = (256, 512),
        resize: Resize = "squash",
        resample: Resample = "bicubic",
        predict_split: Split = "val",
        **settings: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            horizontal_flip=False,
            resize=resize,
            resample=resample,
            predict_split=predict_split,
            **settings,
        )
        self.class_names = list(ACTIONS)
        self._images = find(Path(root).expanduser(), ("data", "lastframe/data"), _SOURCE)

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, by name.

        Raises:
            FileNotFoundError: the file of actions, or all images are missing.
            ValueError: the file of actions is damaged.
        """
        labels = _read(find(self._images.parent, (f"{split}_25k_images_actions.json",), _SOURCE))
        published = set(image_names(self._images))
        missing = sorted(labels.keys() - published)
        if missing and len(missing) == len(labels):
            raise FileNotFoundError(f"None of the {len(labels)} images of {split} is in {self._images}: {_SOURCE}.")
        if missing:
            rank_zero_warn(f"{len(missing)} of the {len(labels)} images of {split} are not in {self._images}.")
        names = sorted(labels.keys() & published)
        return [Entry(str(self._images / name), labels[name], Path(name).stem) for name in names]


def _read(file: Path) -> dict[str, tuple[int, ...]]:
    """The 0/1 actions of the images that are not confusing, by file name."""
    labels = {}
    try:
        content = json.loads(file.read_text())
        for image in content["images"]:
            actions = content["annotations"][image["id"]]["category"]
            if len(actions) not in (4, 5) or not {0, 1}.issuperset(actions):
                raise ValueError(f"the actions of {image['file_name']} are {actions}")
            if actions[4:] != [1]:
                labels[image["file_name"]] = tuple(map(int, actions[:4]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it anew.") from error
    return labels
