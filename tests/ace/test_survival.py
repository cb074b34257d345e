"""Decisions behind the filter."""

import pytest
import torch
from diffusers import DDPMScheduler

from ace.decision import AttributeDecision, BinaryDecision
from ace.diffusion_filter import DiffusionFilter
from ace.noise import draw, generator
from ace.survival import survives

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = list("abcdef")


def means(images):
    """A logit a channel: is it brighter than a half?"""
    return images.mean((2, 3)) - 0.5


@pytest.fixture
def noisy(toy_unet):
    """A filter that takes no noise out, so that it keeps some decisions only."""
    return DiffusionFilter(toy_unet(), DDPMScheduler(), steps=25, respacing=50)


def test_every_decision_survives_a_filter_that_changes_nothing(identity_filter):
    kept = survives(means, [AttributeDecision(0), AttributeDecision(2)], identity_filter, IMAGES, IDS)
    assert kept.shape == (2, 6)
    assert kept.dtype == torch.bool
    assert kept.all()


def test_survival_is_a_comparison_before_and_behind_the_filter(noisy):
    kept = survives(means, [AttributeDecision(1)], noisy, IMAGES, IDS, seed=3)
    streams = [generator(3, id, "filter check") for id in IDS]
    filtered = noisy(IMAGES, draw(streams, 25, (3, 8, 8), "cpu"))
    assert torch.equal(kept[0], (means(IMAGES)[:, 1] > 0) == (means(filtered)[:, 1] > 0))
    assert 0 < kept.float().mean() < 1, "the test tells nothing"


def test_an_image_survives_alone_as_in_company(noisy):
    decision = BinaryDecision()
    together = survives(lambda images: means(images)[:, 0], [decision], noisy, IMAGES, IDS)
    alone = [
        survives(lambda images: means(images)[:, 0], [decision], noisy, IMAGES[row : row + 1], IDS[row : row + 1])
        for row in reversed(range(6))
    ]
    assert torch.equal(together, torch.cat(alone[::-1], dim=1))
