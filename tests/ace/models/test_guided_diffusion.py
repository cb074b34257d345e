"""guided-diffusion checkpoints against the published implementation, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from ace.models.guided_diffusion import Flags
from ace.models.unet import (
    GuidedUNet2DModel,
    build_scheduler,
    build_unet,
    load_diffusion,
    load_guided_diffusion,
)

PLAIN = {"resblock_updown": False, "use_scale_shift_norm": False}

# name in the reference: (weights, flags besides those of celeba)
NETWORKS = {
    "celeba": ("a_unet_weights", {}),
    "headch16": ("a_unet_weights", {"num_head_channels": 16}),
    "headch32": ("a_unet_weights", {"num_head_channels": 32}),
    "neworder": ("a_unet_weights", {"use_new_attention_order": True}),
    "plain": ("a_unet_plain_weights", PLAIN),
}


@pytest.fixture
def state(reference):
    return dict(reference("a_unet_weights"))


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradient_equal_the_reference(name, reference, celeba_flags):
    case = reference("a_unet_cases")
    weights, flags = NETWORKS[name]
    unet, _ = load_guided_diffusion(reference(weights), **celeba_flags | flags)
    x = case["x"].clone().requires_grad_()
    output = unet(x, case["t"]).sample
    (product,) = torch.autograd.grad((output * case["vjp_cotangent"]).sum(), x)
    torch.testing.assert_close(output, case[f"out_{name}"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(product, case[f"vjp_{name}"], rtol=1e-4, atol=2e-4)


@torch.no_grad()
def test_a_rectangular_image_equals_the_reference(reference, celeba):
    case = reference("a_unet_cases")
    output = celeba[0](case["x_rect"], case["t_rect"]).sample
    torch.testing.assert_close(output, case["out_rect_celeba"], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_first_level_narrower_than_the_base_width(reference, state, celeba_flags):
    """The network of the reference written as one of twice the base width and half the multipliers.

    Its time embedding has twice the frequencies; those that the original lacks get zero weights.
    """
    case, narrow = reference("a_unet_cases"), torch.zeros(256, 64)
    narrow[:128, 0:32:2] = state["time_embed.0.weight"][:, :16]
    narrow[:128, 32::2] = state["time_embed.0.weight"][:, 16:]
    wide = torch.zeros(256, 256)
    wide[:128, :128] = state["time_embed.2.weight"]
    state |= {"time_embed.0.weight": narrow, "time_embed.2.weight": wide}
    for name in ("time_embed.0.bias", "time_embed.2.bias"):
        state[name] = torch.cat([state[name], torch.zeros(128)])
    for name in [name for name in state if name.endswith("emb_layers.1.weight")]:
        state[name] = torch.cat([state[name], torch.zeros(len(state[name]), 128)], dim=1)
    unet, _ = load_guided_diffusion(state, **celeba_flags | {"num_channels": 64, "channel_mult": "0.5,1"})
    torch.testing.assert_close(unet(case["x"], case["t"]).sample, case["out_celeba"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_save_and_load_round_trip(name, reference, celeba_flags, tmp_path):
    case = reference("a_unet_cases")
    weights, flags = NETWORKS[name]
    unet, scheduler = load_guided_diffusion(reference(weights), **celeba_flags | flags)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    loaded, loaded_scheduler = load_diffusion(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False).unet
    for copy in (loaded, again):
        assert type(copy) is type(unet)
        assert torch.equal(copy(case["x"], case["t"]).sample, unet(case["x"], case["t"]).sample)
    assert torch.equal(loaded_scheduler.betas, scheduler.betas)
    assert loaded_scheduler.config.variance_type == "learned_range"
    assert not loaded.training


def test_heads_fit_every_width():
    """Four heads at two widths, which the configuration of `UNet2DModel` cannot say."""
    flags = Flags(num_channels=32, num_res_blocks=1, channel_mult="1,2,3", attention_resolutions="32,16", num_heads=4)
    unet = build_unet(flags)
    assert isinstance(unet, GuidedUNet2DModel)
    heads = {
        (layer.heads, layer.inner_dim // layer.heads)
        for block in unet.down_blocks
        for layer in getattr(block, "attentions", [])
    }
    assert heads == {(4, 16), (4, 24)}
    middle = unet.mid_block.attentions[0]
    assert (middle.heads, middle.scale) == (4, 24**-0.5)
    assert type(build_unet(Flags(num_channels=32, num_head_channels=16))) is UNet2DModel


@torch.no_grad()
def test_checkpoint_files_load_in_float32(reference, state, celeba_flags, tmp_path):
    case = reference("a_unet_cases")
    torch.save(state, tmp_path / "model.pt")
    unet, _ = load_guided_diffusion(tmp_path / "model.pt", **celeba_flags)
    torch.testing.assert_close(unet(case["x"], case["t"]).sample, case["out_celeba"], rtol=1e-4, atol=2e-5)
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    unet, _ = load_guided_diffusion(str(tmp_path / "half.pt"), **celeba_flags, use_fp16=True)
    assert unet.dtype == torch.float32
    assert not unet.training
    torch.testing.assert_close(unet(case["x"], case["t"]).sample, case["out_celeba"], rtol=0, atol=0.02)


def test_the_scheduler_is_that_of_the_reference(celeba, reference):
    _, scheduler = celeba
    assert scheduler.config.variance_type == "learned_range"
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.clip_sample
    alpha_bar = torch.cumprod(1 - scheduler.betas.double(), 0)
    kept = reference("b_diffusion")["s500_r50_timestep_map"]
    theirs = reference("b_diffusion")["s500_r50_alphas_cumprod"]
    torch.testing.assert_close(alpha_bar[kept], theirs, rtol=2e-5, atol=0)
    assert build_scheduler(Flags()).config.variance_type == "fixed_large"


def test_the_cosine_schedule_by_its_formula():
    scheduler = build_scheduler(Flags(noise_schedule="cosine", diffusion_steps=100))
    alpha_bar = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    betas = [min(1 - after / before, 0.999) for before, after in pairwise(alpha_bar)]
    torch.testing.assert_close(scheduler.betas, torch.tensor(betas))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_channels": 64}, r"num_channels=64 \(the checkpoint has 32\)"),
        ({"num_res_blocks": 2}, r"num_res_blocks=2 \(the checkpoint has 1\)"),
        ({"channel_mult": "1,2,4"}, r"channel_mult=\(1, 2, 4\) \(the checkpoint has \(1, 2\)\)"),
        ({"channel_mult": ""}, "image_size 32 has no default channel_mult"),
        ({"attention_resolutions": "32,8"}, r"attention_resolutions='32,8' \(the checkpoint has '16'\)"),
        (
            {"image_size": 64, "channel_mult": ""},
            r"channel_mult=\(1, 2, 3, 4\) \(the checkpoint has \(1, 2\)\)",
        ),
        ({"use_scale_shift_norm": False}, r"use_scale_shift_norm=False \(the checkpoint has True\)"),
        ({"resblock_updown": False}, r"resblock_updown=False \(the checkpoint has True\)"),
        ({"learn_sigma": False}, r"learn_sigma=False \(the checkpoint has True\)"),
        ({"in_channels": 1}, r"in_channels=1 \(the checkpoint has 3\)"),
        ({"num_heads": 3}, "num_heads=3 does not divide the 64 channels"),
        ({"num_head_channels": 48}, "num_head_channels=48 does not divide the 64 channels"),
        ({"class_cond": True}, "unconditional"),
        ({"noise_schedule": "sqrt"}, "'sqrt'.*linear or cosine"),
        ({"attention_resolutions": "0"}, "positive"),
    ],
)
def test_wrong_flags_are_named_with_what_fits(wrong, message, state, celeba_flags):
    with pytest.raises(ValueError, match=message):
        load_guided_diffusion(state, **celeba_flags | wrong)


def test_wrong_flags_of_a_network_with_convolutions(reference, celeba_flags):
    with pytest.raises(ValueError, match=r"use_scale_shift_norm=True.*False\); resblock_updown=True.*False\)"):
        load_guided_diffusion(reference("a_unet_plain_weights"), **celeba_flags)


def test_unsuitable_checkpoints_are_refused(state, celeba_flags):
    with pytest.raises(ValueError, match=r"class-conditional.*unconditional"):
        load_guided_diffusion(state | {"label_emb.weight": torch.zeros(10, 128)}, **celeba_flags)
    with pytest.raises(ValueError, match=r"not a UNet checkpoint.*time_embed.0.weight"):
        load_guided_diffusion({"conv1.weight": torch.zeros(1)}, **celeba_flags)
    with pytest.raises(ValueError, match=r"no place in this UNet: extra.weight"):
        load_guided_diffusion(state | {"extra.weight": torch.zeros(1)}, **celeba_flags)
    for missing in ("out.0.bias", "out.2.weight", "input_blocks.3.0.skip_connection.weight"):
        part = {name: tensor for name, tensor in state.items() if name != missing}
        with pytest.raises(ValueError, match=r"out.0.bias|out.2.weight|conv_shortcut.weight"):
            load_guided_diffusion(part, **celeba_flags)


def test_missing_and_damaged_checkpoints(celeba_flags, state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pt"):
        load_guided_diffusion(tmp_path / "absent.pt", **celeba_flags)
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cannot read .*half.pt.*again"):
        load_guided_diffusion(tmp_path / "half.pt", **celeba_flags)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load_guided_diffusion(tmp_path / "list.pt", **celeba_flags)


def test_pickled_code_is_never_run(celeba_flags, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"time_embed.0.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"cannot read .*trap.pt"):
        load_guided_diffusion(tmp_path / "trap.pt", **celeba_flags)
    assert not (tmp_path / "sprung").exists()
