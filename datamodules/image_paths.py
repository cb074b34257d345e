"""Single images, folders and patterns, as one names them on a command line; without labels."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.image_files import Entry, ImageFilesDataModule, image_id
from datamodules.layout import EXTENSIONS, image_names


class ImagePathsDataModule(ImageFilesDataModule):
    """Any images, to be explained: ``--data datamodules.ImagePathsDataModule --data.paths a.jpg photos``.

    They have no labels, every split holds all of them, and all are explained. An image's id is made from its file
    name, or from its path below the folder that is given; so it does not depend on where the files lie, nor on what
    else is explained.

    Args:
        paths: images, folders (with all images below them, in linked folders too) and patterns (``photos/*.jpg``;
            ``**`` for any folders).
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: a path does not exist, or holds no images.
        ValueError: two images would have the same id, or a setting is out of range.
    """

    def __init__(self, paths: list[str] | str, **settings: Any) -> None:
        super().__init__(predict_split="test", num_images=None, **settings)
        self.class_names = []
        found: dict[str, str] = {}
        for given in [paths] if isinstance(paths, str) else paths:
            for name, path in _images(os.path.expanduser(given)):
                known = found.setdefault(name, path)
                if not os.path.samefile(known, path):
                    raise ValueError(
                        f"{known} and {path} have the same name {name!r}, which their results would share: rename one, "
                        "or give the folder that holds both."
                    )
        if not found:
            raise ValueError("paths is empty: give images, folders or patterns.")
        self._entries = [Entry(path, None, image_id(name)) for name, path in found.items()]

    def entries(self, split: Split) -> list[Entry]:
        """All images, in the order in which they are given; those of a folder or pattern sorted."""
        return self._entries


def _images(given: str) -> Iterator[tuple[str, str]]:
    """The name and the path of each image that is meant."""
    if os.path.isdir(given):
        yield from _below(given)
    elif os.path.isfile(given):
        yield os.path.basename(given), given
    elif matches := sorted(glob.glob(given, recursive=True)):
        yield from ((os.path.basename(path), path) for path in matches if os.path.isfile(path))
    else:
        raise FileNotFoundError(f"There is no {given!r}: give image files, folders or patterns like 'photos/*.jpg'.")


def _below(folder: str) -> Iterator[tuple[str, str]]:
    paths: list[Path] = []
    for parent, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name).relative_to(folder) for name in image_names(Path(parent))]
    names = [path.as_posix() for path in sorted(paths) if os.path.isfile(os.path.join(folder, path))]
    if not names:
        raise FileNotFoundError(f"{folder} holds no images: they end in {', '.join(EXTENSIONS)}.")
    for name in names:
        yield name, os.path.join(folder, name)
