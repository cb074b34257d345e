"""Size, normalisation and choice of logits: what every classifier owns."""

import pytest
import torch
from torch import nn

from ace.models.normalised import NormalisedClassifier


def classifier(names="abc", task="multiclass", network=None, **options):
    options = {"mean": (0.5,), "std": (0.25,)} | options
    made = NormalisedClassifier(list(names), task, **options)
    made.network = network or nn.Flatten()
    return made


def test_the_network_sees_normalised_images():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert classifier()(images).tolist() == [[-2, 0, 2]]


def test_a_network_of_one_channel_sees_rgb_in_grey():
    grey = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    images = grey.repeat(1, 3, 1, 1).requires_grad_()
    logits = classifier()(images)
    torch.testing.assert_close(logits, classifier()(grey), rtol=0, atol=1e-3)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert (gradient > 0).all()


def test_logits_are_chosen_in_the_order_that_is_asked_for():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert classifier("ab", outputs=[2, 0])(images).tolist() == [[2, -2]]
    assert classifier("ab", "binary", outputs=[1])(images).tolist() == [[0]]


def test_images_are_resized_inside_the_graph():
    images = torch.rand(2, 1, 8, 6, requires_grad=True)
    made = classifier("abcdef", size=(2, 3), mean=(0.0,), std=(1.0,))
    logits = made(images)
    # Shrunk with anti-aliasing: every pixel counts, and the mean brightness stays.
    torch.testing.assert_close(logits.mean(1), images.mean((1, 2, 3)), rtol=0.05, atol=0)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert (gradient > 0).all()
    small = torch.rand(1, 1, 2, 3)
    assert torch.equal(made(small), small.flatten(1))


def test_a_single_logit_may_lack_its_dimension():
    made = classifier("ab", "binary", network=lambda images: images.mean((1, 2, 3)))
    assert made(torch.rand(4, 1, 2, 2)).shape == (4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "regression"}, "unknown task 'regression'"),
        ({"std": (0.0,)}, "one positive entry a channel"),
        ({"size": (0, 3)}, "size must be a height and a width"),
        ({"outputs": [0, 1]}, "must be 3 indices of logits"),
        ({"outputs": [0, 1, -1]}, "must be 3 indices of logits"),
        ({"task": "binary"}, "two class names"),
    ],
)
def test_arguments_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (classifier("ab"), r"gives 3 logits, but \['a', 'b'\] are named"),
        (classifier("ab", outputs=[0, 3]), r"outputs \[0, 3\] do not exist, the network gives 3"),
        (classifier(network=nn.Identity()), r"must give logits of shape \(N, K\), it gives \(1, 1, 1, 3\)"),
        (classifier(network=lambda images: (images,)), "it gives tuple"),
        (classifier(mean=(0.5,) * 2, std=(0.5,) * 2), "the images have 1 channels, the classifier takes 2"),
    ],
)
def test_outputs_that_are_not_the_logits_that_are_named(made, message):
    with pytest.raises(ValueError, match=message):
        made(torch.rand(1, 1, 1, 3))
