"""What metrics are computed from: originals and their counterfactuals, of a run or of another code's results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ace.images import from_uint8, load_png
from ace.run_store import RunStore


@dataclass(frozen=True)
class Result:
    """One explained image.

    Attributes:
        id: identity of the image.
        original, counterfactual: its PNG files.
        correct: whether the classifier decides the original as it is labelled; None if the label is unknown.
        flipped: whether the counterfactual is decided as asked.
        prediction: class decided for the original; target: class asked for, or of an untargeted question the one to
            leave; p_after: probability of the target for the counterfactual. None if unknown, see `Judges.decided`.
    """

    id: str
    original: Path
    counterfactual: Path
    correct: bool | None
    flipped: bool
    prediction: int | None = None
    target: int | None = None
    p_after: float | None = None

    def images(self) -> tuple[Tensor, Tensor]:
        """Original and counterfactual, float32 in [0, 1], shape (C, H, W)."""
        original, counterfactual = map(from_uint8, self.arrays())
        return original, counterfactual

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Original and counterfactual, uint8, shape (H, W, C)."""
        return load_png(self.original), load_png(self.counterfactual)


def results_of_run(store: RunStore) -> list[Result]:
    """The explained images of a run, sorted by id."""
    return [
        Result(
            record.id,
            store.image_path("original", record.id),
            store.image_path("counterfactual", record.id),
            None if record.label is None else record.label == record.prediction,
            record.flipped,
            record.prediction,
            record.target,
            record.p_after,
        )
        for record in store.records()
        if record.explained
    ]


def published_results(root: str | Path, experiment: str) -> list[Result]:
    """Results in the layout that the published code of ACE, DiME and their successors writes.

    ``root/Original/{Correct,Incorrect}/NAME.png`` holds the originals, and
    ``root/Results/EXPERIMENT/{CC,IC}/{CCF,ICF}/CF/NAME.png`` the counterfactuals: of originals decided correctly or
    not, that flipped or not.

    Raises:
        FileNotFoundError: the folder is not there or holds no counterfactual, or an original is missing.
    """
    root = Path(root)
    results = []
    for name, correct in (("CC", True), ("IC", False)):
        originals = root / "Original" / ("Correct" if correct else "Incorrect")
        for outcome, flipped in (("CCF", True), ("ICF", False)):
            for path in sorted((root / "Results" / experiment / name / outcome / "CF").glob("*.png")):
                if not (originals / path.name).is_file():
                    raise FileNotFoundError(f"{path} has no original: there is no {originals / path.name}")
                results.append(Result(path.stem, originals / path.name, path, correct, flipped))
    if not results:
        raise FileNotFoundError(
            f"no counterfactuals in {root / 'Results' / experiment}: give the folder that holds Original and Results, "
            "and the name of an experiment in Results"
        )
    return sorted(results, key=lambda result: result.id)


def batches(results: list[Result], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and counterfactuals in batches, read when they are asked for.

    Raises:
        ValueError: images of a batch differ in size.
    """
    for start in range(0, len(results), size):
        part = results[start : start + size]
        pairs = [result.arrays() for result in part]
        for result, pair in zip(part, pairs, strict=True):
            if {image.shape for image in pair} != {pairs[0][0].shape}:
                raise ValueError(
                    f"{result.counterfactual} or its original is not of the size of {part[0].original}: "
                    "metrics compare images of one size"
                )
        originals, counterfactuals = zip(*pairs, strict=True)
        yield from_uint8(np.stack(originals)), from_uint8(np.stack(counterfactuals))
