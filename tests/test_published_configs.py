"""The configurations of the paper's domains hold what is published."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from jsonargparse import ArgumentParser

from ace.models.guided_diffusion import Flags
from ace.models.unet import build_scheduler, build_unet
from datamodules.imagenet import class_indices

CONFIGS = Path(__file__).parents[1] / "configs"

# The flags of ACE's scripts/*.sh, and the number of parameters of the network that they describe.
SHARED = {"num_res_blocks": 2, "resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True}
FACES = {"attention_resolutions": "32,16,8", "num_channels": 128, "diffusion_steps": 500}
STREETS = {
    "image_size": 256,
    "channel_mult": "1,2,3,4",
    "attention_resolutions": "16,8",
    "num_channels": 128,
    "num_head_channels": 64,
}
NETWORKS = {
    "celeba": ({"image_size": 128, "num_heads": 4, **FACES}, 105_198_598),
    "celeba_hq": ({"image_size": 256, "num_head_channels": 64, **FACES}, 138_289_926),
    "bdd100k": (STREETS, 92_130_438),
    "bdd_oia": (STREETS, 92_130_438),
    "imagenet": (
        {"image_size": 256, "num_channels": 256, "attention_resolutions": "32,16,8", "num_head_channels": 64},
        552_814_086,
    ),
}

# chain, respacing, share of it that is filtered, iterations, threshold of the mask
METHOD = {
    "celeba": (500, 50, 0.1, 50, 0.15),
    "celeba_hq": (500, 25, 0.2, 50, 0.15),
    "bdd100k": (1000, 100, 0.05, 50, 0.05),
    "bdd_oia": (1000, 100, 0.05, 50, 0.05),
    "imagenet": (1000, 25, 0.2, 100, 0.15),
}


def read(domain, name):
    return yaml.safe_load((CONFIGS / domain / f"{name}.yaml").read_text())


def public(config):
    """A configuration of diffusers without its own notes."""
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


@pytest.mark.parametrize("domain", NETWORKS)
def test_the_network_is_the_published_one(domain):
    flags, count = NETWORKS[domain]
    settings = Flags(**flags, **SHARED)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(UNet2DModel, "unet")
    parser.add_subclass_arguments(DDPMScheduler, "scheduler")
    written = read(domain, "ddpm")["model"]["init_args"]
    with torch.device("meta"):
        published = build_unet(settings)
        own = parser.instantiate_classes(parser.parse_object({key: written[key] for key in ("unet", "scheduler")}))
    assert sum(parameter.numel() for parameter in own.unet.parameters()) == count
    shapes = ({name: tensor.shape for name, tensor in unet.state_dict().items()} for unet in (own.unet, published))
    assert next(shapes) == next(shapes)
    assert type(own.unet) is type(published)
    sizes = {"sample_size": published.config.sample_size}  # of a square in guided-diffusion
    assert public(own.unet.config) | sizes == public(published.config)
    assert public(own.scheduler.config) == public(build_scheduler(settings).config)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("domain", METHOD)
def test_the_method_has_the_published_settings(domain, norm):
    chain, respacing, share, iterations, threshold = METHOD[domain]
    model = read(domain, f"explain_{norm}")["model"]
    assert read(domain, "ddpm")["model"]["init_args"]["scheduler"]["init_args"]["num_train_timesteps"] == chain
    assert (model["respacing"], model["steps"]) == (respacing, round(share * respacing))
    assert model["stochastic"] is True
    attack = {"iterations": iterations, "step_size": 1.0, "epsilon": None, "norm": "linf"}
    assert model["attack"] == {"class_path": "ace.PGD", "init_args": attack}
    assert model["distance"] == {"l1": 0.0, "l2": 0.0, "schedule": "constant", norm: 0.001}
    assert model["refinement"] == {"threshold": threshold, "dilation": 15}


@pytest.mark.parametrize("domain", METHOD)
def test_the_two_distances_differ_in_nothing_else(domain):
    l1, l2 = (read(domain, f"explain_{norm}") for norm in ("l1", "l2"))
    assert l1.pop("output_dir").removesuffix("l1") == l2.pop("output_dir").removesuffix("l2")
    del l1["model"]["distance"], l2["model"]["distance"]
    assert l1 == l2


def test_the_pairs_of_imagenet_have_the_numbers_of_the_policy():
    content = read("imagenet", "explain_l1")
    pair = content["model"]["policy"]["init_args"]["policy"]["init_args"]
    assert class_indices(content["data"]["init_args"]["classes"]) == [pair["source"], pair["target"]]
    text = (CONFIGS / "imagenet" / "explain_l1.yaml").read_text()
    for names in (["cheetah", "cougar"], ["Egyptian cat", "Persian cat"]):
        source, target = class_indices(names)
        assert f"'[{', '.join(names)}]' --model.policy.policy.source {source}" in text
        assert f"--model.policy.policy.target {target}\n" in text
