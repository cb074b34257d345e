"""What may be asked to be explained: images of the right kind, each with an identity of its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ace.attacks import Attack
from ace.decision import Decision
from ace.images import to_uint8


def content_ids(images: Tensor) -> list[str]:
    """Identities of images that have no name: a hash of their 8-bit content, numbered where it is repeated."""
    hashes = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in to_uint8(images)]
    counts = [hashes[:row].count(name) for row, name in enumerate(hashes)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(hashes, counts, strict=True)]


def check_call(
    images: Tensor,
    decision: Decision,
    attack: Attack,
    targets: Tensor | None,
    labels: Tensor | None,
    ids: Sequence[str] | None,
    allowed: Tensor | None,
) -> None:
    """Check the arguments of `CounterfactualExplainer.explain`.

    Raises:
        RuntimeError: in inference mode, where no gradient exists.
        ValueError: images of the wrong kind or range, another number of anything, ids that are not unique, classes that
            do not exist, or a region of the wrong kind.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients do not exist in inference mode: set the trainer's inference_mode to false")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be a float tensor of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        if bool(images.isnan().any()):
            raise ValueError("images hold values that are no numbers (NaN): leave these images out, or mend them")
        grey_levels = images.min() >= 0 and images.max() > 50  # no normalisation leads there
        remedy = "divide them by 255" if grey_levels else "undo the normalisation, it belongs in the classifier"
        raise ValueError(f"images must lie in [0, 1], these lie in [{images.min():.3g}, {images.max():.3g}]: {remedy}")
    for name, values in {"targets": targets, "labels": labels, "ids": ids, "allowed": allowed}.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(values)} {name} were given for {len(images)} images")
    repeated = [id for id, count in Counter(ids or ()).items() if count > 1]
    if repeated:
        raise ValueError(f"ids must be unique, {repeated[0]!r} is given more than once")
    classes = len(decision.class_names)
    if targets is not None and not bool(((targets >= 0) & (targets < classes)).all()):
        raise ValueError(f"targets must be classes from 0 to {classes - 1}, got {targets.tolist()}")
    known_labels(labels, decision, len(images))
    if allowed is not None:
        _check_allowed(allowed, (len(images), 1, *images.shape[2:]), attack)


def _check_allowed(allowed: Tensor, shape: tuple[int, ...], attack: Attack) -> None:
    if allowed.shape != shape:
        raise ValueError(f"allowed must have the shape {shape}, got {tuple(allowed.shape)}")
    if not bool(((allowed >= 0) & (allowed <= 1)).all()):
        raise ValueError(f"allowed must be boolean or lie in [0, 1], it lies in [{allowed.min()}, {allowed.max()}]")
    if not attack.takes_weights() and bool(((allowed > 0) & (allowed < 1)).any()):
        raise ValueError("allowed holds weights, and sign steps take none: use ProximalGradient, or 0 and 1 alone")


def known_labels(labels: Tensor | None, decision: Decision, count: int) -> list[int | None]:
    """The true classes of so many images, from the labels of samples; None for those that are not known.

    Raises:
        ValueError: labels of another shape than the decision reads, or of classes that do not exist.
    """
    if labels is None:
        return [None] * count
    classes, most = decision.label(labels).tolist(), len(decision.class_names) - 1
    if strange := [label for label in classes if not -1 <= label <= most]:
        raise ValueError(f"labels must be classes from 0 to {most}, or -1 where unknown, got {strange[0]}")
    return [None if label < 0 else label for label in classes]
