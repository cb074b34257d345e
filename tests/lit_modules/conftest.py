"""A quiet trainer, a finished run, and networks to judge it."""

import json
import re
import shutil

import pytest
import torch
import yaml
from lightning import Trainer

import explain
from ace.images import from_uint8, load_png
from ace.models.classifiers import ImageClassifier
from ace.run_store import RunStore
from datamodules.avatar_faces import ATTRIBUTES
from datamodules.avatars import AvatarsDataset
from tests.conftest import records

TRAIN_SIZE = 60
JUDGED = {
    "cout", "cout_paper", "non_adversarial_flip_rate", "mnac", "attributes_changed", "factors_preserved", "cd",
    "change_in_region",
}  # fmt: skip


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a trainer that writes nothing and prints nothing."""

    def make(**settings):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **(quiet | settings))

    return make


@pytest.fixture(scope="session")
def finished(arguments, tmp_path_factory):
    """A finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    explain.main(arguments(folder, f"--data.train_size={TRAIN_SIZE}"))
    assert {record["status"] for record in records(folder).values()} == {"flipped", "not_flipped"}, "a test needs both"
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def make_judge(avatar_cache, tmp_path_factory):
    """Makes the folder of a tiny random classifier of some attributes, about half of the faces on each side."""

    def make(names=ATTRIBUTES, task="multilabel"):
        torch.manual_seed(1)
        options = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
        classifier = ImageClassifier("torchvision.models.DenseNet", list(names), task, options).eval()
        faces = torch.stack([face["image"] for face in AvatarsDataset("test", 8, cache_dir=str(avatar_cache))])
        head = classifier.network.classifier
        with torch.no_grad():
            head.weight *= 1000
            head.bias -= classifier(faces).quantile(0.5, dim=0)
        folder = tmp_path_factory.mktemp("judge")
        classifier.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def judge(make_judge):
    return make_judge()


def evaluate(run, *options, **networks):
    """Run the command; the metrics that it wrote."""
    given = json.dumps({name: None if path is None else str(path) for name, path in networks.items()})
    explain.main(["evaluate", str(run), f"--networks={given}", *map(str, options)])
    return json.loads((run / "metrics.json").read_text())["metrics"]


def refusal(capsys, run, *options, **networks):
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as exit:
        evaluate(run, *options, **networks)
    assert re.fullmatch(r"error: .+", exit.value.code)
    return exit.value.code


def stored(run, kind):
    """The images of a run, in the order of its records."""
    paths = [run / "images" / kind / f"{record.id}.png" for record in RunStore.open(run).records()]
    return torch.stack([from_uint8(load_png(path)) for path in paths])


def change_config(run, change):
    """Change the configuration that a run stores."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    change(content["config"])
    (run / "config.yaml").write_text(yaml.safe_dump(content))
