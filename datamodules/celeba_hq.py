"""CelebA-HQ: 30,000 faces of CelebA in high quality, with its 40 attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ace.models.oracles import CELEBA_ATTRIBUTES
from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule
from datamodules.layout import check_present, find, lines, read_attributes

_SOURCE = "download CelebAMask-HQ (https://github.com/switchablenorms/CelebAMask-HQ)"
_LAST: dict[Split, int] = {"train": 162_770, "val": 182_637, "test": 202_599}  # images of CelebA's splits


class CelebAHQDataModule(ImageFilesDataModule):
    """CelebA-HQ (Karras et al., ICLR 2018), as it comes with CelebAMask-HQ (Lee et al., CVPR 2020).

    The layout::

        ROOT/CelebA-HQ-img/0.jpg
             CelebAMask-HQ-attribute-anno.txt
             CelebA-HQ-to-CelebA-mapping.txt

    All of it may lie in ``ROOT/CelebAMask-HQ``. An image is in the split of the CelebA image that it was made from:
    the mapping file names that one, and CelebA's partition file assigns the images 1 to 162770 to train, up to 182637
    to val, and the rest to test. As in the published code of ACE (``CelebAHQDataset`` in
    ``guided_diffusion/image_datasets.py``), the test split is explained, and images are resized with the bilinear
    filter. Labels are 0/1 in the official order of the attributes; an id is ``celeba-hq-`` and the number of the image.

    Args:
        root: folder of the data set.
        image_size: height and width that the networks see, or one number for both.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: a file, the folder of images, or some of the images are missing.
        ValueError: an annotation is wrong, or a setting out of range.
    """

    def __init__(self, root: str, image_size: int | tuple[int, int] = 256, **settings: Any) -> None:
        super().__init__(image_size=image_size, **settings)
        self.class_names = list(CELEBA_ATTRIBUTES)
        self._attributes, self._mapping, self._images = (
            find(Path(root).expanduser(), (name, f"CelebAMask-HQ/{name}"), _SOURCE)
            for name in ("CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-to-CelebA-mapping.txt", "CelebA-HQ-img")
        )

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, by number.

        Raises:
            FileNotFoundError: some of the images are missing.
            ValueError: an annotation is wrong.
        """
        names = [name for name, owner in self._splits() if owner == split]
        labels = read_attributes(self._attributes, CELEBA_ATTRIBUTES, set(names))
        check_present(self._images, names, _SOURCE)
        return [Entry(str(self._images / name), labels[name], f"celeba-hq-{Path(name).stem}") for name in names]

    def _splits(self) -> list[tuple[str, Split]]:
        """The file name and the split of each image."""
        found = []
        for number, cells in lines(self._mapping):
            if cells[0] == "idx":
                continue
            try:
                index, _, original = cells
                place = int(Path(original).stem)
                owner = next(split for split, last in _LAST.items() if 1 <= place <= last)
            except (ValueError, StopIteration) as error:
                raise ValueError(
                    f"{self._mapping}, line {number}: expected the numbers of an image here and in CelebA, and the "
                    f"file that it has there, got {' '.join(cells)!r}: copy the file anew."
                ) from error
            found.append((f"{index}.jpg", owner))
        return found
