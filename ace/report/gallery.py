"""A contact sheet of counterfactuals, drawn with PIL alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ace.images import load_png, save_png
from ace.record import Record
from ace.run_store import RunStore

COLUMNS = ("Original", "Pre-explanation", "Counterfactual", "Change")
CELL = 160
"""Side of a picture's cell, in pixels."""

_GAP, _MARGIN, _CAPTION, _HEADER, _TITLE, _LEGEND = 10, 24, 48, 26, 52, 34
_MANY_ROWS = 6  # from here on the rows stand in two columns
_TINY = 40  # up to this many pixels a picture is magnified pixel for pixel
_INK, _GREY, _EDGE, _GOOD, _BAD = "#1c1e21", "#6a7077", "#d5d8dc", "#16723a", "#b3261e"

# White, yellow, orange, red, dark red: lightness falls throughout, so the map also reads in grey.
_RAMP = np.array([(255, 255, 255), (254, 217, 118), (253, 141, 60), (227, 26, 28), (110, 0, 32)], np.float64)
_FULL = 0.5


@dataclass(frozen=True)
class Example:
    """One row of the gallery: record, names of prediction and target, and pictures, uint8 HWC, all of one size."""

    record: Record
    prediction: str
    target: str
    original: np.ndarray
    pre_explanation: np.ndarray
    counterfactual: np.ndarray


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
    difference = np.abs(original.astype(np.float64) - counterfactual).mean(axis=-1) / 255
    strength = np.sqrt(np.clip(difference / _FULL, 0, 1))
    stops = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(strength, stops, _RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def gallery_image(examples: Sequence[Example], title: str) -> Image.Image:
    """Draw examples as rows of original, pre-explanation, counterfactual and change map.

    Args:
        examples: what to draw; from six on they stand in two columns, read from top to bottom.
        title: heading of the sheet.

    Returns:
        RGB image on white.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("the gallery needs at least one example")
    blocks = 2 if len(examples) >= _MANY_ROWS else 1
    rows = -(-len(examples) // blocks)
    block_width = len(COLUMNS) * (CELL + _GAP) - _GAP
    width = 2 * _MARGIN + blocks * block_width + (blocks - 1) * 3 * _MARGIN
    top = _MARGIN + _TITLE + _HEADER
    height = top + rows * (CELL + _CAPTION) + _LEGEND + _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN), title, 24, _INK, width - 2 * _MARGIN)
    for block in range(blocks):
        left = _MARGIN + block * (block_width + 3 * _MARGIN)
        for column, heading in enumerate(COLUMNS):
            _text(draw, (left + column * (CELL + _GAP), top - _HEADER), heading, 15, _GREY)
        for row, example in enumerate(examples[block * rows : (block + 1) * rows]):
            _draw_example(sheet, (left, top + row * (CELL + _CAPTION)), example)
    _draw_legend(sheet, (_MARGIN, height - _MARGIN - _LEGEND // 2))
    return sheet


def write_gallery(store: RunStore, max_images: int = 16) -> Path:
    """Write `gallery.png` into a run folder.

    The examples are spread evenly over the sorted ids, successes and failures alike: nothing is picked.

    Args:
        store: the run.
        max_images: most examples to draw, at least 1.

    Returns:
        Path of the file.

    Raises:
        ValueError: `max_images` is below 1, or no finished image of the run has pictures.
    """
    if max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    records = store.records()
    explained = [record for record in records if record.explained]
    if not explained:
        raise ValueError(f"{store.folder} holds no explained image to draw: run `generate` first")
    count = min(max_images, len(explained))
    chosen = [explained[index * len(explained) // count] for index in range(count)]
    attempted = [record for record in records if record.attempted]
    title = f"Counterfactual explanations: {sum(record.flipped for record in attempted)} of {len(attempted)} flipped"
    sheet = gallery_image([_load(store, record) for record in chosen], title)
    path = store.folder / "gallery.png"
    save_png(np.asarray(sheet), path)
    return path


def _load(store: RunStore, record: Record) -> Example:
    kinds = ("original", "pre_explanation", "counterfactual")
    names = store.class_name(record.prediction), store.target_name(record.target)
    return Example(record, *names, *(load_png(store.image_path(kind, record.id)) for kind in kinds))


def _draw_example(sheet: Image.Image, corner: tuple[int, int], example: Example) -> None:
    record = example.record
    target = example.target
    verdict = ("flipped", _GOOD) if record.flipped else ("not flipped", _BAD)
    before, attack, after = (_number(p, ".2f") for p in (record.p_before, record.p_attack, record.p_after))
    area = _number(record.changed_area, ".1%")
    cells = (
        (example.original, (example.prediction, _INK), (target, f" {before}")),
        (example.pre_explanation, ("before refinement", _GREY), (target, f" {attack}")),
        (example.counterfactual, verdict, (target, f" {before} -> {after}")),
        (
            heat_map(example.original, example.counterfactual),
            (f"{area} repainted", _INK),
            ("mean change", f" {_number(record.l1, '.4f')}"),
        ),
    )
    draw = ImageDraw.Draw(sheet)
    for column, (picture, (first, colour), (name, number)) in enumerate(cells):
        left, top = corner[0] + column * (CELL + _GAP), corner[1]
        placed = _fit(picture)
        sheet.paste(placed, (left, top))
        if column == len(cells) - 1:  # a white map needs an edge to be seen
            draw.rectangle((left, top, left + placed.width - 1, top + placed.height - 1), outline=_EDGE)
        _text(draw, (left, top + CELL + 4), first, 14, colour, CELL)
        _text(draw, (left, top + CELL + 21), name, 14, _GREY, CELL, number)


def _fit(picture: np.ndarray) -> Image.Image:
    """Scales a picture to the cell: tiny ones by a whole factor, pixel for pixel, others with a filter."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
    longest = max(image.size)
    if longest <= _TINY:
        return image.resize([side * (CELL // longest) for side in image.size], Image.Resampling.NEAREST)
    size = [max(1, round(side * CELL / longest)) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_legend(sheet: Image.Image, corner: tuple[int, int]) -> None:
    """The colours of the change map, on its own square-root scale."""
    differences = np.linspace(0, 1, 120)[None, :, None] ** 2 * _FULL * 255
    levels = np.repeat(np.repeat(differences.round().astype(np.uint8), 10, axis=0), 3, axis=2)
    bar = Image.fromarray(heat_map(np.zeros_like(levels), levels))
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    left += round(_text(draw, (left, top - 4), "Change: none", 13, _GREY)) + 8
    sheet.paste(bar, (left, top))
    draw.rectangle((left, top, left + bar.width - 1, top + bar.height - 1), outline=_EDGE)
    _text(draw, (left + bar.width + 8, top - 4), "half the range or more", 13, _GREY)


def _text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: int | None = None,
    suffix: str = "",
) -> float:
    """Draw text, shortened if too wide, and its suffix; returns the width drawn."""
    font = ImageFont.load_default(size=size)
    line = text + suffix
    while width is not None and text and draw.textlength(line, font=font) > width:
        text = text[:-1]
        line = f"{text.rstrip()}...{suffix}"
    draw.text(corner, line, font=font, fill=colour)
    return draw.textlength(line, font=font)


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
