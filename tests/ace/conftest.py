"""Reference numbers of the published implementation, its networks, and toy networks with known answers."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from ace.attacks import Attack
from ace.diffusion_filter import DiffusionFilter
from ace.models.unet import load_guided_diffusion
from ace.objective import Objective

REFERENCE = Path(__file__).parents[1] / "reference"

CELEBA_FLAGS = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "16,8",
    "learn_sigma": True,
    "num_heads": 4,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "diffusion_steps": 500,
}


class SmallClassifier(nn.Module):
    """The classifier of the reference values."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(512, len(weights["fc.bias"]))
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(nn.functional.avg_pool2d(self.conv(images).relu(), 4).flatten(1))


class ToyUNet(nn.Module):
    """A denoiser in closed form: ``gain * x + weight * cos(timestep / 10)``, further outputs a part of it.

    With gain 0 and weight 0 it predicts no noise at all, and a filter without noise is the identity.
    """

    def __init__(self, gain: float = 0.0, weight: float = 0.0, channels: int = 3, out_channels: int = 0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.weight = nn.Parameter(torch.tensor(weight))
        self.config = SimpleNamespace(in_channels=channels, out_channels=out_channels or channels)

    def forward(self, x: Tensor, timestep: Tensor) -> SimpleNamespace:
        output = self.gain * x + self.weight * torch.cos(torch.as_tensor(timestep) / 10)
        copies = self.config.out_channels // self.config.in_channels
        return SimpleNamespace(sample=torch.cat([output / (1 + copy) for copy in range(copies)], dim=1))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums in a fixed order, and no fight over cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _load(name: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(scope="session")
def reference():
    """``reference("c_filter")`` gives the arrays of one file."""
    return _load


@pytest.fixture(scope="session")
def celeba_flags() -> dict:
    return dict(CELEBA_FLAGS)


@pytest.fixture(scope="session")
def celeba():
    """UNet and scheduler of the reference filter."""
    return load_guided_diffusion(_load("a_unet_weights"), **CELEBA_FLAGS)


@pytest.fixture
def make_filter(celeba):
    """The reference filter: 5 of 50 respaced steps, no noise; keyword arguments change it."""

    def make(**settings) -> DiffusionFilter:
        return DiffusionFilter(*celeba, **{"steps": 5, "respacing": 50, "stochastic": False, **settings})

    return make


@pytest.fixture(scope="session")
def tiny_unet() -> UNet2DModel:
    """A network of diffusers for 16x16 images, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )


@pytest.fixture
def toy_unet() -> type[ToyUNet]:
    return ToyUNet


@pytest.fixture
def identity_filter() -> DiffusionFilter:
    return DiffusionFilter(ToyUNet(), DDPMScheduler(), steps=2, respacing=10, stochastic=False)


@pytest.fixture(scope="session")
def classifier():
    """``classifier("binary")`` or ``classifier("multi")`` of the reference values."""

    @cache
    def make(kind: str) -> SmallClassifier:
        weights = {
            key.removeprefix(f"{kind}."): value for key, value in _load("d_classifiers").items() if key.startswith(kind)
        }
        return SmallClassifier(weights).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def run_attack():
    """The attack as a plain loop, without the pool of slots; gives the original and every iterate."""

    def run(objective: Objective, attack: Attack, original: Tensor, target: Tensor) -> list[Tensor]:
        images, state = [original], attack.start(original)
        for iteration in range(attack.iterations):
            factor = objective.distance.factor(torch.full((len(original),), float(iteration)), attack.iterations)
            gradient = objective.evaluate(images[-1], original, target, factor).gradient
            images.append(attack.update(images[-1], original, gradient, state))
        return images

    return run
