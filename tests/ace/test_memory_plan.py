"""The memory plan: what it counts is what is needed, and of what fits it takes the fastest."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn
from torch.profiler import profile

from ace import BinaryDecision, DiffusionFilter, Distance
from ace.memory_plan import DEVICES, USABLE, Kept, Workload, choose_plan, measure
from ace.objective import Objective

MB = 2**20
PIXELS = 3 * 16 * 16


def brightness(images):
    return 50 * (images.mean((1, 2, 3)) - 0.5)


@pytest.fixture(scope="module")
def make_filter():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    return lambda **options: DiffusionFilter(unet, DDPMScheduler(), **{"steps": 2, "respacing": 50, **options})


def work(**changes):
    """A step keeps 100 MB for every image and 10 MB once, the classifier 20 MB; five steps; images of 256x256."""
    settings = {"step": Kept(10 * MB, 100 * MB), "classifier": Kept(0, 20 * MB), "steps": 5, "passes": None}
    return Workload(**{**settings, "pixels": 256**2, "fixed_shape": False, **changes})


@pytest.mark.parametrize(
    ("changes", "slots", "segments", "expected"),
    [
        ({}, 1, 1, 5 * 110 + 20),
        ({}, 4, 1, 5 * 410 + 80),
        ({}, 4, 2, 3 * 410 + 80),
        ({}, 4, 3, 2 * 410 + 80),
        ({}, 4, 5, 1 * 410 + 80),
        ({"fixed_shape": True}, 3, 5, 1 * 410 + 80),
        ({"fixed_shape": True}, 1, 5, 1 * 110 + 20),
        ({"passes": 5}, 20, 1, 5 * 2010 + 400),
        ({"passes": 2}, 4, 5, 2 * 410 + 80),
        ({"passes": 2}, 4, 1, 5 * 410 + 80),  # the check before the attack goes through all steps
        ({"passes": 2}, 20, 5, 2 * 2010 + 400),
        ({"passes": 2}, 12, 1, 5 * 810 + 160),  # and takes eight images
        ({"passes": 2}, 40, 1, 2 * 4010 + 800),
    ],
)
def test_what_a_plan_needs(changes, slots, segments, expected):
    assert work(**changes).bytes(slots, segments) == expected * MB


def enough_for(slots, segments, device="cpu", **changes):
    """Free memory that is just enough."""
    return work(**changes).bytes(slots, segments, DEVICES[device].spare) / USABLE + 1


FEW = {"passes": 1}


@pytest.mark.parametrize(
    ("device", "free", "changes", "expected", "reason"),
    [
        ("cpu", 1000 * 2**30, {}, (16, 1), "16 are the most"),
        ("cpu", 1000 * 2**30, {"images": 7}, (7, 1), "there are no more images"),
        ("cpu", enough_for(16, 1), {}, (16, 1), "16 are the most"),
        ("cpu", enough_for(16, 1) - 10, {}, (15, 1), "more do not fit"),
        ("cpu", enough_for(16, 1) - 10, {"fixed_shape": True}, (12, 1), "more do not fit"),
        ("cpu", enough_for(3, 1), {"fixed_shape": True}, (1, 1), "more do not fit"),
        ("cpu", enough_for(1, 1), {}, (1, 1), "more do not fit"),  # on a CPU a second one would make nothing faster
        ("cpu", enough_for(1, 1) - 10, {}, (1, 2), "more do not fit; with fewer segments none fit"),
        ("cpu", enough_for(1, 5), {}, (1, 5), "more do not fit; with fewer segments none fit"),
        ("cpu", enough_for(1, 5) - 10, {}, (1, 5), "not even that fits"),
        ("cpu", 0, {}, (1, 5), "not even that fits"),
        ("cpu", 0, {"images": 1, "steps": 1}, (1, 1), "not even that fits"),
        ("cuda", 1000 * 2**30, {}, (128, 1), "128 are the most"),
        ("cuda", enough_for(9, 1, "cuda"), {}, (9, 1), "more do not fit"),
        ("cuda", enough_for(4, 1, "cuda"), {}, (4, 1), "more do not fit"),  # enough to keep a GPU busy
        ("cuda", enough_for(3, 1, "cuda"), {}, (4, 2), "more do not fit; with fewer segments 3 fit"),
        ("cuda", enough_for(3, 1, "cuda"), {"images": 3}, (3, 1), "there are no more images"),
        ("cuda", enough_for(4, 3, "cuda"), {}, (4, 3), "more do not fit; with fewer segments 3 fit"),
        ("cuda", enough_for(3, 5, "cuda"), {}, (3, 5), "more do not fit; with fewer segments 2 fit"),
        ("cuda", enough_for(9, 1, "cuda"), {"pixels": 64**2}, (25, 5), "more do not fit; with fewer segments 17 fit"),
        ("cuda", enough_for(16, 1, "cuda", passes=1), FEW, (22, 1), "more do not fit"),
        ("cuda", enough_for(4, 1, "cuda", passes=1), FEW, (11, 5), "more do not fit; with fewer segments 7 fit"),
    ],
)  # fmt: skip
def test_of_what_fits_the_fastest_is_chosen(device, free, changes, expected, reason):
    plan = choose_plan(work(**changes), free, device)
    assert (plan.slots, plan.segments, plan.reason) == (*expected, reason)
    assert plan.fits == (plan.needed <= USABLE * free)
    assert plan.needed == work(**changes).bytes(*expected, DEVICES[device].spare)


@pytest.mark.parametrize(
    ("free", "slots", "segments", "expected", "fits"),
    [
        (1000 * 2**30, 40, None, (40, 1), True),
        (enough_for(40, 2), 40, None, (40, 2), True),
        (enough_for(40, 5) - 10, 40, None, (40, 5), False),
        (1000 * 2**30, None, 5, (16, 5), True),
        (enough_for(7, 3), None, 3, (7, 3), True),
        (0, None, 2, (1, 2), False),
        (0, 4, 2, (4, 2), False),
    ],
)
def test_what_is_given_is_kept(free, slots, segments, expected, fits):
    plan = choose_plan(work(images=50), free, "cpu", slots, segments)
    assert (plan.slots, plan.segments, plan.fits) == (*expected, fits)


def test_a_plan_speaks_of_its_numbers():
    plan = choose_plan(work(), 20 * 2**30, "cuda")
    assert str(plan) == ("slots 29, segments 1 (more do not fit): needs 18 of 20 GiB that are free")


TABLE = torch.ones(3, 16, 16)


@pytest.mark.parametrize(
    ("classifier", "expected"),
    [
        (lambda x: x.exp(), Kept(0, 4 * PIXELS)),  # the result
        (lambda x: x.exp() + x.exp(), Kept(0, 8 * PIXELS)),
        (lambda x: x.exp().view(len(x), -1).sin().sum(1), Kept(0, 4 * PIXELS)),  # two views of one result
        (lambda x: x * TABLE, Kept(4 * PIXELS, 0)),
        (lambda x: x + 1, Kept(0, 0)),
        (nn.Conv2d(3, 5, 3).requires_grad_(False), Kept(0, 4 * PIXELS)),  # the input, and the weights, which are there
        (lambda x: x.detach().exp(), Kept(0, 0)),
    ],
)
def test_what_autograd_keeps_is_counted_once_and_without_weights(classifier, expected, make_filter):
    _, kept = measure(make_filter(), classifier, torch.zeros(2, 3, 16, 16))
    assert kept == expected


def test_one_image_alone_is_measured_as_a_whole(make_filter):
    def of_one(images):
        assert len(images) == 1
        return images.exp() * TABLE

    step, classifier = measure(make_filter(), of_one, torch.zeros(1, 3, 16, 16))
    assert classifier == Kept(0, 8 * PIXELS)
    both, _ = measure(make_filter(), brightness, torch.zeros(2, 3, 16, 16))
    assert step == Kept(0, both.bytes(1))


def test_copies_of_weights_in_a_lower_precision_are_kept_once(make_filter):
    images = torch.zeros(2, 3, 16, 16)
    step, _ = measure(make_filter(), brightness, images)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = measure(make_filter(), brightness, images)
    weights = sum(weight.numel() for weight in make_filter().unet.parameters())
    assert step.once < 0.1 * weights
    assert weights < low.once < 2.2 * weights, "two bytes each, of the layers that compute in bfloat16"
    assert low.image < 0.8 * step.image


def test_the_classifier_is_measured_in_float32_whatever_the_precision_of_the_filter(make_filter):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)).requires_grad_(False)
    images = torch.zeros(2, 3, 16, 16)
    _, kept = measure(make_filter(), network, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert measure(make_filter(), network, images)[1] == kept


@pytest.mark.parametrize(("segments", "passes"), [(1, None), (2, None), (1, 1)])
def test_it_is_what_the_attack_needs(segments, passes, make_filter):
    """Beside the peak of all tensors that live at a time, by torch's profiler."""
    diffusion_filter, count = make_filter(segments=segments), 2
    step, classifier = measure(diffusion_filter, brightness, torch.zeros(2, 3, 16, 16))
    images, noise = torch.rand(count, 3, 16, 16), torch.randn(2, count, 3, 16, 16)
    objective = Objective(brightness, BinaryDecision(), diffusion_filter, Distance(), passes=passes)
    target, factor = torch.ones(count, dtype=torch.long), torch.ones(count)
    with profile(profile_memory=True, acc_events=True) as recorded:
        objective.evaluate(images, images.clone(), target, factor, noise)
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    steps = passes or 2 // segments
    assert peak == pytest.approx(steps * step.bytes(count) + classifier.bytes(count), rel=0.15)


def test_measuring_changes_nothing(make_filter):
    diffusion_filter, images = make_filter(), torch.rand(2, 3, 16, 16)
    before = images.clone()
    measure(diffusion_filter, brightness, images)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(weight.grad is None for weight in diffusion_filter.parameters())
