"""What ``explain.py calibrate`` prints, and writes above the settings that it found."""

from __future__ import annotations

from collections.abc import Sequence

from ace.calibration import Survival
from ace.settings_search import L1_TOLERANCE, VALIDITY_TOLERANCE, Trial

OUTCOME_NAMES = ["flipped", "mean l1", "UNet passes"]
NOT_REACHED = "not reached in the time"
ORDER = (
    f"most flips as saved (within {VALIDITY_TOLERANCE:.0%}), then least l1 (within {L1_TOLERANCE:.0%}), "
    "then fewest UNet passes"
)


class Table:
    """Prints lines as they come, for a search takes minutes, and keeps them.

    Attributes:
        lines: what was printed.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str = "") -> None:
        """Print a line."""
        self.lines.append(line)
        print(line, flush=True)

    def head(self, title: str, *names: str) -> None:
        """Begin a part, with the names of its columns."""
        if self.lines:
            self.add()
        self.add(title)
        self.add("".join(f"{name:>16}" for name in names))

    def survival(self, point: Survival) -> None:
        """How many decisions one tau keeps."""
        low, high = point.interval
        self.add(f"{point.tau:>16}{point.share:>16.1%}{f'{low:.1%} to {high:.1%}':>16}")

    def trial(self, trial: Trial, names: Sequence[str]) -> None:
        """What the settings of these names gave."""
        cells = "".join(f"{getattr(trial.settings, name):>16g}" for name in names)
        found = trial.outcome
        if found is None:
            self.add(f"{cells}    {NOT_REACHED}")
        else:
            flips = f"{found.flipped} of {found.count}"
            self.add(f"{cells}{flips:>16}{found.l1:>16.4f}{found.passes:>16.1f}")
