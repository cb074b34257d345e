"""How far a run is: what all its processes have finished, read off their records while they write them."""

from __future__ import annotations

import time
from collections import Counter

from ace.record import read_log
from ace.run_store import RunStore

PAUSE = 1.0  # seconds between two looks at what other processes have written, on a disk that may be far away
_MEANS = ("l1", "l2", "linf", "changed_area", "iterations")


class RunProgress:
    """Counts the images that any process of the run finishes from now on.

    Args:
        store: the run folder, before any process writes into it.
        total: number of images that are left to do.

    Attributes:
        before: images that were finished earlier.
        done, attempted, flipped: images finished since, not skipped among them, and flipped among these.
    """

    def __init__(self, store: RunStore, total: int) -> None:
        self.store, self.total = store, total
        self.done = self.attempted = self.flipped = 0
        self._sums: Counter[str] = Counter()
        self._explained = 0
        ends = {log: [end for _, end in read_log(log)] for log in store.logs()}
        self.before = sum(map(len, ends.values()))
        self._read = {log: max(found, default=0) for log, found in ends.items()}
        self._started = time.monotonic()
        self._looked = -PAUSE

    def update(self, at_once: bool = False) -> None:
        """Read what is new, unless the last look was a moment ago; ``at_once`` looks in any case."""
        if not at_once and time.monotonic() - self._looked < PAUSE:
            return
        for log in self.store.logs():
            for values, end in read_log(log, self._read.get(log, 0)):
                self._count(values)
                self._read[log] = end
        self._looked = time.monotonic()

    def _count(self, values: dict) -> None:
        self.done += 1
        self.attempted += not values["status"].startswith("skipped")
        self.flipped += values["flipped"]
        if values["l1"] is not None:
            self._explained += 1
            self._sums.update({name: values[name] for name in _MEANS})

    @property
    def flip_rate(self) -> float | None:
        """Share of the images attempted that flipped; None while there are none."""
        return self.flipped / self.attempted if self.attempted else None

    @property
    def images_per_second(self) -> float:
        """Images finished a second, by all processes together."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def metrics(self) -> dict[str, float]:
        """What loggers are told: images done in all, and of those done now the flip rate, mean numbers and speed."""
        found = {"images": self.before + self.done, "images_per_second": self.images_per_second}
        if self.flip_rate is not None:
            found["flip_rate"] = self.flip_rate
        if self._explained:
            found |= {name: total / self._explained for name, total in self._sums.items()}
        return {f"progress/{name}": value for name, value in found.items()}
