"""Classifiers of timm and of Hugging Face transformers, if these are installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from ace.models.foreign.base import ForeignClassifier, existing, kept_names, unchanged_randomness
from ace.models.normalised import Task
from ace.models.pretrained import tensors_only
from ace.models.weight_files import fit, read_tensors


class TimmClassifier(ForeignClassifier):
    """A network of timm.

    Args:
        name: model name of timm, ``convnext_tiny.fb_in1k`` say.
        weights: file of a state dict, never unpickled beyond tensors; by default timm downloads those of ``name``.
        class_names: by default those of ImageNet where the network has its number of classes; has to be given with a
            file of one's own.
        task, outputs: see `ace.models.normalised.NormalisedClassifier`.
        mean, std: by default those that ``name`` was trained with.
        size: height and width that images are resized to; by default that of ``name`` if it takes no other, else images
            are taken as they are.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: there is no such file.
        ValueError: unknown name, weights that cannot be had or do not fit, or names that have to be given.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        class_names: list[str] | None = None,
        task: Task = "multiclass",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        size: tuple[int, int] | None = None,
        outputs: list[int] | None = None,
    ) -> None:
        timm = _installed("timm")
        if weights is None:
            network = _made_by_timm(timm, name, pretrained=True)
            if class_names is None and (subset := timm.data.infer_imagenet_subset(network)):
                info = timm.data.ImageNetInfo(subset)
                class_names = kept_names([info.index_to_description(i) for i in range(network.num_classes)], outputs)
        elif class_names is not None:
            tensors = read_tensors(existing(weights))
            network = _made_by_timm(timm, name, pretrained=False, num_classes=_head_rows(timm, name, tensors))
            fit(network, tensors, Path(weights))
        if class_names is None:
            raise ValueError(f"the classes of {weights or name!r} are not known: give their class_names")
        config = network.pretrained_cfg
        if size is None and config.get("fixed_input_size"):
            size = config["input_size"][1:]
        mean, std = mean or config["mean"], std or config["std"]
        super().__init__(network, {"name": name}, class_names, task, mean, std, size, outputs)


# What some processors of transformers do beside: MobileViT wants BGR, EfficientNet other values.
UNKNOWN_STEPS = ("do_flip_channel_order", "include_top", "rescale_offset")


class HuggingFaceClassifier(ForeignClassifier):
    """An image classifier of Hugging Face transformers; no code of its repository is run, no pickle read.

    Classes, normalisation and size are those of its ``config.json`` and ``preprocessor_config.json``.

    Args:
        name: local folder, or name on the hub, ``google/vit-base-patch16-224`` say.
        class_names: other names of its classes.
        size: height and width that images are resized to; by default those that the network is made for, if it says.
        outputs: see `ace.models.normalised.NormalisedClassifier`.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such model, not an image classifier with weights in safetensors files, or one whose images are
            prepared by more than resizing and normalising.
    """

    def __init__(
        self,
        name: str,
        class_names: list[str] | None = None,
        size: tuple[int, int] | None = None,
        outputs: list[int] | None = None,
    ) -> None:
        transformers = _installed("transformers")
        try:
            with unchanged_randomness():
                network, found = transformers.AutoModelForImageClassification.from_pretrained(
                    name, use_safetensors=True, trust_remote_code=False, dtype="float32", output_loading_info=True
                )
            preset = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # transformers, the hub and safetensors each raise their own kinds
            raise ValueError(f"cannot load {name!r} as an image classifier of transformers: {error}") from error
        if found["missing_keys"]:
            raise ValueError(f"{name!r} lacks trained weights for {', '.join(sorted(found['missing_keys']))}")
        for step in UNKNOWN_STEPS:
            if getattr(preset, step, False):
                raise ValueError(
                    f"{name!r} prepares its images by {step}, which is not done here: wrap the network in a module "
                    "that does it, for ace.models.foreign.ModuleClassifier"
                )
        config = network.config
        if class_names is None:
            class_names = kept_names([config.id2label[index] for index in range(config.num_labels)], outputs)
        task = "multilabel" if config.problem_type == "multi_label_classification" else "multiclass"
        if size is None and (side := getattr(config, "image_size", None)):
            size = (side, side) if isinstance(side, int) else tuple(side)
        normalised = getattr(preset, "do_normalize", False)
        mean, std = (preset.image_mean, preset.image_std) if normalised else ((0.0,) * 3, (1.0,) * 3)
        super().__init__(_Logits(network), {"name": config.model_type}, class_names, task, mean, std, size, outputs)


class _Logits(nn.Module):
    """A model of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _installed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"this classifier needs {package}: `pip install {package}`") from error


def _made_by_timm(timm: ModuleType, name: str, **options: bool | int) -> nn.Module:
    try:
        with tensors_only(), unchanged_randomness():
            return timm.create_model(name, **options)
    except Exception as error:  # timm, the hub and torch each raise their own kinds
        raise ValueError(f"timm cannot make {name!r}: {error}") from error


def _head_rows(timm: ModuleType, name: str, tensors: dict[str, Tensor]) -> int:
    """The number of classes of a state dict: the rows of the layer that timm says gives the logits."""
    head = _made_by_timm(timm, name, pretrained=False).pretrained_cfg["classifier"]
    weight = f"{head}.weight"
    if weight not in tensors:
        raise ValueError(f"the weights are not of timm's {name!r}: they lack {weight}")
    return len(tensors[weight])
