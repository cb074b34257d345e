"""Explain images in Lightning's prediction loop."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Self

import torch
from jsonargparse import lazy_instance
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ace.attacks import PGD, Attack
from ace.decision import decision_for, relabel
from ace.diffusion_filter import DiffusionFilter
from ace.earlier_runs import EarlierRuns
from ace.explainer import CounterfactualExplainer
from ace.explanation import Explanation
from ace.memory import free_memory
from ace.memory_plan import MemoryPlan, Workload, choose_plan, measure
from ace.models.foreign import ForeignClassifier, load_classifier
from ace.models.unet import load_diffusion
from ace.objective import Distance
from ace.refinement import Refinement
from ace.run_store import RunStore
from ace.slots import fixed_batch
from ace.targets import OtherSide, TargetPolicy
from datamodules.base import sides

# Arguments that concern memory and speed: runs that differ in them have the same results, up to rounding.
MEMORY_ARGUMENTS = ("segments", "slots", "deterministic", "compile_unet")
# Slots until a plan is made, and of `calibrate`, which makes none: as many images as are computed in any case.
UNPLANNED = fixed_batch(2)


class LitCounterfactual(LightningModule):
    """Wires a classifier and a diffusion model into a `CounterfactualExplainer`.

    Args:
        classifier: classifier folder, written by ``train.py fit``, or a ``.ckpt`` file of it; or the class_path and
            init_args of a classifier that was trained elsewhere, see `ace.models.foreign`.
        diffusion: diffusers folder of an unconditional pixel-space DDPM, or its name on the Hugging Face hub.
        query: attribute to explain, by name or index; leave out for a classifier of exclusive classes.
        policy: which target each image gets.
        attack: the rule of the first stage.
        distance: how far from the original costs how much, in the attack.
        refinement: the second stage.
        steps: tau: how many respaced steps the filter noises and denoises, or a fraction of them.
        respacing: number of steps that the diffusion chain is respaced to.
        stochastic: whether the filter and the refinement draw noise.
        segments: memory of the gradient: 1 keeps everything, more recompute each segment of the chain once. None
            chooses at the start, see `ace.memory_plan`.
        slots: number of images iterated together. None chooses at the start.
        deterministic: same bytes for an image whatever its company, by a constant batch shape.
        seed: with an image's id it determines all of its noise.
        gradient_passes: UNet passes in each iteration of the attack, fewer than ``steps`` for a cheaper gradient, whose
            last estimate of x_0 stands for the rest of the chain; None for all.
        repairs: how many times the attack of an image goes on whose counterfactual, as saved, is not flipped: with all
            passes, and half the mask's threshold each time.
        compile_unet: let torch compile the UNet, which takes minutes at first: for long runs on a GPU.
        avoid: folders of earlier runs: what was repainted in them must stay as it is, for other explanations of the
            same images.
        repel: folders of earlier runs: a pixel counts the less the more it was changed in them, the most changed one
            hardly at all, for other explanations in the same place.

    Raises:
        FileNotFoundError: a network or a run is not there.
        ValueError: an argument is out of range, or they do not fit each other.

    Attributes:
        earlier: the runs to avoid and those that repel.
        kept_slots: of a run that is continued: they take the place of a choice, since others would round differently.
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
        segments: int | None = None,
        slots: int | None = None,
        deterministic: bool = True,
        seed: int = 0,
        gradient_passes: int | None = None,
        repairs: int = 0,
        avoid: list[str] | None = None,
        repel: list[str] | None = None,
        compile_unet: bool = False,
    ) -> None:
        super().__init__()
        if compile_unet and not deterministic:
            raise ValueError("compile_unet needs batches of one shape: set deterministic to true")
        self.earlier = EarlierRuns(
            avoid=[RunStore.open(folder) for folder in avoid or ()],
            repel=[RunStore.open(folder) for folder in repel or ()],
        )
        self.classifier = load_classifier(classifier)
        unet, scheduler = load_diffusion(diffusion)
        self.diffusion_filter = DiffusionFilter(
            unet, scheduler, steps, respacing, stochastic, 1 if segments is None else segments
        )
        self.make_explainer = partial(
            CounterfactualExplainer,
            self.classifier,
            decision_for(self.classifier, query),
            policy=policy,
            slots=UNPLANNED if slots is None else slots,
            deterministic=deterministic,
            seed=seed,
            repairs=repairs,
        )
        self.explainer = self.make_explainer(
            self.diffusion_filter, attack, distance, refinement, gradient_passes=gradient_passes
        )
        if repel and not attack.takes_weights():
            raise ValueError("repel weighs the gradient, and sign steps take no weights: use ace.ProximalGradient")
        self._slots, self._segments, self._compile = slots, segments, compile_unet
        self.kept_slots: int | None = None

    def setup(self, stage: str) -> None:
        """Choose the slots and segments that are left open, before the data are: a batch fills the slots."""
        if None not in (self._slots, self._segments):
            return
        kept = None if self._slots else self.trainer.strategy.broadcast(self.kept_slots)
        plan = self._plan(self._slots or kept)
        if plan.fits:
            title = "Memory plan, with the slots that the run began with" if kept else "Memory plan"
            rank_zero_info(f"{title}: {plan}. Others: --model.slots, --model.segments")
        else:
            rank_zero_warn(f"the memory may not be enough: {plan}; free some, or use smaller networks or images")
        self.diffusion_filter.segments = plan.segments
        self.explainer.resize(plan.slots)
        if self.trainer.datamodule is not None:
            self.trainer.datamodule.batch_size = plan.slots

    def on_predict_start(self) -> None:
        self.place(self.device)

    def place(self, device: torch.device) -> Self:
        """Move the networks to a device, in the memory layout that is the fastest there; results round with it."""
        self.to(device)
        if device.type == "cuda":  # on a CPU it is the usual one, see docs/speed.md
            self.diffusion_filter.unet.to(memory_format=torch.channels_last)
        return self

    def _plan(self, slots: int | None) -> MemoryPlan:
        """The same in every process: of the memory counts the least that one of them has.

        Raises:
            ValueError: without a data module, a diffusion model that was made for images of any size.
        """
        trainer, data, config = self.trainer, self.trainer.datamodule, self.diffusion_filter.unet.config
        channels, size = (config.in_channels, config.sample_size) if data is None else (data.channels, data.image_size)
        if size is None:
            raise ValueError("the diffusion model does not tell the size of its images: give slots and segments")
        height, width = sides(size)
        device = trainer.strategy.root_device
        self.place(device)  # as the run is going to do
        with trainer.precision_plugin.predict_step_context():
            # An exported program may take one image alone.
            images = torch.full((1 if slots == 1 else 2, channels, height, width), 0.5, device=device)
            step, classifier = measure(self.diffusion_filter, self.classifier, images)
        work = Workload(
            step,
            classifier,
            self.diffusion_filter.steps,
            self.explainer.repair_pool.objective.passes,
            height * width,
            None if data is None else math.ceil(len(data.predict_ids()) / trainer.world_size),
            self.explainer.deterministic,
        )
        free = torch.tensor(free_memory(device, trainer.num_devices), device=device)
        free = int(trainer.strategy.reduce(free, reduce_op="min"))
        return choose_plan(work, free, device.type, slots, self._segments)

    def labels(self, batch: dict[str, Any], data: LightningDataModule | None) -> Tensor | None:
        """The labels of a batch in the classifier's terms; None where they are not known."""
        labels = batch.get("label")
        return labels if labels is None or data is None else relabel(labels, data.class_names, self.classifier)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Explanation]:
        """Explanations that are finished: of this batch or of earlier ones, the last batch gives all that are left."""
        skipped = [Explanation(id, None, f"skipped: {reason}") for id, reason in batch.get("unreadable", ())]
        if batch["id"]:
            labels = self.labels(batch, self.trainer.datamodule)
            allowed = self.earlier.allowed(batch["image"], batch["id"])
            self.explainer.submit(batch["image"], labels=labels, ids=batch["id"], allowed=allowed)
            if self._compile:  # after the checks of the first images, which are fewer than a batch of the attack
                images = batch["image"]
                self.diffusion_filter.compile_unet(
                    images.new_zeros(fixed_batch(self.explainer.slots), *images.shape[1:])
                )
                self._compile = False
        return skipped + self.explainer.advance(drain=self.trainer.predict_loop.batch_progress.is_last_batch)
