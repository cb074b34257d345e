"""The user's own images, listed in a CSV file with a class or with 0/1 attributes."""

from __future__ import annotations

import csv as csv_format
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from datamodules.base import Split
from datamodules.image_files import (
    Entry,
    ImageFilesDataModule,
    Label,
    check_shares,
    hashed_order,
    hashed_split,
    image_id,
)
from datamodules.layout import some

_NAMED = 5  # missing files that are named


class _Row(NamedTuple):
    """What is used of one line of the file; the name is the image's path below the root."""

    line: int
    name: str
    labels: tuple[str, ...]
    split: str | None


class CSVDataModule(ImageFilesDataModule):
    """Images that a CSV file lists, with the names of its columns in the first line.

    One label column holds classes: names, or numbers, which are indices if `class_names` says what they mean and
    names if it does not. Several label columns hold one 0/1 attribute each; -1/1 is taken as well. The order is that of
    a hash of the paths, whatever that of the lines: the first ``num_images`` are of all classes.

    Args:
        csv: the file, in UTF-8, separated by commas.
        root: folder that the paths of the images start from; by default the folder of the file.
        image_column: column of paths.
        label_columns: one column of classes, or two or more of attributes.
        split_column: column of train, val and test. Without it an image's split is drawn by a hash of its path
            and stays the same whatever other images come or go.
        val_share: share of the images to validate on, where there is no split column.
        test_share: share of the images to test on and explain, where there is no split column.
        class_names: by default the sorted values of the label column, or the names of the attribute columns.
        horizontal_flip: mirror half of the training images; not what has a left and a right, as text, digits or roads.
        settings: further arguments of `ImageFilesDataModule`.

    Raises:
        FileNotFoundError: the CSV file or an image that it lists is missing.
        ValueError: something in the file is wrong, or a setting is out of range.
    """

    def __init__(
        self,
        csv: str,
        root: str | None = None,
        image_column: str = "image",
        label_columns: tuple[str, ...] = ("label",),
        split_column: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        class_names: list[str] | None = None,
        horizontal_flip: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(horizontal_flip=horizontal_flip, **settings)
        check_shares(val_share, test_share)
        file = Path(csv).expanduser()
        folder = file.parent if root is None else Path(root).expanduser()
        rows = _read(file, folder, image_column, label_columns, split_column)
        if class_names is not None and len(set(class_names)) < len(class_names):
            raise ValueError(f"class_names is {class_names}: give every class a name of its own.")
        read_labels = _classes if len(label_columns) == 1 else _attributes
        self.class_names, labels = read_labels(file, rows, label_columns, class_names)
        self._entries: dict[Split, list[Entry]] = {split: [] for split in get_args(Split)}
        for row, label in sorted(zip(rows, labels, strict=True), key=lambda pair: hashed_order(pair[0].name)):
            split = row.split or hashed_split(row.name, val_share, test_share)
            self._entries[split].append(Entry(os.path.join(folder, row.name), label, image_id(row.name)))

    def entries(self, split: Split) -> list[Entry]:
        """The images of a split, in the order of `hashed_order`: files are often sorted by class."""
        return self._entries[split]


def _read(
    file: Path, root: Path, image_column: str, label_columns: Sequence[str], split_column: str | None
) -> list[_Row]:
    """The rows of the file: each with all its cells, a known split, and an image that exists and comes up once."""
    if not label_columns or len(set(label_columns)) < len(label_columns):
        raise ValueError(f"label_columns is {list(label_columns)}: name one column or more, each once.")
    columns = [image_column, *label_columns] + ([split_column] if split_column else [])
    prefix = os.path.join(os.path.abspath(root), "")
    rows: list[_Row] = []
    lines: dict[str, int] = {}
    for line, cells in _cells(file, columns):
        path, *labels = cells
        split = labels.pop() if split_column else None
        if split not in (None, *get_args(Split)):
            raise ValueError(f"{file}, line {line}: the split is {split!r}: give one of {', '.join(get_args(Split))}.")
        name = os.path.normpath(path).removeprefix(prefix).replace(os.sep, "/")
        if name in lines:
            raise ValueError(f"{file}, line {line}: {path!r} is in line {lines[name]} already: leave one of them out.")
        lines[name] = line
        rows.append(_Row(line, name, tuple(labels), split))
    if not rows:
        raise ValueError(f"{file} is empty: give it a line of column names, and one for each image.")
    missing = [row for row in rows if not os.path.isfile(os.path.join(root, row.name))]
    if missing:
        named = "; ".join(f"line {row.line}: {root / row.name}" for row in missing[:_NAMED])
        raise FileNotFoundError(
            f"{len(missing)} of the {len(rows)} images in {file} are missing ({named}): the paths must start "
            f"from root, which is {root}."
        )
    return rows


def _cells(file: Path, columns: list[str]) -> list[tuple[int, list[str]]]:
    """The number of each line, and what it has in some columns."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}: give the CSV file that lists your images.")
    found = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # spreadsheets put a mark before the first name
            reader = csv_format.DictReader(text)
            header = reader.fieldnames or columns  # an empty file lacks rows, not columns
            for column in columns:
                if column not in header:
                    raise ValueError(
                        f"{file} has no column {column!r}, but {', '.join(map(repr, header))}: name one of these in "
                        "image_column, label_columns or split_column."
                    )
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{file}, line {reader.line_num}: it has not the {len(header)} cells of the first line: "
                        "look for commas that are missing or too many."
                    )
                cells = [row[column].strip() for column in columns]
                if "" in cells:
                    column = columns[cells.index("")]
                    raise ValueError(f"{file}, line {reader.line_num}: {column!r} is empty: fill it, or drop the line.")
                found.append((reader.line_num, cells))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8: save it in that encoding.") from error
    return found


def _classes(
    file: Path, rows: list[_Row], columns: Sequence[str], class_names: list[str] | None
) -> tuple[list[str], list[Label]]:
    """Class names, and a class index for each row."""
    values = {row.labels[0] for row in rows}
    numbers = all(re.fullmatch(r"-?[0-9]+", value) for value in values)
    if class_names is None:
        class_names = sorted(values, key=int if numbers else None)
    by_name = {name: index for index, name in enumerate(class_names)}
    if numbers and not values <= by_name.keys():
        by_name = {str(index): index for index in range(len(class_names))}
    labels: list[Label] = []
    for row in rows:
        if row.labels[0] not in by_name:
            raise ValueError(
                f"{file}, line {row.line}: {columns[0]!r} is {row.labels[0]!r}: give one of {some(by_name)}, "
                "or add it to class_names."
            )
        labels.append(by_name[row.labels[0]])
    return class_names, labels


def _attributes(
    file: Path, rows: list[_Row], columns: Sequence[str], class_names: list[str] | None
) -> tuple[list[str], list[Label]]:
    """Attribute names, and 0/1 values for each row."""
    if class_names is not None and len(class_names) != len(columns):
        raise ValueError(
            f"class_names has {len(class_names)} names for {len(columns)} label columns: give as many, or leave it out."
        )
    labels: list[Label] = []
    no = None  # 0 or -1, whichever comes first; in a file with both, one of them may mean "unknown"
    for row in rows:
        for column, value in zip(columns, row.labels, strict=True):
            if value in ("0", "-1"):
                no = no or value
            if value not in ("1", no):
                allowed = f"{no or '0'} or 1"
                raise ValueError(f"{file}, line {row.line}: {column!r} is {value!r}: give {allowed} in every line.")
        labels.append(tuple(int(value == "1") for value in row.labels))
    return class_names or list(columns), labels
