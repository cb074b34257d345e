"""BDD100k: street scenes as a driver sees them; nobody has labelled what may be done in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule
from datamodules.layout import find, image_names
from datamodules.resizing import Resample, Resize

_SOURCE = "download the 100K images of BDD100K (http://bdd-data.berkeley.edu)"


class BDD100kDataModule(ImageFilesDataModule):
    """The images of BDD100K (Yu et al., CVPR 2020), as they are published.

    The layout::

        ROOT/images/100k/{train,val,test}/b1c66a42-6f7d68ca.jpg     or ROOT/bdd100k/images/...

    The decision that is explained, "can move forward", is not among the labels of BDD100K: its samples have no label.
    (The published code of ACE, ``BDD10KCE`` in ``guided_diffusion/image_datasets.py``, gives all images the label 1.
    For a decision of two sides its targets are those of `ace.OtherSide` all the same.) Classifiers of the decision
    are trained on `BDDOIADataModule`. As in that code, the val split is explained, and images are resized to
    256 x 512 pixels (height x width) with the bicubic filter, which changes their proportions a little. They come in
    the order of their names, which are their ids.

    Args:
        root: folder of the data set.
        image_size: height and width that the networks see, or one number for both.
        horizontal_flip: mirror half of the training images.
        resize: ``squash`` changes the proportions, ``crop`` scales and cuts the centre out.
        resample: filter of the resizing.
        predict_split: the split whose images are explained.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: the folder of images is missing.
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] = (256, 512),
        horizontal_flip: bool = False,
        resize: Resize = "squash",
        resample: Resample = "bicubic",
        predict_split: Split = "val",
        **settings: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            horizontal_flip=horizontal_flip,
            resize=resize,
            resample=resample,
            predict_split=predict_split,
            **settings,
        )
        self.class_names = []
        self._images = find(Path(root).expanduser(), ("images/100k", "bdd100k/images/100k"), _SOURCE)

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, by name.

        Raises:
            FileNotFoundError: the folder of the split is missing.
        """
        folder = find(self._images, (split,), _SOURCE)
        return [Entry(str(folder / name), None, Path(name).stem) for name in image_names(folder)]
