"""What may be asked to be explained: images of the right kind, each with an identity of its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ace.images import to_uint8


def content_ids(images: Tensor) -> list[str]:
    """Identities of images that have no name: a hash of their 8-bit content, numbered where it is repeated."""
    hashes = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in to_uint8(images)]
    counts = [hashes[:row].count(name) for row, name in enumerate(hashes)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(hashes, counts, strict=True)]


def check_call(images: Tensor, **given: Tensor | Sequence[str] | None) -> None:
    """Check images, and that what else is given fits their number.

    Raises:
        RuntimeError: in inference mode, where no gradient exists.
        ValueError: images of the wrong kind or range, another number of anything, or ids that are not unique.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients do not exist in inference mode: set the trainer's inference_mode to false")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be a float tensor of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        grey_levels = images.min() >= 0 and images.max() > 50  # no normalisation leads there
        remedy = "divide them by 255" if grey_levels else "undo the normalisation, it belongs in the classifier"
        raise ValueError(f"images must lie in [0, 1], these lie in [{images.min():.3g}, {images.max():.3g}]: {remedy}")
    for name, values in given.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(values)} {name} were given for {len(images)} images")
    if (allowed := given["allowed"]) is not None and allowed.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"allowed must have the shape {(len(images), 1, *images.shape[2:])}, got {tuple(allowed.shape)}"
        )
    if allowed is not None and not bool(((allowed >= 0) & (allowed <= 1)).all()):
        raise ValueError(f"allowed must be boolean or lie in [0, 1], it lies in [{allowed.min()}, {allowed.max()}]")
    repeated = [id for id, count in Counter(given["ids"] or ()).items() if count > 1]
    if repeated:
        raise ValueError(f"ids must be unique, {repeated[0]!r} is given more than once")
