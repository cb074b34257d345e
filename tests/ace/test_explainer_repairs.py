"""What becomes of an image whose counterfactual, as saved, is not flipped."""

from dataclasses import fields

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ace import PGD, BinaryDecision, CounterfactualExplainer, DiffusionFilter, Refinement
from ace.attacks import CarliniWagner
from ace.slots import Query

STEPS, ITERATIONS = 3, 2
IDS = list("abcde")


def brightness(images: Tensor) -> Tensor:
    return 50 * (images.mean((1, 2, 3)) - 0.5)


@pytest.fixture(scope="module")
def make_explainer(tiny_unet):
    def make(**options) -> CounterfactualExplainer:
        options = {"attack": PGD(ITERATIONS), "slots": 3, "repairs": 12, **options}
        diffusion_filter = DiffusionFilter(tiny_unet, DDPMScheduler(), STEPS, 50)
        return CounterfactualExplainer(brightness, BinaryDecision(), diffusion_filter, **options)

    return make


@pytest.fixture(scope="module")
def images() -> Tensor:
    """At different distances from the decision."""
    noise = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return (noise * 0.4 + torch.linspace(0.24, 0.27, 5).view(-1, 1, 1, 1)).clamp(0, 1)


def facts(explanation) -> list:
    """All that is known but how long it took and what else was in memory."""
    values = {field.name: getattr(explanation, field.name) for field in fields(explanation)}
    return [
        value.tolist() if isinstance(value, Tensor) else value
        for name, value in values.items()
        if name not in ("seconds", "peak_memory")
    ]


def test_the_attack_goes_on_until_the_saved_image_is_flipped(make_explainer, images):
    without = make_explainer(repairs=0).explain(images, ids=IDS)
    assert {e.status for e in without} == {"not_flipped"}
    for after in make_explainer().explain(images, ids=IDS):
        assert after.flipped
        assert after.repairs > 0
        assert after.iterations == ITERATIONS * (1 + after.repairs)
        assert after.unet_backwards == STEPS * after.iterations
        assert after.unet_forwards == STEPS * (after.iterations + 1 + after.repairs), "and a refinement each time"


def test_those_that_cannot_be_repaired_end_after_so_many(make_explainer, images):
    for explanation in make_explainer(repairs=1).explain(images * 0.7, ids=IDS):
        assert (explanation.status, explanation.repairs) == ("not_flipped", 1)
        assert explanation.counterfactual is not None


def broken_from(repair: int, explainer: CounterfactualExplainer):
    """The gradient is no number from this repair on."""
    evaluate = explainer.repair_pool.objective.evaluate

    def broken(_, *args):
        evaluation = evaluate(*args)
        late = [query is not None and query.repairs >= repair for query in explainer.repair_pool.queries]
        late = torch.tensor(late + [False] * (len(evaluation.class_loss) - len(late)))
        return evaluation._replace(class_loss=evaluation.class_loss.masked_fill(late, torch.nan))

    return broken


@pytest.mark.parametrize("repair", [1, 2])
def test_a_repair_that_breaks_down_leaves_what_was_there(make_explainer, images, monkeypatch, repair):
    dark = images * 0.7
    expected = make_explainer(repairs=repair - 1).explain(dark, ids=IDS)
    explainer = make_explainer(repairs=4)
    monkeypatch.setattr(type(explainer.repair_pool.objective), "evaluate", broken_from(repair, explainer))
    for found, before in zip(explainer.explain(dark, ids=IDS), expected, strict=True):
        assert (found.status, found.repairs) == ("not_flipped", repair - 1)
        assert torch.equal(found.counterfactual, before.counterfactual)
        assert found.iterations == before.iterations + ITERATIONS, "the repair is paid for"
        assert found.unet_backwards == before.unet_backwards + STEPS * ITERATIONS


def test_a_flipped_image_is_left_alone(make_explainer, images):
    attack = PGD(30)
    for e in make_explainer(attack=attack).explain(images, ids=IDS):
        assert (e.status, e.repairs, e.iterations) == ("flipped", 0, 30)


@pytest.mark.parametrize("attack", [PGD(ITERATIONS), CarliniWagner(ITERATIONS, 400, confidence=99)])
def test_going_on_is_going_on_where_it_ended(make_explainer, images, attack):
    """Without noise, two times two iterations are four."""
    explainer = make_explainer(attack=attack, slots=1)
    explainer.diffusion_filter.stochastic = False
    query = Query("a", images[0], 1, 0, None, 0.0)
    for _ in range(2):
        explainer.pool.add(query)
        assert explainer.pool.run(drain=True) == [query]
    whole = Query("a", images[0], 1, 0, None, 0.0)
    attack.iterations = 2 * ITERATIONS
    explainer.pool.add(whole)
    explainer.pool.run(drain=True)
    attack.iterations = ITERATIONS
    assert torch.equal(query.pre_explanation, whole.pre_explanation)
    assert query.iterations == whole.iterations == 2 * ITERATIONS


def test_a_repair_draws_its_own_noise(make_explainer, images):
    query = Query("a", images[0], 1, 0, None, 0.0)
    pool = make_explainer().pool
    numbers = []
    for query.repairs in (0, 1, 1):
        pool.add(query)
        numbers.append(torch.randn(3, generator=query.stream).tolist())
    assert numbers[0] != numbers[1] == numbers[2]


def test_each_repair_halves_the_threshold_of_the_mask():
    ramp = torch.linspace(0, 1, 9).expand(2, 3, 1, 9)
    mask = Refinement(0.5, 1).mask(torch.zeros_like(ramp), ramp, torch.tensor([1.0, 0.5]))
    assert mask.sum((1, 2, 3)).tolist() == [5, 7]


def test_a_repair_takes_all_steps_of_the_filter(make_explainer, images):
    for e in make_explainer(gradient_passes=1).explain(images, ids=IDS):
        assert e.flipped
        assert e.unet_backwards == ITERATIONS + STEPS * ITERATIONS * e.repairs
        assert e.unet_forwards == e.unet_backwards + STEPS * (1 + e.repairs)


@pytest.mark.parametrize("passes", [None, 1])
def test_company_and_order_do_not_change_a_repaired_image(make_explainer, images, passes):
    together = make_explainer(gradient_passes=passes).explain(images, ids=IDS)
    assert len({e.repairs for e in together}) > 1
    backwards = make_explainer(gradient_passes=passes).explain(images.flip(0), ids=IDS[::-1])
    alone = make_explainer(gradient_passes=passes).explain(images[2:3], ids=IDS[2:3])
    assert [facts(e) for e in together] == [facts(e) for e in reversed(backwards)]
    assert facts(together[2]) == facts(alone[0])


def test_repairs_are_a_number(make_explainer):
    with pytest.raises(ValueError, match="repairs must not be negative"):
        make_explainer(repairs=-1)


def test_what_one_pool_has_finished_outlives_an_error_of_the_other(make_explainer, images, monkeypatch):
    """Memory that runs out while images are repaired must not lose those whose attack has just ended."""
    explainer = make_explainer(gradient_passes=1, slots=2)
    run, failures = explainer.repair_pool.run, [torch.OutOfMemoryError("out of memory")]

    def greedy(drain):
        if failures and explainer.repair_pool.busy:
            raise failures.pop()
        return run(drain)

    monkeypatch.setattr(explainer.repair_pool, "run", greedy)
    explainer.submit(images[:2], ids=IDS[:2])
    finished = explainer.advance(drain=False)
    explainer.submit(images[2:], ids=IDS[2:])
    with pytest.warns(UserWarning, match="going on with 1"):
        finished += explainer.advance(drain=True)
    assert sorted(explanation.id for explanation in finished) == IDS
    assert not failures


@pytest.mark.parametrize(
    "allowed",
    [torch.full((5, 1, 16, 16), 1.5), -torch.ones(5, 1, 16, 16), torch.ones(5, 16, 16), torch.ones(5, 3, 16, 16) > 0],
)
def test_a_region_of_the_wrong_kind_is_refused(make_explainer, images, allowed):
    with pytest.raises(ValueError, match=r"allowed must (have the shape \(5, 1, 16, 16\), got|.*lies in \[-?1)"):
        make_explainer().explain(images, allowed=allowed)


def test_what_is_finished_while_others_are_repaired_can_be_taken(make_explainer, images):
    """A run that is stopped in the middle of the repairs must not lose the images that need none."""
    explainer, taken = make_explainer(slots=5), []
    explainer.pool.listeners.append(lambda: taken.append(explainer.take_finished()))
    explainer.submit(images, ids=IDS)
    returned = explainer.advance(drain=True)
    early = [explanation for some in taken for explanation in some]
    assert early
    assert sorted(explanation.id for explanation in early + returned) == IDS
    assert max(e.repairs for e in early) < max(e.repairs for e in returned)


def test_weights_are_refused_where_sign_steps_would_ignore_them(make_explainer, images):
    half = torch.full((5, 1, 16, 16), 0.5)
    with pytest.raises(ValueError, match="sign steps take none"):
        make_explainer(attack=PGD(1)).explain(images, allowed=half)
    assert len(make_explainer(attack=PGD(1, norm="l2")).explain(images, allowed=half)) == 5
    assert len(make_explainer(attack=PGD(1)).explain(images, allowed=half > 0)) == 5


def test_a_refused_call_keeps_what_was_submitted_before(make_explainer, images):
    explainer = make_explainer()
    explainer.submit(images[:2], ids=IDS[:2])
    with pytest.raises(ValueError, match="divide them by 255"):
        explainer.explain(images * 255)
    assert sorted(explanation.id for explanation in explainer.advance(drain=True)) == IDS[:2]
