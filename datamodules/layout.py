"""Finding one's way in the official layout of a data set."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

EXTENSIONS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")
UNREAD_EXTENSIONS = (".heic", ".heif", ".jp2", ".jxl", ".dcm", ".dng", ".cr2", ".nef", ".arw")
_NAMED = 3  # missing files that are named
_LISTED = 20  # names that `some` gives


def find(root: Path, names: Sequence[str], source: str) -> Path:
    """The first of some files or folders that is there.

    Args:
        root: where the names start from.
        names: in all the forms in which the data set is handed around.
        source: where it is to be had.

    Raises:
        FileNotFoundError: none of them is there.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {str(root)!r}: {source} and give its folder as root.")
    for name in names:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{root} holds no {' or '.join(names)}: {source} and give its folder as root.")


def check_present(folder: Path, names: Sequence[str], source: str) -> None:
    """Compare the names of image files with what a folder holds.

    Raises:
        FileNotFoundError: with the first of those that are missing.
    """
    missing = sorted(set(names).difference(os.listdir(folder)))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images are missing in {folder} ({', '.join(missing[:_NAMED])}"
            f"{', ...' if len(missing) > _NAMED else ''}): {source}, and extract it whole."
        )


def some(names: Collection[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(list(names)[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def image_names(folder: Path) -> list[str]:
    """The sorted names of the images in a folder, hidden ones left out."""
    names = sorted(os.listdir(folder))
    return [name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]


def lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line, whether blanks or commas part them; empty lines are passed over."""
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, 1):
            if cells := line.replace(",", " ").split():
                yield number, cells


def read_attributes(file: Path, attributes: Sequence[str], names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The 0/1 attributes of some images, from an annotation file in CelebA's format.

    Args:
        file: a line with the names of the attributes, then one an image: its name, and 1 or -1 for each attribute.
        attributes: their names, in the order of the file.
        names: of the images.

    Raises:
        ValueError: the file has other attributes, a line is wrong, or an image has none.
    """
    found, header = {}, False
    for number, (name, *values) in lines(file):
        if not header:  # behind it come the images; before it, in some files, their number
            header = [name, *values][-len(attributes) :] == list(attributes)
        elif name in names:
            if len(values) != len(attributes) or not set(values) <= {"1", "-1", "0"}:
                raise ValueError(f"{file}, line {number}: expected 1 or -1, {len(attributes)} times: copy it anew.")
            found[name] = tuple(int(value == "1") for value in values)
    if not header:
        raise ValueError(f"{file} has no line with the {len(attributes)} names of the attributes: copy the file anew.")
    if absent := set(names) - found.keys():
        raise ValueError(f"{file} has no line for {len(absent)} images, {min(absent)} for one: copy the file anew.")
    return found
