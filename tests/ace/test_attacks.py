"""Attacks against the published implementation, closed forms, and the properties they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.attacks import PGD, CarliniWagner, GradientDescent, ProximalGradient
from ace.decision import AwayFrom, BinaryDecision, ClassDecision
from ace.objective import Distance, Objective

DECISIONS = {"binary": BinaryDecision(), "multi": ClassDecision(["a", "b", "c", "d"])}

# name in the reference: (iterations, distance, settings of PGD, with the filter)
VARIANTS = {
    "pgd5_noddpm": (5, {}, {}, False),
    "pgd5_eps2": (5, {}, {"epsilon": 2}, True),
    "pgd5_schedstep": (5, {"schedule": "step"}, {}, True),
    "pgd5_schedlinear": (5, {"schedule": "linear", "l1": 0.005}, {}, True),
    "pgd5_l2": (5, {"l1": 0.0, "l2": 0.05}, {}, True),
    "pgd5_l1l2": (5, {"l2": 0.05}, {}, True),
}


def assert_pixels(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def images(rows: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "index", "counts"), [("binary", 0, (1, 2, 5, 20)), ("multi", 1, (1, 2, 5))])
def test_pgd_equals_the_reference_pixel_for_pixel(kind, index, counts, reference, classifier, make_filter, run_attack):
    case = reference(f"d_attack_{kind}")
    x, target = case["x"][index : index + 1], case["target"][index : index + 1].long()
    objective = Objective(classifier(kind), DECISIONS[kind], make_filter(), Distance(l1=0.001))
    iterates = run_attack(objective, PGD(counts[-1]), x, target)
    for count in counts:
        assert_pixels(iterates[count], case[f"img{index}_pgd{count}"])


@pytest.mark.parametrize(("kind", "name"), [*(("binary", name) for name in VARIANTS), ("multi", "pgd5_noddpm")])
def test_every_variant_of_pgd_equals_the_reference(kind, name, reference, classifier, make_filter, run_attack):
    case = reference(f"d_attack_{kind}")
    iterations, distance, settings, filtered = VARIANTS[name]
    objective = Objective(classifier(kind), DECISIONS[kind], make_filter() if filtered else None, Distance(**distance))
    attack = PGD(iterations, **settings)
    iterates = run_attack(objective, attack, case["x"][:1], case["target"][:1].long())
    assert_pixels(iterates[-1], case[f"img0_{name}"])


def test_untargeted_pgd_equals_the_reference(reference, classifier, make_filter, run_attack):
    case, decision, filter_ = reference("d_attack_multi"), DECISIONS["multi"], make_filter()
    x = case["x"][:1]
    leave = decision.prediction(classifier("multi")(filter_(x)))
    objective = Objective(classifier("multi"), AwayFrom(decision), filter_, Distance())
    assert_pixels(run_attack(objective, PGD(5), x, leave)[-1], case["img0_pgd5_untargeted"])


def test_gradient_descent_equals_the_reference(reference, classifier, make_filter, run_attack):
    case = reference("d_attack_binary")
    x, target = case["x"][:1], case["target"][:1].long()
    objective = Objective(classifier("binary"), BinaryDecision(), make_filter(), Distance())
    iterates = run_attack(objective, GradientDescent(5, 255.0), x, target)
    assert_pixels(iterates[-1], case["img0_gd5_step1"])
    assert not torch.equal(iterates[-1], x)


@pytest.mark.parametrize(("kind", "factor"), [("binary", 2), ("multi", 1)])
def test_carlini_wagner_follows_the_reference_away_from_black_and_white(
    kind, factor, reference, classifier, make_filter, run_attack
):
    """The original starts black and white pixels elsewhere, and gives the iterate before its last update."""
    case = reference(f"d_attack_{kind}")
    x, target = case["x"][:1], case["target"][:1].long()
    network = classifier(kind)  # the binary margin of the original is twice the logit
    objective = Objective(
        lambda image: factor * network(image),
        DECISIONS[kind],
        make_filter(),
        Distance(),
        CarliniWagner.class_loss,
    )
    iterates = run_attack(objective, CarliniWagner(5, step_size=255), x, target)
    grey = (x - 0.5).abs() < 0.49
    theirs = (case["img0_cw5_step1"] - x)[grey]
    ours = (iterates[4] - x)[grey]
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    assert torch.equal(iterates[0], x)
    assert not torch.equal(iterates[1], x)
    assert not torch.equal(iterates[5], iterates[4])


def linear_objective(weights: torch.Tensor, filter_, l1: float) -> Objective:
    return Objective(lambda x: (x * weights).flatten(1).sum(1), BinaryDecision(), filter_, Distance(l1=l1))


@pytest.mark.parametrize("through_the_filter", [True, False])
def test_pgd_on_a_linear_classifier_in_closed_form(through_the_filter, identity_filter, run_attack):
    """A pixel moves as long as its share of the class gradient exceeds lambda; the others come back."""
    weights = torch.tensor([1.0, -1.0, 0.0, 0.001]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    original = images(2, size=2) * 0.4 + 0.3
    filter_ = identity_filter if through_the_filter else None
    target = torch.tensor([0, 1])
    objective = linear_objective(weights, filter_, l1=0.01)
    for count, iterate in enumerate(run_attack(objective, PGD(2, step_size=3.0), original, target)):
        change = (iterate - original) * torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1) * 255 / 3
        strong = torch.tensor([count, -count]).expand(2, 3, 2)
        weak = torch.tensor([0, count % 2]).expand(2, 3, 2)
        torch.testing.assert_close(change[:, :, 0], strong.float(), rtol=0, atol=1e-3)
        torch.testing.assert_close(change[:, :, 1], weak.float(), rtol=0, atol=1e-3)
    assert torch.equal(iterate[:, :, 1, 0], original[:, :, 1, 0])


def test_gradient_descent_on_a_linear_classifier_in_closed_form(run_attack):
    weights, original = torch.full((1, 3, 2, 2), 0.1), torch.full((1, 3, 2, 2), 0.5)
    objective = linear_objective(weights, None, l1=0.0)
    by_hand = original.clone()
    for iterate in run_attack(objective, GradientDescent(3, step_size=51.0), original, torch.tensor([1]))[1:]:
        by_hand = by_hand + 0.2 * 0.1 * (1 - torch.sigmoid((by_hand * weights).sum()))
        torch.testing.assert_close(iterate, by_hand)


def test_carlini_wagner_by_hand():
    attack, original = CarliniWagner(2, step_size=25.5), torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    w = torch.tensor([-3.0, torch.atanh(torch.tensor(-0.5)), 0.0, 3.0]).view(1, 1, 2, 2)
    gradient = torch.tensor([-40.0, 2.0, -3.0, 60.0]).view(1, 1, 2, 2)
    state, image, start = attack.start(original), original, w.tanh()
    torch.testing.assert_close(state["w"], w)
    for _ in range(2):
        image = attack.update(image, original, gradient, state)
        w = w - 0.1 * gradient * (1 - w.tanh() ** 2) / 2
        torch.testing.assert_close(image, original + (w.tanh() - start) / 2)


@pytest.mark.parametrize(
    "attack",
    [PGD(3), PGD(3, norm="l2"), GradientDescent(3, 255.0), CarliniWagner(3, 255.0), ProximalGradient(3, threshold=1)],
)
def test_without_gradient_every_pixel_stays_exactly_in_place(attack):
    original = images(2)
    original[:, :, 0], original[:, :, 1] = 0, 1  # black and white
    image, state = original, attack.start(original)
    for _ in range(attack.iterations):
        image = attack.update(image, original, torch.zeros_like(original), state)
    assert torch.equal(image, original)


@given(
    epsilon=st.floats(0.5, 400),
    step_size=st.floats(0.1, 300),
    norm=st.sampled_from(["linf", "l2"]),
    seed=st.integers(0, 1000),
)
def test_pgd_stays_in_the_ball_and_in_the_range(epsilon, step_size, norm, seed):
    original = images(2, seed=seed)
    attack, image = PGD(4, step_size, epsilon, norm), original
    for iteration in range(4):
        gradient = images(2, seed=seed + iteration + 1) - 0.5
        image = attack.update(image, original, gradient, {})
        change = (image - original).flatten(1) * 255
        size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert (size <= epsilon * (1 + 1e-5) + 1e-4).all()
        assert image.min() >= 0
        assert image.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_has_no_ball_unless_one_is_given(norm):
    original, gradient = torch.full((1, 3, 8, 8), 0.5), images(1) - 0.5
    free, bound = PGD(3, 5000.0, norm=norm), PGD(3, 5000.0, 100.0, norm)
    one, other = (attack.update(original, original, gradient, {}) for attack in (free, bound))
    assert torch.equal(one, PGD(3, 5000.0, None, norm).update(original, original, gradient, {}))
    step = gradient.sign() if norm == "linf" else gradient / gradient.norm()
    torch.testing.assert_close(one, (original - 5000 / 255 * step).clamp(0, 1))
    assert (one - other).abs().max() > 0.05


def test_l2_steps_have_the_given_length_and_the_projection_the_given_radius():
    original = torch.full((2, 3, 8, 8), 0.5)
    gradient = images(2) - 0.5
    gradient[1] *= 1e-6  # the length of the gradient does not matter, its company neither
    attack = PGD(3, step_size=10.0, epsilon=25.0, norm="l2")
    image = original
    for length in (10.0, 20.0, 25.0):
        image = attack.update(image, original, gradient, {})
        change = (image - original) * 255
        torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((2,), length), rtol=1e-4, atol=0)
        direction = -gradient / gradient.flatten(1).norm(dim=1).view(2, 1, 1, 1)
        torch.testing.assert_close(change, length * direction, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "attack",
    [PGD(10), PGD(10, norm="l2"), GradientDescent(10, 255.0), CarliniWagner(10, 255.0), ProximalGradient(10, 5.0, 0.5)],
)
def test_a_batch_of_8_ends_like_eight_batches_of_1(attack, make_filter, run_attack):
    original = images(8, size=8)
    weights = images(1, size=8, seed=1) * 0.2 - 0.1
    objective = Objective(
        lambda x: (x * weights).flatten(1).sum(1),
        BinaryDecision(),
        make_filter(steps=1),
        Distance(),
        attack.class_loss,
        9,
    )
    target = torch.tensor([0, 1] * 4)
    together = run_attack(objective, attack, original, target)[-1]
    alone = torch.cat([run_attack(objective, attack, original[i : i + 1], target[i : i + 1])[-1] for i in range(8)])
    same = (together - alone).abs() < 1e-6
    assert same.float().mean() >= 0.999
    assert not torch.equal(together, original)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (PGD, {"iterations": 0}, "iterations.*0"),
        (GradientDescent, {"iterations": -1}, "iterations.*-1"),
        (CarliniWagner, {"step_size": 0.0}, "step_size.*0.0"),
        (PGD, {"step_size": float("nan")}, "step_size.*nan"),
        (PGD, {"epsilon": -2.0}, "epsilon.*-2.0"),
        (PGD, {"epsilon": 0.0}, "epsilon.*0.0"),
        (PGD, {"norm": "l1"}, "'l1'.*linf or l2"),
    ],
)
def test_bad_settings_are_named(attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(**settings)


def test_proximal_gradient_by_hand():
    attack = ProximalGradient(step_size=25.5, threshold=12.75, momentum=0.5)  # 0.1 and 0.05
    original = torch.tensor([0.5, 0.5, 0.5, 0.98]).view(1, 1, 2, 2)
    gradient = torch.tensor([4.0, -1.0, 0.0, -4.0]).view(1, 1, 2, 2)
    state = attack.start(original)
    first = attack.update(original, original, gradient, state)
    # Scaled: 1, -1/4, 0, -1; steps of 0.1, less 0.05; the second is taken off whole, the last one stops at white.
    assert_pixels(first.flatten(), torch.tensor([0.45, 0.5, 0.5, 1.0]))
    second = attack.update(first, original, gradient, state)
    # The direction is 1.5 times as long: -0.05 - 0.15 + 0.05; -0.25 * 1.5 * 0.1 = 0.0375 is still below 0.05.
    assert_pixels(second.flatten(), torch.tensor([0.35, 0.5, 0.5, 1.0]))
    assert (second - original).flatten()[1:3].tolist() == [0, 0], "unchanged pixels keep their exact value"


def test_proximal_gradient_scales_each_image_on_its_own():
    attack, original = ProximalGradient(threshold=0), torch.full((2, 3, 4, 4), 0.5)
    gradient = torch.ones(2, 3, 4, 4) * torch.tensor([1.0, 1e-6]).view(2, 1, 1, 1)
    moved = attack.update(original, original, gradient, attack.start(original))
    assert_pixels(moved, torch.full((2, 3, 4, 4), 0.3))
