"""Gradients of the objective against the published implementation, per image and by hand."""

import math

import pytest
import torch
from torch import nn

from ace.decision import AwayFrom, BinaryDecision, ClassDecision
from ace.objective import Distance, Objective, _normalising_scale

DECISIONS = {"binary": BinaryDecision(), "multi": ClassDecision(["a", "b", "c", "d"])}


def assert_gradient(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("kind", ["binary", "multi"])
def test_class_gradients_equal_the_reference(kind, reference, classifier, make_filter):
    case = reference(f"d_attack_{kind}")
    x, target, ones = case["x"], case["target"].long(), torch.ones(2)
    filtered = Objective(classifier(kind), DECISIONS[kind], make_filter(), Distance(l1=0))
    direct = Objective(classifier(kind), DECISIONS[kind], None, Distance(l1=0))
    for index in range(2):
        row = slice(index, index + 1)
        at_start = filtered.evaluate(x[row], x[row], target[row], ones[row])
        assert_gradient(at_start.gradient, case[f"img{index}_grad_cls_it0"])
        unfiltered = direct.evaluate(x[row], x[row], target[row], ones[row])
        assert_gradient(unfiltered.gradient, case[f"img{index}_grad_noddpm_it0"])
    shifted = filtered.evaluate(case["img0_x_shift"], x[:1], target[:1], ones[:1])
    assert_gradient(shifted.gradient, case["img0_grad_cls_shift"])


@pytest.mark.parametrize("kind", ["binary", "multi"])
def test_a_batch_is_summed_where_the_original_averages_it(kind, reference, classifier, make_filter):
    case = reference(f"d_attack_{kind}")
    objective = Objective(classifier(kind), DECISIONS[kind], make_filter(), Distance())
    gradient = objective.evaluate(case["x"], case["x"], case["target"].long(), torch.ones(2)).gradient
    assert_gradient(gradient, 2 * case["batch2_grad_cls_it0"])


@pytest.mark.parametrize(("norm", "weight"), [("l1", 0.001), ("l2", 0.05)])
def test_distance_gradients_equal_the_reference(norm, weight, reference):
    case = reference("d_attack_binary")
    distance = Distance(**{"l1": 0.0, "l2": 0.0, norm: weight})
    for index in range(2):
        original = case["x"][index : index + 1]
        shifted = case[f"img{index}_x_shift"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(shifted, original).sum(), shifted)
        assert_gradient(gradient, case[f"img{index}_grad_dist_{norm}_shift"])


def test_distances_by_hand():
    original = torch.full((2, 1, 2, 2), 0.5)
    image = original.clone()
    image[0, 0, 0] += torch.tensor([0.3, -0.4])
    torch.testing.assert_close(Distance(l1=2.0)(image, original), torch.tensor([1.4, 0.0]))
    torch.testing.assert_close(Distance(l1=0.0, l2=2.0)(image, original), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(Distance(l1=2.0, l2=2.0)(image, original), torch.tensor([2.4, 0.0]))
    assert torch.equal(Distance(l1=0.0, l2=0.0)(image, original), torch.zeros(2))


@pytest.mark.parametrize("norms", [{"l1": 1.0}, {"l1": 0.0, "l2": 1.0}, {"l1": 0.0}])
def test_an_unchanged_image_has_no_distance_gradient(norms):
    original = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    blind = Objective(lambda images: 0 * images.flatten(1).sum(1), BinaryDecision(), None, Distance(**norms))
    gradient = blind.evaluate(original, original, torch.ones(1).long(), torch.ones(1)).gradient
    assert torch.equal(gradient, torch.zeros_like(original))


def test_schedules_by_hand():
    iterations = torch.arange(5.0)
    factor = {name: Distance(schedule=name).factor(iterations, 5) for name in ("constant", "linear", "step")}
    assert factor["constant"].tolist() == [1, 1, 1, 1, 1]
    torch.testing.assert_close(factor["linear"], torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert factor["step"].tolist() == [0, 0, 0, 1, 1]


def test_the_factor_scales_each_distance_of_the_batch_and_not_the_class_loss():
    objective = Objective(lambda images: images.flatten(1).sum(1), BinaryDecision(), None, Distance(l1=0.25))
    original = torch.full((2, 1, 1, 1), 0.5)
    factor, target = torch.tensor([0.0, 2.0]), torch.tensor([1, 1])
    evaluation = objective.evaluate(original + 0.1, original, target, factor)
    slope = torch.sigmoid(torch.tensor(0.6)) - 1
    torch.testing.assert_close(evaluation.gradient.flatten(), torch.stack([slope, slope + 0.5]))
    torch.testing.assert_close(evaluation.class_loss, -torch.sigmoid(torch.tensor([0.6, 0.6])).log())
    assert not evaluation.class_loss.requires_grad
    assert not evaluation.gradient.requires_grad


@pytest.mark.parametrize(("kind", "class_loss"), [("binary", "cross_entropy"), ("multi", "margin")])
def test_a_batch_has_the_gradients_of_its_images_alone(kind, class_loss, reference, classifier, make_filter):
    case = reference(f"d_attack_{kind}")
    shift = torch.linspace(-0.1, 0.1, 4).view(4, 1, 1, 1, 1)
    original = (case["x"] + shift).clamp(0, 1).flatten(0, 1)
    image = (original + 0.02).clamp(0, 1)
    target = torch.tensor([0, 1] * 4) if kind == "binary" else torch.tensor([0, 1, 2, 3] * 2)
    objective = Objective(
        classifier(kind), DECISIONS[kind], make_filter(steps=2), Distance(), class_loss, confidence=50.0
    )
    together = objective.evaluate(image, original, target, torch.ones(8))
    for row in range(8):
        pick = slice(row, row + 1)
        alone = objective.evaluate(image[pick], original[pick], target[pick], torch.ones(1))
        error = (together.gradient[pick] - alone.gradient).abs().max()
        assert error < 1e-5 * alone.gradient.abs().max()
        torch.testing.assert_close(together.class_loss[pick], alone.class_loss, rtol=1e-5, atol=1e-6)


def test_one_broken_image_leaves_the_others_untouched(classifier, reference):
    case = reference("d_attack_binary")
    objective = Objective(classifier("binary"), BinaryDecision(), None, Distance())
    broken = case["x"].clone()
    broken[0, 0, 0, 0] = torch.nan
    target = case["target"].long()
    evaluation = objective.evaluate(broken, case["x"], target, torch.ones(2))
    alone = objective.evaluate(case["x"], case["x"], target, torch.ones(2))
    assert evaluation.class_loss.isfinite().tolist() == [False, True]
    torch.testing.assert_close(evaluation.gradient[1], alone.gradient[1])


def test_untargeted_turns_the_class_loss_around_and_keeps_the_distance(classifier, reference):
    case = reference("d_attack_multi")
    decision, target = DECISIONS["multi"], case["target"]
    image = (case["x"] + 0.01).clamp(0, 1)
    for class_loss in ("cross_entropy", "margin"):
        towards, away, apart = (
            Objective(classifier("multi"), kind, None, Distance(l1=l1), class_loss, 50.0)
            .evaluate(image, case["x"], target, torch.ones(2))
            .gradient
            for kind, l1 in ((decision, 0), (AwayFrom(decision), 0), (AwayFrom(decision), 0.001))
        )
        torch.testing.assert_close(away, -towards)
        torch.testing.assert_close(apart - away, 0.001 * (image - case["x"]).sign(), rtol=0, atol=1e-7)


def test_margin_loss_stops_at_the_confidence_and_leaves_the_logits_alone():
    seen = []

    def classifier(images):
        logits = images.flatten(1) * 10
        seen.append(logits)
        return logits

    original = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.9, 0.8]]).view(2, 3, 1, 1)
    target = torch.tensor([0, 0])
    for confidence, expected in ((0.0, [0.0, 7.0]), (5.0, [-5.0, 7.0]), (9.0, [-7.0, 7.0])):
        objective = Objective(classifier, ClassDecision(["a", "b", "c"]), None, Distance(), "margin", confidence)
        evaluation = objective.evaluate(original, original, target, torch.ones(2))
        torch.testing.assert_close(evaluation.class_loss, torch.tensor(expected))
        flat = confidence < 7
        assert (evaluation.gradient[0] == 0).all() == flat
        assert evaluation.gradient[1].flatten().tolist() == [-10.0, 10.0, 0.0]
    assert all(logits.isfinite().all() for logits in seen)


def test_the_loss_is_in_float32_whatever_the_classifier_computes_in():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(torch.bfloat16)
    objective = Objective(lambda x: classifier(x.bfloat16()), ClassDecision(["a", "b"]), None, Distance())
    original = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    evaluation = objective.evaluate(original, original, torch.ones(2).long(), torch.ones(2))
    assert evaluation.gradient.dtype == evaluation.class_loss.dtype == torch.float32
    by_hand = -classifier(original.bfloat16()).float().log_softmax(1)[:, 1]
    torch.testing.assert_close(evaluation.class_loss, by_hand, rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", [{"l1": -0.1}, {"l2": -1.0}, {"schedule": "cosine"}])
def test_bad_distances_are_named(settings):
    with pytest.raises(ValueError, match=str(next(iter(settings.values())))):
        Distance(**settings)


def test_the_probability_is_that_of_the_filtered_image(make_filter):
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target, filter_ = torch.tensor([0, 1, 1]), make_filter()

    def bright(images):
        return 5 * (images.mean((1, 2, 3)) - 0.5)

    found = Objective(bright, BinaryDecision(), filter_, Distance()).evaluate(image, image, target, torch.ones(3))
    expected = torch.sigmoid(bright(filter_(image)))
    torch.testing.assert_close(found.probability, torch.where(target == 1, expected, 1 - expected))


@pytest.mark.parametrize("passes", [0, 6])
def test_passes_out_of_range_are_named(passes, make_filter):
    with pytest.raises(ValueError, match=rf"passes must be in \[1, 5\], the filter's steps, got {passes}"):
        Objective(lambda x: x, BinaryDecision(), make_filter(), Distance(), passes=passes)


@pytest.mark.parametrize("largest", [1.0, 0.75, 0.5, 1e-20, 3e38, 2.0**-126, 1e-40, 0.0])
def test_the_scale_brings_the_largest_entry_below_one_by_a_power_of_two(largest):
    gradient = torch.tensor([largest, -largest / 3, 0.0]).view(1, 3, 1, 1)
    scale = _normalising_scale(gradient)
    assert math.frexp(scale.item())[0] == 0.5
    if largest >= 2.0**-126:
        assert 0.5 <= (gradient * scale).abs().max() < 1
    assert (gradient * scale / scale).tolist() == gradient.tolist()
