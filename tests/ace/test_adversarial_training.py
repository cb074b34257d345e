import pytest
import torch

from ace.adversarial_training import PGDTraining

WEIGHTS = torch.tensor([[[[1.0, -2.0], [0.5, 0.0]]]])
GREY = 1 / 255


def loss(images):
    return (WEIGHTS * images).sum()


@pytest.mark.parametrize("start", [-1.0, 0.0, 1.0])
def test_steps_climb_the_loss_to_the_edge_of_the_ball(start):
    images = torch.full((2, 1, 2, 2), 0.5)
    found = PGDTraining(epsilon=8, step_size=4, iterations=5).perturb(loss, images, torch.full_like(images, start))
    expected = 0.5 + 8 * GREY * torch.tensor([[1.0, -1.0], [1.0, start]])  # no gradient: no step from the start
    torch.testing.assert_close(found, expected.expand_as(found))
    assert not found.requires_grad


def test_few_steps_go_as_far_as_they_reach_from_the_start():
    images = torch.full((1, 1, 2, 2), 0.5)
    found = PGDTraining(epsilon=8, step_size=1.5, iterations=2).perturb(loss, images, torch.zeros_like(images))
    torch.testing.assert_close(found[0, 0], 0.5 + 3 * GREY * torch.tensor([[1.0, -1.0], [1.0, 0.0]]))


def test_images_stay_in_their_range():
    images = torch.tensor([[[[1.0, 0.0], [0.99, 0.5]]]])
    found = PGDTraining().perturb(loss, images, torch.ones_like(images))
    assert found[0, 0, 0].tolist() == [1.0, 0.0]
    assert found.min() >= 0
    assert found.max() <= 1


def test_gradients_are_taken_where_they_are_switched_off():
    images = torch.full((1, 1, 2, 2), 0.5)
    with torch.no_grad():
        found = PGDTraining().perturb(loss, images, torch.zeros_like(images))
    assert loss(found) > loss(images)


def test_gradients_too_small_for_half_precision_are_not_lost():
    images = torch.full((1, 1, 2, 2), 0.5)
    faint = PGDTraining(epsilon=8, step_size=8, iterations=1).perturb(
        lambda point: (point.half() * 2.0**-30).float().sum(), images, torch.zeros_like(images)
    )
    torch.testing.assert_close(faint, images + 8 * GREY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be positive"),
        ({"step_size": -1}, "step_size must be positive"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PGDTraining(**settings)
