"""Rows of pictures with captions, drawn by matplotlib: the layout of every figure of this package."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from ace.files import write_whole, writing
from ace.report.change import ramp

INK, GREY, EDGE, GOOD, BAD = "#1c1e21", "#5c636a", "#d5d8dc", "#16723a", "#b3261e"

# Inches, but for the sizes of letters, which are points.
_CELL, _MARGIN, _HAIR, _GAP, _BLOCK_GAP = 1.15, 0.15, 0.02, 0.06, 0.3
_CAPTION, _HEADER, _TITLE, _LEGEND = 0.31, 0.17, 0.28, 0.12
_SMALL, _MEDIUM, _LARGE = 6.2, 6.8, 10.5
_POINT = 1 / 72
_TINY = 40  # up to this many pixels a picture is magnified pixel for pixel
_MANY_ROWS, _FEW_COLUMNS = 6, 4  # sheets of that many short rows have them in two blocks
_FORMATS = (".pdf", ".png")


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet and its two lines of text.

    Attributes:
        picture: uint8, shape (H, W, C).
        heading: the first line.
        text: the second line, shortened where it is too wide for the picture.
        number: the end of the second line, never shortened.
        colour: of the first line.
        framed: whether the picture needs an edge to be seen on white.
    """

    picture: np.ndarray
    heading: str
    text: str
    number: str = ""
    colour: str = INK
    framed: bool = False


def draw_sheet(
    rows: Sequence[Sequence[Tile]], headings: Sequence[str], title: str = "", width: float | None = None
) -> Figure:
    """Lay out rows of tiles, in two blocks side by side where they are many and short.

    Args:
        rows: the tiles of each row, as many as there are headings.
        headings: what stands over the columns.
        title: heading of the sheet; empty for none.
        width: width of the sheet in inches, without a margin; by default what its pictures need, with a margin.

    Returns:
        The figure, which `save_sheet` writes.

    Raises:
        ValueError: there are no rows, or the width leaves the pictures less than a fifth of an inch.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row of pictures")
    columns = len(headings)
    blocks = 2 if len(rows) >= _MANY_ROWS and columns <= _FEW_COLUMNS else 1
    gaps = blocks * (columns - 1) * _GAP + (blocks - 1) * _BLOCK_GAP
    margin = _MARGIN if width is None else _HAIR
    cell = _CELL if width is None else (width - 2 * margin - gaps) / (blocks * columns)
    if cell < 0.2:
        raise ValueError(f"{blocks * columns} pictures side by side do not fit in a width of {width} inches: give more")
    in_block = -(-len(rows) // blocks)
    top = _HEADER + (_TITLE if title else 0)
    tall = cell * min(1, max(tile.picture.shape[0] / tile.picture.shape[1] for row in rows for tile in row))
    size = gaps + blocks * columns * cell, top + in_block * (tall + _CAPTION) + _LEGEND
    axes = _canvas(*size, margin)
    if title:
        _write(axes, 0, 0, title, _LARGE, INK)
    step = cell + _GAP
    for block in range(blocks):
        left = block * (columns * step - _GAP + _BLOCK_GAP)
        for column, heading in enumerate(headings):
            _write(axes, left + column * step, top - _HEADER, heading, _MEDIUM, GREY, cell)
        for index, row in enumerate(rows[block * in_block : (block + 1) * in_block]):
            for column, tile in enumerate(row):
                _draw_tile(axes, left + column * step, top + index * (tall + _CAPTION), cell, tall, tile)
    _draw_legend(axes, top + in_block * (tall + _CAPTION))
    return axes.figure


def save_sheet(figure: Figure, path: str | Path, dpi: int) -> Path:
    """Write a sheet as a PDF or PNG file that appears whole; the same sheet gives the same bytes.

    Letters of a PDF stay letters, in TrueType fonts, which publishers accept.

    Args:
        figure: the sheet.
        path: file to write or replace, `.pdf` or `.png`; its folder exists.
        dpi: pixels in an inch of the pictures.

    Returns:
        The path.

    Raises:
        ValueError: the name ends otherwise.
        WriteError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(_FORMATS)}")
    buffer = BytesIO()
    with rc_context({"pdf.fonttype": 42, "image.composite_image": False}):
        dates = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=dates)
    with writing(path):
        write_whole(buffer.getvalue(), path)
    return path


def _canvas(width: float, height: float, margin: float) -> Axes:
    """Axes over all of a figure, with inches from its upper left corner, inside the margin, as coordinates."""
    axes = Figure(figsize=(width + 2 * margin, height + 2 * margin), facecolor="white").add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.autoscale(False)
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin))
    return axes


def _draw_tile(axes: Axes, left: float, top: float, cell: float, tall: float, tile: Tile) -> None:
    height, width = tile.picture.shape[:2]
    scale = min(cell / width, tall / height)
    picture = np.broadcast_to(tile.picture, (height, width, 3))  # grey is shown as grey, not by a colour map
    _place(
        axes, picture, left, top, width * scale, height * scale, "nearest" if max(height, width) <= _TINY else "lanczos"
    )
    if tile.framed:
        axes.add_patch(_frame(left, top, width * scale, height * scale))
    line = 1.3 * _SMALL * _POINT
    _write(axes, left, top + tall + 0.02, tile.heading, _SMALL, tile.colour, cell)
    _write(axes, left, top + tall + 0.02 + line, tile.text, _SMALL, GREY, cell, tile.number)


def _place(axes: Axes, picture: np.ndarray, left: float, top: float, width: float, height: float, how: str) -> None:
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation=how)


def _frame(left: float, top: float, width: float, height: float) -> Rectangle:
    return Rectangle((left, top), width, height, fill=False, edgecolor=EDGE, linewidth=0.5)


def _draw_legend(axes: Axes, top: float) -> None:
    """The colours of the change map, on its own square-root scale."""
    bar = ramp(np.linspace(0, 1, 256))[None]
    left = _write(axes, 0, top, "Change: none", _SMALL, GREY) + 0.05
    _place(axes, bar, left, top + 0.02, 0.7, 0.07, "nearest")
    axes.add_patch(_frame(left, top + 0.02, 0.7, 0.07))
    _write(axes, left + 0.75, top, "half the range or more", _SMALL, GREY)


def _write(
    axes: Axes,
    left: float,
    top: float,
    text: str,
    size: float,
    colour: str,
    width: float | None = None,
    number: str = "",
) -> float:
    """Write text, shortened if it is too wide, and its number; returns the width written, in inches."""
    line = text + number
    while width is not None and text and _width(line, size) > width:
        text = text[:-1]
        line = f"{text.rstrip()}…{number}"
    axes.text(left, top, line, fontsize=size, color=colour, va="top", parse_math=False)
    return _width(line, size)


def _width(line: str, size: float) -> float:
    return text_to_path.get_text_width_height_descent(line, FontProperties(size=size), False)[0] * _POINT
