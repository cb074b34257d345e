"""Classifiers of timm and transformers from local files."""

import sys

import pytest
import timm
import torch
import transformers

from ace.models.foreign import HuggingFaceClassifier, TimmClassifier


def test_a_network_of_timm_from_a_file(images, tmp_path, trap):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=3).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    path = str(tmp_path / "net.pth")
    classifier = TimmClassifier("resnet10t", path, list("ab"), outputs=[2, 0])
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(classifier(images), network((images - mean) / std)[:, [2, 0]], rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in classifier.modules())
    with pytest.raises(ValueError, match=r"classes of .*net.pth' are not known: give their class_names"):
        TimmClassifier("resnet10t", path)
    with pytest.raises(ValueError, match=r"not of timm's 'test_vit': they lack head.weight"):
        TimmClassifier("test_vit", path, list("abc"))
    with pytest.raises(ValueError, match="timm cannot make 'nothing'"):
        TimmClassifier("nothing", path, list("abc"))
    with pytest.raises(ValueError, match="never unpickled"):
        TimmClassifier("resnet10t", trap("trap.pth"), list("abc"))


def test_a_transformer_of_timm_brings_its_size(images, tmp_path):
    network = timm.create_model("test_vit", pretrained=False, num_classes=2)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    classifier = TimmClassifier("test_vit", str(tmp_path / "net.pth"), list("ab"))
    assert classifier.size == network.pretrained_cfg["input_size"][1:]
    assert classifier(images).shape == (2, 2)


@pytest.fixture
def vit(tmp_path):
    """Makes a tiny vision transformer's folder; returns the model."""

    def make(**settings):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
            id2label={0: "cat", 1: "dog", 2: "fox"}, label2id={"cat": 0, "dog": 1, "fox": 2}, **settings,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config).eval()
        model.save_pretrained(tmp_path / "vit")
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
        return model

    return make


def test_a_classifier_of_transformers_from_a_folder(vit, tmp_path):
    model = vit()
    classifier = HuggingFaceClassifier(str(tmp_path / "vit"), outputs=[2, 1])
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(classifier(images), model(images * 2 - 1).logits[:, [2, 1]])
    assert classifier.class_names == ["fox", "dog"]
    assert classifier(torch.rand(2, 3, 16, 12)).shape == (2, 2)
    assert (classifier.task, classifier.size) == ("multiclass", (8, 8))


def test_the_task_of_transformers_and_what_is_no_classifier(vit, tmp_path):
    model = vit(problem_type="multi_label_classification")
    assert HuggingFaceClassifier(str(tmp_path / "vit")).task == "multilabel"
    model.vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"lacks trained weights for classifier.bias, classifier.weight"):
        HuggingFaceClassifier(str(tmp_path / "vit"))
    with pytest.raises(ValueError, match=r"cannot load .*absent' as an image classifier of transformers"):
        HuggingFaceClassifier(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("package", "make"), [("timm", lambda: TimmClassifier("x")), ("transformers", lambda: HuggingFaceClassifier("x"))]
)
def test_a_package_that_is_missing_is_named(package, make, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"`pip install {package}`"):
        make()
