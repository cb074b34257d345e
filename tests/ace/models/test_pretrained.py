"""Weights to start from: read without pickle, and all of them but the last layer's used."""

import json
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ShuffleNet_V2_X0_5_Weights, get_model, shufflenet_v2_x0_5
from torchvision.transforms.v2.functional import normalize

from ace.models.classifiers import ImageClassifier
from ace.models.pretrained import default_normalisation

TINY = "torchvision.models.ShuffleNetV2"
OPTIONS = {"stages_repeats": [1, 1, 1], "stages_out_channels": [4, 8, 8, 8, 16]}
HEAD = {"fc.weight", "fc.bias"}


def classifier(count=3, seed=0, options=OPTIONS):
    torch.manual_seed(seed)
    return ImageClassifier(TINY, [f"class {index}" for index in range(count)], "multiclass", options)


@pytest.fixture
def trained():
    return classifier(count=5, seed=1).network.state_dict()


@pytest.fixture
def store(tmp_path):
    def make(state, name="weights.pt"):
        path = str(tmp_path / name)
        save_file(state, path) if name.endswith(".safetensors") else torch.save(state, path)
        return path

    return make


def equal_tensors(network, state):
    own = network.state_dict()
    return {
        name for name, tensor in state.items() if own[name].shape == tensor.shape and torch.equal(own[name], tensor)
    }


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors"])
def test_a_file_gives_all_weights_but_the_last_layer_of_another_number_of_classes(name, trained, store):
    new, before = classifier(), classifier().network.state_dict()
    new.load_weights(store(trained, name))
    assert equal_tensors(new.network, trained) == trained.keys() - HEAD
    assert equal_tensors(new.network, before) >= HEAD


def test_the_last_layer_of_the_same_number_of_classes_is_used_too(trained, store):
    new = classifier(count=5)
    new.load_weights(store(trained))
    assert equal_tensors(new.network, trained) == trained.keys()


def test_a_checkpoint_of_another_trainer_gives_its_state_dict(trained, store):
    state = {f"module.{name}": tensor for name, tensor in trained.items()}
    new = classifier(count=5)
    new.load_weights(store({"epoch": 3, "state_dict": state, "optimizer": {"step": torch.ones(1)}}))
    assert equal_tensors(new.network, trained) == trained.keys()


def test_half_precision_and_files_from_before_batch_counters_load(trained, store):
    state = {name: tensor.half() for name, tensor in trained.items() if "num_batches_tracked" not in name}
    new = classifier()
    new.load_weights(store(state))
    assert torch.equal(new.network.conv1[0].weight, trained["conv1.0.weight"].half().float())


def test_tensors_that_do_not_fit_are_named(trained, store):
    wider = classifier(options=OPTIONS | {"stages_out_channels": [4, 8, 8, 8, 32]}).network.state_dict()
    with pytest.raises(
        ValueError, match=r"do not fit the network .*of another shape: conv5.0.weight, conv5.1.bias, .*"
    ):
        classifier().load_weights(store(wider))
    kept = {name: tensor for name, tensor in trained.items() if not name.startswith("conv1.0")}
    with pytest.raises(ValueError, match=r"\(missing: conv1\.0\.weight\)"):
        classifier().load_weights(store(kept))
    with pytest.raises(ValueError, match=r"\(missing: fc\.bias\)"):
        classifier().load_weights(store({name: tensor for name, tensor in trained.items() if name != "fc.bias"}))
    with pytest.raises(ValueError, match=r"\(unknown: fc2\.weight\)"):
        classifier().load_weights(store(trained | {"fc2.weight": torch.zeros(1)}))


def test_more_than_a_few_tensors_are_counted(store):
    with pytest.raises(ValueError, match=r"missing: conv1.0.weight, conv1.1.bias, conv1.1.running_mean and \d+ more"):
        classifier().load_weights(store({"other": torch.zeros(1)}))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_file_is_never_unpickled_beyond_tensors(trained, store, tmp_path):
    mark = tmp_path / "mark"
    path = store(trained | {"fc.bias": Evil(mark)})
    with pytest.raises(ValueError, match=r"more than tensors .* never unpickled"):
        classifier().load_weights(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file has to be one that could do harm"


@pytest.mark.parametrize("state", [[torch.zeros(1)], {"epoch": 3, "state_dict": {}}])
def test_what_is_no_state_dict_is_refused(state, store):
    with pytest.raises(ValueError, match="holds no tensors: save the network's `state_dict"):
        classifier().load_weights(store(state))


def test_a_damaged_file_is_named(tmp_path):
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(ValueError, match=f"cannot read the weights .*{name}.*damaged"):
            classifier().load_weights(str(tmp_path / name))


def test_a_missing_file_is_named_with_the_weights_that_torchvision_has():
    with pytest.raises(FileNotFoundError, match=r"no weights at 'nowhere.pt'.*ShuffleNetV2 \(it has none\)"):
        classifier().load_weights("nowhere.pt")
    named = ImageClassifier("squeezenet1_1", ["a", "b"], "multiclass")
    with pytest.raises(FileNotFoundError, match=r"'IMAGENET1K_V7'.*for squeezenet1_1 \(IMAGENET1K_V1, DEFAULT\)"):
        named.load_weights("IMAGENET1K_V7")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's folder for downloads, without a network."""

    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / Path(ShuffleNet_V2_X0_5_Weights.DEFAULT.url).name


@pytest.fixture
def named():
    return ImageClassifier("shufflenet_v2_x0_5", ["a", "b"], "binary")


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_weights_of_torchvision_by_name(name, hub, named):
    torch.manual_seed(3)
    state = shufflenet_v2_x0_5().state_dict()
    torch.save(state, hub)  # where torchvision looks before it downloads
    named.load_weights(name)
    assert equal_tensors(named.network, state) == state.keys() - HEAD
    assert named(torch.rand(2, 3, 32, 32)).shape == (2, 1)


def test_weights_of_torchvision_are_never_unpickled_beyond_tensors(hub, named, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    mark = tmp_path / "mark"
    torch.save({"fc.bias": Evil(mark)}, hub)
    with pytest.raises(
        ValueError, match=r"cannot read ShuffleNet_V2_X0_5_Weights\.IMAGENET1K_V1 in .*more than tensors"
    ):
        named.load_weights("DEFAULT")
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(hub, weights_only=True)
    torch.load(hub, weights_only=False)  # only the loading of torchvision's weights was restricted
    assert mark.exists()


def test_a_failed_download_says_what_to_do(hub, named):
    with pytest.raises(ValueError, match=r"no network.*put https://download.*into .*checkpoints, or give a file"):
        named.load_weights("DEFAULT")


def test_the_normalisation_is_that_of_torchvisions_weights():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert default_normalisation("resnet18", "IMAGENET1K_V1") == imagenet
    assert default_normalisation("densenet121", "DEFAULT") == imagenet
    for architecture, pretrained in (("resnet18", None), ("resnet18", "own.pt"), (TINY, "DEFAULT")):
        assert default_normalisation(architecture, pretrained) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_configuration_that_is_not_an_exported_classifiers_says_nothing(trained, store, tmp_path):
    """Other libraries call theirs the same, and ours belongs to one file alone."""
    usual = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    path, other = store(trained, "model.safetensors"), store(trained)
    for content in ({"architectures": ["Net"], "mean": "?"}, ["a list"]):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert default_normalisation(TINY, path) == usual
    (tmp_path / "config.json").write_text(json.dumps(classifier().config | {"mean": [0.1] * 3, "std": [0.2] * 3}))
    assert default_normalisation(TINY, other) == usual
    assert default_normalisation(TINY, path) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))


def test_a_damaged_configuration_is_named(trained, store, tmp_path):
    path = store(trained, "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json.*damaged"):
        default_normalisation(TINY, path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no weights at '{tmp_path}'"):
        classifier().load_weights(str(tmp_path))


PLAIN = {"aux_logits": False, "init_weights": False}


@pytest.mark.parametrize(("architecture", "size"), [("inception_v3", 75), ("googlenet", 32)])
def test_auxiliary_heads_are_left_out_where_the_network_has_none(architecture, size, store):
    torch.manual_seed(1)
    published = get_model(architecture, weights=None, num_classes=5, init_weights=False).eval()
    state = {name: tensor.half() for name, tensor in published.state_dict().items()}
    heads = {name for name in state if name.lower().startswith("aux")}
    assert heads
    new = ImageClassifier(architecture, ["a", "b"], "multiclass", PLAIN)
    new.load_weights(store(state))
    own = new.network.state_dict()
    assert own.keys() == state.keys() - heads
    assert all(torch.equal(own[name], state[name].float()) for name in own.keys() - HEAD)
    assert new.train()(torch.rand(2, 3, size, size)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"\(unknown: auxiliary\.weight\)"):
        new.load_weights(store(state | {"auxiliary.weight": torch.zeros(1)}))


def test_tensors_that_an_auxiliary_head_lacks_are_unknown(store):
    with torch.device("meta"):
        network = ImageClassifier("googlenet", ["a", "b"], "multiclass", {"init_weights": False})
    state = {name: torch.empty(tensor.shape) for name, tensor in network.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"\(unknown: aux1\.other\)"):
        network.load_weights(store(state | {"aux1.other": torch.zeros(1)}))


@pytest.mark.parametrize("architecture", ["inception_v3", "googlenet"])
def test_networks_that_shift_their_input_normalise_once(architecture):
    """With its weights torchvision has these two undo the normalisation and do it with 0.5; without, they do not."""
    (mean, std), imagenet = default_normalisation(architecture, "DEFAULT"), default_normalisation("resnet18", "DEFAULT")
    with torch.device("meta"):
        network = get_model(architecture, weights=None, transform_input=True, init_weights=False)
    images = torch.rand(2, 3, 4, 4)
    shifted = network._transform_input(normalize(images, *imagenet))
    torch.testing.assert_close(normalize(images, mean, std), shifted)
    assert default_normalisation(architecture, "DEFAULT", {"transform_input": True}) == imagenet
