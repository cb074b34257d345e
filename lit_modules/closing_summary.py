"""What stands in the terminal when a run of explanations has ended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ace.run_store import RunStore
from lit_modules.metric_table import print_line, print_metrics

PAIRS = 8  # of prediction and target, a line each


def print_summary(store: RunStore, metrics: dict[str, Any], paths: Sequence[Path]) -> None:
    """Print the metrics, what became of the images, the flip rate of each question, the files, and how to go on.

    Args:
        store: the run.
        metrics: what `ace.evaluation.evaluate` returned.
        paths: files that were drawn.
    """
    print_metrics({store.folder.name: metrics})
    _print_pairs(metrics["directions"])
    print_paths(store, paths)
    if any(status.startswith("failed") for status in metrics["status"]):
        print_line("failed images", "are not tried again in this folder, but in another --output_dir")
    if metrics["metrics"]:
        print_line("next", f"python explain.py evaluate {shlex.quote(str(store.folder))}")


def print_paths(store: RunStore, paths: Sequence[Path]) -> None:
    """Print where a run and its drawn files are."""
    print_line("run folder", str(store.folder))
    for path in paths:
        print_line(path.stem, str(path))


def _print_pairs(directions: dict[str, dict[str, Any]]) -> None:
    """The largest pairs first."""
    pairs = sorted(directions.items(), key=lambda item: (-item[1]["n"], item[0]))
    for pair, found in pairs[:PAIRS]:
        print_line("flipped", f"{found['flip_rate']:.0%} of {found['n']}, {pair}")
    if len(pairs) > PAIRS:
        print_line("flipped", f"{len(pairs) - PAIRS} other pairs, see metrics.json")
