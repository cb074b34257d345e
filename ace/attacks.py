"""Attacks: rules that move an image down the gradient of an objective.

Step sizes and bounds are in grey levels: 1 stands for 1/255 of the [0, 1] range. Updates are in float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softshrink

State = dict[str, Tensor]


@dataclass(frozen=True)
class Stop:
    """When an image is done before the last iteration.

    Args:
        probability: of the target, for the filtered iterate, from which on a draw of the filter's noise counts.
        draws: how many iterations on end must count; each draws its own noise.

    Raises:
        ValueError: a probability that is not in (0, 1), or fewer than one draw.
    """

    probability: float = 0.95
    draws: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"the stop's probability must be in (0, 1), got {self.probability}")
        if self.draws < 1:
            raise ValueError(f"the stop's draws must be at least 1, got {self.draws}")


class Attack(ABC):
    """An iterative first-order attack; a subclass is its update rule.

    Args:
        iterations: number of updates.
        step_size: length of a step, in grey levels.

    Attributes:
        class_loss: the class loss that the attack is defined with.
        confidence: for the ``margin`` loss: the lead of the target, in logits, at which the loss stops falling.
        proximal: whether the l1 distance is a part of the update, not of the gradient.
        stop: when an image is done early; None for never. Sign steps move every pixel in each iteration, and only the
            later ones take the noise back: PGD must run to its end.
    """

    class_loss: ClassVar[Literal["cross_entropy", "margin"]] = "cross_entropy"
    proximal: ClassVar[bool] = False
    confidence: float = 0.0
    stop: Stop | None = None

    def __init__(self, iterations: int = 50, step_size: float = 1.0) -> None:
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if not step_size > 0:
            raise ValueError(f"step_size must be positive (grey levels), got {step_size}")
        self.iterations = iterations
        self.step = step_size / 255

    def start(self, original: Tensor) -> State:
        """What the attack remembers of each image besides the iterate: tensors whose first axis is the image's."""
        return {}

    def takes_weights(self) -> bool:
        """Whether a pixel changes less where its gradient is made smaller."""
        return True

    @abstractmethod
    def update(self, image: Tensor, original: Tensor, gradient: Tensor, state: State) -> Tensor:
        """The next iterate.

        Args:
            image, original, gradient: shape (N, C, H, W), float32; images in [0, 1].
            state: what `start` made; its entries may be replaced.
        """


class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018): the attack of the ACE paper.

    Args:
        iterations: number of updates.
        step_size: in grey levels; for ``l2`` the Euclidean length of a step.
        epsilon: radius of the ball around the original, in grey levels of the norm; None leaves only the [0, 1] range.
        norm: ``linf`` steps along the gradient's sign, ``l2`` along the gradient.
    """

    def __init__(
        self,
        iterations: int = 50,
        step_size: float = 1.0,
        epsilon: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
    ) -> None:
        super().__init__(iterations, step_size)
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon must be positive (grey levels), got {epsilon}")
        if norm not in ("linf", "l2"):
            raise ValueError(f"unknown norm {norm!r}: use linf or l2")
        self.epsilon = math.inf if epsilon is None else epsilon / 255
        self.norm = norm

    def takes_weights(self) -> bool:
        return self.norm == "l2"

    def update(self, image: Tensor, original: Tensor, gradient: Tensor, state: State) -> Tensor:
        if self.norm == "l2":
            return self._l2_step(image, original, gradient)
        # The order of these operations decides the sign of the l1 term where x' is within rounding of x.
        image = image - self.step * gradient.sign()
        image = image.minimum(original + self.epsilon).maximum(original - self.epsilon)
        return image.clamp(0, 1)

    def _l2_step(self, image: Tensor, original: Tensor, gradient: Tensor) -> Tensor:
        change = image - self.step * gradient / _l2_norm(gradient).clamp(min=1e-12) - original
        change = change * (self.epsilon / _l2_norm(change).clamp(min=1e-12)).clamp(max=1)
        return (original + change).clamp(0, 1)


class ProximalGradient(Attack):
    """Proximal gradient descent with momentum, for the class loss plus an l1 penalty of the change.

    The gradient, scaled to a largest absolute value of 1, moves the change x' - x; soft thresholding, the proximal
    operator of the l1 norm (Parikh and Boyd 2014, section 6.5.2), then takes ``threshold`` off every entry. So the
    change is sparse from the first iteration, and an image may stop as soon as its decision has flipped.

    Args:
        iterations: most updates.
        step_size: how far the steepest entry moves in one step without momentum, in grey levels.
        threshold: what is taken off each entry of the change in each step, in grey levels.
        momentum: share of the last direction that is kept.
        stop: when an image is done; None for the last iteration.
    """

    proximal = True

    def __init__(
        self,
        iterations: int = 50,
        step_size: float = 51.0,
        threshold: float = 2.5,
        momentum: float = 0.5,
        stop: Stop | None = Stop(),
    ) -> None:
        super().__init__(iterations, step_size)
        if threshold < 0:
            raise ValueError(f"threshold must not be negative (grey levels), got {threshold}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.threshold, self.momentum, self.stop = threshold / 255, momentum, stop

    def start(self, original: Tensor) -> State:
        return {"direction": torch.zeros_like(original)}

    def update(self, image: Tensor, original: Tensor, gradient: Tensor, state: State) -> Tensor:
        largest = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1).clamp(min=1e-12)
        state["direction"] = self.momentum * state["direction"] + gradient / largest
        change = softshrink(image - original - self.step * state["direction"], self.threshold)
        return (original + change).clamp(0, 1)


def _l2_norm(values: Tensor) -> Tensor:
    """Euclidean norm of each image, shape (N, 1, 1, 1)."""
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class GradientDescent(Attack):
    """Plain gradient descent.

    Args:
        iterations: number of updates.
        step_size: factor of the raw gradient, in grey levels.
    """

    def update(self, image: Tensor, original: Tensor, gradient: Tensor, state: State) -> Tensor:
        return (image - self.step * gradient).clamp(0, 1)


class CarliniWagner(Attack):
    """Gradient descent on w, where x' follows (tanh(w) + 1) / 2 (Carlini and Wagner 2017), with their margin loss.

    The iterate is the original plus the *change* of that function, so a pixel without gradient keeps its exact value.
    w starts within [-3, 3], where black and white pixels still have a slope.

    Args:
        iterations: number of updates.
        step_size: factor of the gradient with respect to w, in grey levels.
        confidence: lead of the target, in logits, at which the class loss stops falling (kappa in their paper).
    """

    class_loss = "margin"

    def __init__(self, iterations: int = 50, step_size: float = 1.0, confidence: float = 0.0) -> None:
        super().__init__(iterations, step_size)
        if confidence < 0:
            raise ValueError(f"confidence must not be negative (logits), got {confidence}")
        self.confidence = confidence

    def start(self, original: Tensor) -> State:
        w = (original * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6).atanh().clamp(-3, 3)
        return {"w": w, "start": w.clone()}

    def update(self, image: Tensor, original: Tensor, gradient: Tensor, state: State) -> Tensor:
        slope = (1 - state["w"].tanh().square()) / 2
        state["w"] = state["w"] - self.step * gradient * slope
        return (original + (state["w"].tanh() - state["start"].tanh()) / 2).clamp(0, 1)
