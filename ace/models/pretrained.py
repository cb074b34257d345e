"""Trained weights to start a classifier from: local files, or torchvision's by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from ace.models.weight_files import read_tensors

CONFIG_NAME = "config.json"  # the two files of an exported classifier
WEIGHTS_NAME = "model.safetensors"
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")  # of inception_v3 and googlenet
SHIFTED = ("inception_v3", "googlenet")  # trained with 0.5; their `transform_input` turns ImageNet's numbers into that


def default_normalisation(
    architecture: str, pretrained: str | None, options: Mapping[str, Any] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that torchvision's weights or an exported classifier's go with; 0.5 for all others.

    Args:
        architecture: see `ace.models.classifiers.build_network`.
        pretrained: see `pretrained_state`.
        options: further arguments of the network's constructor.

    Raises:
        ValueError: the configuration beside an exported classifier's weights is damaged.
    """
    weights = known_weights(architecture).get(pretrained)
    shifted = architecture in SHIFTED and not (options or {}).get("transform_input")
    if weights is not None and not shifted:
        preset = weights.transforms()
        return tuple(preset.mean), tuple(preset.std)
    exported = exported_config(architecture, pretrained)
    if exported is not None:
        return tuple(exported["mean"]), tuple(exported["std"])
    return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def exported_config(architecture: str, pretrained: str | None) -> dict[str, Any] | None:
    """The constructor's arguments of the `ImageClassifier` whose exported weights these are; None for all others.

    Raises:
        ValueError: they are in a damaged file.
    """
    if pretrained is None or pretrained in known_weights(architecture):
        return None
    file = _weight_file(pretrained)
    path = file.with_name(CONFIG_NAME)
    if file.name != WEIGHTS_NAME or not path.is_file():  # it tells of no other file
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"cannot read {str(path)!r} ({error}): the file is damaged, export or copy it again"
        ) from error
    ours = isinstance(config, dict) and {"architecture", "class_names", "mean", "std"} <= config.keys()
    return config if ours else None


def pretrained_state(architecture: str, pretrained: str) -> Mapping[str, Tensor]:
    """The state dict in a file, or that of torchvision's weights of that name.

    Args:
        architecture: see `ace.models.classifiers.build_network`.
        pretrained: a .pt, .pth or .safetensors file, see `ace.models.weight_files.read_tensors`; or the folder of an
            exported classifier; or a name like ``DEFAULT`` or ``IMAGENET1K_V2``, whose file torchvision downloads.

    Raises:
        FileNotFoundError: neither such a file nor such weights.
        ValueError: the download failed, or the file holds something else.
    """
    known = known_weights(architecture)
    if pretrained in known:
        return pretrained_network(architecture, known[pretrained]).state_dict()
    file = _weight_file(pretrained)
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights at {pretrained!r}: give a state dict (.pt, .pth or .safetensors), the folder of an exported "
            f"classifier, or the name of torchvision's weights for {architecture} ({', '.join(known) or 'it has none'})"
        )
    return read_tensors(file)


def known_weights(architecture: str) -> Mapping[str, WeightsEnum]:
    """The weights that torchvision has for an architecture, by name."""
    if architecture not in list_models(module=torchvision.models):
        return {}
    return get_model_weights(architecture).__members__


def _weight_file(pretrained: str) -> Path:
    path = Path(pretrained)
    return path / WEIGHTS_NAME if path.is_dir() else path


def pretrained_network(architecture: str, weights: WeightsEnum) -> nn.Module:
    """A network of torchvision with its weights, which are downloaded.

    Raises:
        ValueError: the download failed, or the file holds something else.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        with tensors_only():  # torchvision's builder: it renames the tensors of some old files
            return get_model(architecture, weights=weights)
    except OSError as error:
        raise ValueError(
            f"cannot download {weights} ({error}): put {weights.url} into {folder}, or give a file of your own"
        ) from error
    except Exception as error:  # pickle and torch each raise their own kinds
        raise ValueError(
            f"cannot read {weights} in {folder}: its file is damaged, or holds more than tensors; delete it to "
            "download it again"
        ) from error


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let `torch.load` refuse everything but tensors, where another library calls it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
