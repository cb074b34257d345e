"""The one conversion between float images and 8-bit images, and their PNG files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ace.files import write_whole


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert float images to the 8-bit images that files, loggers and reports hold.

    Args:
        images: floating point, range [0, 1] (values outside are clamped), shape (C, H, W) or (N, C, H, W).

    Returns:
        uint8 array in host memory, shape (H, W, C) or (N, H, W, C).

    Raises:
        TypeError: the images are not a floating-point tensor.
        ValueError: the images have another number of dimensions, or hold NaN.
    """
    _check_float(images)
    if images.ndim not in (3, 4):
        raise ValueError(f"images must be CHW or NCHW, got shape {tuple(images.shape)}")
    levels = _levels(images.detach())
    if levels.isnan().any():
        raise ValueError("images hold NaN, which no 8-bit level stands for: mend the step that made them")
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def from_uint8(array: np.ndarray) -> Tensor:
    """Convert 8-bit images to float images: level k becomes the float32 nearest to k / 255.

    Args:
        array: uint8, shape (H, W, C) or (N, H, W, C).

    Returns:
        float32 tensor on the CPU, range [0, 1], shape (C, H, W) or (N, C, H, W).
        `to_uint8` inverts it exactly.

    Raises:
        TypeError: the array is not uint8.
        ValueError: the array has another number of dimensions.
    """
    _check_uint8(array)
    if array.ndim not in (3, 4):
        raise ValueError(f"array must be HWC or NHWC, got shape {array.shape}")
    # The copy gives torch memory that it owns: arrays read by PIL are not writable.
    return torch.from_numpy(array.copy()).movedim(-1, -3).contiguous().to(torch.float32) / 255


def as_saved(images: Tensor) -> Tensor:
    """The images as they read back from their PNG files: bit-identical to `from_uint8(to_uint8(images))`.

    Args:
        images: floating point, range [0, 1] (values outside are clamped), any shape.

    Returns:
        float32 tensor of the same shape on the same device; no gradient flows through it. NaN stays NaN.

    Raises:
        TypeError: the images are not a floating-point tensor.
    """
    _check_float(images)
    # On CUDA torch divides by a Python number through its rounded reciprocal, which is off by one unit in the
    # last place for some levels; division by a tensor on the device is correctly rounded.
    return _levels(images.detach()) / torch.full((), 255.0, device=images.device)


def save_png(array: np.ndarray, path: str | Path) -> None:
    """Write an 8-bit image as a PNG file that appears whole or not at all.

    Args:
        array: uint8, shape (H, W, 3) for RGB, (H, W, 1) or (H, W) for grey.
        path: file to write or replace; its folder exists.

    Raises:
        TypeError: the array is not uint8.
        ValueError: the array has another shape.
    """
    _check_uint8(array)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))):
        raise ValueError(f"a PNG image must be HW, HW1 or HW3, got shape {array.shape}")
    grey = array.ndim == 3 and array.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if grey else array).save(buffer, format="PNG")
    write_whole(buffer.getvalue(), path)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Name the picture that is damaged: not all of PIL's messages do.

    Raises:
        OSError: in place of those of the block, but for a `FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error}): restore it, or explain its image in a new run") from error


def load_png(path: str | Path) -> np.ndarray:
    """Read a PNG file.

    Returns:
        uint8 array, shape (H, W, 1) for a grey image and (H, W, 3) for any other.

    Raises:
        OSError: there is no such file, or it is damaged; see `reading`.
    """
    with reading(path), Image.open(path) as image:
        grey = image.mode in ("1", "L")
        array = np.asarray(image.convert("L" if grey else "RGB"))
    return array[..., None] if grey else array


def _levels(images: Tensor) -> Tensor:
    """The nearest of the levels 0 to 255, as float32: half precision has too few digits to scale in."""
    return images.to(torch.float32).clamp(0, 1).mul(255).round()


def _check_float(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor in [0, 1], got {kind}")


def _check_uint8(array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"array must be a uint8 array, got {kind}; to_uint8 makes one of a float tensor")
