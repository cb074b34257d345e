"""The contact sheet of a run."""

from itertools import pairwise

import numpy as np
import pytest

from ace.images import load_png
from ace.report import write_gallery
from ace.report.gallery import CELL, Example, gallery_image, heat_map
from ace.run_store import Record, RunStore

RED, GREEN, BLUE = (200, 30, 30), (30, 180, 30), (30, 30, 200)
NAMES = ["round", "square"]


def plain(colour: tuple[int, ...], size: int = 32) -> np.ndarray:
    return np.full((size, size, len(colour)), colour, np.uint8)


def record(id: str, success: bool = True) -> Record:
    status = "flipped" if success else "not_flipped"
    numbers = {"p_before": 0.02, "p_attack": 0.9, "p_after": 0.8, "l1": 0.1, "changed_area": 1.0}
    return Record(id=id, seed=0, prediction=0, target=1, flipped=success, status=status, **numbers)


def colour_columns(sheet: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """The columns of the sheet that hold at least half a cell of the colour."""
    return np.flatnonzero((sheet == colour).all(-1).sum(0) >= CELL // 2)


@pytest.mark.parametrize("size", [32, 64, 200])
def test_columns_show_the_right_pictures_in_order(size):
    example = Example(record("a"), *NAMES, plain(RED, size), plain(GREEN, size), plain(BLUE, size))
    sheet = np.asarray(gallery_image([example], "title"))
    change = tuple(heat_map(plain(RED, 1), plain(BLUE, 1))[0, 0])
    spans = [colour_columns(sheet, colour) for colour in (RED, GREEN, BLUE, change)]
    widths = [len(span) for span in spans]
    assert widths[:3] == [CELL] * 3
    assert widths[3] == CELL - 2
    assert all(left.max() < right.min() for left, right in pairwise(spans))


def test_tiny_pictures_are_magnified_pixel_for_pixel():
    picture = np.random.default_rng(0).integers(0, 250, (28, 28, 3), dtype=np.uint8)
    white = plain((255, 255, 255), 28)
    sheet = np.asarray(gallery_image([Example(record("a"), *NAMES, picture, white, picture)], ""))
    factor = CELL // 28
    large = picture.repeat(factor, 0).repeat(factor, 1)
    rows, columns = np.nonzero((sheet == large[0, 0]).all(-1))
    windows = [sheet[y : y + len(large), x : x + len(large)] for y, x in zip(rows, columns, strict=True)]
    assert sum(np.array_equal(window, large) for window in windows) == 2


def test_captions_depend_on_names_and_outcome():
    def draw(names, success=True):
        example = Example(record("a", success), *names, plain(RED), plain(RED), plain(RED))
        return np.asarray(gallery_image([example], "title"))

    assert not np.array_equal(draw(NAMES), draw(["round", "oblong"]))
    assert not np.array_equal(draw(NAMES), draw(NAMES, success=False))
    assert draw(["", ""]).shape == draw(["a very long name " * 9] * 2).shape


def test_long_names_stay_within_their_column():
    example = Example(record("a"), "w" * 200, "w" * 200, plain(RED), plain(RED), plain(RED))
    sheet = np.asarray(gallery_image([example], ""))
    spans = colour_columns(sheet, RED)
    gaps = [x for x in range(spans.min(), spans.max()) if x not in spans]
    assert gaps
    assert (sheet[:, gaps] > 250).mean() > 0.97


def test_many_examples_stand_in_two_columns():
    examples = [Example(record(f"{i}"), *NAMES, plain(RED), plain(GREEN), plain(BLUE)) for i in range(7)]
    few, many = gallery_image(examples[:4], ""), gallery_image(examples, "")
    assert many.height == few.height
    assert many.width > 1.9 * few.width
    reds = (np.asarray(many) == RED).all(-1).sum()
    assert reds == 7 * CELL**2


def test_grey_pictures_are_drawn_grey():
    sheet = np.asarray(gallery_image([Example(record("a"), *NAMES, *[plain((77,))] * 3)], ""))
    assert len(colour_columns(sheet, (77, 77, 77))) == 3 * CELL


def test_heat_map_is_white_where_nothing_changed_and_darkens_with_the_change():
    before = plain((100, 100, 100), 4)
    after = before.copy()
    after[0] += np.array([1, 5, 40, 155], np.uint8)[:, None]
    picture = heat_map(before, after)
    assert picture.shape == (4, 4, 3)
    assert (picture[1:] == 255).all()
    lightness = picture[0].astype(int).sum(-1)
    assert lightness[0] < 765
    assert (np.diff(lightness) < 0).all()
    assert np.array_equal(heat_map(after, before), picture)
    assert np.array_equal(heat_map(before[..., :1], after[..., :1]), picture)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) and \(5, 5, 3\)"):
        heat_map(plain(RED, 4), plain(RED, 5))
    with pytest.raises(ValueError, match="at least one example"):
        gallery_image([], "title")


def test_write_gallery_draws_explained_images_spread_over_the_run(tmp_path):
    store = RunStore.create(tmp_path, {}, {"decision": {"class_names": NAMES}})
    with pytest.raises(ValueError, match="no explained image"):
        write_gallery(store)
    store.add(Record(id="b0", seed=0, status="skipped: misclassified"), {})
    for index, colour in enumerate((RED, GREEN, RED, BLUE)):
        pictures = dict.fromkeys(("original", "pre_explanation", "counterfactual"), plain(colour))
        store.add(record(f"a{index}", success=index > 0), pictures)
    path = write_gallery(store, max_images=2)
    assert path == tmp_path / "gallery.png"
    sheet = load_png(path)
    assert len(colour_columns(sheet, RED)) == 3 * CELL
    assert not len(colour_columns(sheet, BLUE))
    assert (sheet == RED).all(-1).sum() == 2 * 3 * CELL**2
    with pytest.raises(ValueError, match=r"max_images.*0"):
        write_gallery(store, max_images=0)


def test_the_sheet_tells_the_flip_rate_of_those_attempted_and_names_what_was_asked(tmp_path, monkeypatch):
    names = {"class_names": ["cat", "dog"], "target_names": ["not cat", "not dog"]}
    store = RunStore.create(tmp_path, {}, {"decision": names})
    pictures = dict.fromkeys(("original", "pre_explanation", "counterfactual"), plain(RED))
    for index in range(3):
        store.add(record(f"a{index}", success=index > 0), pictures)
    store.add(Record(id="b", seed=0, status="failed: why"), {})
    store.add(Record(id="c", seed=0, status="skipped: why"), {})
    drawn = []

    def draw(examples, title):
        drawn.append(([(example.prediction, example.target) for example in examples], title))
        return gallery_image(examples, title)

    monkeypatch.setattr("ace.report.gallery.gallery_image", draw)
    write_gallery(store)
    assert drawn == [([("cat", "not dog")] * 3, "Counterfactual explanations: 2 of 4 flipped")]
