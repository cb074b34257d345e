"""The method as a whole: one image's result, whatever its company, and what is known of it."""

import doctest
import math
from dataclasses import fields

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ace.explainer
from ace import (
    PGD,
    BinaryDecision,
    ClassDecision,
    CorrectMistakes,
    CounterfactualExplainer,
    DiffusionFilter,
    Distance,
    Explanation,
    OtherSide,
    Pair,
    Refinement,
    RunnerUp,
    ToClass,
    Untargeted,
)
from ace.images import as_saved
from ace.inputs import content_ids
from ace.slots import Query

FIVE = ClassDecision(list("abcde"))
STEPS, ITERATIONS = 2, 3
IDS = [f"image-{number}" for number in range(7)]


def brightness(images: Tensor) -> Tensor:
    """One logit: is the image bright?"""
    return 50 * (images.mean((1, 2, 3)) - 0.5)


def brightest_strip(images: Tensor) -> Tensor:
    """Five logits: which of five horizontal strips is the brightest?"""
    return 40 * torch.stack([strip.mean((1, 2, 3)) for strip in images[..., :15, :].split(3, dim=2)], dim=1)


@pytest.fixture(scope="module")
def make_filter(tiny_unet):
    def make(**options) -> DiffusionFilter:
        return DiffusionFilter(tiny_unet, DDPMScheduler(), **{"steps": STEPS, "respacing": 50, **options})

    return make


@pytest.fixture(scope="module")
def make_explainer(make_filter):
    def make(classifier=brightness, decision=None, **options) -> CounterfactualExplainer:
        options = {"attack": PGD(iterations=ITERATIONS), "slots": 3, **options}
        options.setdefault("diffusion_filter", make_filter())
        return CounterfactualExplainer(classifier, decision or BinaryDecision(), **options)

    return make


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Seven images, on both sides of the decision and at different distances from it."""
    noise = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return (noise * 0.4 + torch.linspace(0.25, 0.35, 7).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture(scope="module")
def striped(images) -> Tensor:
    """Images of all five classes of `brightest_strip`; the class after is the second brightest."""
    images = images[:5] * 0.1
    for index in range(5):
        images[index, :, 3 * index : 3 * index + 3] += 0.5
        second = (index + 1) % 5
        images[index, :, 3 * second : 3 * second + 3] += 0.45
    return images


def assert_same(one: Explanation, other: Explanation) -> None:
    """All that is known is equal, bit for bit, except how long it took and what else was in memory."""
    for field in fields(Explanation):
        if field.name in ("seconds", "peak_memory"):
            continue
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        same = torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
        assert same, f"{field.name} of {one.id} differs"


def test_the_example_of_the_documentation_runs():
    result = doctest.testmod(ace.explainer)
    assert result.attempted > 5
    assert result.failed == 0


def test_results_come_in_the_order_of_the_images(make_explainer, images):
    explanations = make_explainer().explain(images, ids=IDS)
    assert [explanation.id for explanation in explanations] == IDS
    for image, explanation in zip(images, explanations, strict=True):
        assert torch.equal(explanation.original, as_saved(image))
    assert {explanation.status for explanation in explanations} == {"flipped", "not_flipped"}
    assert {explanation.prediction for explanation in explanations} == {0, 1}


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_company_and_order_do_not_change_a_byte(make_explainer, images, slots):
    together = make_explainer(slots=slots).explain(images, ids=IDS)
    backwards = make_explainer(slots=slots).explain(images.flip(0), ids=IDS[::-1])
    alone = [make_explainer(slots=slots).explain(images[i : i + 1], ids=[IDS[i]])[0] for i in (0, 4, 6)]
    for one, other in zip(together, reversed(backwards), strict=True):
        assert_same(one, other)
    for index, one in zip((0, 4, 6), alone, strict=True):
        assert_same(one, together[index])


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_number_of_slots_changes_hardly_a_pixel(make_explainer, images, deterministic):
    one, three, eight = (
        make_explainer(slots=slots, deterministic=deterministic).explain(images, ids=IDS) for slots in (1, 3, 8)
    )
    for others in (three, eight):
        assert [e.status for e in others] == [e.status for e in one]
        for name in ("pre_explanation", "counterfactual"):
            a, b = (torch.stack([getattr(e, name) for e in each]) for each in (one, others))
            assert (a == b).float().mean() >= 0.999


@pytest.mark.parametrize(("deterministic", "expected"), [(True, {4}), (False, {1, 3})])
def test_free_slots_are_padded_only_where_bytes_matter(make_explainer, images, deterministic, expected):
    seen = set()

    def classifier(images: Tensor) -> Tensor:
        seen.add(len(images))
        return brightness(images)

    explainer = make_explainer(classifier, deterministic=deterministic)
    explainer.explain(images)  # the first images are also used to check the networks
    seen.clear()
    explainer.explain(images)
    assert seen == expected


@pytest.mark.parametrize(("slots", "outputs"), [(2, 1), (3, 1), (2, 14), (4, 1), (6, 2)])
def test_the_slot_of_an_image_makes_no_difference_to_its_bytes(make_explainer, images, slots, outputs):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 26), nn.ReLU(), nn.Linear(26, outputs))
    classifier[-1].weight.data *= 100
    decision = BinaryDecision() if outputs == 1 else ClassDecision([str(number) for number in range(outputs)])

    def results(first):
        order = [*range(first, len(images)), *range(first)]
        explainer = make_explainer(classifier.eval(), decision, slots=slots, policy=RunnerUp() if outputs > 1 else None)
        found = explainer.explain(images[order], ids=[IDS[index] for index in order])
        return {
            e.id: (e.p_before, e.p_attack, e.p_after, e.l1, e.pre_explanation.tolist(), e.counterfactual.tolist())
            for e in found
        }

    expected = results(0)
    for first in range(1, slots):
        assert results(first) == expected


@settings(max_examples=8)
@given(st.permutations(range(5)), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_any_order_in_any_batches_gives_the_same_bytes(make_explainer, images, order, sizes):
    expected = {e.id: e for e in make_explainer().explain(images[:5], ids=IDS[:5])}
    explainer, finished = make_explainer(), []
    while order:
        batch, order = order[: sizes[0]], order[sizes.pop(0) :]
        explainer.submit(images[batch], ids=[IDS[index] for index in batch])
        finished += explainer.advance(drain=False)
    finished += explainer.advance(drain=True)
    assert sorted(e.id for e in finished) == IDS[:5]
    for explanation in finished:
        assert_same(explanation, expected[explanation.id])


def test_the_stream_of_submit_and_advance_gives_what_explain_gives(make_explainer, images):
    explainer = make_explainer()
    explainer.submit(images[:2], ids=IDS[:2])
    before = explainer.diffusion_filter.passes.forwards  # of the checks
    assert explainer.advance(drain=False) == []  # a slot is free: nothing is computed yet
    assert explainer.diffusion_filter.passes.forwards == before
    explainer.submit(images[2:], ids=IDS[2:])
    early = explainer.advance(drain=False)
    assert 0 < len(early) < len(images)
    finished = {e.id: e for e in early + explainer.advance(drain=True)}
    assert explainer.advance(drain=True) == []
    for expected in make_explainer().explain(images, ids=IDS):
        assert_same(finished[expected.id], expected)


def test_explain_leaves_images_of_earlier_submits_for_advance(make_explainer, images):
    explainer = make_explainer()
    explainer.submit(images[:1], ids=IDS[:1])
    assert [e.id for e in explainer.explain(images[1:3], ids=IDS[1:3])] == IDS[1:3]
    (left,) = explainer.advance(drain=False)
    assert_same(left, make_explainer().explain(images[:1], ids=IDS[:1])[0])


def test_attribute_is_the_change_and_zero_where_there_is_none(make_explainer, images):
    explainer = make_explainer(policy=ToClass(1))
    change = explainer.attribute(images)
    explanations = explainer.explain(images)
    skipped = [e.status.startswith("skipped") for e in explanations]
    assert any(skipped)
    assert not all(skipped)
    for row, explanation in zip(change, explanations, strict=True):
        if explanation.counterfactual is None:
            assert not row.any()
        else:
            assert row.any()
            assert torch.equal(row, explanation.counterfactual - explanation.original)
    to_zero = explainer.attribute(images, torch.zeros(7, dtype=torch.long))
    assert not torch.equal(change, to_zero)


def test_an_image_that_waits_keeps_no_more_than_itself_in_memory(make_explainer, images):
    explainer = make_explainer()
    explainer.submit(images)
    explanations = [*explainer.pool.waiting, *explainer.advance(drain=True)]
    held = [e.image if isinstance(e, Query) else e.counterfactual for e in explanations]
    held += [kind for e in explanations if not isinstance(e, Query) for kind in (e.original, e.pre_explanation, e.mask)]
    assert len(held) == 7 + 7 * 4
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held)


def test_content_names_images(make_explainer, images):
    ids = content_ids(images)
    assert len(set(ids)) == len(images)
    assert content_ids(images[[3, 1]]) == [ids[3], ids[1]]
    assert content_ids(as_saved(images)) == ids
    assert [e.id for e in make_explainer().explain(images[:2])] == ids[:2]


def test_an_image_given_twice_stays_in_its_place(make_explainer, images):
    twice = images[[0, 1, 0]]
    assert len(set(content_ids(twice))) == 3
    targets = torch.tensor([1, 1, 0])
    explanations = make_explainer().explain(twice, targets)
    assert [e.target for e in explanations] == [1, 1, None]
    assert explanations[2].status == "skipped: already decided as the target"
    for image, explanation in zip(twice, explanations, strict=True):
        assert torch.equal(explanation.original, as_saved(image))


def test_the_verdict_is_about_the_saved_image(make_explainer, images):
    for e in make_explainer().explain(images):
        assert torch.equal(e.counterfactual, as_saved(e.counterfactual))
        assert torch.equal(e.pre_explanation, as_saved(e.pre_explanation))
        logits = brightness(torch.stack([e.original, e.pre_explanation, e.counterfactual]))
        assert e.flipped == (e.status == "flipped") == (int(logits[2] > 0) == e.target)
        probabilities = logits.sigmoid() if e.target else 1 - logits.sigmoid()
        assert [e.p_before, e.p_attack, e.p_after] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_a_flip_that_rounding_undoes_does_not_count(make_explainer, images):
    def off_the_grid(images: Tensor) -> Tensor:
        """Positive for images with a value between two grey levels."""
        levels = images * 255
        return 10 * ((levels - levels.round()).abs().amax((1, 2, 3)) - 0.01)

    for explanation in make_explainer(off_the_grid).explain(images):
        assert explanation.prediction == 0
        assert explanation.status == "not_flipped"
        assert max(explanation.p_attack, explanation.p_after) < 0.5


def test_numbers_describe_the_saved_change(make_explainer, images):
    for e in make_explainer().explain(images):
        change = e.counterfactual - e.original
        assert e.l1 == pytest.approx(change.abs().mean().item(), rel=1e-5)
        assert e.l2 == pytest.approx(math.sqrt(change.square().sum().item()), rel=1e-5)
        assert e.linf == change.abs().max().item()
        assert e.changed_area == e.mask.float().mean().item()
        assert e.seconds > 0
        assert 2**27 < e.peak_memory < 2**36, "torch alone takes more than 128 MiB"


def test_outside_the_mask_nothing_changes(make_explainer, images):
    def corner(images: Tensor) -> Tensor:
        return brightness(images[:, :, :4, :4])

    # A step along the gradient changes little where the gradient is small: the mask is a part of the image.
    attack = PGD(iterations=ITERATIONS, step_size=500, norm="l2")
    explainer = make_explainer(corner, attack=attack, distance=Distance(0), refinement=Refinement(0.3, 3))
    for e in explainer.explain(images):
        assert e.mask.any()
        assert not e.mask.all()
        outside = ~e.mask.expand_as(e.original)
        assert torch.equal(e.counterfactual[outside], e.original[outside])
        assert not torch.equal(e.counterfactual, e.original)


def test_an_unchanged_image_comes_back(make_explainer, images):
    # A step too small to be saved.
    for e in make_explainer(attack=PGD(iterations=ITERATIONS, step_size=0.01)).explain(images):
        assert torch.equal(e.pre_explanation, e.original)
        assert torch.equal(e.counterfactual, e.original)
        assert not e.mask.any()
        assert (e.l1, e.l2, e.linf, e.changed_area) == (0, 0, 0, 0)
        assert e.status == "not_flipped"


def _nan_for_white(images: Tensor) -> Tensor:
    return brightness(images).where(images.mean((1, 2, 3)) < 0.8, torch.nan)


def _no_gradient_for_black(images: Tensor) -> Tensor:
    """Finite for all images; the derivative of the root is not, in 0, where dark images are put."""
    level = images.mean((1, 2, 3))
    return brightness(images) + (level * (level > 0.35)).sqrt()


@pytest.mark.parametrize(
    ("classifier", "level", "reason"),
    [
        (_nan_for_white, 0.95, "failed: the classifier's output is not finite"),
        (_no_gradient_for_black, 0.05, "failed: a loss or gradient of the attack was not finite"),
    ],
)
def test_an_image_that_is_not_finite_fails_alone(make_explainer, images, classifier, level, reason):
    with_bad = images.clone()
    with_bad[2] = level
    explanations = make_explainer(classifier).explain(with_bad, ids=IDS)
    failed = explanations.pop(2)
    assert failed.status == reason
    assert not failed.flipped
    assert failed.counterfactual is None
    assert torch.equal(failed.original, as_saved(with_bad[2]))
    others = [index for index in range(7) if index != 2]
    expected = make_explainer(classifier).explain(images[others], ids=[IDS[index] for index in others])
    for one, other in zip(explanations, expected, strict=True):
        assert one.status in ("flipped", "not_flipped")
        assert_same(one, other)


def test_an_output_that_is_not_finite_is_no_reason_to_skip(make_explainer, images):
    two = torch.stack([torch.full_like(images[0], 0.95), images[0]])  # NaN is not above 0: it would pass for class 0
    for targets in (None, torch.tensor([0, 1])):
        explanation = make_explainer(_nan_for_white, policy=ToClass(0)).explain(two, targets)[0]
        assert explanation.status == "failed: the classifier's output is not finite"


def test_a_result_that_cannot_be_judged_fails_alone(make_explainer, images):
    broken = False

    def classifier(images: Tensor) -> Tensor:
        logits = brightness(images)
        first = torch.arange(len(images)) == 0
        return logits.masked_fill(first, torch.nan) if broken and not torch.is_grad_enabled() else logits

    explainer = make_explainer(classifier, slots=7)
    explainer.submit(images, ids=IDS)
    broken = True
    explanations = explainer.advance(drain=True)
    assert explanations[0].status == "failed: the result, or the classifier's output for it, is not finite"
    assert all(e.status in ("flipped", "not_flipped") for e in explanations[1:])


def test_images_that_a_policy_leaves_out_are_skipped(make_explainer, striped):
    all_to_2 = make_explainer(brightest_strip, FIVE, policy=ToClass(2)).explain(striped)
    assert [e.prediction for e in all_to_2] == [0, 1, 2, 3, 4]
    assert [e.target for e in all_to_2] == [2, 2, None, 2, 2]
    assert all_to_2[2].status == "skipped: already decided as the target"
    pair = make_explainer(brightest_strip, FIVE, policy=Pair(1, 3, both=True)).explain(striped)
    assert [e.target for e in pair] == [None, 3, None, 1, None]
    assert {pair[index].status for index in (0, 2, 4)} == {"skipped: decided as a class outside the pair"}
    assert (all_to_2[2].counterfactual, all_to_2[2].iterations, all_to_2[2].flipped) == (None, 0, False)


def test_the_runner_up_is_the_second_of_five(make_explainer, striped):
    explanations = make_explainer(
        brightest_strip, FIVE, policy=RunnerUp(), attack=PGD(iterations=4, step_size=8)
    ).explain(striped)
    assert [(e.prediction, e.target) for e in explanations] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
    for e in explanations:
        scores = brightest_strip(torch.stack([e.original, e.pre_explanation])).softmax(1)[:, e.target]
        assert [e.p_before, e.p_attack] == pytest.approx(scores.tolist(), abs=1e-5)
        assert e.p_attack > e.p_before


def test_untargeted_images_leave_their_class(make_explainer, striped):
    attack = PGD(iterations=4, step_size=8)
    explanations = make_explainer(brightest_strip, FIVE, policy=Untargeted(), attack=attack).explain(striped)
    assert [e.target for e in explanations] == [e.prediction for e in explanations] == [0, 1, 2, 3, 4]
    for e in explanations:
        logits = brightest_strip(torch.stack([e.original, e.pre_explanation, e.counterfactual]))
        assert e.flipped == (logits[2].argmax().item() != e.prediction)
        staying = logits.softmax(1)[:, e.prediction]
        assert [e.p_before, e.p_attack, e.p_after] == pytest.approx((1 - staying).tolist(), abs=1e-5)
        assert e.p_attack > e.p_before
    assert any(e.flipped for e in explanations)


def test_mistakes_are_corrected_and_the_rest_follows_the_policy(make_explainer, striped):
    explainer = make_explainer(brightest_strip, FIVE, policy=CorrectMistakes(ToClass(0)))
    explanations = explainer.explain(striped, labels=torch.tensor([0, 1, 4, 3, 2]))
    assert [e.target for e in explanations] == [None, 0, 4, 0, 2]
    assert [e.label for e in explanations] == [0, 1, 4, 3, 2]
    assert all(e.status.startswith("skipped: the true label is not known") for e in explainer.explain(striped))


def test_given_targets_override_the_policy(make_explainer, striped):
    explainer = make_explainer(brightest_strip, FIVE, policy=ToClass(0))
    explanations = explainer.explain(striped, torch.tensor([3, 3, 3, 4, 4]))
    assert [e.target for e in explanations] == [3, 3, 3, 4, None]
    assert [e.status for e in explanations if e.target is None] == ["skipped: already decided as the target"]


def test_a_policy_is_not_asked_where_targets_are_given(make_explainer, striped):
    explainer = make_explainer(brightest_strip, FIVE, policy=CorrectMistakes(ToClass(0)))  # it needs labels
    explanations = explainer.explain(striped, torch.tensor([1, 0, 0, 0, 0]))
    assert [e.target for e in explanations] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_every_image_pays_its_own_passes(make_explainer, make_filter, images, slots):
    attack = PGD(iterations=ITERATIONS)
    for e in make_explainer(diffusion_filter=make_filter(steps=3), attack=attack, slots=slots).explain(images):
        assert e.iterations == ITERATIONS
        assert e.unet_forwards == ITERATIONS * 3 + 3  # the refinement is one more filter
        assert e.unet_backwards == ITERATIONS * 3


@pytest.mark.parametrize("segments", [2, 3, 5])
def test_recomputing_costs_less_than_two_forwards_a_step(make_explainer, make_filter, images, segments):
    steps = 5
    diffusion_filter = make_filter(steps=steps, segments=segments)
    for e in make_explainer(diffusion_filter=diffusion_filter).explain(images[:2]):
        in_attack = e.unet_forwards - steps
        assert ITERATIONS * steps < in_attack < ITERATIONS * 2 * steps
        assert e.unet_backwards == ITERATIONS * steps


def test_networks_and_inputs_stay_as_they_are(make_explainer, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 1)).eval()
    explainer = make_explainer(network)
    unet = explainer.diffusion_filter.unet
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in (network, unet)]
    inputs = images.clone().requires_grad_()
    explainer.explain(inputs)
    assert torch.equal(inputs, images)
    assert inputs.grad is None
    for module, state in zip((network, unet), before, strict=True):
        assert not module.training
        assert all(parameter.grad is None for parameter in module.parameters())
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_the_global_random_numbers_do_not_matter(make_explainer, images):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(make_explainer().explain(images[:2]))
        assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    other_seed = make_explainer(seed=1).explain(images[:2])
    assert not torch.equal(other_seed[0].counterfactual, results[0][0].counterfactual)
    other_id = make_explainer().explain(images[:2], ids=["x", "y"])
    assert not torch.equal(other_id[0].counterfactual, results[0][0].counterfactual)


def test_one_explainer_takes_other_sizes_later(make_explainer, images):
    explainer = make_explainer()
    explainer.explain(images[:2])
    large = images[:2].repeat(1, 1, 2, 2)
    for one, other in zip(explainer.explain(large), make_explainer().explain(large), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("stage", ["attack", "refinement"])
def test_after_an_error_nothing_is_left_of_its_images(make_explainer, images, monkeypatch, stage):
    explainer = make_explainer()
    explainer.explain(images[:1])

    def stop(*_):
        raise KeyboardInterrupt

    owner, name, value = {
        "attack": (explainer.pool, "listeners", [stop]),
        "refinement": (Refinement, "refine", stop),
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        with pytest.raises(KeyboardInterrupt):
            explainer.explain(images)
    assert explainer.advance(drain=True) == []
    large = images[:2].repeat(1, 1, 2, 2)
    for one, other in zip(explainer.explain(large), make_explainer().explain(large), strict=True):
        assert_same(one, other)


def test_reset_forgets_the_images_under_way(make_explainer, images):
    explainer = make_explainer(policy=ToClass(1))
    explainer.submit(images)  # some are skipped at once, the others wait
    explainer.reset()
    assert explainer.advance(drain=True) == []


def test_no_images_no_explanations(make_explainer, images):
    assert make_explainer().explain(images[:0]) == []


def test_inference_mode_is_refused(make_explainer, images):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode to false"):
        make_explainer().explain(images)


def test_no_grad_is_no_hindrance(make_explainer, images):
    with torch.no_grad():
        (explanation,) = make_explainer().explain(images[:1])
    assert_same(explanation, make_explainer().explain(images[:1])[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 2 - 1, r"must lie in \[0, 1\], these lie in \[-"),
        (lambda x: x * 255, "divide them by 255"),
        (lambda x: x * 2 - 1, "undo the normalisation"),
        (lambda x: x * torch.nan, "no numbers"),
        (lambda x: (x * 255).byte(), "torch.uint8"),
        (lambda x: x[0], r"shape \(N, C, H, W\), got torch.float32 \(3, 16, 16\)"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(make_explainer, images, change, message):
    with pytest.raises(ValueError, match=message):
        make_explainer().explain(change(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": IDS[:3]}, "3 ids were given for 7 images"),
        ({"ids": ["a"] * 7}, "unique, 'a' is given more than once"),
        ({"targets": torch.ones(2, dtype=torch.long)}, "2 targets were given for 7 images"),
        ({"targets": torch.full((7,), 2)}, "classes from 0 to 1"),
        ({"targets": torch.full((7,), -1)}, "classes from 0 to 1"),
        ({"labels": torch.zeros(8, dtype=torch.long)}, "8 labels were given for 7 images"),
        ({"labels": torch.tensor([0, 1, -1, 0, 1, 2, 0])}, "labels must be classes from 0 to 1, or -1 .*, got 2"),
        ({"labels": torch.zeros(7, 1)}, r"labels of classes have shape \(N,\), got \(7, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_the_images_are_refused(make_explainer, images, arguments, message):
    explainer = make_explainer()
    explainer.submit(images[:1], ids=["earlier"])
    with pytest.raises(ValueError, match=message):
        explainer.explain(images, **arguments)
    assert [explanation.id for explanation in explainer.advance(drain=True)] == ["earlier"]


def test_settings_that_cannot_work_are_refused(make_explainer):
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        make_explainer(slots=0)
    with pytest.raises(ValueError, match="3 classes have no single other side"):
        make_explainer(brightest_strip, ClassDecision(list("abc")), policy=OtherSide())
    with pytest.raises(ValueError, match="class 5 does not exist"):
        make_explainer(brightest_strip, FIVE, policy=ToClass(5))
