"""Settings for one's own networks: how far to noise, how to step, what to repaint.

Three stages, each on top of the one before: the largest tau whose filter keeps C(F_tau(x)) = C(x) for most images, as
ACE's author advises (issue 2 of the published code); the attack; the mask, on the chosen attack's pre-explanations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace.explainer import CounterfactualExplainer
from ace.measurement import wilson
from ace.settings_search import Outcome, Settings, Trial, attack_neighbours, mask_neighbours, outcome, search
from ace.slots import Query
from ace.survival import survives

CURVE_ENDS, ATTACK_ENDS, MASK_ENDS = 0.3, 0.85, 1.0  # shares of the time budget
USUAL_TAUS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.3, 0.4, 0.5)  # shares of the chain


@dataclass(frozen=True)
class Survival:
    """How many of the images keep their decision behind the filter of one tau."""

    tau: int
    kept: int
    count: int

    @property
    def share(self) -> float:
        return self.kept / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the share."""
        return wilson(self.kept, self.count)


class Budget:
    """Minutes, from now on.

    Raises:
        ValueError: they are not positive.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not minutes > 0:
            raise ValueError(f"the budget must be positive (minutes), got {minutes}")
        self._seconds, self._clock, self._start = 60 * minutes, clock, clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def used(self) -> float:
        """Share of the minutes that is over."""
        return self.elapsed / self._seconds

    def spent(self, share: float, ahead: float = 0.0) -> bool:
        """Whether this share of the minutes is over, or will be in so many seconds."""
        return self.elapsed + ahead >= share * self._seconds


class Calibration:
    """Tries settings on some images; each stage begins with the settings it is given and yields what it measures.

    What is measured follows from the settings and the images alone; the budget decides only where a stage ends. The
    first point of each stage is always measured.

    Args:
        make: makes an explainer with some settings, always for the same networks and the same question.
        queries: the images, with targets; see `questions`.
        search_images: so many of them are attacked; the curve takes all.
        budget: the time for all stages.

    Raises:
        ValueError: no images, or none to attack.
    """

    def __init__(
        self,
        make: Callable[[Settings], CounterfactualExplainer],
        queries: Sequence[Query],
        search_images: int,
        budget: Budget,
    ) -> None:
        if not queries:
            raise ValueError("none of the images has a target: choose another policy, or more images")
        if search_images < 1:
            raise ValueError(f"search_images must be at least 1, got {search_images}")
        self.make, self.queries, self.budget = make, list(queries), budget
        self.searched = self.queries[:search_images]
        self._attacked: dict[Settings, list[Query]] = {}

    def curve(self, settings: Settings, taus: Sequence[int], share: float) -> Iterator[Survival]:
        """How many decisions survive, for growing tau, until the interval lies below ``share``."""
        explainer = self.make(settings)
        for tau in sorted(taus):
            point = self._survival(explainer, tau)
            yield point
            if point.interval[1] < share or self.budget.spent(CURVE_ENDS):
                return

    def attacks(self, start: Settings) -> Iterator[Trial]:
        """Search the attack: both stages of the method for every image."""
        return self._search(start, attack_neighbours(start), self._attack, ATTACK_ENDS)

    def masks(self, start: Settings) -> Iterator[Trial]:
        """Search the mask, on pre-explanations that the attack of ``start`` has left; passes are the refinement's."""
        attacked = self._attacked[start]
        # It is cheap, and has its part of the time even where an attack took longer than foreseen.
        ends = max(MASK_ENDS, self.budget.used + MASK_ENDS - ATTACK_ENDS)
        return self._search(start, mask_neighbours, lambda settings: self._refine(attacked, settings), ends)

    def _search(
        self,
        start: Settings,
        neighbours: Callable[[Settings], list[Settings]],
        measure: Callable[[Settings], Outcome],
        ends: float,
    ) -> Iterator[Trial]:
        """Begin nothing that may not end in time: half a step takes twice as long."""
        longest = 0.0

        def timed(settings: Settings) -> Outcome:
            nonlocal longest
            begun = self.budget.elapsed
            found = measure(settings)
            longest = max(longest, self.budget.elapsed - begun)
            return found

        return search(start, neighbours, timed, lambda: self.budget.spent(ends, ahead=2 * longest))

    def _survival(self, explainer: CounterfactualExplainer, tau: int) -> Survival:
        diffusion_filter, kept = explainer.diffusion_filter.with_steps(tau), 0
        for chunk in _chunks(self.queries, explainer.slots):
            images, ids = torch.stack([query.image for query in chunk]), [query.id for query in chunk]
            survived = survives(
                explainer.classifier, [explainer.decision], diffusion_filter, images, ids, explainer.seed
            )
            kept += int(survived.sum())
        return Survival(tau, kept, len(self.queries))

    def _attack(self, settings: Settings) -> Outcome:
        explainer = self.make(settings)
        for query in self.searched:
            explainer.pool.add(replace(query))
        found = {explanation.id: explanation for explanation in explainer.advance(drain=True)}
        self._attacked[settings] = [
            replace(  # on the CPU: many settings are kept
                query, pre_explanation=found[query.id].pre_explanation.cpu(), repairs=found[query.id].repairs
            )
            for query in self.searched
            if found[query.id].pre_explanation is not None
        ]
        return outcome([found[query.id] for query in self.searched])

    def _refine(self, attacked: list[Query], settings: Settings) -> Outcome:
        explainer, explanations = self.make(settings), []
        for chunk in _chunks(attacked, explainer.slots):
            device = chunk[0].image.device
            explanations += explainer.refine([replace(q, pre_explanation=q.pre_explanation.to(device)) for q in chunk])
        return outcome(explanations, len(self.searched))


def questions(
    explainer: CounterfactualExplainer,
    images: Tensor,
    labels: Tensor | None,
    ids: Sequence[str],
    allowed: Tensor | None = None,
) -> list[Query]:
    """The images that the policy gives a target; arguments and errors as of `CounterfactualExplainer.explain`."""
    explainer.submit(images, labels=labels, ids=ids, allowed=allowed)
    found = list(explainer.pool.waiting)
    explainer.reset()
    return found


def usual_taus(respacing: int) -> list[int]:
    """Values of tau to try, ascending."""
    return sorted({max(1, round(share * respacing)) for share in USUAL_TAUS})


def largest_tau(curve: Sequence[Survival], share: float) -> int:
    """The largest tau that keeps at least ``share`` of the decisions.

    Raises:
        ValueError: none does.
    """
    kept = [point.tau for point in curve if point.share >= share]
    if not kept:
        best = max(curve, key=lambda point: point.share)
        raise ValueError(
            f"no tau keeps {share:.1%} of the decisions, the best is {best.tau} with {best.share:.1%}: "
            "train the diffusion model further, or ask for a smaller share"
        )
    return max(kept)


def _chunks(queries: list[Query], size: int) -> Iterator[list[Query]]:
    return (queries[start : start + size] for start in range(0, len(queries), size))
