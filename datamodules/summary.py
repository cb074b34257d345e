"""A short table of the images that a run is about to use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol, get_args, runtime_checkable

import numpy as np

from datamodules.base import ImageDataModule, ImageDataset, Split
from datamodules.image_files import Label, UnreadableImageError, read_header

_HEADERS = 500  # files of a split whose size is looked at
_LISTED = 20  # classes that get a row, or their name in a note


@runtime_checkable
class HasLabels(Protocol):
    """A data set that knows its labels without reading images."""

    labels: Sequence[Label]


@runtime_checkable
class HasPaths(Protocol):
    """A data set of image files."""

    paths: Sequence[str]


def summarise(data: ImageDataModule) -> str:
    """How many images each split has, of which labels, and for files their sizes and colour modes.

    Nothing is decoded; of at most 500 files a split the header is read. Of data sets that do not know their labels
    beforehand, the images alone are counted. Splits that are missing or empty are left out.

    Returns:
        A table with one column a split, and notes on what is odd about the labels of the train split.

    Raises:
        ValueError: a label out of range.
    """
    names, columns, notes = data.class_names, {}, []
    for split, dataset in _splits(data):
        column = columns[split] = {"images": str(len(dataset))}
        if isinstance(dataset, HasLabels):
            labels = _checked_labels(dataset, names)
            counts = np.bincount(labels, minlength=len(names)) if labels.ndim == 1 else labels.sum(0)
            for name, count in list(zip(names, counts, strict=True))[:_LISTED]:
                column[f"class {name}" if labels.ndim == 1 else f"{name} = 1"] = str(count)
            if split == "train":
                notes = _class_notes(names, counts) if labels.ndim == 1 else _attribute_notes(names, labels)
        if isinstance(dataset, HasPaths):
            column |= _file_rows(dataset.paths)
    if len(names) > _LISTED:
        notes.insert(0, f"The table leaves out {len(names) - _LISTED} of {len(names)} names.")
    _, height, width = data.shape
    return "\n".join([f"{type(data).__name__}, used at {height} x {width} pixels", *_lines(columns), *notes])


def _splits(data: ImageDataModule) -> Iterator[tuple[Split, ImageDataset]]:
    for split in get_args(Split):
        try:
            dataset = data.dataset(split)
        except FileNotFoundError:
            continue
        if len(dataset):
            yield split, dataset


def _checked_labels(dataset: ImageDataset, names: list[str]) -> np.ndarray:
    """The labels as integers, shape [N] for classes and [N, A] for attributes."""
    labels = np.asarray(dataset.labels)
    if labels.ndim == 1:
        wrong = (labels < 0) | (labels >= len(names))
        allowed = f"an index from 0 to {len(names) - 1}, as there are {len(names)} class names"
    elif labels.shape[1] == len(names):
        wrong = ((labels != 0) & (labels != 1)).any(1)
        allowed = f"0 or 1 for each of {len(names)} attributes"
    else:
        raise ValueError(
            f"The labels have {labels.shape[1]} attributes, and there are {len(names)} names: give as many."
        )
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"The label of {dataset.ids[first]} is {labels[first]}: give {allowed}.")
    return labels.astype(np.int64)


def _class_notes(names: list[str], counts: np.ndarray) -> list[str]:
    absent = [name for name, count in zip(names, counts, strict=True) if count == 0]
    notes = [f"Classes without an image in train: {_some(absent)}."] if absent else []
    if len(names) - len(absent) == 1:
        notes.append("All images of train are in one class: enough for a diffusion model, not for a classifier.")
    return notes


def _attribute_notes(names: list[str], labels: np.ndarray) -> list[str]:
    same = [name for name, column in zip(names, labels.T, strict=True) if column.min() == column.max()]
    return [f"Attributes with one value in all images of train, not to be learnt: {_some(same)}."] if same else []


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _file_rows(paths: Sequence[str]) -> dict[str, str]:
    """Sizes and colour modes of evenly spaced files, all of them if they are few."""
    looked_at = np.linspace(0, len(paths) - 1, min(len(paths), _HEADERS)).astype(int)
    sizes, modes = [], Counter()
    for index in looked_at:
        try:
            *size, mode = read_header(paths[index])
        except UnreadableImageError:
            modes["unreadable"] += 1
        else:
            sizes.append(size)
            modes[mode] += 1
    rows = {"files looked at": str(len(looked_at))}
    for name, values in zip(("height", "width"), zip(*sizes, strict=True), strict=False):
        rows[f"{name}, min / median / max"] = f"{min(values)} / {np.median(values):.0f} / {max(values)}"
    return rows | {"colour modes": ", ".join(f"{mode} {count}" for mode, count in modes.most_common())}


def _lines(columns: dict[str, dict[str, str]]) -> list[str]:
    """One line a row, in the order in which the rows first come up, right-aligned."""
    titles = list(dict.fromkeys(title for column in columns.values() for title in column))
    table = [["", *columns], *([title, *(column.get(title, "") for column in columns.values())] for title in titles)]
    first, *widths = (max(map(len, cells)) for cells in zip(*table, strict=True))
    return [
        "  ".join([title.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for title, *cells in table
    ]
