"""The pool of slots: images at different iterations side by side, each as if it were alone."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

import ace.slots
from ace.attacks import PGD, CarliniWagner, GradientDescent, ProximalGradient, Stop
from ace.decision import BinaryDecision
from ace.diffusion_filter import DiffusionFilter
from ace.objective import Distance, Objective
from ace.slots import Query, SlotPool

ITERATIONS = 4


def classifier(images: Tensor) -> Tensor:
    return 3 * (images - 0.5).square().sum((1, 2, 3)).sin()


@pytest.fixture
def make_pool(toy_unet):
    def make(
        slots=2, fixed_shape=True, attack=None, decide=classifier, schedule="linear", **filter_options
    ) -> SlotPool:
        filter_options = {"steps": 3, "respacing": 10, **filter_options}
        diffusion_filter = DiffusionFilter(toy_unet(gain=0.5, weight=0.1), DDPMScheduler(), **filter_options)
        distance = Distance(l1=0.01, schedule=schedule)
        attack = attack or PGD(ITERATIONS, step_size=3)
        objective = Objective(
            decide, BinaryDecision(), diffusion_filter, distance, attack.class_loss, attack.confidence
        )
        return SlotPool(objective, attack, slots, fixed_shape, seed=5)

    return make


def query(name: str, size: int = 8) -> Query:
    """The image is drawn from the name."""
    stream = torch.Generator().manual_seed(ord(name))
    return Query(name, torch.rand(3, size, size, generator=stream), ord(name) % 2, 0, None, 0.5)


def staggered(pool: SlotPool, queries: list[Query]) -> list[Query]:
    """The first image is one iteration ahead of the others: two slots never turn over together."""
    first, *rest = queries
    pool.add(first)

    def add_the_rest() -> None:
        while rest:
            pool.add(rest.pop(0))

    pool.listeners = [add_the_rest]
    return pool.run(drain=True)


def names(finished: list[Query]) -> str:
    return "".join(one.id for one in finished)


@pytest.mark.parametrize("attack", [PGD(ITERATIONS, step_size=3), CarliniWagner(ITERATIONS, 50, confidence=99)])
def test_an_image_that_enters_late_ends_as_if_it_were_alone(make_pool, attack):
    pool = make_pool(slots=2, attack=attack)
    finished = staggered(pool, [query(name) for name in "abcde"])
    assert names(finished) == "abcde"
    for one in finished:
        alone = make_pool(slots=2, attack=attack)
        alone.add(query(one.id))
        (expected,) = alone.run(drain=True)
        assert torch.equal(one.pre_explanation, expected.pre_explanation)
        assert not torch.equal(one.pre_explanation, one.image)


@pytest.mark.parametrize("schedule", ["constant", "linear", "step"])
def test_without_padding_the_result_is_the_same_up_to_rounding(make_pool, schedule):
    results = []
    for slots, fixed_shape in ((1, True), (3, False), (3, True)):
        pool = make_pool(slots, fixed_shape, schedule=schedule)
        for name in "abcd":
            pool.add(query(name))
        results.append({one.id: one.pre_explanation for one in pool.run(drain=True)})
    for other in results[1:]:
        for name, image in results[0].items():
            assert ((other[name] - image).abs() < 1e-6).float().mean() >= 0.99


def test_free_slots_are_computed_only_for_a_fixed_shape(make_pool):
    for fixed_shape, expected in ((True, [4] * 8), (False, [3] * 4 + [1] * 4)):
        shapes = []

        def decide(images: Tensor, shapes: list[int] = shapes) -> Tensor:
            shapes.append(len(images))
            return classifier(images)

        pool = make_pool(slots=3, fixed_shape=fixed_shape, decide=decide)
        for name in "abcd":
            pool.add(query(name))
        pool.run(drain=True)
        assert shapes == expected


def test_without_draining_it_stops_as_soon_as_a_slot_is_free(make_pool):
    pool = make_pool(slots=2)
    pool.add(query("a"))
    assert pool.run(drain=False) == []
    assert pool.progress == 0
    assert pool.objective.diffusion_filter.passes.forwards == 0
    for name in "bcd":
        pool.add(query(name))
    assert names(pool.run(drain=False)) == "abcd"  # two full rounds
    pool.add(query("e"))
    assert pool.run(drain=False) == []
    assert names(pool.run(drain=True)) == "e"
    assert pool.run(drain=True) == []


def test_an_image_in_the_pool_waits_where_it_is(make_pool):
    pool = make_pool(slots=2)
    for name in "abc":
        pool.add(query(name))
    assert names(pool.run(drain=False)) == "ab"
    assert [one.id if one else None for one in pool.queries] == ["c", None]
    assert pool.progress == 0


def test_progress_is_told_after_every_iteration(make_pool):
    pool, seen = make_pool(slots=2), []
    pool.listeners = [lambda: seen.append(pool.progress)]
    for name in "abc":
        pool.add(query(name))
    pool.run(drain=True)
    assert seen == [0.5, 1, 1.5, 0, 0.25, 0.5, 0.75, 0]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_image_is_charged_its_own_passes_and_its_share_of_the_time(make_pool, slots):
    pool = make_pool(slots)
    for name in "abc":
        pool.add(query(name))
    finished = pool.run(drain=True)
    assert [(one.iterations, one.unet_forwards, one.unet_backwards) for one in finished] == [(4, 12, 12)] * 3
    assert all(one.seconds > 0 and one.peak_memory > 0 for one in finished)
    if slots == 5:
        assert len({one.seconds for one in finished}) == 1


def test_an_image_that_has_reached_its_target_leaves_and_the_next_one_enters(make_pool):
    """Brightness needs more steps the darker an image is; the slots are full all the time."""
    seen: list[Tensor] = []

    def decide(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return 20 * (images.mean((1, 2, 3)) - 0.5)

    attack = ProximalGradient(30, step_size=6, threshold=1, momentum=0, stop=Stop(0.9, draws=2))
    levels = dict(zip("abcd", (0.2, 0.4, 0.3, 0.45), strict=True))

    def run(slots, names):
        pool = make_pool(slots, attack=attack, decide=decide)
        pool.objective = Objective(decide, BinaryDecision(), None, Distance(l1=0.0))
        for name in names:
            pool.add(Query(name, torch.full((3, 8, 8), levels[name]), 1, 0, None, 0.1))
        return {one.id: one for one in pool.run(drain=True)}

    together = run(2, "abcd")
    assert list(together) == ["b", "a", "c", "d"], "the order in which they are finished"
    rounds = len(seen)
    assert rounds < sum(one.iterations for one in together.values()) / 2 * 1.3, "no slot waits for the other"
    for name, one in together.items():
        assert one.iterations == run(1, name)[name].iterations < attack.iterations
        reached = torch.sigmoid(decide(one.pre_explanation[None]))
        assert 0.9 <= reached < 0.97, "what was judged is kept, and no step more is taken"


def test_an_image_that_never_reaches_its_target_takes_all_iterations(make_pool):
    attack = ProximalGradient(5, threshold=255)
    pool = make_pool(2, attack=attack)
    pool.add(query("a"))
    [one] = pool.run(drain=True)
    assert one.iterations == 5
    assert torch.equal(one.pre_explanation, one.image)


def test_what_is_not_finite_marks_its_own_image(make_pool):
    def decide(images: Tensor) -> Tensor:
        return classifier(images).where(images.mean((1, 2, 3)) > 0.4, torch.nan)

    pool = make_pool(slots=2, decide=decide, stochastic=False)
    bad = query("b")
    bad.image.zero_()
    finished = {one.id: one for one in staggered(pool, [query("a"), bad, query("c"), query("d")])}
    assert [finished[name].healthy for name in "abcd"] == [True, False, True, True]
    expected = make_pool(slots=2, stochastic=False)
    for name in "acd":
        expected.add(query(name))
    for one in expected.run(drain=True):
        assert torch.equal(finished[one.id].pre_explanation, one.pre_explanation)


def test_the_pool_works_without_a_filter():
    pool = SlotPool(Objective(classifier, BinaryDecision(), None, Distance()), PGD(2), 2, True, seed=0)
    pool.add(query("a"))
    (one,) = pool.run(drain=True)
    assert (one.iterations, one.unet_forwards, one.unet_backwards) == (2, 0, 0)
    assert (one.pre_explanation - one.image).abs().max().item() == pytest.approx(2 / 255, abs=1e-6)


def test_a_cleared_pool_is_empty_and_takes_images_of_another_size(make_pool):
    pool = make_pool(slots=2)
    for name in "abc":
        pool.add(query(name))

    def stop() -> None:
        raise KeyboardInterrupt

    pool.listeners = [stop]
    with pytest.raises(KeyboardInterrupt):
        pool.run(drain=True)
    pool.listeners = []
    pool.clear()
    assert pool.progress == 0
    assert pool.run(drain=True) == []
    pool.add(query("b", size=12))
    (one,) = pool.run(drain=True)
    fresh = make_pool()
    fresh.add(query("b", size=12))
    assert torch.equal(one.pre_explanation, fresh.run(drain=True)[0].pre_explanation)


def test_an_empty_pool_takes_images_of_another_size(make_pool):
    pool = make_pool()
    pool.add(query("a", size=8))
    pool.run(drain=True)
    pool.add(query("b", size=12))
    (one,) = pool.run(drain=True)
    fresh = make_pool()
    fresh.add(query("b", size=12))
    assert torch.equal(one.pre_explanation, fresh.run(drain=True)[0].pre_explanation)


def test_a_weight_scales_the_gradient_of_its_pixels(make_pool):
    weights, changes = torch.linspace(0, 1, 8).expand(1, 8, 8), []
    for allowed in (None, weights):
        pool, one = make_pool(attack=GradientDescent(1, step_size=10)), query("b")
        one.allowed = allowed
        pool.add(one)
        pool.run(drain=True)
        changes.append(one.pre_explanation - one.image)
    assert changes[0].abs().max() > 1e-3
    assert torch.allclose(changes[1], weights * changes[0], atol=1e-6)


def test_an_image_changes_only_where_it_may(make_pool):
    half = torch.zeros(1, 8, 8, dtype=torch.bool)
    half[..., :4] = True
    free, bound = query("a"), query("b")
    bound.allowed = half
    pool = make_pool(slots=2)
    pool.add(free)
    pool.add(bound)
    pool.run(drain=True)
    for one, allowed in ((free, torch.ones_like(half)), (bound, half)):
        changed = (one.pre_explanation != one.image).any(0)
        assert changed[allowed[0]].any()
        assert not changed[~allowed[0]].any()


def test_the_noise_of_the_next_iteration_is_drawn_before_the_device_is_waited_for(make_pool, monkeypatch):
    """Whether an image is done is known when the device is; until then the processor draws."""
    events, pool = [], make_pool(attack=ProximalGradient(2, stop=Stop(0.9, 2)))
    draw, iterate, retire = ace.slots.draw, pool._iterate, pool._retire
    monkeypatch.setattr(ace.slots, "draw", lambda *args: events.append("draw") or draw(*args))
    monkeypatch.setattr(pool, "_iterate", lambda: (events.append("start"), iterate(), events.append("asked")))
    monkeypatch.setattr(pool, "_retire", lambda: events.append("wait") or retire())
    for name in "ab":
        pool.add(query(name))
    pool.run(drain=True)
    assert events == ["start", "draw", "asked", "draw", "wait", "start", "asked", "draw", "wait"]


def test_an_image_that_comes_back_to_its_slot_has_new_noise(make_pool):
    """As a repair does, while another image is in work."""
    busy, quiet, repaired, alone, other = make_pool(), make_pool(), query("a"), query("a"), query("b")

    def go_on() -> None:
        if repaired.iterations == 1:
            busy.add(other)
        elif repaired not in busy.queries and not repaired.repairs:
            assert other in busy.queries
            repaired.repairs = 1
            busy.add(repaired)

    busy.listeners = [go_on]
    busy.add(repaired)
    assert busy.run(drain=True) == [repaired, other, repaired]

    for alone.repairs in (0, 1):
        quiet.add(alone)
        quiet.run(drain=True)
    assert torch.equal(repaired.pre_explanation, alone.pre_explanation)
