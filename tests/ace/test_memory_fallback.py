"""Memory that was not enough after all: the run goes on with less at a time, and loses nothing."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ace import PGD, BinaryDecision, CounterfactualExplainer, DiffusionFilter
from ace.memory_fallback import next_smaller
from ace.slots import SlotPool

IDS = list("abcdefg")


def brightness(images: Tensor) -> Tensor:
    return 50 * (images.mean((1, 2, 3)) - 0.5)


class Greedy:
    """A classifier for which the memory is enough for so many images at a time, in the n-th call and later."""

    def __init__(self, most, calls=0):
        self.most, self.calls = most, calls

    def __call__(self, batch):
        self.calls -= 1
        if self.calls < 0 and len(batch) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return brightness(batch)


@pytest.fixture(scope="module")
def make_explainer(tiny_unet):
    def make(classifier=brightness, slots=6, **options) -> CounterfactualExplainer:
        diffusion_filter = DiffusionFilter(tiny_unet, DDPMScheduler(), 3, 50)
        return CounterfactualExplainer(
            classifier, BinaryDecision(), diffusion_filter, PGD(iterations=3), slots=slots, **options
        )

    return make


@pytest.fixture(scope="module")
def images() -> Tensor:
    noise = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return (noise * 0.4 + torch.linspace(0.25, 0.35, 7).view(-1, 1, 1, 1)).clamp(0, 1)


def assert_nearly_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.id, one.status, one.iterations) == (other.id, other.status, other.iterations)
        assert (one.counterfactual == other.counterfactual).float().mean() > 0.999


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("calls", [0, 1, 2, 4, 7, 9])
def test_it_goes_on_with_half_the_images_at_a_time(make_explainer, images, most, calls):
    explainer = make_explainer(Greedy(most, calls))
    with pytest.warns(UserWarning, match="not enough for 6 images at a time: going on with 3"):
        found = explainer.explain(images)
    assert explainer.slots == {1: 1, 2: 1, 5: 3}[most]
    assert_nearly_same(found, make_explainer().explain(images))
    assert explainer.advance(drain=True) == []


def test_where_one_image_is_too_much_the_filter_keeps_less_of_it(make_explainer, images, monkeypatch):
    explainer, expected = make_explainer(slots=1), make_explainer(slots=1).explain(images[:2])
    forward = DiffusionFilter.forward

    def greedy(self, *args):
        if self.segments < 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args)

    monkeypatch.setattr(DiffusionFilter, "forward", greedy)
    with pytest.warns(UserWarning, match="memory") as caught:
        found = explainer.explain(images[:2])
    told = [str(warning.message) for warning in caught if "memory" in str(warning.message)]
    start = "the memory is not enough for one image: going on with"
    assert told == [f"{start} 2 segments of the filter", f"{start} 3 segments of the filter"]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.counterfactual, other.counterfactual), "segments change no byte"


def test_memory_for_less_than_one_image_is_an_error(make_explainer, images):
    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(torch.OutOfMemoryError):
        make_explainer(Greedy(0, calls=1), slots=2).explain(images)


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_images_that_are_about_to_leave_are_not_lost(make_explainer, images, monkeypatch, copies):
    """All three finish in the same iteration, and the memory ends at one of their copies."""
    explainer, expected = make_explainer(slots=3), make_explainer(slots=1).explain(images[:3])
    retire, clone, times = SlotPool._retire, Tensor.clone, []

    def greedy(tensor, *args, **options):
        times.append(None)
        if len(times) == copies + 1:
            raise torch.OutOfMemoryError("out of memory")
        return clone(tensor, *args, **options)

    def short_of_memory(pool):
        with monkeypatch.context() as patch:
            if all(query is None or query.iterations == 3 for query in pool.queries):
                patch.setattr(Tensor, "clone", greedy)
            return retire(pool)

    monkeypatch.setattr(SlotPool, "_retire", short_of_memory)
    with pytest.warns(UserWarning, match="going on with 1"):
        found = explainer.explain(images[:3])
    assert_nearly_same(found, expected)


@pytest.mark.parametrize(
    ("slots", "segments", "fixed_shape", "expected"),
    [
        (16, 1, True, (8, 1)),
        (6, 2, True, (3, 2)),
        (4, 1, True, (1, 1)),  # two and three slots are filled up to four
        (4, 1, False, (2, 1)),
        (1, 1, True, (1, 2)),
        (1, 4, True, (1, 5)),
        (1, 5, True, None),
    ],
)
def test_what_needs_less_memory(slots, segments, fixed_shape, expected):
    assert next_smaller(slots, segments, 5, fixed_shape) == expected


@pytest.mark.parametrize("words", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"])
def test_other_words_for_it_are_understood(make_explainer, images, words):
    def greedy(batch):
        if len(batch) > 4:
            raise RuntimeError(words)
        return brightness(batch)

    with pytest.warns(UserWarning, match="going on with 3"):
        found = make_explainer(greedy).explain(images)
    assert_nearly_same(found, make_explainer().explain(images))


def test_another_error_is_not_taken_for_it(make_explainer, images):
    def broken(batch):
        if len(batch) > 4:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return brightness(batch)

    with pytest.raises(RuntimeError, match="device-side assert"):
        make_explainer(broken).explain(images)


@pytest.mark.parametrize("call", range(5))
def test_an_image_about_to_enter_a_slot_is_not_lost(make_explainer, images, monkeypatch, call):
    explainer, calls = make_explainer(), iter(range(100))
    start = explainer.pool.attack.start

    def greedy(original):
        if next(calls) == call:
            raise torch.OutOfMemoryError("out of memory")
        return start(original)

    monkeypatch.setattr(explainer.pool.attack, "start", greedy)
    with pytest.warns(UserWarning, match="going on with 3"):
        found = explainer.explain(images)
    assert_nearly_same(found, make_explainer().explain(images))
