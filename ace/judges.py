"""The networks that judge counterfactuals, and the metrics that each of them gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ace.decision import AwayFrom, Decision
from ace.measurement import Measurement, measure_correlations, measure_mean, measure_share
from ace.memory import gather
from ace.metrics.base import Distance, Network
from ace.metrics.cout import transition_curves
from ace.metrics.oracle import attribute_changes
from ace.metrics.similarity import cosine_similarity
from ace.realism import measure_realism
from ace.results import Result, batches

Subsets = Literal["paper", "all"]
FLIPPED, CORRECT, EXPLAINED = "flipped", "decided correctly", "explained"
FACE_THRESHOLD = 0.5  # cosine from which on two faces are one person's


@dataclass
class Judges:
    """What is None, or not there, leaves its metrics out.

    Attributes:
        subsets: ``paper`` takes the images that the papers take: successful ones for FID, faces and attributes, those
            decided correctly for COUT and S3. ``all`` takes every explained image.
        classifier, decision: what was explained, and how its logits are read, for COUT.
        second, second_decision: an independently trained classifier of the same decision, for the non-adversarial
            flip rate.
        oracle: logits of attributes; query: index of the one that was asked for; attributes: their names.
        correlations: of the attributes with the query in the training data, shape (A,), for the CD.
        faces: encoder of faces; scenes: SimSiam's projector.
        encoders: for FID-like scores, by name; ``inception`` alone gives FID.
        distances: perceptual ones, by name.
        sources: where networks are from, for the conventions, by field, or by name of an encoder or a distance.
        region: where in the image of an id the query can show, boolean (H, W).
        min_images: how many a Fréchet distance needs at least; None for one more than it has features.
        splits: over how many random halves the split one is averaged; 1 is the single split of the published code.
        batch_size: images at a time.
        device: where the networks are.

    Raises:
        ValueError: a batch would be empty, there is no split, or of one image a distribution is asked for.
    """

    subsets: Subsets = "paper"
    classifier: Network | None = None
    decision: Decision | None = None
    second: Network | None = None
    second_decision: Decision | None = None
    oracle: Network | None = None
    query: int | None = None
    attributes: Sequence[str] = ()
    correlations: Tensor | None = None
    faces: Network | None = None
    scenes: Network | None = None
    encoders: dict[str, Network] = field(default_factory=dict)
    distances: dict[str, Distance] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    region: Callable[[str], np.ndarray] | None = None
    min_images: int | None = None
    splits: int = 10
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.splits < 1:
            raise ValueError(f"splits must be at least 1, got {self.splits}")
        if self.min_images is not None and self.min_images < 2:
            raise ValueError(f"min_images must be at least 2, which have a covariance, got {self.min_images}")

    @torch.no_grad()
    def decided(self, results: list[Result]) -> list[Result]:
        """Results of another code with the classifier's decisions about their files.

        Of two classes an original's is to be left, and the other one is the target.

        Raises:
            ValueError: there are more classes, of which the files do not tell the target.
        """
        if len(self.decision.class_names) != 2:
            raise ValueError(
                f"the files do not tell which of {self.decision.class_names} was the target: "
                "only results of a decision between two classes can be judged with their classifier"
            )
        before, after = self._outputs(results, self.classifier)
        source = self.decision.prediction(before)
        target = 1 - source
        columns = (source, target, self.decision.flipped(after, target), self.decision.probability(after, target))
        return [
            replace(result, prediction=prediction, target=goal, flipped=flipped, p_after=p_after)
            for result, prediction, goal, flipped, p_after in zip(
                results, *(column.tolist() for column in columns), strict=True
            )
        ]

    @torch.no_grad()
    def attribute_logits(self, results: list[Result]) -> tuple[Tensor, Tensor]:
        """The oracle's, of originals and of counterfactuals, shape (N, A), in host memory."""
        return self._outputs(results, self.oracle)

    @torch.no_grad()
    def measure(self, results: list[Result]) -> dict[str, Measurement]:
        """All metrics for which there is a judge and an image, by name.

        Warns:
            UserWarning: a judge that cannot take the images, or not so many at a time, is left out.
        """
        found: dict[str, Measurement | None] = {}
        for judge, judged_by in self._present():
            try:
                found |= judged_by(results)
            except (RuntimeError, ValueError, AssertionError) as error:  # what networks raise for images of other sizes
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"{judge} is left out, it cannot judge these images: {reason[0]}", stacklevel=2)
        return {name: measurement for name, measurement in found.items() if measurement is not None}

    def _present(self) -> Iterator[tuple[str, Callable[[list[Result]], dict[str, Measurement | None]]]]:
        """Name of each judge that is there, and what measures by it."""
        if self.classifier is not None and self.decision is not None:
            yield "the classifier", self._transition
            yield "the classifier", self._any_flip
        if self.second is not None and self.second_decision is not None:
            yield "second_classifier", self._second_opinion
        if self.oracle is not None:
            yield "the oracle", self._attributes
        if self.faces is not None:
            yield "the encoder of faces", self._faces
        if self.scenes is not None:
            yield "the encoder of scenes", self._scenes
        for name, distance in self.distances.items():
            yield name, partial(self._distance, name=name, distance=distance)
        for name, encoder in self.encoders.items():
            yield name, partial(self._realism, name=name, encoder=encoder)
        if self.region is not None:
            yield "change_in_region", self._in_region

    def _subset(self, results: list[Result], wanted: str) -> tuple[list[Result], str]:
        if self.subsets == "all" or wanted == EXPLAINED:
            return results, EXPLAINED
        if wanted == FLIPPED:
            return [result for result in results if result.flipped], FLIPPED
        if all(result.correct is None for result in results):
            return results, f"{EXPLAINED} (labels unknown)"
        return [result for result in results if result.correct], CORRECT

    def _by(self, judge: str, convention: str) -> str:
        """A convention with the judge's source."""
        return f"{convention}; {self.sources[judge]}" if judge in self.sources else convention

    def _pairs(self, results: list[Result]) -> Iterator[tuple[Tensor, Tensor]]:
        for original, counterfactual in batches(results, self.batch_size):
            yield original.to(self.device), counterfactual.to(self.device)

    def _outputs(self, results: list[Result], network: Network) -> tuple[Tensor, Tensor]:
        """Of originals and counterfactuals, shape (N, D), in host memory."""
        parts = ([network(images).float().reshape(len(images), -1) for images in pair] for pair in self._pairs(results))
        before, after = gather(parts, len(results)) or [torch.empty(0, 1)] * 2
        return before, after

    def _cosines(self, results: list[Result], network: Network) -> Tensor:
        parts = (
            [cosine_similarity(*(network(images).float().flatten(1) for images in pair))]
            for pair in self._pairs(results)
        )
        [cosines] = gather(parts, len(results)) or [torch.empty(0)]
        return cosines

    def _transition(self, results: list[Result]) -> dict[str, Measurement | None]:
        """COUT, where it is known which classes were asked for."""
        chosen, subset = self._subset([result for result in results if result.target is not None], CORRECT)
        if not chosen:
            return {}
        starts = range(0, len(chosen), self.batch_size)
        parts = (self._scores(chosen[start : start + self.batch_size]) for start in starts)
        corrected, paper = gather(parts, len(chosen))
        return {
            "cout": measure_mean(corrected, subset, "corrected: the axis ends at 1"),
            "cout_paper": measure_mean(paper, subset, "as published: the axis can end beyond 1"),
        }

    def _scores(self, results: list[Result]) -> list[Tensor]:
        """COUT of a batch, corrected and as published."""
        source = torch.tensor([result.prediction for result in results], device=self.device)
        [pair] = self._pairs(results)
        target = self._targets(results, source, pair[1])
        return [
            transition_curves(*pair, source, target, self._probabilities, convention, self.batch_size).cout()
            for convention in ("corrected", "paper")
        ]

    def _targets(self, results: list[Result], source: Tensor, counterfactual: Tensor) -> Tensor:
        """The classes asked for; for an untargeted question the likeliest ones besides those to leave."""
        if isinstance(self.decision, AwayFrom):
            return self._probabilities(counterfactual).scatter(1, source[:, None], -1).argmax(1)
        return torch.tensor([result.target for result in results], device=self.device)

    def _probabilities(self, images: Tensor) -> Tensor:
        return self.decision.scores(self.classifier(images)).float().softmax(1)

    def _any_flip(self, results: list[Result]) -> dict[str, Measurement | None]:
        """Share that leave their class, whatever they become, where a target of more than two classes was asked for."""
        known = [result for result in results if result.target is not None]
        if len(self.decision.class_names) == 2 or isinstance(self.decision, AwayFrom) or not known:
            return {}
        parts = ([self.decision.prediction(self.classifier(pair[1]))] for pair in self._pairs(known))
        [after] = gather(parts, len(known))
        left = after != torch.tensor([result.prediction for result in known])
        return {"untargeted_flip_rate": measure_share(left, EXPLAINED, "decided as any other class")}

    def _second_opinion(self, results: list[Result]) -> dict[str, Measurement | None]:
        """Share of all that flip both classifiers, where it is known which classes were asked for."""
        known = [result for result in results if result.target is not None]
        if not known:
            return {}
        [after] = gather(([self.second(counterfactual)] for _, counterfactual in self._pairs(known)), len(known))
        target = torch.tensor([result.target for result in known])
        both = torch.tensor([result.flipped for result in known]) & self.second_decision.flipped(after, target)
        convention = self._by("second", "a second classifier flips too")
        return {"non_adversarial_flip_rate": measure_share(both, EXPLAINED, convention)}

    def _attributes(self, results: list[Result]) -> dict[str, Measurement | None]:
        chosen, subset = self._subset(results, FLIPPED)
        if not chosen:
            return {}
        changes = attribute_changes(*self.attribute_logits(chosen))
        changed = changes.abs()
        counted, others_only = self._by("oracle", "the query counts"), self._by("oracle", "other than the query")
        found = {"mnac": measure_mean(changed.sum(1), subset, counted)}
        if self.query is None:
            return found
        others = changed[:, torch.arange(changes.shape[1]) != self.query]
        found["attributes_changed"] = measure_mean(others.sum(1), subset, others_only)
        if others.shape[1]:
            found["factors_preserved"] = measure_mean(1 - others.mean(1), subset, others_only)
        if self.correlations is not None:
            found["cd"] = measure_correlations(changes, self.correlations, self.query, subset, counted)
        return found

    def _faces(self, results: list[Result]) -> dict[str, Measurement | None]:
        chosen, subset = self._subset(results, FLIPPED)
        cosines = self._cosines(chosen, self.faces)
        return {
            "fva": measure_share(cosines > FACE_THRESHOLD, subset, self._by("faces", f"cosine above {FACE_THRESHOLD}")),
            "fs": measure_mean(cosines, subset, self._by("faces", "mean cosine")),
        }

    def _scenes(self, results: list[Result]) -> dict[str, Measurement | None]:
        chosen, subset = self._subset(results, CORRECT)
        convention = self._by("scenes", "SimSiam projector")
        return {"s3": measure_mean(self._cosines(chosen, self.scenes), subset, convention)}

    def _distance(self, results: list[Result], name: str, distance: Distance) -> dict[str, Measurement | None]:
        tables = gather(([distance(*pair).flatten()] for pair in self._pairs(results)), len(results))
        return {name: measure_mean(tables[0], EXPLAINED, self._by(name, name)) if tables else None}

    def _realism(self, results: list[Result], name: str, encoder: Network) -> dict[str, Measurement | None]:
        """FID and sFID, against all originals; left out, with a warning, where there are too few images."""
        if not results:
            return {}
        subset = self._subset([], FLIPPED)[1]
        kept = torch.tensor([result.flipped or subset == EXPLAINED for result in results])
        before, after = self._outputs(results, encoder)
        after = after if kept.all() else after[kept]  # a copy, at which the rest need not stay in memory
        convention = self._by(name, f"features: {name}")
        return measure_realism(before, after, kept, name, subset, convention, self.min_images, self.splits)

    def _in_region(self, results: list[Result]) -> dict[str, Measurement | None]:
        """Share of the absolute change that falls where the query can show."""
        chosen, subset = self._subset(results, FLIPPED)
        shares = []
        for result in chosen:
            original, counterfactual = result.images()
            change = (counterfactual - original).abs().sum(0)
            if change.any():
                shares.append((change[torch.from_numpy(self.region(result.id))].sum() / change.sum()).item())
        if chosen and not shares:
            warnings.warn("change_in_region is left out: no image has changed", stacklevel=3)
        convention = "where the query alone changes the true picture"
        return {"change_in_region": measure_mean(torch.tensor(shares), subset, convention)}
