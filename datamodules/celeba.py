"""CelebA: aligned faces of celebrities with 40 attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from ace.models.oracles import CELEBA_ATTRIBUTES
from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule
from datamodules.layout import check_present, find, lines, read_attributes

_SOURCE = "download CelebA (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or its copy on Kaggle)"


class CelebADataModule(ImageFilesDataModule):
    """CelebA (Liu et al., ICCV 2015), as it is published, as torchvision stores it, or as on Kaggle.

    The layout::

        ROOT/img_align_celeba/000001.jpg     or ROOT/img_align_celeba/img_align_celeba/000001.jpg
             list_attr_celeba.txt            or .csv
             list_eval_partition.txt         or .csv

    All of it may lie in ``ROOT/celeba``. The splits are the official ones. As in the published code of ACE
    (``CelebADataset`` in ``guided_diffusion/image_datasets.py``), the val split is explained, the shorter side is
    resized with the bilinear filter, and the centre is cropped. Labels are 0/1 in the official order of the
    attributes; an id is ``celeba-`` and the number of the image.

    Args:
        root: folder of the data set.
        image_size: height and width that the networks see, or one number for both.
        predict_split: the split whose images are explained.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: a file, the folder of images, or some of the images are missing.
        ValueError: an annotation is wrong, or a setting out of range.
    """

    def __init__(
        self, root: str, image_size: int | tuple[int, int] = 128, predict_split: Split = "val", **settings: Any
    ) -> None:
        super().__init__(image_size=image_size, predict_split=predict_split, **settings)
        self.class_names = list(CELEBA_ATTRIBUTES)
        found = [
            find(Path(root).expanduser(), [f"{base}{name}" for base in ("", "celeba/") for name in names], _SOURCE)
            for names in (
                ("list_attr_celeba.txt", "list_attr_celeba.csv"),
                ("list_eval_partition.txt", "list_eval_partition.csv"),
                ("img_align_celeba/img_align_celeba", "img_align_celeba"),
            )
        ]
        self._attributes, self._partition, self._images = found

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, in the order of the partition file.

        Raises:
            FileNotFoundError: some of the images are missing.
            ValueError: an annotation is wrong.
        """
        number = str(get_args(Split).index(split))
        names = [name for _, (name, *partition) in lines(self._partition) if partition == [number]]
        labels = read_attributes(self._attributes, CELEBA_ATTRIBUTES, set(names))
        check_present(self._images, names, _SOURCE)
        return [Entry(str(self._images / name), labels[name], f"celeba-{Path(name).stem}") for name in names]
