"""Settings of the whole test suite, tiny networks for the scripts, and what their run folders hold."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import settings

from ace.models.classifiers import ImageClassifier
from datamodules.avatar_faces import ATTRIBUTES
from datamodules.avatars import AvatarsDataset

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "avatars" / "explain.yaml"
KINDS = ("original", "pre_explanation", "counterfactual", "mask")
TIMES = ("seconds", "peak_memory", "written")

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
        before = _wandb_runs()
        yield
        left = sorted(map(str, _wandb_runs() - before))
        assert not left, f"give W&B's loggers absolute folders, tests have left these in the checkout: {left}"


def _wandb_runs():
    """The folders of W&B runs in the checkout, but for the user's own."""
    found = set()
    for parent, folders, _ in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in ("data", "outputs")]
        if Path(parent).name == "wandb":
            found |= {Path(parent, name) for name in folders}
    return found


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


@pytest.fixture(scope="module")
def one_thread():
    """Sums of several threads round differently: what must agree to the last bit runs in one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def arguments(classifier_folder, ddpm_folder, avatar_cache):
    """Makes the arguments of a quick `generate`; others given override them."""

    def make(folder, *overrides, num_images=4):
        return [
            "generate",
            f"--config={CONFIG}",
            f"--model.classifier={classifier_folder}",
            f"--model.diffusion={ddpm_folder}",
            f"--data.cache_dir={avatar_cache}",
            f"--data.num_images={num_images}",
            "--data.test_size=8",
            "--model.slots=2",
            "--model.steps=2",
            "--model.attack=ace.PGD",
            "--model.distance.l1=0.001",
            "--model.attack.iterations=2",
            "--model.attack.step_size=20",
            "--model.gradient_passes=null",
            "--model.repairs=0",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            f"--output_dir={folder}",
            *overrides,
        ]

    return make


def pictures(folder, kinds=KINDS):
    """Bytes of all PNG files of a run by kind and name."""
    return {
        f"{kind}/{path.name}": path.read_bytes()
        for kind in kinds
        for path in sorted((folder / "images" / kind).iterdir())
    }


def records(folder):
    """Records of a run by id, without what another run would measure otherwise, as its files hold them."""
    lines = [json.loads(line) for log in folder.glob("records.rank*.jsonl") for line in log.open()]
    assert len({line["id"] for line in lines}) == len(lines), "an image was done twice"
    return {line["id"]: {name: value for name, value in line.items() if name not in TIMES} for line in lines}
