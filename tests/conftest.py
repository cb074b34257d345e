"""Settings of the whole test suite, and tiny networks for the scripts."""

import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import settings

from ace.models.classifiers import ImageClassifier
from datamodules.avatar_faces import ATTRIBUTES
from datamodules.avatars import AvatarsDataset

# Always the same examples, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _wandb_offline(tmp_path_factory):
    """No test talks to W&B's servers, and none of its files land in the checkout or at home."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder))
        yield


@pytest.fixture(autouse=True)
def _no_wandb_run_left():
    """A run that a failed test leaves open would swallow the next one."""
    yield
    if (wandb := sys.modules.get("wandb")) and wandb.run:
        wandb.finish()


@pytest.fixture(scope="session")
def avatar_cache(tmp_path_factory):
    """Folder for drawn faces."""
    return tmp_path_factory.mktemp("avatars")


@pytest.fixture(scope="session")
def make_unet():
    """Makes a tiny random UNet, the same for the same arguments."""

    def make(size=64, levels=2, width=16, channels=3):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(width,) * levels,
            layers_per_block=1,
            norm_num_groups=width // 2,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
        )

    return make


@pytest.fixture(scope="session")
def make_ddpm_folder(tmp_path_factory, make_unet):
    """Makes a diffusers folder of a tiny random UNet."""

    def make(**settings):
        folder = tmp_path_factory.mktemp("ddpm")
        DDPMPipeline(make_unet(**settings), DDPMScheduler()).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def ddpm_folder(make_ddpm_folder):
    """Diffusers folder of a tiny random UNet for 64x64 RGB images."""
    return make_ddpm_folder()


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory, avatar_cache):
    """Classifier folder: a tiny random DenseNet that tells avatars apart, about half of them on each side."""
    torch.manual_seed(0)
    options = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
    classifier = ImageClassifier("torchvision.models.DenseNet", list(ATTRIBUTES), "multilabel", options).eval()
    faces = AvatarsDataset("test", 8, cache_dir=str(avatar_cache))
    head = classifier.network.classifier
    with torch.no_grad():
        head.weight *= 100
        head.bias.zero_()
        head.bias -= classifier(torch.stack([face["image"] for face in faces])).quantile(0.5, dim=0)
    folder = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(folder)
    return folder
