"""Networks to measure with stay as they are, and say which images they take."""

import pytest
import torch
from torch import nn

from ace.models.frozen import Encoder


@pytest.fixture
def encoder():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    return Encoder("tiny", network, lambda images: 2 * images - 1, dimension=4)


def test_it_stays_in_evaluation_mode_when_the_model_around_it_trains(encoder, images):
    nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]))


def test_it_is_frozen_and_its_features_need_no_gradient(encoder, images):
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(images).requires_grad


def test_features_are_differentiable_in_the_images(encoder, images):
    (gradient,) = torch.autograd.grad(encoder(images.requires_grad_()).sum(), images)
    assert gradient.abs().sum() > 0


def test_images_are_prepared_in_float32(encoder, images):
    features = encoder(images.half())
    assert features.shape == (2, encoder.dimension)
    assert features.dtype == torch.float32
    assert torch.equal(features, encoder.network(2 * images.half().float() - 1).flatten(1))


def test_8_bit_images_are_refused(encoder, images):
    with pytest.raises(TypeError, match=r"tiny takes floating-point images in \[0, 1\], got torch.uint8"):
        encoder(images.to(torch.uint8))


def test_grey_images_are_seen_in_rgb(encoder):
    grey = torch.rand(2, 1, 8, 8)
    assert torch.equal(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_images_of_another_shape_are_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"tiny takes images of shape \(N, 3, H, W\), got \("):
        encoder(torch.rand(shape))
