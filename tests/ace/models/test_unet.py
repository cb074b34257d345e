"""guided-diffusion checkpoints against the published implementation, and diffusers folders."""

import json
import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ace.models import unet as unet_module
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


@pytest.fixture
def small_folder(tmp_path):
    """A diffusers folder as `train.py` exports it."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


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


@torch.no_grad()
def test_a_folder_loads_in_either_layout_and_any_precision(small_folder, tmp_path):
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    unet, scheduler = load_diffusion(str(small_folder))
    assert scheduler.config.num_train_timesteps == 100
    assert not unet.training
    flat = tmp_path / "flat"  # as some older models of the hub
    unet.save_pretrained(flat)
    DDIMScheduler.from_config(scheduler.config).save_pretrained(flat)
    copy, copied_scheduler = load_diffusion(flat)
    assert torch.equal(copy(x, 3).sample, unet(x, 3).sample)
    assert type(copied_scheduler) is DDPMScheduler
    assert torch.equal(copied_scheduler.betas, scheduler.betas)
    load_diffusion(small_folder)[0].half().save_pretrained(flat)
    half, _ = load_diffusion(flat)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half(x, 3).sample, unet(x, 3).sample, rtol=0, atol=0.02)


def test_missing_folders_and_files(small_folder, tmp_path):
    for absent in (tmp_path / "absent", str(tmp_path / "absent"), "absent", "./absent/model", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no such folder.*train.py fit"):
            load_diffusion(absent)
    weights = small_folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match=r"safetensors is missing.*pickled"):
        load_diffusion(small_folder)
    half = weights.with_name("diffusion_pytorch_model.fp16.safetensors")  # a variant beside a pickle
    half.write_bytes(kept)
    with pytest.raises(FileNotFoundError, match=r"safetensors is missing"):
        load_diffusion(small_folder)
    weights.write_bytes(kept)
    (small_folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config.json' is missing.*train.py fit"):
        load_diffusion(small_folder)
    (small_folder / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json' is missing"):
        load_diffusion(small_folder)


@pytest.mark.parametrize("length", [0, 4, 200, 20_000])
def test_damaged_weights_are_refused(length, small_folder):
    weights = small_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cannot load the diffusion model.*ddpm.*damaged.*again"):
        load_diffusion(small_folder)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_configurations_of_other_models_are_refused(small_folder):
    unet, scheduler = (
        small_folder / "unet" / "config.json",
        small_folder / "scheduler" / "scheduler_config.json",
    )
    edit(scheduler, _class_name="EulerDiscreteScheduler")
    with pytest.raises(ValueError, match=r"describes a EulerDiscreteScheduler, ACE needs one of DDPMScheduler"):
        load_diffusion(small_folder)
    edit(unet, _class_name="UNet2DConditionModel")
    with pytest.raises(ValueError, match=r"describes a UNet2DConditionModel, ACE needs one of UNet2DModel"):
        load_diffusion(small_folder)
    unet.write_text("{")
    with pytest.raises(ValueError, match=r"config.json' is no configuration"):
        load_diffusion(small_folder)


@pytest.mark.parametrize(
    "change", [{"layers_per_block": 2}, {"block_out_channels": [8, 16]}, {"attention_head_dim": "x"}]
)
def test_weights_of_another_network_are_refused(change, small_folder):
    """diffusers only warns of missing tensors and leaves them random."""
    edit(small_folder / "unet" / "config.json", **change)
    with pytest.raises(ValueError, match=r"do not fit its config|cannot load the diffusion model"):
        load_diffusion(small_folder)


def test_names_on_the_hub_are_fetched_without_pickles(small_folder, monkeypatch):
    asked = {}

    def fetch(name, allow_patterns):
        asked[name] = allow_patterns
        if name != "google/ddpm-celebahq-256":
            raise OSError("no network")
        return str(small_folder)

    monkeypatch.setattr(unet_module, "snapshot_download", fetch)
    unet, _ = load_diffusion("google/ddpm-celebahq-256")
    assert unet.config.sample_size == 8
    assert asked["google/ddpm-celebahq-256"] == ["*.json", "*.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"someone/absent.*no network.*train.py fit"):
        load_diffusion("someone/absent")
