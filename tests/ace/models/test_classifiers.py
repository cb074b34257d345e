"""Classifiers: built by name, saved and loaded without loss, and nothing else is ever called."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import ShuffleNetV2, SqueezeNet

from ace.models.classifiers import CONFIG_NAME, WEIGHTS_NAME, ImageClassifier, build_network

TINY = "torchvision.models.ShuffleNetV2"
OPTIONS = {"stages_repeats": [1, 1, 1], "stages_out_channels": [4, 8, 8, 8, 16]}


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    """Two attributes, with batch statistics that are not those of a new network."""
    normalisation = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = ImageClassifier(TINY, ["smiling", "hat"], "multilabel", OPTIONS, **normalisation)
        classifier.train()(torch.rand(8, 3, 32, 32))
    return classifier.eval()


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_saved_classifier_comes_back_exactly(classifier, folder, images):
    loaded = ImageClassifier.from_pretrained(folder)
    assert torch.equal(loaded(images), classifier(images))
    assert (loaded.architecture, loaded.class_names, loaded.options) == (TINY, ["smiling", "hat"], OPTIONS)
    assert loaded.task == "multilabel"
    assert torch.equal(loaded.mean, classifier.mean)
    assert torch.equal(loaded.std, classifier.std)
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)


def test_a_loaded_classifier_is_ready_to_be_explained(folder):
    loaded = ImageClassifier.from_pretrained(folder)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@torch.no_grad()
def test_half_precision_on_disk_is_close(classifier, images, tmp_path):
    classifier.save_pretrained(tmp_path / "half", dtype=torch.float16)
    dtypes = {value.dtype for value in load_file(tmp_path / "half" / WEIGHTS_NAME).values()}
    assert dtypes == {torch.float16, torch.int64}  # the counters of the normalisation stay whole
    loaded = ImageClassifier.from_pretrained(tmp_path / "half")
    assert {value.dtype for value in loaded.network.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(loaded(images), classifier(images), rtol=1e-2, atol=1e-2)
    assert not torch.equal(loaded(images), classifier(images))
    assert classifier.network.fc.weight.dtype == torch.float32


@torch.no_grad()
def test_the_classifier_normalises(classifier, images):
    by_hand = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(classifier(images), classifier.network(by_hand))
    assert classifier(images).shape == (2, 2)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5)), ((0.5,), (-1.0,))])
def test_a_normalisation_that_cannot_be_is_refused(mean, std):
    with pytest.raises(ValueError, match="one positive entry a channel"):
        ImageClassifier(TINY, ["a"], "multilabel", OPTIONS, mean, std)


@torch.no_grad()
def test_a_binary_classifier_has_one_logit_and_two_names(images, tmp_path):
    classifier = ImageClassifier(TINY, ["calm", "smiling"], "binary", OPTIONS).eval()
    assert classifier(images).shape == (2, 1)
    classifier.save_pretrained(tmp_path)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    assert (loaded.task, loaded.class_names, loaded.outputs) == ("binary", ["calm", "smiling"], 1)
    assert torch.equal(loaded(images), classifier(images))


@pytest.mark.parametrize("names", [["smiling"], ["a", "b", "c"]])
def test_a_binary_classifier_of_other_than_two_names_is_refused(names):
    with pytest.raises(ValueError, match="two class names, the negative and the positive, got"):
        ImageClassifier(TINY, names, "binary", OPTIONS)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="unknown task 'regression': use one of multiclass, binary, multilabel"):
        ImageClassifier(TINY, ["a", "b"], "regression", OPTIONS)


def test_grey_images_are_seen_in_rgb(classifier):
    grey = torch.rand(2, 1, 32, 32)
    assert torch.equal(classifier(grey), classifier(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_refused(classifier, channels):
    with pytest.raises(ValueError, match=f"the images have {channels} channels, the classifier takes 3"):
        classifier(torch.rand(2, channels, 32, 32))


def test_the_configuration_is_written_last(classifier, tmp_path, monkeypatch):
    """A folder with a configuration is whole, and a file that cannot be written leaves none."""

    def disk_full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("ace.models.classifiers.save_file", disk_full)
    with pytest.raises(OSError, match="disk full"):
        classifier.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_networks_by_name_and_by_import_path():
    by_name = build_network("squeezenet1_1", 3, dropout=0.25)
    assert isinstance(by_name, SqueezeNet)
    assert by_name.num_classes == 3
    assert by_name.classifier[0].p == 0.25
    by_path = build_network(TINY, 5, **OPTIONS)
    assert isinstance(by_path, ShuffleNetV2)
    assert by_path.fc.out_features == 5


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet_18", "unknown architecture 'resnet_18'.*import path of an nn.Module class"),
        ("fcn_resnet50", "unknown architecture 'fcn_resnet50'"),  # torchvision's, but no classifier
        ("no_such_package.Net", "cannot import architecture 'no_such_package.Net'"),
        ("torchvision.models.NoSuchNet", "cannot import architecture"),
        ("torchvision.models.resnet18", "is not an nn.Module class"),  # a function
        ("torch.nn.functional", "is not an nn.Module class"),
    ],
)
def test_an_unknown_network_is_named(architecture, message):
    with pytest.raises(ValueError, match=message):
        build_network(architecture, 2)


@pytest.fixture
def calls(monkeypatch) -> list:
    """What was run: both would take any arguments."""
    calls = []

    class Popen:
        def __init__(self, *args, **options) -> None:
            calls.append("subprocess.Popen")

    monkeypatch.setattr(os, "system", lambda *args, **options: calls.append("os.system"))
    monkeypatch.setattr(subprocess, "Popen", Popen)
    return calls


@pytest.mark.parametrize("architecture", ["os.system", "subprocess.Popen"])
def test_nothing_but_network_classes_is_called(architecture, calls, folder):
    with pytest.raises(ValueError, match=r"is not an nn\.Module class"):
        build_network(architecture, 2, command="true")
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "architecture": architecture, "options": {}}))
    with pytest.raises(ValueError, match=r"is not an nn\.Module class"):
        ImageClassifier.from_pretrained(folder)
    assert calls == []


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; train one with"):
        ImageClassifier.from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classifier at .*nowhere"):
        ImageClassifier.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_truncated_file_is_damaged(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cannot load the classifier at .*the file is damaged"):
        ImageClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["one", "two", "three"]},
        {"options": {**OPTIONS, "stages_out_channels": [4, 8, 8, 8, 32]}},
        {"surprise": 1},
        {"mean": [0.5]},
        {"task": None},
        {"task": "regression"},
        {"task": "binary"},
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder, change):
    config = {**json.loads((folder / CONFIG_NAME).read_text()), **change}
    (folder / CONFIG_NAME).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match="belongs to another architecture"):
        ImageClassifier.from_pretrained(folder)


def test_the_class_of_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes, width):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["a", "b", "c"]
    classifier = ImageClassifier("own_networks.Net", names, "multiclass", {"width": 4}, mean=(0.5,), std=(0.5,))
    classifier.save_pretrained(tmp_path / "saved")
    loaded = ImageClassifier.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded.network, nn.Sequential)
    assert loaded.task == "multiclass"
    image = torch.full((1, 1, 2, 2), 0.25)
    assert torch.equal(loaded(image), classifier(image))
