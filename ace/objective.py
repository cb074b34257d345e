"""What the attack minimises: the class loss of the filtered image plus a distance to the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ace.decision import Decision
from ace.diffusion_filter import DiffusionFilter

Classifier = Callable[[Tensor], Tensor]


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Logits in float32: autocast is for the UNet, the classifier under study is asked as it is."""
    with torch.autocast(images.device.type, enabled=False):
        return classifier(images).float()


@dataclass(frozen=True)
class Distance:
    """lambda_1 |x - x'|_1 + lambda_2 |x - x'|_2, both summed over an image in [0, 1].

    Args:
        l1: weight of the sum of absolute differences.
        l2: weight of the Euclidean norm (not its square).
        schedule: factor over the iterations: ``constant`` is 1, ``linear`` rises to 1 in the last one, ``step`` is 0 in
            the first half.
    """

    l1: float = 0.001
    l2: float = 0.0
    schedule: Literal["constant", "linear", "step"] = "constant"

    def __post_init__(self) -> None:
        if self.l1 < 0 or self.l2 < 0:
            raise ValueError(f"the distance's weights must not be negative, got l1={self.l1}, l2={self.l2}")
        if self.schedule not in ("constant", "linear", "step"):
            raise ValueError(f"unknown schedule {self.schedule!r}: use constant, linear or step")

    def __call__(self, image: Tensor, original: Tensor) -> Tensor:
        """Distance of each image, shape (N,)."""
        difference = (image - original).flatten(1)
        total = torch.zeros(len(image), device=image.device)
        if self.l1:
            total = total + self.l1 * difference.abs().sum(1)
        if self.l2:
            total = total + self.l2 * torch.linalg.vector_norm(difference, dim=1)
        return total

    def factor(self, iteration: Tensor, iterations: int) -> Tensor:
        """The schedule's factor at each image's iteration (counted from 0), shape (N,)."""
        match self.schedule:
            case "linear":
                return (iteration + 1) / iterations
            case "step":
                return (iteration > iterations // 2).float()
        return torch.ones_like(iteration, dtype=torch.float32)


class Evaluation(NamedTuple):
    """The objective at one point: its gradient, shape (N, C, H, W), the class loss and p(target), shape (N,)."""

    gradient: Tensor
    class_loss: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Objective:
    """L(x') = loss(f(F_tau(x')), target) + lambda d(x', x), for each image on its own (ACE, section 3.2).

    Nothing is averaged over the batch: lambda means at every batch size what it means at batch size 1.

    Args:
        classifier: maps images in [0, 1], shape (N, C, H, W), to logits.
        decision: how the logits are read.
        diffusion_filter: F_tau; None attacks the classifier directly, for comparison.
        distance: d, between the original and the unfiltered image.
        class_loss: ``cross_entropy``, or ``margin`` as in Carlini and Wagner 2017.
        confidence: for ``margin``: how far the target must lead before the loss stops falling, in logits.
        passes: of the UNet in each evaluation, None for all steps of the filter, see `DiffusionFilter.forward`.

    Raises:
        ValueError: fewer than one pass, or more than the filter has steps.
    """

    classifier: Classifier
    decision: Decision
    diffusion_filter: DiffusionFilter | None
    distance: Distance
    class_loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    confidence: float = 0.0
    passes: int | None = None

    def __post_init__(self) -> None:
        most = 1 if self.diffusion_filter is None else self.diffusion_filter.steps
        if self.passes is not None and not 1 <= self.passes <= most:
            raise ValueError(f"passes must be in [1, {most}], the filter's steps, got {self.passes}")

    def evaluate(
        self, image: Tensor, original: Tensor, target: Tensor, factor: Tensor, noise: Tensor | None = None
    ) -> Evaluation:
        """Gradient with respect to ``image``.

        Args:
            image, original: shape (N, C, H, W), in [0, 1].
            target: shape (N,).
            factor: factor of the distance, shape (N,).
            noise: for the filter, shape (steps, N, C, H, W).
        """
        with torch.enable_grad():
            image = image.detach().requires_grad_()
            filtered = image if self.diffusion_filter is None else self.diffusion_filter(image, noise, self.passes)
            logits = logits_of(self.classifier, filtered)
            with torch.autocast(image.device.type, enabled=False):  # or it casts in the backward pass, too
                class_loss = self._class_loss(logits, target)
                (gradient,) = torch.autograd.grad(class_loss.sum(), filtered)
                scale = _normalising_scale(gradient)
                (gradient,) = torch.autograd.grad(filtered, image, gradient * scale)
                gradient = gradient / scale
                distance = factor * self.distance(image, original)
                if distance.requires_grad:
                    gradient = gradient + torch.autograd.grad(distance.sum(), image)[0]
        return Evaluation(gradient, class_loss.detach(), self.decision.probability(logits.detach(), target))

    def _class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_loss == "margin":
            return (-self.decision.margin(logits, target)).clamp(min=-self.confidence)
        return self.decision.cross_entropy(logits, target)


def _normalising_scale(gradient: Tensor) -> Tensor:
    """The power of two that brings the largest entry of each image's gradient into [1/2, 1), shape (N, 1, 1, 1).

    On its way back through the filter the gradient of a sure classifier would vanish in float16. Powers of two change
    nothing but the exponent, so in float32 the result has the same bits.
    """
    largest = gradient.float().abs().amax((1, 2, 3), keepdim=True)
    exponent = (largest.view(torch.int32) >> 23) - 126  # read from the bits: not every device has `frexp`
    return torch.ldexp(torch.ones_like(largest), -exponent)
