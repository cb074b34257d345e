"""What is known of one finished image, and the files that keep it, one JSON line a record."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ID_LENGTH = 200
_STATUS = re.compile(r"flipped|not_flipped|(skipped|failed): .+", re.DOTALL)


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


@dataclass(frozen=True, kw_only=True)
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
        unet_forwards: forward passes of the UNet spent on this image.
        unet_backwards: backward passes of the UNet spent on this image.
        seconds: wall-clock time spent on this image.
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
    unet_forwards: int | None = None
    unet_backwards: int | None = None
    seconds: float | None = None
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
        for name, value in asdict(self).items():
            if not isinstance(value, str | int | float | None):
                kind = type(value).__name__
                raise TypeError(f"record {self.id!r}: {name} must be a plain value, got {kind}; call .item()")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"record {self.id!r}: {name} is {value}; use None for a number there is not")


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a record file, and the number of bytes that they take."""
    *lines, tail = path.read_bytes().split(b"\n")
    parsed, size = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(_checked(json.loads(line)))
        except ValueError as error:
            if number == len(lines) and not tail:
                break  # the last line of all: a power cut can leave a block of zeros with an end
            raise ValueError(f"{path}, line {number} is damaged: delete the line, and its image is redone") from error
        size += len(line) + 1
    return parsed, size


def cut_half_written(path: Path) -> None:
    """Cut off what a power cut left of the last line, lest the next record be appended to it."""
    if path.exists():
        os.truncate(path, read_log(path)[1])


def _checked(line: object) -> dict[str, Any]:
    if not isinstance(line, dict) or "id" not in line:
        raise ValueError("not a record")
    return line
