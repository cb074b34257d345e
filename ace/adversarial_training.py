"""Adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ace.attacks import PGD

GRADIENT_SCALE = 2.0**10  # or float16 would lose the small ones; sign steps do not change, in float32 in no bit


@dataclass(frozen=True)
class PGDTraining:
    """Train on the worst images in a ball around the given ones (Madry et al. 2018), found by l_inf PGD.

    Args:
        epsilon: radius of the ball, in grey levels.
        step_size: in grey levels.
        iterations: number of steps, from a random start in the ball.

    Raises:
        ValueError: a number that is not positive.
    """

    epsilon: float = 8.0
    step_size: float = 2.0
    iterations: int = 7

    def __post_init__(self) -> None:
        self._attack()

    def _attack(self) -> PGD:
        return PGD(self.iterations, self.step_size, self.epsilon)

    def perturb(self, loss: Callable[[Tensor], Tensor], images: Tensor, start: Tensor) -> Tensor:
        """Images in the ball, and in [0, 1], on which the loss is high.

        Args:
            loss: a number for a batch of images.
            images: shape (N, C, H, W), in [0, 1].
            start: where in the ball the search begins, from -1 to 1, in the shape of the images.
        """
        attack = self._attack()
        found = (images + self.epsilon / 255 * start).clamp(0, 1)
        for _ in range(self.iterations):
            with torch.enable_grad():
                point = found.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(point) * GRADIENT_SCALE, point)
            found = attack.update(found, images, -gradient, {})
        return found
