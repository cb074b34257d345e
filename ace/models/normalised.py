"""What every classifier shares: images in [0, 1] go in, the logits of named classes come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import rgb_to_grayscale

Task = Literal["multiclass", "binary", "multilabel"]


class NormalisedClassifier(nn.Module):
    """A classifier that owns the size of its images, their normalisation, and the choice of its logits.

    A subclass sets ``network``, which takes prepared images and gives logits, shape (N, K), or (N,) for one.

    Args:
        class_names: names of the classes, or of the attributes of multi-label data; those of ``outputs`` if given.
        task: ``multiclass`` if one of the classes is true, ``binary`` if one of two is, told by a single logit (the
            second where it is positive), ``multilabel`` if each attribute is true or not.
        mean, std: per-channel normalisation, in units of the [0, 1] range. A network of one channel has one of each,
            and sees RGB images in grey; one of three sees grey images in RGB.
        size: height and width that the network takes; images of another size are resized (bilinear, anti-aliased),
            differentiably. None takes them as they are.
        outputs: indices of the network's logits that are kept, in this order; None keeps all.

    Attributes:
        outputs: number of logits.
        identity: what a run records of the classifier; None while it is not from a file.

    Raises:
        ValueError: values that do not go together.
    """

    network: nn.Module
    identity: str | dict[str, Any] | None = None

    def __init__(
        self,
        class_names: Sequence[str],
        task: Task,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"mean {mean} and std {std} must have one positive entry a channel")
        if task not in get_args(Task):
            raise ValueError(f"unknown task {task!r}: use one of {', '.join(get_args(Task))}")
        if task == "binary" and len(class_names) != 2:
            raise ValueError(
                f"a binary classifier has two class names, the negative and the positive, got {class_names}: "
                "use task multiclass for more of them, multilabel for attributes"
            )
        if size is not None and not (len(size) == 2 and min(size) > 0):
            raise ValueError(f"size must be a height and a width in pixels, got {size}")
        self.class_names = list(class_names)
        self.outputs = 1 if task == "binary" else len(class_names)
        if outputs is not None and (len(outputs) != self.outputs or min(outputs, default=0) < 0):
            raise ValueError(
                f"outputs {list(outputs)} must be {self.outputs} indices of logits, as {self.class_names} are named"
            )
        self.task, self.size, self.kept = task, size, outputs
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, outputs), of images in [0, 1], shape (N, C, H, W); from RGB to grey, or back, as needed.

        Raises:
            ValueError: the images have another number of channels than the normalisation, or the network's outputs
                are not the logits that are named.
        """
        if images.shape[1] == 3 and self.mean.shape[1] == 1:
            images = rgb_to_grayscale(images)
        elif images.shape[1] == 1 and self.mean.shape[1] == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"the images have {images.shape[1]} channels, the classifier takes {self.mean.shape[1]} "
                "(as many as its mean and std)"
            )
        if self.size is not None and tuple(images.shape[2:]) != tuple(self.size):
            images = F.interpolate(images, tuple(self.size), mode="bilinear", antialias=True)
        return self._chosen(self.network((images - self.mean) / self.std))

    def _chosen(self, logits: Tensor) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim not in (1, 2):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must give logits of shape (N, K), it gives {shape}")
        logits = logits[:, None] if logits.ndim == 1 else logits
        if self.kept is not None:
            if max(self.kept) >= logits.shape[1]:
                raise ValueError(f"outputs {list(self.kept)} do not exist, the network gives {logits.shape[1]} logits")
            logits = logits[:, list(self.kept)]
        if logits.shape[1] != self.outputs:
            raise ValueError(
                f"the network gives {logits.shape[1]} logits, but {self.class_names} are named and the task is "
                f"{self.task}: name all of them, or choose some with `outputs`"
            )
        return logits
