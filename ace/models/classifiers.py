"""Image classifiers: a network with its own normalisation, saved as a folder without pickle."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model, list_models

from ace.models.identity import file_hash, folder_hash
from ace.models.normalised import NormalisedClassifier, Task
from ace.models.pretrained import AUXILIARY_HEADS, CONFIG_NAME, WEIGHTS_NAME, pretrained_state
from ace.models.weight_files import first_few

CHECKPOINT_KEY = "image_classifier"  # under which a training checkpoint keeps the constructor's arguments


def build_network(architecture: str, num_classes: int, **options: Any) -> nn.Module:
    """Build an untrained classification network.

    Args:
        architecture: name in torchvision's registry (``resnet18``) or import path of an ``nn.Module`` class
            (``torchvision.models.DenseNet``) that takes ``num_classes``.
        num_classes: number of output logits.
        options: further constructor arguments.

    Raises:
        ValueError: unknown name, or an import path that does not lead to an ``nn.Module`` class.
    """
    if "." not in architecture:
        if architecture not in list_models(module=torchvision.models):
            raise ValueError(
                f"unknown architecture {architecture!r}: give a name of torchvision.models.list_models() "
                "or the import path of an nn.Module class"
            )
        return get_model(architecture, weights=None, num_classes=num_classes, **options)
    return network_class(architecture)(num_classes=num_classes, **options)


def network_class(path: str) -> type[nn.Module]:
    """The class at an import path.

    Raises:
        ValueError: nothing can be imported from there, or it is not an ``nn.Module`` class.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot import architecture {path!r}: {error}") from error
    # The path may come from a config.json of foreign origin: call nothing but network classes.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"architecture {path!r} is not an nn.Module class")
    return found


class ImageClassifier(NormalisedClassifier):
    """A network that takes images in [0, 1] and owns its normalisation.

    Args:
        architecture: see `build_network`.
        class_names, task, mean, std: see `NormalisedClassifier`.
        options: further arguments of the network's constructor.
    """

    def __init__(
        self,
        architecture: str,
        class_names: list[str],
        task: Task,
        options: dict[str, Any] | None = None,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__(class_names, task, mean, std)
        self.architecture = architecture
        self.options = dict(options or {})
        self.network = build_network(architecture, num_classes=self.outputs, **self.options)

    def load_weights(self, pretrained: str) -> None:
        """Start from trained weights; the last layer stays new if they have another number of classes.

        Auxiliary heads of theirs that the network does not have are left out.

        Args:
            pretrained: see `ace.models.pretrained.pretrained_state`.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: they cannot be read or do not fit.
        """
        absent = tuple(f"{head}." for head in AUXILIARY_HEADS if getattr(self.network, head, None) is None)
        state = pretrained_state(self.architecture, pretrained)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(absent)}
        own = self.network.state_dict()
        reshaped = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
        found = self.network.load_state_dict({name: state[name] for name in state.keys() - reshaped}, strict=False)
        misfits = {
            "missing": set(found.missing_keys) - reshaped,
            "unknown": set(found.unexpected_keys),
            "of another shape": reshaped - self._last_layer(),
        }
        if any(misfits.values()):
            problems = "; ".join(f"{kind}: {first_few(names)}" for kind, names in misfits.items() if names)
            raise ValueError(
                f"the weights {pretrained!r} do not fit the network {self.architecture!r} ({problems}): give weights "
                "of this architecture, or the options that they were trained with"
            )

    def _last_layer(self) -> set[str]:
        """Names of the tensors whose shape follows from the number of classes."""
        other = build_network(self.architecture, self.outputs + 1, **self.options).state_dict()
        return {name for name, tensor in self.network.state_dict().items() if other[name].shape != tensor.shape}

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, in plain values."""
        return {
            "architecture": self.architecture,
            "class_names": self.class_names,
            "task": self.task,
            "options": self.options,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json`` and ``model.safetensors``; floating-point weights are stored as ``dtype``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
            for name, tensor in self.network.state_dict().items()
        }
        save_file(state, folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageClassifier:
        """Load a classifier in float32 and evaluation mode, its weights frozen.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file is damaged or does not fit the architecture.
        """
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"no classifier at {str(folder)!r}: {name} is missing; train one with "
                    "`python train.py fit --config configs/<domain>/classifier.yaml` or give another folder"
                )
        try:
            classifier = cls(**json.loads((folder / CONFIG_NAME).read_text()))
            state = load_file(folder / WEIGHTS_NAME)
            classifier.network.load_state_dict(state)  # copies half-precision weights into float32 ones
        except Exception as error:  # safetensors, json and torch each raise their own kinds
            raise ValueError(
                f"cannot load the classifier at {str(folder)!r} ({error}); "
                "the file is damaged or belongs to another architecture: export or copy it again"
            ) from error
        classifier.identity = folder_hash(folder)
        return classifier.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> ImageClassifier:
        """Load a classifier as `from_pretrained` does, from a training checkpoint; nothing is unpickled beyond tensors.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or not a checkpoint of a classifier.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give a .ckpt file that train.py has written")
        prefix = "classifier.network."
        try:
            content = torch.load(path, "cpu", weights_only=True)
            classifier, tensors = cls(**content[CHECKPOINT_KEY]), content["state_dict"].items()
            state = {name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)}
            classifier.network.load_state_dict(state)
        except Exception as error:  # pickle, zipfile and torch each raise their own kinds
            raise ValueError(
                f"{str(path)!r} is not the checkpoint of a classifier ({error!r}): give one that "
                "`python train.py fit --config configs/<domain>/classifier.yaml` has written, or the exported folder"
            ) from error
        classifier.identity = file_hash(path)
        return classifier.eval().requires_grad_(False)
