"""Explain images in Lightning's prediction loop."""

from __future__ import annotations

from functools import partial
from typing import Any

from jsonargparse import lazy_instance
from lightning import LightningDataModule, LightningModule
from torch import Tensor

from ace.attacks import PGD, Attack
from ace.decision import decision_for, relabel
from ace.diffusion_filter import DiffusionFilter
from ace.explainer import CounterfactualExplainer
from ace.explanation import Explanation
from ace.models.foreign import ForeignClassifier, load_classifier
from ace.models.unet import load_diffusion
from ace.objective import Distance
from ace.refinement import Refinement
from ace.targets import OtherSide, TargetPolicy

# Arguments that concern memory and speed: runs that differ in them have the same results, up to rounding.
MEMORY_ARGUMENTS = ("segments", "slots", "deterministic")


class LitCounterfactual(LightningModule):
    """Wires a classifier and a diffusion model into a `CounterfactualExplainer`.

    Args:
        classifier: classifier folder, written by ``train.py fit``, or a ``.ckpt`` file of it; or the class_path and
            init_args of a classifier that was trained elsewhere, see `ace.models.foreign`.
        diffusion: diffusers folder of an unconditional pixel-space DDPM.
        query: attribute to explain, by name or index; leave out for a classifier of exclusive classes.
        policy: which target each image gets.
        attack: the rule of the first stage.
        distance: how far from the original costs how much, in the attack.
        refinement: the second stage.
        steps: tau: how many respaced steps the filter noises and denoises, or a fraction of them.
        respacing: number of steps that the diffusion chain is respaced to.
        stochastic: whether the filter and the refinement draw noise.
        segments: memory of the gradient: 1 keeps everything, more recompute each segment of the chain once.
        slots: number of images iterated together.
        deterministic: same bytes for an image whatever its company, by a constant batch shape.
        seed: with an image's id it determines all of its noise.
        gradient_passes: UNet passes in each iteration of the attack, fewer than ``steps`` for a cheaper gradient, whose
            last estimate of x_0 stands for the rest of the chain; None for all.

    Attributes:
        explainer: the whole method.
        make_explainer: makes one with another filter, attack, distance or refinement, for the same question.
    """

    def __init__(
        self,
        classifier: ForeignClassifier | str,
        diffusion: str,
        query: int | str | None = None,
        policy: TargetPolicy = lazy_instance(OtherSide),  # noqa: B008
        attack: Attack = lazy_instance(PGD),  # noqa: B008
        distance: Distance = Distance(),  # noqa: B008
        refinement: Refinement = Refinement(),  # noqa: B008
        steps: int | float = 5,
        respacing: int = 50,
        stochastic: bool = True,
        segments: int = 1,
        slots: int = 16,
        deterministic: bool = True,
        seed: int = 0,
        gradient_passes: int | None = None,
    ) -> None:
        super().__init__()
        self.classifier = load_classifier(classifier)
        unet, scheduler = load_diffusion(diffusion)
        self.diffusion_filter = DiffusionFilter(unet, scheduler, steps, respacing, stochastic, segments)
        self.make_explainer = partial(
            CounterfactualExplainer,
            self.classifier,
            decision_for(self.classifier, query),
            policy=policy,
            slots=slots,
            deterministic=deterministic,
            seed=seed,
        )
        self.explainer = self.make_explainer(
            self.diffusion_filter, attack, distance, refinement, gradient_passes=gradient_passes
        )

    def labels(self, batch: dict[str, Any], data: LightningDataModule | None) -> Tensor | None:
        """The labels of a batch in the classifier's terms; None where they are not known."""
        labels = batch.get("label")
        return labels if labels is None or data is None else relabel(labels, data.class_names, self.classifier)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Explanation]:
        """Explanations that are finished: of this batch or of earlier ones, the last batch gives all that are left."""
        skipped = [Explanation(id, None, f"skipped: {reason}") for id, reason in batch.get("unreadable", ())]
        if batch["id"]:
            labels = self.labels(batch, self.trainer.datamodule)
            self.explainer.submit(batch["image"], labels=labels, ids=batch["id"])
        return skipped + self.explainer.advance(drain=self.trainer.predict_loop.batch_progress.is_last_batch)
