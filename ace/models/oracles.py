"""Attribute oracles: networks that tell which attributes of an image a counterfactual has changed."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from ace.models.backbones import caffe_resnet50
from ace.models.classifiers import ImageClassifier
from ace.models.frozen import Encoder
from ace.models.weight_files import fit, read_tensors

_ATTRIBUTES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones
    Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline
    Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick
    Wearing_Necklace Wearing_Necktie Young
"""
CELEBA_ATTRIBUTES = tuple(_ATTRIBUTES.split())  # of CelebA and CelebA-HQ, in the order of their annotation files
VGGFACE2_MEAN = tuple(level / 255 for level in (131.0912, 103.8827, 91.4953))  # red, green, blue


class AttributeOracle(Encoder):
    """A network that gives the logit of each attribute, positive where the attribute is there.

    Args:
        name, network, prepare, channels: see `ace.models.frozen.FrozenNetwork`.
        attributes: their names, in the order of the logits.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        attributes: Sequence[str],
        channels: int = 3,
    ) -> None:
        super().__init__(name, network, prepare, len(attributes), channels)
        self.attributes = tuple(attributes)


def bgr(images: Tensor) -> Tensor:
    """Images with their channels in the opposite order, that of Caffe and OpenCV."""
    return images.flip(1)


def _bicubic(size: int) -> v2.Resize:
    return v2.Resize((size, size), interpolation=InterpolationMode.BICUBIC, antialias=False)


def load_celeba_oracle(path: Path) -> AttributeOracle:
    """The oracle of CelebA that DiVE's authors published (Rodriguez et al., ICCV 2021) and ACE evaluates with.

    The preparation is that of ACE's ``eval_utils/oracle_celeba_metrics.py``, oddity included: from the channels in the
    order blue, green, red it takes the means in the order red, green, blue.

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    count = len(CELEBA_ATTRIBUTES)
    with torch.device("meta"):
        head = OrderedDict(embedding=nn.Linear(2048, 128, bias=False), classifier=nn.Linear(128, count))
    network = caffe_resnet50(nn.Sequential(head))
    _fit_oracle(network, path)
    prepare = v2.Compose([bgr, v2.Normalize(VGGFACE2_MEAN, (1, 1, 1)), _bicubic(224)])
    return AttributeOracle("oracle_celeba", network, prepare, CELEBA_ATTRIBUTES)


def load_celeba_hq_oracle(path: Path) -> AttributeOracle:
    """The oracle of CelebA-HQ that STEEX's authors published (Jacob et al., ECCV 2022).

    It was trained on images in [-1, 1], as in STEEX's ``train_vggface2_oracle.py``. (ACE's MNAC normalises twice.)

    Raises:
        ValueError: see `ace.models.weight_files`.
    """
    with torch.device("meta"):
        head = OrderedDict(classifier=nn.Linear(2048, len(CELEBA_ATTRIBUTES)))
    network = caffe_resnet50(nn.Sequential(head))
    _fit_oracle(network, path)
    prepare = v2.Compose([v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), _bicubic(224)])
    return AttributeOracle("oracle_celeba_hq", network, prepare, CELEBA_ATTRIBUTES)


def load_classifier_oracle(folder: Path) -> AttributeOracle:
    """One of our own multi-label classifiers as an oracle.

    Weights of any torchvision architecture come into such a folder by `ImageClassifier.load_weights` and
    `ImageClassifier.save_pretrained`.

    Raises:
        FileNotFoundError: there is no classifier.
        ValueError: it is damaged, or not a multi-label one.
    """
    classifier = ImageClassifier.from_pretrained(folder)
    if classifier.task != "multilabel":
        raise ValueError(
            f"the classifier at {str(folder)!r} is {classifier.task}, an oracle of attributes must be multilabel: "
            "give another folder"
        )
    channels = classifier.mean.shape[1]
    return AttributeOracle("oracle_classifier", classifier, nn.Identity(), classifier.class_names, channels)


_LAYERS = {
    "1x1_reduce": ("conv1", "bn1"),
    "3x3": ("conv2", "bn2"),
    "1x1_increase": ("conv3", "bn3"),
    "1x1_proj": ("downsample.0", "downsample.1"),
}
_OTHER_MODULES = {
    "feat_extract.conv1_7x7_s2": "conv1",
    "feat_extract.conv1_7x7_s2_bn": "bn1",
    "feat_extract.feat_extract": "fc.embedding",
    "classifier": "fc.classifier",
}


def _fit_oracle(network: nn.Module, path: Path) -> None:
    tensors = {_torchvision_name(name): tensor for name, tensor in read_tensors(path).items()}
    if "fc.embedding.weight" in tensors:  # a pointwise convolution of the pooled features: a linear layer here
        tensors["fc.embedding.weight"] = tensors["fc.embedding.weight"].flatten(1)
    fit(network, tensors, path)


def _torchvision_name(name: str) -> str:
    """``feat_extract.conv3_1_1x1_reduce_bn.weight`` of the published files is ``layer2.0.bn1.weight``."""
    module, _, tensor = name.rpartition(".")
    found = re.fullmatch(rf"feat_extract\.conv(\d)_(\d)_({'|'.join(_LAYERS)})(_bn)?", module)
    if found is None:
        return f"{_OTHER_MODULES.get(module, module)}.{tensor}"
    stage, block, layer, norm = found.groups()
    return f"layer{int(stage) - 1}.{int(block) - 1}.{_LAYERS[layer][norm is not None]}.{tensor}"
