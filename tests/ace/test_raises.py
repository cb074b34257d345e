"""Bad arguments of the public classes: each is refused at once, by its value, with what to do about it."""

import pytest
import torch
from diffusers import DDPMScheduler

import ace
from ace.slots import Query

CASES = {
    "no iterations": (lambda: ace.PGD(iterations=0), "iterations must be at least 1, got 0"),
    "no step": (lambda: ace.PGD(step_size=0), r"step_size must be positive \(grey levels\), got 0"),
    "empty ball": (lambda: ace.PGD(epsilon=0), r"epsilon must be positive \(grey levels\), got 0"),
    "other norm": (lambda: ace.PGD(norm="l1"), "unknown norm 'l1': use linf or l2"),
    "NaN step": (lambda: ace.GradientDescent(step_size=float("nan")), "step_size must be positive.*nan"),
    "negative lead": (lambda: ace.CarliniWagner(confidence=-1), "confidence must not be negative.*-1"),
    "negative threshold": (lambda: ace.ProximalGradient(threshold=-1), "threshold must not be negative.*-1"),
    "momentum": (lambda: ace.ProximalGradient(momentum=1), r"momentum must be in \[0, 1\), got 1"),
    "certain stop": (lambda: ace.Stop(probability=1), r"probability must be in \(0, 1\), got 1"),
    "stop without draws": (lambda: ace.Stop(draws=0), "draws must be at least 1, got 0"),
    "negative weight": (lambda: ace.Distance(l1=-1), "must not be negative, got l1=-1"),
    "other schedule": (lambda: ace.Distance(schedule="cosine"), "'cosine': use constant, linear or step"),
    "threshold": (lambda: ace.Refinement(threshold=1.5), r"threshold must be in \[0, 1\].*1.5"),
    "even dilation": (lambda: ace.Refinement(dilation=4), "dilation must be an odd number of pixels.*4"),
    "no dilation": (lambda: ace.Refinement(dilation=0), "dilation must be an odd number of pixels, 1 for none, got 0"),
    "one class": (lambda: ace.ClassDecision(["a"]), r"at least two classes, got \['a'\]"),
    "negative query": (lambda: ace.AttributeDecision(-1), "0 or more, got -1"),
    "same classes": (lambda: ace.Pair(2, 2), "same class, 2"),
    "no target to correct to": (lambda: ace.CorrectMistakes(ace.Untargeted()), "not Untargeted"),
}


@pytest.mark.parametrize("name", CASES)
def test_settings(name):
    make, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def explainer(make_unet):
    diffusion_filter = ace.DiffusionFilter(make_unet(size=16), DDPMScheduler(), steps=1, respacing=10)
    return ace.CounterfactualExplainer(
        lambda images: 40 * (images.mean((1, 2, 3)) - 0.5), ace.BinaryDecision(), diffusion_filter, ace.PGD(1), slots=2
    )


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(3, 16, 16), {}, r"shape \(N, C, H, W\), got torch.float32 \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), {}, "must be a float tensor.*uint8"),
        (torch.full((1, 3, 16, 16), -0.5), {}, r"must lie in \[0, 1\], these lie in \[-0.5, -0.5\]: undo"),
        (torch.full((1, 3, 16, 16), float("nan")), {}, r"no numbers \(NaN\)"),
        (torch.rand(1, 1, 16, 16), {}, "have 1 channels, the diffusion model takes 3: .*convert"),
        (torch.rand(1, 3, 15, 16), {}, "images of 15x16: both sides must be multiples of 2; resize"),
        (torch.rand(2, 3, 16, 16), {"ids": ["a"]}, "1 ids were given for 2 images"),
        (torch.rand(2, 3, 16, 16), {"ids": ["a", "a"]}, "ids must be unique, 'a' is given more than once"),
        (torch.rand(1, 3, 16, 16), {"targets": torch.tensor([2])}, r"targets must be classes from 0 to 1, got \[2\]"),
    ],
)
def test_calls(explainer, images, options, message):
    with pytest.raises(ValueError, match=message):
        explainer.explain(images, **options)
    assert explainer.advance(drain=True) == []


def test_gradients_need_more_than_inference_mode(explainer):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="set the trainer's inference_mode to false"):
        explainer.explain(torch.rand(1, 3, 16, 16))


def test_more_images_than_slots_cannot_be_refined_at_once(explainer):
    image = torch.rand(3, 16, 16)
    queries = [Query(str(i), image, 1, 0, None, 0.1, pre_explanation=image) for i in range(3)]
    with pytest.raises(ValueError, match="refine takes at most 2 images at a time, got 3"):
        explainer.refine(queries)


def test_the_l1_distance_of_a_proximal_attack_is_its_threshold(make_unet):
    diffusion_filter = ace.DiffusionFilter(make_unet(size=16), DDPMScheduler(), steps=1, respacing=10)
    parts = (lambda images: images.mean((1, 2, 3)), ace.BinaryDecision(), diffusion_filter, ace.ProximalGradient())
    with pytest.raises(ValueError, match=r"its own l1 term.*set the distance's l1 to 0, got 0.01"):
        ace.CounterfactualExplainer(*parts, ace.Distance(l1=0.01))
    assert ace.CounterfactualExplainer(*parts).pool.objective.distance.l1 == 0
