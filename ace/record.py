"""What is known of one finished image, and the files that keep it, one JSON line a record."""

import io
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from ace.files import sync_folder

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ID_LENGTH = 200
_STATUS = re.compile(r"flipped|not_flipped|(skipped|failed): .+", re.DOTALL)
_PLAIN = (str, int, float, type(None))


def check_id(id: str) -> str:
    """Return the id if it can name a file, and only a file, in any folder.

    Raises:
        ValueError: it has other characters than letters, digits, `.`, `_` and `-`, does not begin with a
            letter or digit, holds `..`, or is longer than 200 characters.
    """
    if not _ID.fullmatch(id) or ".." in id or len(id) > _ID_LENGTH:
        raise ValueError(
            f"id {id!r} cannot name a file: use at most {_ID_LENGTH} letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit, without '..'"
        )
    return id


def outcome_and_reason(status: str) -> tuple[str, str]:
    """Take a status apart: ``skipped`` and why; of explained images there is no reason."""
    outcome, _, reason = status.partition(": ")
    return outcome, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of one finished image; a skipped or failed one leaves the numbers it has not at None.

    Probabilities are those of the target class, by the classifier under study. Distances are between the
    original and the counterfactual as saved, on the [0, 1] scale.

    Attributes:
        id: file-name-safe identity of the image.
        label: true class; for attribute data the 0/1 value of the query attribute; None if unknown.
        prediction: class predicted for the original.
        target: class the explanation aims at; for an untargeted question the class to leave.
        p_before: probability on the original.
        p_attack: probability on the pre-explanation.
        p_after: probability on the counterfactual as saved.
        flipped: whether the counterfactual as saved is classified as intended.
        l1: mean absolute difference over C, H, W.
        l2: Euclidean norm of the difference.
        linf: greatest absolute difference.
        changed_area: share of the pixels that the refinement repainted.
        iterations: attack iterations spent.
        repairs: how many times the attack went on because the counterfactual as saved was not flipped; records of older
            versions have none.
        unet_forwards: forward passes of the UNet spent on this image.
        unet_backwards: backward passes of the UNet spent on this image.
        seconds: wall-clock time spent on this image.
        peak_memory: most memory, in bytes, that the device (a CPU: the process) had had in use when it was done;
            records of older versions have none.
        seed: run seed.
        status: `flipped`, `not_flipped`, `skipped: why` or `failed: why`.

    Raises:
        ValueError: an unsafe id, an unknown status or one that contradicts `flipped`, or a number that is not
            finite.
        TypeError: a value that is no plain Python value.
    """

    id: str
    label: int | None = None
    prediction: int | None = None
    target: int | None = None
    p_before: float | None = None
    p_attack: float | None = None
    p_after: float | None = None
    flipped: bool = False
    l1: float | None = None
    l2: float | None = None
    linf: float | None = None
    changed_area: float | None = None
    iterations: int | None = None
    repairs: int | None = None
    unet_forwards: int | None = None
    unet_backwards: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    seed: int
    status: str

    @property
    def explained(self) -> bool:
        """Whether there is a counterfactual, flipped or not."""
        return self.status in ("flipped", "not_flipped")

    @property
    def attempted(self) -> bool:
        """Whether a counterfactual was asked for: explained or failed, but not skipped. Flip rates are among these."""
        return not self.status.startswith("skipped")

    def __post_init__(self) -> None:
        check_id(self.id)
        if not _STATUS.fullmatch(self.status) or self.flipped != (self.status == "flipped"):
            raise ValueError(
                f"record {self.id!r}: status {self.status!r} with flipped={self.flipped}: use 'flipped' "
                "with True, and 'not_flipped', 'skipped: why' or 'failed: why' with False"
            )
        for name, value in zip(FIELDS, record_values(self), strict=True):
            if not isinstance(value, _PLAIN):
                kind = type(value).__name__
                raise TypeError(f"record {self.id!r}: {name} must be a plain value, got {kind}; call .item()")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"record {self.id!r}: {name} is {value}; use None for a number there is not")


FIELDS = tuple(column.name for column in fields(Record))
"""Names of a record's values, in their order."""

record_values = attrgetter(*FIELDS)
"""The values of a record, in the order of `FIELDS`."""


def append_record(path: Path, record: Record, settings_hash: str) -> None:
    """Append the line of a record to a file and flush it to the disk; where that fails, no part of it stays.

    Args:
        path: the record file, made if absent.
        record: the record.
        settings_hash: hash of the settings that it was made with.
    """
    # After a restart an id can move to another rank's file: the time says which record is later.
    values = dict(zip(FIELDS, record_values(record), strict=True)) | {"written": time.time(), "settings": settings_hash}
    rest = memoryview(json.dumps(values, allow_nan=False).encode() + b"\n")
    new = not path.exists()
    # Without a buffer: closing the file would try again to write the rest of a line that has been cut off.
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(size)
            raise
    if new:
        sync_folder(path.parent)


def read_log(path: Path, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The complete lines of a record file as it is now, each with the number of bytes up to its end.

    A half-written last line is passed over: a process may be writing it, or was stopped while it did.

    Args:
        path: the record file.
        start: number of bytes to pass over, up to the end of a line.

    Raises:
        ValueError: another line is damaged.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    end, stop = start, start + len(data)
    for number, line in enumerate(io.BytesIO(data), start=1):
        end += len(line)
        if not line.endswith(b"\n"):
            return
        try:
            values = _parsed(line)
        except ValueError as error:
            if end == stop:
                return  # the last line of all: a power cut can leave a block of zeros with an end
            raise ValueError(f"{path}, line {number} is damaged: delete the line, and its image is redone") from error
        yield values, end


def read_lines(path: Path, settings_hash: str) -> Iterator[tuple[dict[str, Any], float]]:
    """The values of the records of a file, unchecked, each with the time when it was written.

    Args:
        path: the record file.
        settings_hash: hash of the settings of the run; lines of older versions name none and are accepted.

    Raises:
        ValueError: a line other than the last is damaged, or is of other settings.
    """
    for values, _ in read_log(path):
        written, found = values.pop("written", 0.0), values.pop("settings", settings_hash)
        if found != settings_hash:
            raise ValueError(
                f"{path}: record {values['id']!r} is of a run with other settings (hash {found!r}, this run's is "
                f"{settings_hash!r}): delete the line, and its image is redone, or undo the change of config.yaml"
            )
        yield values, written


def read_records(path: Path, settings_hash: str) -> Iterator[tuple[Record, float]]:
    """The records of a file, each with the time when it was written.

    Raises:
        ValueError: as for `read_lines`, or a record is of another version or unsound.
    """
    for values, written in read_lines(path, settings_hash):
        try:
            yield Record(**values), written
        except TypeError as error:
            raise ValueError(f"{path}: record {values['id']!r} is of another version: {error}") from error


def cut_half_written(path: Path) -> None:
    """Cut off what a power cut left of the last line, lest the next record be appended to it."""
    if path.exists():
        os.truncate(path, max((end for _, end in read_log(path)), default=0))


def _parsed(line: bytes) -> dict[str, Any]:
    values = json.loads(line)
    if not isinstance(values, dict) or "id" not in values:
        raise ValueError("not a record")
    return values
