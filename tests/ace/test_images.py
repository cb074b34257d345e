"""The one conversion between float and 8-bit images, and PNG files."""

import os

import numpy as np
import pytest
import torch

from ace.images import as_saved, from_uint8, load_png, save_png, to_uint8


def all_levels(channels: int = 3) -> np.ndarray:
    return np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, axis=2)


def random_images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values within and beyond the range, of both signs."""
    return (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2).to(dtype)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_levels_survive_the_round_trip_through_float_and_file(channels, tmp_path):
    levels = all_levels(channels)
    images = from_uint8(levels)
    assert images.dtype == torch.float32
    assert images.shape == (channels, 16, 16)
    assert torch.equal(images[0].flatten(), torch.arange(256) / 255)
    save_png(to_uint8(images), tmp_path / "levels.png")
    assert np.array_equal(load_png(tmp_path / "levels.png"), levels)
    assert torch.equal(as_saved(images), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_as_saved_is_the_png_round_trip_to_the_bit(dtype, tmp_path):
    images = random_images(dtype)
    saved = as_saved(images)
    for index, array in enumerate(to_uint8(images)):
        save_png(array, tmp_path / "image.png")
        assert torch.equal(from_uint8(load_png(tmp_path / "image.png")), saved[index])
    assert torch.equal(as_saved(saved), saved)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_as_saved_gives_the_same_bits_on_a_gpu():
    levels = from_uint8(all_levels())
    assert torch.equal(as_saved(levels.cuda()).cpu(), levels)
    assert torch.equal(as_saved(random_images().cuda()).cpu(), as_saved(random_images()))


def test_to_uint8_clamps_rounds_and_puts_channels_last():
    image = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0]).reshape(1, 2, 3)
    assert to_uint8(image).tolist() == [[[0], [0], [0]], [[1], [255], [255]]]
    batch = torch.zeros(2, 3, 4, 5)
    batch[1, 2, 3, 4] = 1
    array = to_uint8(batch)
    assert array.shape == (2, 4, 5, 3)
    assert array.dtype == np.uint8
    assert array[1, 3, 4, 2] == 255 == array.sum()


def test_to_uint8_takes_images_that_need_gradients():
    assert to_uint8(torch.full((1, 1, 1), 0.5, requires_grad=True)).item() == 128


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_uint8(torch.zeros(3, 4, 4, dtype=torch.uint8)), TypeError, "uint8"),
        (lambda: to_uint8(np.zeros((3, 4, 4))), TypeError, "ndarray"),
        (lambda: to_uint8(torch.zeros(4, 4)), ValueError, r"\(4, 4\)"),
        (lambda: to_uint8(torch.full((1, 2, 2), torch.nan)), ValueError, "NaN"),
        (lambda: as_saved(torch.zeros(3, 4, 4, dtype=torch.int64)), TypeError, "int64"),
        (lambda: from_uint8(np.zeros((4, 4, 3))), TypeError, "float64"),
        (lambda: from_uint8(np.zeros((4, 4), np.uint8)), ValueError, r"\(4, 4\)"),
        (lambda: save_png(np.zeros((4, 4, 3)), "never.png"), TypeError, "to_uint8"),
        (lambda: save_png(np.zeros((3, 4, 4), np.uint8), "never.png"), ValueError, r"\(3, 4, 4\)"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_save_png_leaves_the_old_file_when_it_is_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    save_png(all_levels(), path)

    def power_cut(*_):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            save_png(255 - all_levels(), path)
    assert np.array_equal(load_png(path), all_levels())
    save_png(255 - all_levels(), path)
    assert np.array_equal(load_png(path), 255 - all_levels())
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]
