"""Networks from their class and a file of weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, densenet121, get_model, get_model_weights, resnet18

from ace.decision import AttributeDecision, ClassDecision, decision_for
from ace.models.foreign import DecisionDenseNet, ModuleClassifier, TorchvisionClassifier, load_classifier
from ace.models.oracles import CELEBA_ATTRIBUTES

NAMES = ["calm", "smiling"]
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("form", ["plain", "wrapped", "safetensors"])
def test_any_module_from_its_state_dict(form, net, net_path, images, tmp_path):
    state = net.state_dict()
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        parallel = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
        torch.save(parallel if form == "wrapped" else state, path)
    classifier = ModuleClassifier(net_path, str(path), NAMES, {"width": 4}, mean=HALF, std=(0.25,) * 3)
    torch.testing.assert_close(classifier(images), net((images - 0.5) / 0.25))
    assert not any(module.training for module in classifier.modules())
    assert not any(weight.requires_grad for weight in classifier.parameters())
    assert isinstance(decision_for(classifier, None), ClassDecision)
    assert load_classifier(classifier) is classifier


def test_the_identity_is_that_of_content_and_not_of_place(net, net_path, tmp_path):
    def identity(name, **options):
        torch.save(net.state_dict(), tmp_path / name)
        return ModuleClassifier(net_path, str(tmp_path / name), NAMES, **options).identity

    first = identity("a.pt")
    assert first["class"] == "ModuleClassifier"
    assert first["module"] == net_path
    assert identity("b.pt") == first
    assert identity("b.pt", mean=HALF) != first
    assert identity("b.pt", size=(8, 8)) != first
    with torch.no_grad():
        net.head.bias += 1
    assert {name for name, value in identity("c.pt").items() if value != first[name]} == {"weights"}


def test_loading_leaves_the_random_stream_alone(net, net_path, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    before = torch.get_rng_state()
    ModuleClassifier(net_path, str(tmp_path / "net.pt"), NAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_that_cannot_be_had(net, net_path, tmp_path, trap):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    weights = str(tmp_path / "net.pt")
    for module, message in (
        ("os.system", "not an nn.Module class"),
        ("nowhere.Net", "cannot import architecture 'nowhere.Net'"),
        ("Net", "cannot import architecture 'Net'"),
    ):
        with pytest.raises(ValueError, match=message):
            ModuleClassifier(module, weights, NAMES)
    with pytest.raises(ValueError, match=r"cannot build .*Net' with the options \{'depth': 3\}"):
        ModuleClassifier(net_path, weights, NAMES, {"depth": 3})
    with pytest.raises(ValueError, match="not those of this network"):
        ModuleClassifier(net_path, weights, NAMES, {"width": 8})
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent"):
        ModuleClassifier(net_path, str(tmp_path / "absent.pt"), NAMES)
    with pytest.raises(ValueError, match="never unpickled"):
        ModuleClassifier(net_path, trap("trap.pt"), NAMES)


def test_a_network_of_torchvision_with_a_file_of_ones_own(images, tmp_path):
    network = resnet18(num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "own.pt")
    path = str(tmp_path / "own.pt")
    classifier = TorchvisionClassifier("resnet18", path, NAMES, mean=HALF, std=HALF, size=(32, 32), outputs=[3, 1])
    resized = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear")  # enlarging knows no anti-aliasing
    torch.testing.assert_close(classifier(images), network((resized - 0.5) / 0.5)[:, [3, 1]], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="does not say class_names, mean, std: give what the network was trained with"):
        TorchvisionClassifier("resnet18", path)
    with pytest.raises(ValueError, match="not of densenet121"):
        TorchvisionClassifier("densenet121", path, NAMES, mean=HALF, std=HALF)


def test_weights_under_their_published_name_bring_classes_and_normalisation(tmp_path):
    published = ResNet18_Weights.IMAGENET1K_V1
    path = tmp_path / published.url.rpartition("/")[2]
    torch.save({name: tensor.half() for name, tensor in resnet18().state_dict().items()}, path)
    classifier = TorchvisionClassifier("resnet18", str(path), outputs=[340, 339])
    assert classifier.class_names == ["zebra", "sorrel"]
    torch.testing.assert_close(classifier.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    with pytest.raises(ValueError, match="from 0 to 999"):
        TorchvisionClassifier("resnet18", str(path), outputs=[1000])


@pytest.mark.parametrize(("architecture", "size"), [("inception_v3", 75), ("googlenet", 32)])
def test_published_weights_answer_alike_by_name_and_from_their_file(
    architecture, size, random_tensors, shapes, tmp_path, monkeypatch
):
    """With its weights torchvision has these two shift their input."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Path(get_model_weights(architecture).DEFAULT.url).name
    path.parent.mkdir(parents=True)  # where torchvision looks before it downloads
    with torch.device("meta"):
        network = get_model(architecture, weights=None, init_weights=False)
    torch.save(random_tensors(shapes(network)), path)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    by_name, by_file = (TorchvisionClassifier(architecture, weights)(images) for weights in ("DEFAULT", str(path)))
    assert torch.equal(by_name, by_file)
    renamed = path.rename(tmp_path / "own.pth")
    with pytest.raises(ValueError, match=re.escape("of torchvision's weights mean [0.5, 0.5, 0.5]")):
        TorchvisionClassifier(architecture, str(renamed))
    own = TorchvisionClassifier(architecture, str(renamed), list(map(str, range(1000))), mean=HALF, std=HALF)
    torch.testing.assert_close(own(images), by_name, rtol=1e-5, atol=1e-5)
    own.mean += 0.01
    assert not torch.allclose(own(images), by_name, rtol=1e-5, atol=1e-5), "it has to depend on the normalisation"


def test_weights_of_torchvision_that_do_not_exist():
    with pytest.raises(FileNotFoundError, match=r"no weights at 'IMAGENET1K_V9'.*\(IMAGENET1K_V1, DEFAULT\)"):
        TorchvisionClassifier("resnet18", "IMAGENET1K_V9")
    with pytest.raises(ValueError, match="unknown architecture 'resnet19'"):
        TorchvisionClassifier("resnet19")


def decision_file(path, count, steex):
    """Random weights in the layout of a published decision model."""
    network = densenet121(num_classes=count).eval()
    state = network.state_dict()
    features = {f"feat_extract.{name}": t for name, t in state.items() if not name.startswith("classifier.")}
    if steex:
        state = {f"feat_extract.{name}": t for name, t in features.items()} | network.classifier.state_dict(
            prefix="classifier."
        )
        content = {"epoch": 5, "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}}, "loss": 0.1}
        torch.save(content | {"model_state_dict": state}, path)
    else:
        torch.save({"feat_extract": features, "classifier": network.classifier.state_dict()}, path)
    return network


@pytest.mark.parametrize(
    ("count", "steex", "query", "names"),
    [
        (40, False, "Smiling", list(CELEBA_ATTRIBUTES)),
        (3, True, "Young", ["Male", "Smiling", "Young"]),
        (4, True, "forward", ["forward", "stop", "left", "right"]),
    ],
)
def test_the_published_decision_models(count, steex, query, names, tmp_path):
    images = torch.rand(2, 3, 32, 48)
    network = decision_file(tmp_path / "checkpoint.tar", count, steex)
    classifier = DecisionDenseNet(str(tmp_path / "checkpoint.tar"))
    torch.testing.assert_close(classifier(images), network(images * 2 - 1), rtol=1e-4, atol=1e-5)
    assert classifier.class_names == names
    assert isinstance(decision_for(classifier, query), AttributeDecision)


def test_other_files_are_no_decision_models(net, tmp_path, trap):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"not a published decision model \(no logits"):
        DecisionDenseNet(str(tmp_path / "net.pt"))
    with pytest.raises(ValueError, match="never unpickled"):
        DecisionDenseNet(trap("trap.tar"))
