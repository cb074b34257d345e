"""Where and how much a picture was changed, as a heat map."""

import numpy as np

# White, yellow, orange, red, dark red: lightness falls throughout, so the map also reads in grey.
RAMP = ((255, 255, 255), (254, 217, 118), (253, 141, 60), (227, 26, 28), (110, 0, 32))
"""Colours from no change to `FULL`, evenly spaced on a square-root scale, RGB."""

FULL = 0.5
"""Mean difference over the channels, range [0, 1], from which on the last colour stands."""


def heat_map(original: np.ndarray, counterfactual: np.ndarray) -> np.ndarray:
    """Where and how much a picture was changed: channel-averaged absolute difference as a heat map.

    White is unchanged, to the last bit; dark red is a difference of half the range or more. The scale is
    fixed, so that maps compare between images and rounding noise does not blaze as it would if each map were
    stretched to its own maximum. It goes by the square root, so that small differences are still seen.

    Args:
        original: uint8, shape (H, W, C).
        counterfactual: uint8, same shape.

    Returns:
        uint8 RGB, shape (H, W, 3).

    Raises:
        ValueError: the shapes differ, or are not HWC.
    """
    if original.shape != counterfactual.shape or original.ndim != 3:
        raise ValueError(f"need two HWC images of one shape, got {original.shape} and {counterfactual.shape}")
    difference = np.abs(original.astype(np.int32) - counterfactual).sum(axis=-1)
    possible = np.linspace(0, 1, 255 * original.shape[-1] + 1)  # few differences, many pixels: a table of colours
    return ramp(np.sqrt(np.clip(possible / FULL, 0, 1)))[difference]


def ramp(strength: np.ndarray) -> np.ndarray:
    """Colours of `RAMP` for numbers from 0, its first, to 1, its last; uint8 RGB, shape (..., 3)."""
    stops = np.linspace(0, 1, len(RAMP))
    return (
        np.stack([np.interp(strength, stops, levels) for levels in np.transpose(RAMP)], axis=-1)
        .round()
        .astype(np.uint8)
    )
