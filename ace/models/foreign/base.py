"""What classifiers of foreign origin share, and the one way to load any classifier."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ace.models.classifiers import ImageClassifier
from ace.models.identity import tensors_hash
from ace.models.normalised import NormalisedClassifier, Task

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # a normalisation that leaves images in [0, 1] as they are


class ForeignClassifier(NormalisedClassifier):
    """A trained network in float32 and evaluation mode, frozen.

    Args:
        network: takes prepared images and gives logits.
        origin: what identifies the network besides its weights, in plain values.
        class_names, task, mean, std, size, outputs: see `NormalisedClassifier`.
        weights_hash: identifies the weights; by default a hash of the network's tensors.
    """

    def __init__(
        self,
        network: nn.Module,
        origin: dict[str, Any],
        class_names: Sequence[str],
        task: Task,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        outputs: Sequence[int] | None = None,
        weights_hash: str | None = None,
    ) -> None:
        super().__init__(class_names, task, mean, std, size, outputs)
        self.network = network
        self.eval().requires_grad_(False)
        self.identity = {
            "class": type(self).__name__,
            **origin,
            "class_names": self.class_names,
            "task": task,
            "mean": list(mean),
            "std": list(std),
            "size": None if size is None else list(size),
            "outputs": None if outputs is None else list(outputs),
            "weights": weights_hash or tensors_hash(network.state_dict()),
        }


def load_classifier(source: str | Path | NormalisedClassifier) -> NormalisedClassifier:
    """A classifier in float32 and evaluation mode, its weights frozen, with its ``identity``.

    Args:
        source: a folder that ``train.py`` exported, a ``.ckpt`` file of it, or a classifier that is loaded already.

    Raises:
        FileNotFoundError: there is no classifier.
        ValueError: it is damaged, or a file of another kind.
    """
    if isinstance(source, NormalisedClassifier):
        return source
    path = Path(source)
    if path.suffix == ".ckpt":
        return ImageClassifier.from_checkpoint(path)
    if path.is_file():
        raise ValueError(
            f"{str(path)!r} is a file, which does not say its network: give the folder of a classifier, or one of the "
            "classes of ace.models.foreign as class_path (ModuleClassifier, ScriptClassifier, ...) with init_args"
        )
    return ImageClassifier.from_pretrained(path)


def existing(path: str | Path) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {str(path)!r}: give the file of a trained classifier")
    return Path(path)


def kept_names(names: Sequence[str], outputs: Sequence[int] | None) -> list[str]:
    """Names of the logits that are kept, from those of all.

    Raises:
        ValueError: an index is not among them.
    """
    if outputs is None:
        return list(names)
    if not all(0 <= index < len(names) for index in outputs):
        raise ValueError(f"outputs {list(outputs)} must be indices of logits, from 0 to {len(names) - 1}")
    return [names[index] for index in outputs]


def unchanged_randomness() -> AbstractContextManager[None]:
    """Keep a network's random weights, which those of a file replace, from moving the random stream of a training."""
    return torch.random.fork_rng(devices=[])
