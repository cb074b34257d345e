"""A small search for settings of the attack and the mask: validity first, then closeness, then cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ace.explanation import Explanation

VALIDITY_TOLERANCE = 0.02  # settings that flip so much less of the images than the best ones count as equal to them,
L1_TOLERANCE = 0.1  # and of these those whose mean l1 is so much above the least, as a share of it

MASK_NAMES = ("mask_threshold", "dilation")


@dataclass(frozen=True)
class Settings:
    """What is searched.

    Attributes:
        steps: tau, as a count of respaced steps.
        step_size, iterations: of the attack; the step in grey levels.
        threshold: of a proximal attack, in grey levels; None for the others.
        weight: of the distance in the attack, by whichever norm it has.
        mask_threshold, dilation: of the refinement.
    """

    steps: int
    step_size: float
    iterations: int
    threshold: float | None
    weight: float
    mask_threshold: float
    dilation: int

    def describe(self, names: Sequence[str]) -> str:
        """Some of them in words."""
        return ", ".join(f"{name} {getattr(self, name):g}" for name in names)


@dataclass(frozen=True)
class Outcome:
    """What some settings gave.

    Attributes:
        flipped: images that are decided as asked, as saved.
        count: images that were tried.
        l1: mean over the flipped ones of the mean absolute change; infinite where there is none.
        passes: forward and backward passes of the UNet, mean over all.
    """

    flipped: int
    count: int
    l1: float
    passes: float

    @property
    def validity(self) -> float:
        return self.flipped / self.count


@dataclass(frozen=True)
class Trial:
    """Settings and what they gave; None where the time was up before."""

    settings: Settings
    outcome: Outcome | None


def attack_names(settings: Settings) -> tuple[str, ...]:
    """What is searched of the attack."""
    return ("step_size", "iterations", "weight") if settings.threshold is None else ("step_size", "threshold")


def outcome(explanations: Sequence[Explanation], count: int | None = None) -> Outcome:
    """Sum up what some settings gave, for ``count`` images if the explanations are not of all."""
    flipped = [explanation.l1 for explanation in explanations if explanation.flipped]
    passes = [explanation.unet_forwards + explanation.unet_backwards for explanation in explanations]
    return Outcome(
        len(flipped),
        len(explanations) if count is None else count,
        sum(flipped) / len(flipped) if flipped else float("inf"),
        sum(passes) / max(1, len(passes)),
    )


def choose(trials: Sequence[Trial]) -> Trial:
    """Most flips, then the smallest change, then the fewest passes; the first of equal ones.

    Settings within `VALIDITY_TOLERANCE` of the best validity, and of these within `L1_TOLERANCE` of the least l1, count
    as equal.
    """
    tried = [trial for trial in trials if trial.outcome is not None]
    most = max(trial.outcome.validity for trial in tried)
    valid = [trial for trial in tried if trial.outcome.validity >= most - VALIDITY_TOLERANCE]
    least = min(trial.outcome.l1 for trial in valid)
    close = [trial for trial in valid if trial.outcome.l1 <= (1 + L1_TOLERANCE) * least]
    return min(close, key=lambda trial: trial.outcome.passes)


def search(
    start: Settings,
    neighbours: Callable[[Settings], list[Settings]],
    measure: Callable[[Settings], Outcome],
    late: Callable[[], bool],
) -> Iterator[Trial]:
    """Walk from the start to the best settings known, until all of their neighbours are known, or it is late."""
    trials = [Trial(start, measure(start))]
    yield trials[0]
    while True:
        known = {trial.settings for trial in trials}
        ahead = [settings for settings in neighbours(choose(trials).settings) if settings not in known]
        for settings in ahead:
            trials.append(Trial(settings, None if late() else measure(settings)))
            yield trials[-1]
        if not ahead or trials[-1].outcome is None:
            return


def attack_neighbours(start: Settings) -> Callable[[Settings], list[Settings]]:
    """Steps twice and half as long; twice and half the threshold, or ten times and a tenth of the distance's weight.

    Tenths are the grid of ACE's author. Sign steps of other lengths go as far in all as those of ``start``: their
    number changes, and with it the cost. A proximal attack stops by itself.
    """
    reach = start.step_size * start.iterations

    def neighbours(settings: Settings) -> list[Settings]:
        found = []
        for factor in (2.0, 0.5):
            step = factor * settings.step_size
            if settings.threshold is not None:
                found += [
                    replace(settings, step_size=step),
                    replace(settings, threshold=factor * settings.threshold),
                ]
            else:
                weight = 10 * settings.weight if factor > 1 else settings.weight / 10
                iterations = max(1, round(reach / step))
                found += [replace(settings, step_size=step, iterations=iterations), replace(settings, weight=weight)]
        return found

    return neighbours


def mask_neighbours(settings: Settings) -> list[Settings]:
    """Twice and half of the threshold and of the dilation, which stays odd."""
    return [
        replace(settings, mask_threshold=min(1.0, 2 * settings.mask_threshold)),
        replace(settings, dilation=2 * settings.dilation + 1),
        replace(settings, mask_threshold=settings.mask_threshold / 2),
        replace(settings, dilation=max(1, (settings.dilation - 1) // 2 | 1)),
    ]
