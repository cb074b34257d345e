"""The gallery of a run, and figures for a paper."""

import numpy as np
import pytest

from ace.images import load_png
from ace.report import figure, write_figure, write_gallery
from ace.report.change import heat_map
from ace.report.sheet import draw_sheet
from ace.run_store import Record
from tests.ace.report.conftest import BLUE, GREEN, REASON, RED, explained, pictures

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every sheet that is drawn."""
    calls = []

    def draw(rows, headings, title="", width=None):
        calls.append((rows, list(headings), title))
        return draw_sheet(rows, headings, title, width)

    monkeypatch.setattr(figure, "draw_sheet", draw)
    return calls


@pytest.fixture
def store(make_run, tmp_path):
    """Four images from cat to dog, one of which has not flipped, and two from dog to bird; two have no pictures."""
    there = [explained(f"a{index}", flipped=index != 1) for index in range(4)]
    back = [explained(f"b{index}", prediction=1, target=2) for index in range(2)]
    rest = [Record(id="c", seed=0, status=REASON), Record(id="d", seed=0, status="skipped: why")]
    return make_run(tmp_path / "one", [*there, *back, *rest], NAMES)


def texts(tile):
    return tile.heading, tile.text + tile.number


def test_a_row_of_the_gallery_tells_the_way_of_an_image(store, drawn):
    path = write_gallery(store)
    assert path == store.folder / "gallery.png"
    assert (load_png(path) == RED).all(-1).any()
    [(rows, headings, title)] = drawn
    assert headings == ["Original", "Pre-explanation", "Counterfactual", "Change"]
    assert title == "Counterfactual explanations: 5 of 7 flipped"
    original, attacked, counterfactual, change = rows[0]
    expected = pictures()
    assert np.array_equal(original.picture, expected["original"])
    assert np.array_equal(attacked.picture, expected["pre_explanation"])
    assert np.array_equal(counterfactual.picture, expected["counterfactual"])
    assert np.array_equal(change.picture, heat_map(expected["original"], expected["counterfactual"]))
    assert [texts(tile) for tile in rows[0]] == [
        ("cat", "dog 0.02"),
        ("before refinement", "dog 0.90"),
        ("flipped", "dog 0.02 → 0.80"),
        ("50.0% repainted", "mean change 0.1000"),
    ]
    assert [row[2].heading for row in rows] == ["flipped", "not flipped", *["flipped"] * 4]


def test_examples_are_spread_over_directions_and_ids(store, drawn):
    write_gallery(store, max_images=3)
    [(rows, _, _)] = drawn
    assert [row[0].heading for row in rows] == ["cat", "cat", "dog"]
    assert [row[2].heading for row in rows] == ["flipped"] * 3, "a0, a2 and b0"


def test_a_figure_holds_the_images_asked_for_in_their_order(store, drawn, tmp_path):
    assert write_figure([store], tmp_path / "figure.pdf", ["b1", "a1"]) == tmp_path / "figure.pdf"
    [(rows, headings, _)] = drawn
    assert headings == ["Original", "Counterfactual", "Change"]
    assert [(row[0].heading, row[1].heading) for row in rows] == [("dog", "flipped"), ("cat", "not flipped")]


def test_several_runs_stand_side_by_side_with_the_images_that_all_have(store, make_run, drawn, tmp_path):
    others = [explained("a2", p_after=0.55), explained("b1", prediction=1, target=2), explained("z")]
    other = make_run(tmp_path / "two", others, NAMES, after=GREEN)
    path = write_figure([store, other], tmp_path / "figure.png", width=5.0, dpi=120)
    assert load_png(path).shape[1] == 5 * 120
    [(rows, headings, _)] = drawn
    assert headings == ["Original", "one", "Change", "two", "Change"]
    assert [row[0].heading for row in rows] == ["cat", "dog"]
    first = rows[0]
    assert (texts(first[1])[1], texts(first[3])[1]) == ("dog 0.02 → 0.80", "dog 0.02 → 0.55")
    assert [tuple(first[column].picture[0, 0]) for column in (0, 1, 3)] == [RED, BLUE, GREEN]


def test_bad_input_is_named(store, make_run, tmp_path):
    other = make_run(tmp_path / "two", [explained("z")])
    with pytest.raises(ValueError, match=r"max_images.*0"):
        write_gallery(store, max_images=0)
    with pytest.raises(ValueError, match="one holds no explained image 'c'"):
        write_figure([store], tmp_path / "figure.png", ["a1", "c"])
    with pytest.raises(ValueError, match="two holds no explained image 'a1'"):
        write_figure([store, other], tmp_path / "figure.png", ["a1"])
    with pytest.raises(ValueError, match="no explained image that"):
        write_figure([store, other], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="no explained image to draw"):
        write_gallery(make_run(tmp_path / "three", [Record(id="c", seed=0, status=REASON)]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_figure([store], tmp_path / "nowhere" / "figure.png")
    assert not list(tmp_path.glob("figure*"))
