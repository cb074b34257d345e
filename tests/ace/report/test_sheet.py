"""The layout of figures."""

import errno
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ace.files import WriteError
from ace.images import load_png
from ace.report.sheet import Tile, draw_sheet, save_sheet
from tests.ace.report.conftest import BLUE, GREEN, RED, plain

DPI = 100


def tile(colour, size=(32, 32), **texts):
    return Tile(plain(colour, size), **{"heading": "cat", "text": "dog", **texts})


def draw(tmp_path, rows, headings="abc", **options):
    return load_png(save_sheet(draw_sheet(rows, headings[: len(rows[0])], **options), tmp_path / "sheet.png", DPI))


def spans(sheet, colour, axis):
    """Where the sheet holds the colour over at least a fifth of an inch, along an axis."""
    return np.flatnonzero((sheet == colour).all(-1).sum(axis) >= DPI // 5)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (200, 200)])
def test_pictures_stand_in_order_and_fill_the_width(tmp_path, size):
    row = [tile(colour, size) for colour in (RED, GREEN, BLUE)]
    sheet = draw(tmp_path, [row], width=4.0)
    assert sheet.shape[1] == 4 * DPI
    columns = [spans(sheet, colour, 0) for colour in (RED, GREEN, BLUE)]
    assert all(1.2 * DPI < len(found) <= 1.33 * DPI for found in columns)
    assert all(left.max() < right.min() for left, right in pairwise(columns))


def test_pictures_keep_their_proportions_and_flat_ones_stand_close(tmp_path):
    sheet = draw(tmp_path, [[tile(RED, (20, 60))], [tile(BLUE, (20, 60))]], width=3.0)
    assert len(spans(sheet, RED, 0)) == pytest.approx(3 * len(spans(sheet, RED, 1)), abs=6)
    assert sheet.shape[0] < 3.2 * DPI


def test_tiny_pictures_are_magnified_without_blur(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0] = picture[1, 1] = 255
    sheet = draw(tmp_path, [[Tile(picture, "", "")]], width=2.0)
    inside = sheet[int(0.5 * DPI) : int(1.5 * DPI), int(0.5 * DPI) : int(1.5 * DPI)]
    assert np.isin(inside, (0, 255)).all()
    assert 0.4 < (inside == 0).mean() < 0.6


def test_many_rows_of_few_columns_stand_in_two_blocks(tmp_path):
    many = draw(tmp_path, [[tile(RED)]] * 7)
    assert many.shape == draw(tmp_path, [[tile(RED)]] * 8).shape
    few = draw(tmp_path, [[tile(RED)]] * 4)
    assert many.shape[0] == few.shape[0]
    assert many.shape[1] > 1.7 * few.shape[1]


def test_texts_are_drawn_and_stay_within_their_column(tmp_path):
    def columns(text, number=""):
        sheet = draw(tmp_path, [[tile(RED), tile(BLUE)], [tile(RED, text=text, number=number), tile(BLUE)]], width=3.0)
        red, blue = spans(sheet, RED, 0), spans(sheet, BLUE, 0)
        return sheet, sheet[:, red.max() + 1 : blue.min()]

    (short, gap), (other, _), (long, wide) = columns("w"), columns("v"), columns("w" * 200, " 0.25")
    assert not np.array_equal(short, other)
    assert not np.array_equal(short, long)
    assert np.array_equal(wide, gap), "long texts leave the gap as clear as short ones"


def test_dollars_are_no_formula(tmp_path):
    draw(tmp_path, [[tile(RED, heading="$5 to $10", text=r"$\frac{$")]])


def test_grey_pictures_are_drawn_grey(tmp_path):
    assert len(spans(draw(tmp_path, [[tile((77,))]]), (77, 77, 77), 0)) > DPI


@pytest.mark.parametrize("name", ["sheet.pdf", "sheet.png"])
def test_the_same_sheet_gives_the_same_file(tmp_path, name):
    rows = [[tile(RED)]]
    first = save_sheet(draw_sheet(rows, "a"), tmp_path / name, DPI).read_bytes()
    assert save_sheet(draw_sheet(rows, "a"), tmp_path / name, DPI).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pdf_has_letters_in_truetype(tmp_path):
    data = save_sheet(draw_sheet([[tile(RED)]], "a"), tmp_path / "sheet.pdf", DPI).read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontFile2" in data
    assert b"/Type3" not in data


def test_a_png_tells_its_resolution(tmp_path):
    save_sheet(draw_sheet([[tile(RED)]], "a"), tmp_path / "sheet.png", 300)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_full_disk_is_named_with_the_remedy(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match=r"sheet.png cannot be written .*free space"):
        draw(tmp_path, [[tile(RED)]])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        draw_sheet([], "abc")
    with pytest.raises(ValueError, match=r"3 pictures .* 0.5 inches"):
        draw_sheet([[tile(RED)] * 3], "abc", width=0.5)
    with pytest.raises(ValueError, match=r"sheet.svg must end in one of .pdf, .png"):
        save_sheet(draw_sheet([[tile(RED)]], "a"), tmp_path / "sheet.svg", DPI)
