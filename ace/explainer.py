"""The method: an image, its classifier and a diffusion model in; the counterfactual out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ace.attacks import PGD, Attack
from ace.decision import AwayFrom, Decision
from ace.diffusion_filter import DiffusionFilter
from ace.explanation import Explanation, costs, failure, judge
from ace.images import as_saved
from ace.inputs import check_call, content_ids
from ace.memory_fallback import within_memory
from ace.noise import draw, generator
from ace.objective import Classifier, Distance, Objective, logits_of
from ace.preflight import check_answers, check_networks
from ace.questions import ask
from ace.refinement import Refinement
from ace.slots import Query, SlotPool, in_slots
from ace.targets import OtherSide, TargetPolicy, Untargeted


class CounterfactualExplainer:
    """Adversarial counterfactual visual explanations (ACE, Jeanneret et al. 2023).

    Example:
        >>> import torch
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> from ace import BinaryDecision, CounterfactualExplainer, DiffusionFilter, PGD
        >>> unet = UNet2DModel(sample_size=16, block_out_channels=(32, 32), layers_per_block=1,
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        >>> classifier = lambda images: 50 * (images.mean((1, 2, 3)) - 0.5)  # "is it bright?"
        >>> diffusion_filter = DiffusionFilter(unet, DDPMScheduler(), steps=2, respacing=50)
        >>> explainer = CounterfactualExplainer(classifier, BinaryDecision(), diffusion_filter, PGD(iterations=3))
        >>> explanation = explainer.explain(torch.full((1, 3, 16, 16), 0.4))[0]
        >>> explanation.prediction, explanation.target, explanation.counterfactual.shape
        (0, 1, torch.Size([3, 16, 16]))

    Args:
        classifier: maps images in [0, 1], shape (N, C, H, W), to logits. The weights of a module are frozen.
        decision: how the logits are read.
        diffusion_filter: F_tau, for the attack and the refinement.
        attack: the rule of the first stage.
        distance: how far from the original costs how much.
        refinement: the second stage.
        policy: which target each image gets, where none is given.
        slots: number of images that are iterated together; free ones cost as much as taken ones if ``deterministic``.
        deterministic: keep the batch shape constant, so that an image's result has the same bytes in any company.
        seed: with an image's id it determines all of its noise.
        gradient_passes: of the UNet in each iteration of the attack; None for all steps of the filter.
        repairs: how many times the attack of an image goes on whose counterfactual, as saved, is not flipped: from
            where it ended, through all steps of the filter, and with half the mask's threshold each time.

    Raises:
        ValueError: the policy does not fit the decision, the distance does not fit the attack, fewer than one slot,
            more passes than steps, or a negative number of repairs.
    """

    def __init__(
        self,
        classifier: Classifier,
        decision: Decision,
        diffusion_filter: DiffusionFilter,
        attack: Attack | None = None,
        distance: Distance | None = None,
        refinement: Refinement | None = None,
        policy: TargetPolicy | None = None,
        slots: int = 16,
        deterministic: bool = True,
        seed: int = 0,
        gradient_passes: int | None = None,
        repairs: int = 0,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        if repairs < 0:
            raise ValueError(f"repairs must not be negative (0 for none), got {repairs}")
        self.policy = policy or OtherSide()
        self.policy.check(decision)
        if isinstance(classifier, nn.Module):
            classifier.requires_grad_(False)
        self.classifier = classifier
        self.decision = AwayFrom(decision) if isinstance(self.policy, Untargeted) else decision
        self.diffusion_filter = diffusion_filter
        self.refinement = refinement or Refinement()
        self.slots, self.deterministic, self.seed, self.repairs = slots, deterministic, seed, repairs
        attack = attack or PGD()
        distance = distance or Distance(l1=0.0 if attack.proximal else Distance.l1)
        if attack.proximal and distance.l1:
            raise ValueError(
                f"{type(attack).__name__} has its own l1 term, the threshold: set the distance's l1 to 0, "
                f"got {distance.l1}"
            )
        objective = Objective(
            classifier,
            self.decision,
            diffusion_filter,
            distance,
            attack.class_loss,
            attack.confidence,
            gradient_passes,
        )
        self.pool = SlotPool(objective, attack, slots, deterministic, seed)
        self.repair_pool = self.pool
        if gradient_passes is not None and repairs:
            exact = replace(objective, passes=None)
            self.repair_pool = SlotPool(exact, attack, slots, deterministic, seed, self.pool.listeners)
        self._attacked: list[Query] = []
        self._unflipped: dict[Query, Explanation] = {}  # results of images under repair
        self._finished: list[Explanation] = []
        self._checked = False

    def reset(self) -> None:
        """Forget all images that are under way."""
        for pool in self._pools:
            pool.clear()
        self._attacked, self._unflipped, self._finished = [], {}, []

    def resize(self, slots: int) -> None:
        """Go on with another number of slots; images under way begin anew."""
        self.slots = slots
        for pool in self._pools:
            pool.resize(slots)

    @property
    def _pools(self) -> list[SlotPool]:
        return [self.pool] if self.repair_pool is self.pool else [self.pool, self.repair_pool]

    def explain(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        labels: Tensor | None = None,
        ids: Sequence[str] | None = None,
        allowed: Tensor | None = None,
    ) -> list[Explanation]:
        """Explain some images, in their order.

        Args:
            images: shape (N, C, H, W), float, in [0, 1]; each is rounded to 8 bits first, as it would be saved.
            targets: target classes, shape (N,); by default the policy chooses.
            labels: true labels, shape (N,) or (N, A); -1 for one that is not known.
            ids: unique identities; by default a hash of each image's content.
            allowed: where each image may change, shape (N, 1, H, W): boolean, or weights of the gradient in [0, 1];
                everywhere by default. Sign steps take no weights but 0 and 1.

        Raises:
            RuntimeError: called in inference mode, where no gradient exists.
            ValueError: images of the wrong kind, ids that are not unique, a target or label that does not exist, or
                another number of targets, labels, ids or regions than of images.
        """
        check_call(images, self.decision, self.pool.attack, targets, labels, ids, allowed)
        try:
            self.submit(images, targets, labels, ids, allowed)
            finished = {explanation.id: explanation for explanation in self.advance(drain=True)}
        except BaseException:
            self.reset()  # whatever went wrong, the next call starts with free slots
            raise
        explanations = [finished.pop(id) for id in (content_ids(images) if ids is None else ids)]
        self._finished = list(finished.values())  # of earlier calls of `submit`
        return explanations

    def attribute(self, inputs: Tensor, target: Tensor | None = None) -> Tensor:
        """The change that flips each decision, shape (N, C, H, W): an attribution in the manner of captum.

        It is zero for an image that was skipped or failed.
        """
        explanations = self.explain(inputs, target)
        return torch.stack(
            [
                torch.zeros_like(e.original) if e.counterfactual is None else e.counterfactual - e.original
                for e in explanations
            ]
        )

    @torch.no_grad()
    def submit(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        labels: Tensor | None = None,
        ids: Sequence[str] | None = None,
        allowed: Tensor | None = None,
    ) -> None:
        """Queue images for `advance`; arguments as in `explain`. The first images are used to check the networks."""
        check_call(images, self.decision, self.pool.attack, targets, labels, ids, allowed)
        ids = content_ids(images) if ids is None else ids
        images = as_saved(images)
        if not self._checked and len(images):
            check_networks(self, *images.shape[1:])
        logits = within_memory(self, lambda: self._classify(images))
        if not self._checked:
            self._checked = check_answers(self, images, ids, logits, labels)
        for asked in ask(images, ids, logits, self.decision, self.policy, targets, labels, allowed):
            if isinstance(asked, Query):
                self.pool.add(asked)
            else:
                self._finished.append(asked)

    def advance(self, drain: bool) -> list[Explanation]:
        """Work while all slots are busy, or with ``drain`` until every image is done; return what is finished.

        Results come out as they are finished, not in the order of `submit`. Where the memory is not enough, the number
        of slots is halved, down to one; then the filter's segments are doubled, up to one a step.

        Raises:
            torch.OutOfMemoryError: the memory is not enough for one image.
        """
        within_memory(self, lambda: self._work(drain))
        return self.take_finished()

    def take_finished(self) -> list[Explanation]:
        """What is finished so far, for listeners of the pool while `advance` works, which does not return it again."""
        finished, self._finished = self._finished, []
        return finished

    def _work(self, drain: bool) -> None:
        while True:
            for pool in self._pools:
                self._collect(pool.run(drain))
            # Images finish at different times; they are refined together, a full batch at a time.
            while len(self._attacked) >= self.slots or (drain and self._attacked):
                batch = self._attacked[: self.slots]
                self._finish_or_repair(batch, self.refine(batch))
                self._attacked = self._attacked[len(batch) :]
            if not (drain and any(pool.busy for pool in self._pools)):
                return

    def _collect(self, queries: list[Query]) -> None:
        for query in queries:
            if query.healthy:
                self._attacked.append(query)
            else:
                self._finish(query, failure(query, "a loss or gradient of the attack was not finite"))

    def _finish_or_repair(self, queries: list[Query], explanations: list[Explanation]) -> None:
        for query, explanation in zip(queries, explanations, strict=True):
            if explanation.status == "not_flipped" and query.repairs < self.repairs:
                self._unflipped[query] = explanation
                query.repairs += 1
                self.repair_pool.add(query)
            else:
                self._finish(query, explanation)

    def _finish(self, query: Query, explanation: Explanation) -> None:
        """Keep a result; a repair that fails leaves the one in front of it, at its own cost too."""
        before = self._unflipped.pop(query, None)
        if before is not None and explanation.counterfactual is None:
            explanation = replace(before, **costs(query))
        self._finished.append(explanation)

    @torch.no_grad()
    def refine(self, queries: list[Query]) -> list[Explanation]:
        """The second stage, for up to ``slots`` images whose pre-explanation is known.

        It starts from the pre-explanation as an 8-bit file holds it, so that it can be redone from a run folder.

        Raises:
            ValueError: more images than slots.
        """
        if len(queries) > self.slots:
            raise ValueError(f"refine takes at most {self.slots} images at a time, got {len(queries)}")
        started, forwards = time.perf_counter(), self.diffusion_filter.passes.forwards
        original = torch.stack([query.image for query in queries])
        pre_explanation = as_saved(torch.stack([query.pre_explanation for query in queries]))
        steps = self.refinement.noise_steps(self.diffusion_filter)
        streams = [generator(self.seed, query.id, query.stage("refinement")) for query in queries]
        noise = draw(streams, steps, original.shape[1:], original.device)
        everywhere = original.new_ones(1, *original.shape[2:])
        counterfactual, mask = self._in_slots(
            lambda x, x_attacked, draws, scale, allowed: self.refinement.refine(
                self.diffusion_filter, x, x_attacked, draws.transpose(0, 1), scale, allowed > 0
            ),
            original,
            pre_explanation,
            noise.transpose(0, 1),  # images first, as in the other inputs
            torch.tensor([0.5**query.repairs for query in queries], device=original.device),
            torch.stack([everywhere if query.allowed is None else query.allowed for query in queries]),
        )
        for query in queries:
            query.unet_forwards += self.diffusion_filter.passes.forwards - forwards
        images = (original, pre_explanation, as_saved(counterfactual), mask)
        return judge(queries, *images, self._classify, self.decision, started)

    def _classify(self, images: Tensor) -> Tensor:
        """Float32 logits of images in [0, 1]."""
        (logits,) = self._in_slots(lambda rows: (logits_of(self.classifier, rows),), images)
        return logits

    def _in_slots(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        return in_slots(self.slots, self.deterministic, function, *inputs)
