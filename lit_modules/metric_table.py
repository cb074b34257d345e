"""Metrics in the terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ace.record import outcome_and_reason

WIDTH, CELL = 26, 33  # of names, and of values with their intervals
REASONS, LENGTH = 5, 90  # why images were skipped or failed: most lines, and characters of a line


def print_metrics(runs: dict[str, dict[str, Any]]) -> None:
    """Print a table of measurements: of one run with all that is known of them, of several runs side by side."""
    names = list(dict.fromkeys(name for metrics in runs.values() for name in metrics["metrics"]))
    if len(runs) > 1:
        print(" " * WIDTH, *(f"{run[-CELL + 2 :]:<{CELL}}" for run in runs))
        for name in names:
            print(f"{name:>{WIDTH}}", *(_cell(metrics["metrics"].get(name)) for metrics in runs.values()))
        return
    [metrics] = runs.values()
    for name, measured in metrics["metrics"].items():
        print_line(name, f"{_cell(measured)}  {measured['n']} {measured['subset']}; {measured['convention']}")
    _print_outcomes(metrics.get("status", {}))


def print_line(name: str, text: str) -> None:
    """Print a name and what belongs to it; the names of all lines end in one column."""
    print(f"{name:>{WIDTH}}  {text}")


def _print_outcomes(status: dict[str, int]) -> None:
    """How many images flipped and did not, and of skipped and failed ones the most frequent reasons."""
    reasons: dict[str, Counter[str]] = {}
    for name, count in status.items():
        kind, reason = outcome_and_reason(name)
        reasons.setdefault(kind, Counter())[reason] += count
    for kind, counts in reasons.items():
        for reason, count in counts.most_common(REASONS):
            print_line(kind, f"{_images(count)}: {_shortened(reason)}" if reason else _images(count))
        if others := counts.most_common()[REASONS:]:
            print_line(kind, f"{_images(sum(count for _, count in others))}: other reasons, see records.csv")


def _cell(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return " " * CELL
    interval = "[{:.3g}, {:.3g}]".format(*measured["interval"]) if measured["interval"] else ""
    return f"{measured['value']:>10.4g} {interval:<22}"


def _images(count: int) -> str:
    return f"{count} image" + "s" * (count != 1)


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= LENGTH else f"{line[: LENGTH - 3]}..."
