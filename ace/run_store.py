"""The run folder: images, records, resume and merge.

    RUN/config.yaml                 settings, configuration, versions
        records.rank<k>.jsonl       one line per finished image, written after its files
        records.csv                 merged, one row per id, sorted
        images/<kind>/<id>.png

An image is finished when its record is complete: its files are on the disk before the line is begun, so what
a power cut interrupts is redone, and nothing else is. Other processes may read meanwhile; that no other
writes is the matter of `RunLock`.
"""

import csv
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from ace.files import check_inside, make_folder, write_whole, writing
from ace.images import save_png
from ace.plain_values import digest, flatten, plain, write_json
from ace.record import (
    FIELDS,
    Record,
    append_record,
    check_id,
    cut_half_written,
    read_lines,
    read_records,
    record_values,
)
from ace.versions import versions

IMAGE_KINDS = ("original", "pre_explanation", "counterfactual", "mask", "change")
"""Folders under `images/`. The first four are an image's results; the report derives `change` from them."""


@dataclass
class RunStore:
    """A run folder, made by `create` for writing or by `open` for what comes after.

    Attributes:
        folder: the run folder.
        settings: what results depend on; a run is continued only with the same ones.
        config: the whole resolved configuration, from which later commands load the networks and the data; empty
            where the run was made from Python.
        rank: process number; each process appends to its own record file.
        versions: of the code that made the folder, see `ace.versions.versions`; older runs have none.
    """

    folder: Path
    settings: dict[str, Any]
    config: dict[str, Any]
    rank: int = 0
    versions: dict[str, str] = field(default_factory=versions)
    _mended: bool = field(default=False, init=False, repr=False)

    @classmethod
    def create(cls, folder: str | Path, config: dict, settings: dict, rank: int = 0) -> Self:
        """Make a new run folder, or continues the run that is there.

        Rank 0 alone makes the folder and writes `config.yaml`; let it do so before other ranks call `add`.
        Where the file is there already, every rank compares its settings with it.

        Args:
            folder: the run folder, made if absent.
            config: resolved configuration, nested plain values.
            settings: the part of it that results depend on, nested plain values.
            rank: process number.

        Raises:
            ValueError: the folder holds a run with other settings (each differing key is named), or files
                that are no run at all.
            TypeError: the configuration or the settings hold something else than plain values.
            WriteError: the disk is full, or the folder cannot be written.
        """
        folder = Path(folder)
        settings, config = plain(settings, "settings"), plain(config, "config")
        if (folder / "config.yaml").exists():
            store = cls.open(folder)
            store.rank = rank
            _refuse_other_settings(folder, store.settings, settings)
            return store
        store = cls(folder, settings, config, rank)
        if rank == 0:
            _refuse_foreign_content(folder)
            store.write_config()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open an existing run folder.

        Raises:
            FileNotFoundError: the folder holds no `config.yaml`.
            ValueError: its `config.yaml` is not that of a run.
        """
        path = Path(folder) / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no run folder (no config.yaml): give the output of `generate`")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:  # tags that would run code are among what is refused
            raise ValueError(f"{path} cannot be read as plain YAML: {error}") from error
        if not isinstance(content, dict) or not {"settings", "config"} <= content.keys():
            raise ValueError(f"{path} is not the config.yaml of a run: give another folder")
        return cls(Path(folder), content["settings"], content["config"], versions=content.get("versions") or {})

    def write_config(self) -> None:
        """Write `config.yaml`; for rank 0.

        Raises:
            WriteError: the disk is full, or the folder cannot be written.
        """
        content = {
            "settings": self.settings,
            "config": self.config,
            "versions": self.versions,
            "settings_hash": digest(self.settings),
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        with writing(self.folder / "config.yaml"):
            make_folder(self.folder)
            write_whole(text.encode(), self.folder / "config.yaml")

    @property
    def names_networks(self) -> bool:
        """Whether the configuration names the networks: not that of a run which was made from Python."""
        return bool(self.config.get("model"))

    @cached_property
    def settings_hash(self) -> str:
        """What every record names its run by: the first 16 digits of the `settings_hash` of `config.yaml`."""
        return digest(self.settings)[:16]

    def finished_ids(self) -> set[str]:
        """Ids with a complete record of any rank and any status, failures included.

        Raises:
            ValueError: a record file is damaged other than in its last line, or holds a record of other settings.
        """
        return {values["id"] for log in self.logs() for values, _ in read_lines(log, self.settings_hash)}

    def add(self, record: Record, images: dict[str, np.ndarray]) -> None:
        """Write the files of a finished image, then its record. A later record of the same id replaces it.

        Args:
            record: what is known of the image.
            images: uint8 HWC arrays by kind, any of `IMAGE_KINDS`.

        Raises:
            ValueError: an unknown kind, an array that is no image, or a link that leads out of the run folder.
            WriteError: the disk is full, or the folder cannot be written. The image is not finished then; what
                was finished before stays so, and adding can go on.
        """
        for kind, array in images.items():
            path = self.image_path(kind, record.id)
            check_inside(path.parent, self.folder)
            with writing(path):
                make_folder(path.parent)
                save_png(array, path)
        log = self.folder / f"records.rank{self.rank}.jsonl"
        check_inside(log, self.folder)
        with writing(log):
            if not self._mended:
                cut_half_written(log)
            self._mended = False  # until the line is whole
            append_record(log, record, self.settings_hash)
            self._mended = True

    def records(self) -> list[Record]:
        """The records of all ranks, one per id (the last written), sorted by id.

        Raises:
            ValueError: a record file is damaged other than in its last line, or holds a record of another
                version or of other settings.
        """
        latest: dict[str, tuple[float, Record]] = {}
        for log in self.logs():
            for record, written in read_records(log, self.settings_hash):
                if record.id not in latest or written >= latest[record.id][0]:
                    latest[record.id] = written, record
        return [latest[id][1] for id in sorted(latest)]

    def merge(self) -> list[Record]:
        """Write `records.csv`, one row per id, and returns the records; for rank 0, at the end.

        Raises:
            ValueError: as for `records`.
            WriteError: the disk is full, or the folder cannot be written.
        """
        records = self.records()
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(FIELDS)
        table.writerows(map(record_values, records))
        path = self.folder / "records.csv"
        with writing(path):
            write_whole(text.getvalue().encode(), path)
        return records

    def image_path(self, kind: str, id: str) -> Path:
        """Where an image is, or would be.

        Raises:
            ValueError: an unknown kind or an unsafe id.
        """
        if kind not in IMAGE_KINDS:
            raise ValueError(f"image kind {kind!r} is unknown: use one of {', '.join(IMAGE_KINDS)}")
        return self.folder / "images" / kind / f"{check_id(id)}.png"

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file of the run folder whole; numbers that are not finite become null.

        Raises:
            ValueError: the name is not a plain file name.
        """
        return write_json(self.folder / check_id(name), value)

    def class_name(self, index: int | None) -> str:
        """Name of a predicted class, as in the setting `decision.class_names`; its number where it has none."""
        return self._name("class_names", index)

    def target_name(self, index: int | None) -> str:
        """Name of a target, as in the setting `decision.target_names`, else that of the class."""
        return self._name("target_names", index)

    def direction(self, record: Record) -> str:
        """What was asked of an image, in words: "prediction -> target"."""
        return f"{self.class_name(record.prediction)} -> {self.target_name(record.target)}"

    def _name(self, setting: str, index: int | None) -> str:
        if index is None:
            return "?"
        decision = self.settings.get("decision") or {}
        names = decision.get(setting) or decision.get("class_names") or []
        return str(names[index]) if 0 <= index < len(names) else str(index)

    def logs(self) -> list[Path]:
        """The record files that the processes of the run have begun."""
        return sorted(self.folder.glob("records.rank*.jsonl"))


def _refuse_other_settings(folder: Path, old: dict, new: dict) -> None:
    before, after = flatten(old), flatten(new)
    pairs = {key: (before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())}  # absent is null
    lines = [f"  {key}: {was!r} there, {now!r} now" for key, (was, now) in pairs.items() if was != now]
    if lines:
        listing = "\n".join(lines)
        raise ValueError(
            f"{folder} holds a run with other settings:\n{listing}\nGive another output folder, or delete this one."
        )


def _refuse_foreign_content(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give another output folder")
    # Hidden files are let be: an interrupted `create` leaves one, and so do file browsers.
    foreign = sorted(path.name for path in folder.glob("[!.]*"))
    if foreign:
        raise ValueError(
            f"{folder} is not empty and holds no run (no config.yaml, but {', '.join(foreign[:5])}): "
            "give another output folder, or empty this one"
        )
