"""What makes the attack fast: compiled networks, half precision, and a loop that never waits for the device."""

import warnings

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from ace.attacks import PGD, ProximalGradient, Stop
from ace.decision import BinaryDecision
from ace.diffusion_filter import DiffusionFilter
from ace.objective import Distance, Objective
from ace.slots import Query, SlotPool

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def objective(sureness: float = 1.0, **options) -> Objective:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))

    def classifier(images: torch.Tensor) -> torch.Tensor:
        return 5 * linear(images - 0.5) - sureness

    diffusion_filter = DiffusionFilter(unet, DDPMScheduler(), steps=3, respacing=50, **options)
    return Objective(classifier, BinaryDecision(), diffusion_filter, Distance(l1=0.0))


def gradients(question: Objective) -> torch.Tensor:
    goal, factor = torch.ones(4, dtype=torch.long), torch.ones(4)
    return question.evaluate(IMAGES, IMAGES, goal, factor).gradient


@pytest.mark.parametrize("attack", [PGD(4), ProximalGradient(4, stop=Stop(0.9, 2))], ids=["pgd", "proximal"])
@pytest.mark.parametrize("segments", [1, 3])
def test_an_iteration_asks_the_device_for_no_number(attack, segments):
    pool = SlotPool(objective(segments=segments), attack, 4, True, seed=0)
    for row, image in enumerate(IMAGES):
        pool.add(Query(str(row), image, 1, 0, None, 0.5))
    pool._fill()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pool._iterate()
    calls = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in calls, "the profile shows nothing"
    assert not calls & WAITS


def test_the_gradient_of_a_sure_classifier_survives_float16():
    with torch.autocast("cpu", torch.float16):
        unsure, sure = gradients(objective(sureness=0.0)), gradients(objective(sureness=-14.0))
    assert sure.abs().max() < 1e-5, "float16 would not lose anything"
    # The classifier is linear: how sure it is changes the length of the gradient, and not its direction.
    assert torch.cosine_similarity(sure.flatten(1), unsure.flatten(1)).min() > 0.9999


def test_scaling_leaves_the_bits_of_float32():
    question = objective()
    image = IMAGES.clone().requires_grad_()
    logits = question.classifier(question.diffusion_filter(image))
    loss = question.decision.cross_entropy(logits, torch.ones(4, dtype=torch.long))
    (unscaled,) = torch.autograd.grad(loss.sum(), image)
    assert torch.equal(gradients(question), unscaled)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e30, torch.nan])
def test_scaling_makes_no_gradient_of_another_kind(size):
    class Steep(nn.Module):
        def forward(self, images):
            return (images - images.detach()).sum((1, 2, 3)) * size

    question = Objective(Steep(), BinaryDecision(), None, Distance(l1=0.0))
    (found,) = gradients(question)[:1]
    expected = torch.tensor(-0.5 * size)
    torch.testing.assert_close(found, expected.expand(3, 16, 16), equal_nan=True, rtol=1e-6, atol=1e-44)


@pytest.fixture
def compiler():
    """A fresh compiler, whose settings a test may change."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        yield torch._inductor.config
    torch._dynamo.reset()


def test_a_compiled_network_gives_the_same_gradient(compiler):
    exact, question = gradients(objective()), objective()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        question.diffusion_filter.compile_unet(IMAGES)
    passes = question.diffusion_filter.passes
    assert (passes.forwards, passes.backwards) == (0, 0), "compiling is not part of an image's cost"
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(gradients(question), exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())
    assert (passes.forwards, passes.backwards) == (3, 3)


def test_without_a_compiler_it_goes_on_with_one_warning(compiler):
    exact, question = gradients(objective()), objective()
    with compiler.patch({"cpp.cxx": ("/nowhere/compiler",)}), pytest.warns(UserWarning, match="compiled") as caught:
        question.diffusion_filter.compile_unet(IMAGES)
    assert sum(issubclass(warning.category, UserWarning) for warning in caught) == 1
    assert torch.equal(gradients(question), exact)
