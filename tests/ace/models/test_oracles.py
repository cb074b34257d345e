"""Attribute oracles in their published formats, against a plain computation under the published names."""

import pytest
import torch
import torch.nn.functional as F

from ace.models.classifiers import ImageClassifier
from ace.models.encoders import NETWORKS, load_encoder
from ace.models.oracles import CELEBA_ATTRIBUTES

TINY = "torchvision.models.ShuffleNetV2"
OPTIONS = {"stages_repeats": [1, 1, 1], "stages_out_channels": [4, 8, 8, 8, 16]}
MEAN = torch.tensor([131.0912, 103.8827, 91.4953]).view(3, 1, 1)


def names(stage, block, layer):
    name = "conv1_7x7_s2" if layer == "stem" else f"conv{stage}_{block}_{layer}"
    return name, f"{name}_bn"


def backbone_shapes():
    convolutions, channels = {(1, 1, "stem"): (64, 3, 7, 7)}, 64
    for stage, blocks, width in ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)):
        for block in range(1, blocks + 1):
            convolutions[stage, block, "1x1_reduce"] = (width, channels, 1, 1)
            convolutions[stage, block, "3x3"] = (width, width, 3, 3)
            convolutions[stage, block, "1x1_increase"] = (4 * width, width, 1, 1)
            if block == 1:
                convolutions[stage, block, "1x1_proj"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    shapes = {}
    for key, shape in convolutions.items():
        convolution, norm = names(*key)
        shapes[f"{convolution}.weight"] = shape
        shapes |= {f"{norm}.{kind}": shape[:1] for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    return shapes


@pytest.fixture(scope="module")
def celeba(random_tensors, store):
    """The oracle of CelebA and the two state dicts in its file."""
    content = {
        "feat_extract": random_tensors(backbone_shapes() | {"feat_extract.weight": (128, 2048, 1, 1)}),
        "classifier": random_tensors({"weight": (40, 128), "bias": (40,)}),
    }
    return load_encoder("oracle_celeba", store(content, NETWORKS["oracle_celeba"].file)), content


@pytest.fixture(scope="module")
def celeba_hq(random_tensors, store):
    """The oracle of CelebA-HQ and the state dict in its file."""
    shapes = {f"feat_extract.{name}": shape for name, shape in backbone_shapes().items()}
    state = random_tensors(shapes | {"classifier.weight": (40, 2048), "classifier.bias": (40,)})
    content = {"epoch": 5, "optimizer_state_dict": {"param_groups": []}, "loss": 0.2, "model_state_dict": state}
    return load_encoder("oracle_celeba_hq", store(content, NETWORKS["oracle_celeba_hq"].file).parent), state


def bicubic(images):
    return F.interpolate(images, size=(224, 224), mode="bicubic", align_corners=False)


def test_the_oracle_of_celeba(celeba, images, caffe_features):
    oracle, content = celeba
    pooled = caffe_features(content["feat_extract"], names, bicubic(images[:, [2, 1, 0]] - MEAN / 255))
    embedding = pooled @ content["feat_extract"]["feat_extract.weight"].float().flatten(1).T
    logits = F.linear(embedding, *(tensor.float() for tensor in content["classifier"].values()))
    torch.testing.assert_close(oracle(images), logits, rtol=1e-3, atol=1e-3)


def test_the_oracle_of_celeba_hq_normalises_once(celeba_hq, images, caffe_features):
    oracle, state = celeba_hq
    backbone = {name.removeprefix("feat_extract."): tensor for name, tensor in state.items()}
    pooled = caffe_features(backbone, names, bicubic(2 * images - 1))
    logits = F.linear(pooled, state["classifier.weight"].float(), state["classifier.bias"].float())
    torch.testing.assert_close(oracle(images), logits, rtol=1e-3, atol=1e-3)


def test_logits_are_one_an_attribute_in_the_order_of_celeba(celeba_hq, images):
    oracle, _ = celeba_hq
    assert oracle(images).shape == (2, oracle.dimension) == (2, 40)
    assert oracle.attributes == CELEBA_ATTRIBUTES
    assert [CELEBA_ATTRIBUTES[index] for index in (0, 20, 31, 39)] == ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]


def test_the_two_oracles_are_not_confused(celeba_hq, store):
    path = store({"model_state_dict": celeba_hq[1]}, "checkpoint.tar")
    with pytest.raises(ValueError, match=r"\(missing: fc.embedding.weight; of another shape: fc.classifier.weight\)"):
        load_encoder("oracle_celeba", path)


def classifier(folder, task, names, **settings):
    torch.manual_seed(0)
    network = ImageClassifier(TINY, names, task, OPTIONS, **settings).eval()
    network.save_pretrained(folder)
    return network


def test_an_own_classifier_as_oracle(tmp_path, images):
    network = classifier(tmp_path, "multilabel", ["smiling", "glasses"])
    oracle = load_encoder("oracle_classifier", tmp_path)
    assert oracle.attributes == ("smiling", "glasses")
    assert (oracle.name, oracle.dimension) == ("oracle_classifier", 2)
    torch.testing.assert_close(oracle(images), network(images))


def test_a_classifier_of_classes_is_no_oracle(tmp_path):
    classifier(tmp_path, "multiclass", ["four", "nine"])
    with pytest.raises(ValueError, match="is multiclass, an oracle of attributes must be multilabel"):
        load_encoder("oracle_classifier", tmp_path)
