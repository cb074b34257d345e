"""Images in another size, by the filters of Pillow."""

from __future__ import annotations

import math
from typing import Literal

import torch
from PIL import Image

Resize = Literal["crop", "squash", "random_crop"]
Resample = Literal["bilinear", "bicubic"]

_SMALLEST_CROP = 0.8  # of the area of the largest crop


def resized(image: Image.Image, size: tuple[int, int], resize: Resize, resample: Resample) -> Image.Image:
    """The image in another size, antialiased: Pillow's filters widen when they shrink an image.

    Args:
        image: of any size.
        size: height and width.
        resize: ``crop`` scales to cover the size and crops at the centre, as torchvision's ``Resize`` (of the shorter
            side) and ``CenterCrop`` do. ``squash`` changes the proportions. ``random_crop`` takes 80 % to 100 % of
            the largest crop from a random place, by torch's global generator.
        resample: the filter.
    """
    height, width = size
    boxes = {"crop": _centre_box, "random_crop": _random_box}
    box = boxes[resize](image, height, width) if resize in boxes else None
    return image.resize((width, height), Image.Resampling[resample.upper()], box)


def _centre_box(image: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    """What a crop of whole pixels shows after the image was resized to whole pixels."""
    if width * image.height >= height * image.width:
        covering = (width, width * image.height // image.width)
    else:
        covering = (height * image.width // image.height, height)
    left, top = round((covering[0] - width) / 2), round((covering[1] - height) / 2)
    across, down = image.width / covering[0], image.height / covering[1]
    right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)
    return left * across, top * down, right, bottom


def _random_box(image: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    area, x, y = torch.rand(3).tolist()
    side = math.sqrt(_SMALLEST_CROP + (1 - _SMALLEST_CROP) * area)
    scale = side * min(image.width / width, image.height / height)
    left, top = max(0.0, image.width - scale * width) * x, max(0.0, image.height - scale * height) * y
    return left, top, min(left + scale * width, image.width), min(top + scale * height, image.height)
