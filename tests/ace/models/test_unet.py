"""Diffusers folders: what loads, and what is refused with a remedy."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ace.diffusion_filter import DiffusionFilter
from ace.models import unet as unet_module
from ace.models.unet import load_diffusion


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


@torch.no_grad()
def test_a_model_with_all_files_at_its_root(small_folder, tmp_path):
    """The layout of google/ddpm-celebahq-256: an index that names no folders, a pickle beside the safetensors."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    unet, scheduler = load_diffusion(small_folder)
    root = tmp_path / "root"
    unet.save_pretrained(root)
    scheduler.save_pretrained(root)
    (root / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    names = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (root / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"} | names))
    copy, copied_scheduler = load_diffusion(root)
    assert torch.equal(copy(x, 3).sample, unet(x, 3).sample)
    assert torch.equal(copied_scheduler.betas, scheduler.betas)
    (root / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pickled .bin weights are not read"):
        load_diffusion(root)


@pytest.mark.parametrize("condition", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}])
def test_class_conditional_models_are_refused_with_the_reason(condition, tmp_path):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **condition,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    unet, scheduler = load_diffusion(tmp_path)
    with pytest.raises(ValueError, match=r"class-conditional.*needs an unconditional diffusion model"):
        DiffusionFilter(unet, scheduler, steps=2, respacing=50)
