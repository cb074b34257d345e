"""Networks that are built from their class, and get their weights from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum, densenet121, list_models

from ace.models.classifiers import build_network, network_class
from ace.models.foreign.base import ONE, ZERO, ForeignClassifier, existing, kept_names, unchanged_randomness
from ace.models.normalised import Task
from ace.models.oracles import CELEBA_ATTRIBUTES
from ace.models.pretrained import SHIFTED, default_normalisation, known_weights, pretrained_network
from ace.models.weight_files import fit, read_tensors

DECISIONS = {
    40: CELEBA_ATTRIBUTES,
    3: ("Male", "Smiling", "Young"),
    4: ("forward", "stop", "left", "right"),
}


class ModuleClassifier(ForeignClassifier):
    """Any ``nn.Module`` class with its state dict.

    Args:
        module: import path of the class.
        weights: its state dict, in a .pt, .pth, .tar or .safetensors file, alone or in a training checkpoint; never
            unpickled beyond tensors.
        options: arguments of the class.
        class_names, task, size, outputs: see `ace.models.normalised.NormalisedClassifier`.
        mean, std: the normalisation that it was trained with; by default it takes images in [0, 1] as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the class cannot be imported or built, or the weights cannot be read or are not its own.
    """

    def __init__(
        self,
        module: str,
        weights: str,
        class_names: list[str],
        options: dict[str, Any] | None = None,
        task: Task = "multiclass",
        mean: tuple[float, ...] = ZERO,
        std: tuple[float, ...] = ONE,
        size: tuple[int, int] | None = None,
        outputs: list[int] | None = None,
    ) -> None:
        tensors, options = read_tensors(existing(weights)), options or {}
        try:
            with unchanged_randomness():
                network = network_class(module)(**options)
        except TypeError as error:
            raise ValueError(f"cannot build {module!r} with the options {options}: {error}") from error
        fit(network, tensors, Path(weights))
        origin = {"module": module, "options": options}
        super().__init__(network, origin, class_names, task, mean, std, size, outputs)


class TorchvisionClassifier(ForeignClassifier):
    """A network of torchvision.

    Args:
        architecture: name in torchvision's registry, ``resnet50`` say.
        weights: name of torchvision's weights (``DEFAULT``, ``IMAGENET1K_V1``), which are downloaded; or a file of a
            state dict. A file under the name that torchvision publishes it by counts as these weights.
        class_names: by default those of torchvision's weights; has to be given with a file of one's own.
        task, outputs: see `ace.models.normalised.NormalisedClassifier`.
        mean, std: by default those of torchvision's weights; have to be given with a file of one's own.
        size: height and width that images are resized to; by default they are taken as they are.

    Raises:
        FileNotFoundError: neither such a file nor such weights.
        ValueError: unknown architecture, weights that do not fit, or an argument that has to be given.
    """

    def __init__(
        self,
        architecture: str,
        weights: str = "DEFAULT",
        class_names: list[str] | None = None,
        task: Task = "multiclass",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        size: tuple[int, int] | None = None,
        outputs: list[int] | None = None,
    ) -> None:
        published = _published(architecture, weights)
        if published is not None:
            preset, names = published.transforms(), published.meta["categories"]
            mean, std = mean or tuple(preset.mean), std or tuple(preset.std)
            class_names = class_names or kept_names(names, outputs)
        missing = [n for n, v in (("class_names", class_names), ("mean", mean), ("std", std)) if v is None]
        if missing:
            usual_mean, usual_std = map(list, default_normalisation(architecture, "DEFAULT"))
            raise ValueError(
                f"the file {weights!r} does not say {', '.join(missing)}: give what the network was trained with (of "
                f"torchvision's weights mean {usual_mean} and std {usual_std})"
            )
        with unchanged_randomness():
            if Path(weights).is_file():
                state = read_tensors(Path(weights))
                # As torchvision builds these two with its weights: their input is then shifted inside.
                own = {"transform_input": published is not None, "init_weights": False}
                options = own if architecture in SHIFTED else {}
                network = build_network(architecture, _classes_in(state, architecture), **options)
                fit(network, state, Path(weights))
            else:
                network = pretrained_network(architecture, published)
        super().__init__(network, {"architecture": architecture}, class_names, task, mean, std, size, outputs)


class DecisionDenseNet(ForeignClassifier):
    """The DenseNet-121 that ACE explains on faces and driving scenes.

    It takes images in [0, 1] of any size as all classifiers do, and maps them to [-1, 1], where it was trained.

    Three published files have its layout, and are told apart by their number of logits:

    - CelebA, all 40 attributes: DiVE's (Rodriguez et al., ICCV 2021), the classifier of DiME and ACE;
    - CelebA-HQ, ``Male``, ``Smiling``, ``Young``: STEEX's (Jacob et al., ECCV 2022), celebamaskhq/checkpoint.tar in
      ``checkpoints_decision_densenet.tar.gz`` at https://github.com/valeoai/STEEX/releases;
    - BDD-OIA, ``forward``, ``stop``, ``left``, ``right``: STEEX's, bdd/checkpoint.tar of the same archive.

    Args:
        path: the file; never unpickled beyond tensors.
        class_names: of a file of one's own with other attributes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is of another network, or its attributes are not known.
    """

    def __init__(self, path: str, class_names: list[str] | None = None) -> None:
        parts = ("feat_extract.feat_extract.", "classifier.")  # a training checkpoint may hold more
        tensors = {
            name.removeprefix(parts[0]): tensor
            for name, tensor in read_tensors(existing(path)).items()
            if name.startswith(parts)
        }
        count = len(tensors.get("classifier.bias", ()))
        names = class_names or DECISIONS.get(count)
        if names is None:
            raise ValueError(
                f"{str(path)!r} is not a published decision model ({count or 'no'} logits in `classifier.bias`): name "
                "its attributes in class_names if it is one of your own, or give another file"
            )
        with unchanged_randomness():
            network = densenet121(num_classes=count)
        fit(network, tensors, Path(path))
        half = (0.5, 0.5, 0.5)
        super().__init__(network, {}, names, "multilabel", half, half)


def _published(architecture: str, weights: str) -> WeightsEnum | None:
    """The weights of that name in torchvision, or in a file under their published name.

    Raises:
        FileNotFoundError: neither such a file nor such weights.
        ValueError: unknown architecture.
    """
    if architecture not in list_models(module=torchvision.models):
        raise ValueError(f"unknown architecture {architecture!r}: give a name of torchvision.models.list_models()")
    known = known_weights(architecture)
    if Path(weights).is_file():
        return next((member for member in known.values() if Path(member.url).name == Path(weights).name), None)
    if weights not in known:
        raise FileNotFoundError(
            f"no weights at {weights!r}: give a state dict (.pt, .pth or .safetensors), or the name of torchvision's "
            f"weights for {architecture} ({', '.join(known) or 'it has none'})"
        )
    return known[weights]


def _classes_in(state: Mapping[str, Tensor], architecture: str) -> int:
    """The number of classes of a state dict: the size of what follows from it."""
    with torch.device("meta"):
        two, three = (build_network(architecture, count).state_dict() for count in (2, 3))
    heads = [name for name in two if two[name].shape != three[name].shape and name in state]
    if not heads:
        raise ValueError(f"the weights are not of {architecture}: they lack its last layer")
    return len(state[heads[0]])
