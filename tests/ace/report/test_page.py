"""The HTML pages of runs: what is written, without a browser."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from ace.files import WriteError
from ace.images import load_png
from ace.report import write_comparison, write_report
from ace.run_store import Record, RunStore
from tests.ace.report.conftest import NAMES, REASON, explained, pictures


class Page(HTMLParser):
    """Collects what a browser would see: tags with their attributes, and text by tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.text.append((self.tags[-1][0], data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def runs(self):
        """What the script of the page gets."""
        [data] = [text for tag, text in self.text if tag == "script" and text.startswith("[")]
        return json.loads(data)

    def row(self, heading, count):
        """The texts of the table row that begins with this heading."""
        texts = [text for tag, text in self.text if tag in ("th", "td", "a")]
        start = texts.index(heading)
        return texts[start : start + count]


@pytest.fixture
def store(make_run, tmp_path):
    records = [explained("a-1"), explained("b.2", flipped=False, prediction=1, target=0)]
    return make_run(tmp_path / "run", [*records, Record(id="c_3", seed=0, status=REASON)])


def test_the_page_knows_every_record(store):
    [run] = Page(write_report(store)).runs()
    assert [image["id"] for image in run["images"]] == ["a-1", "b.2", "c_3"]
    assert [image["outcome"] for image in run["images"]] == ["flipped", "not_flipped", "failed"]
    first, _, last = run["images"]
    assert (first["l1"], first["p_after"], last["l1"]) == (0.1, 0.8, None)
    assert first["direction"] == f"{NAMES[0]} -> {NAMES[1]}"
    assert last["status"] == REASON
    assert (run["size"], run["thumbnails"]) == ([30, 20], False)
    assert ("dd", "1 of 3 attempted (33.3%)") in Page(store.folder / "report.html").text


def test_the_page_names_the_pictures_that_exist(store):
    store.image_path("mask", "b.2").unlink()
    [run] = Page(write_report(store)).runs()
    kinds = ["original", "pre_explanation", "counterfactual", "mask", "change"]
    assert [image["kinds"] for image in run["images"]] == [kinds, [k for k in kinds if k != "mask"], []]


def test_the_page_needs_nothing_from_outside(store):
    page = Page(write_report(store))
    assert all(link["href"] == "data:," for link in page.all("link"))
    assert all("src" not in script for script in page.all("script"))
    assert "http" not in (store.folder / "report.html").read_text(encoding="utf-8")


def test_names_and_reasons_do_not_break_out(store):
    page = Page(write_report(store))
    assert len(page.all("script")) == 2, "the page's data and its code"
    assert not page.all("img") or all("onerror" not in picture for picture in page.all("img"))
    assert {NAMES[0] + " -> " + NAMES[1]} <= {text for tag, text in page.text if tag == "option"}


def test_a_target_is_named_by_what_was_asked(tmp_path):
    names = {"class_names": ["cat", "dog"], "target_names": ["not cat", "not dog"]}
    store = RunStore.create(tmp_path, {}, {"decision": names})
    store.add(Record(id="a", seed=0, prediction=1, target=1, status="not_flipped"), {})
    store.add(Record(id="b", seed=0, prediction=0, status="skipped: why"), {})
    page = Page(write_report(store))
    assert page.runs()[0]["images"][0]["direction"] == "dog -> not dog"
    assert ("dd", "0 of 1 attempted (0.0%)") in page.text


def test_change_maps_are_white_where_nothing_changed(store):
    write_report(store)
    picture = load_png(store.image_path("change", "a-1"))
    assert (picture[10:] == 255).all()
    assert (picture[:10].min(-1) < 255).all()


def test_change_maps_are_drawn_again_only_when_their_pictures_are_newer(store):
    write_report(store)
    first, second = (store.image_path("change", id) for id in ("a-1", "b.2"))
    stamps = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    later = stamps[1] + 10**9
    os.utime(store.image_path("counterfactual", "b.2"), ns=(later, later))
    os.utime(second, ns=(stamps[1] - 1, stamps[1] - 1))
    write_report(store)
    assert first.stat().st_mtime_ns == stamps[0]
    assert second.stat().st_mtime_ns > stamps[1]


def test_large_images_get_thumbnails(make_run, tmp_path):
    store = make_run(tmp_path, [explained("a")], size=(300, 600))
    [run] = Page(write_report(store)).runs()
    assert run["thumbnails"]
    assert run["size"] == [600, 300]
    for kind in ("original", "counterfactual"):
        with Image.open(tmp_path / "images" / "thumbnail" / kind / "a.jpg") as small:
            assert small.size == (384, 192)
            full = Image.fromarray(load_png(store.image_path(kind, "a"))).resize(small.size)
            assert np.abs(np.asarray(small).astype(int) - np.asarray(full)).mean() < 2


def test_a_link_that_leads_out_of_the_run_is_refused(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.folder / "images" / "change").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of the run folder"):
        write_report(store)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_page_that_cannot_be_written_is_named(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ace.report.page.write_whole", full)
    with pytest.raises(WriteError, match=r"generate.yaml .*free space"):
        write_report(store)


def test_metrics_are_shown_with_all_that_is_known_of_them(store):
    assert "Metrics" not in {text for _, text in Page(write_report(store)).text}
    rate = {"value": 0.123456, "n": 9, "subset": "attempted", "interval": [0.1, 0.25], "convention": "as <saved>"}
    fid = {"value": float("nan"), "n": 7, "subset": "flipped", "interval": None, "convention": "features: inception"}
    directions = {"cat -> bird": {"n": 4, "flip_rate": 0.75}, "bird -> cat": {"n": 1, "flip_rate": 0.0, "l1": 0.5}}
    metrics = {"n": 9, "metrics": {"flip_rate": rate, "fid": fid}, "directions": directions, "status": {"flipped": 3}}
    store.write_json("metrics.json", metrics)
    page = Page(write_report(store))
    assert page.row("metric", 6) == ["metric", "value", "95 % interval", "n", "images", "convention"]
    assert page.row("flip_rate", 6) == ["flip_rate", "0.1235", "0.1 to 0.25", "9", "attempted", "as <saved>"]
    assert page.row("fid", 6) == ["fid", "—", "—", "7", "flipped", "features: inception"]
    assert page.row("direction", 4) == ["direction", "n", "flip_rate", "l1"]
    assert page.row("cat -> bird", 4) == ["cat -> bird", "4", "0.75", "—"]
    assert page.row("status", 4) == ["status", "images", "flipped", "3"]


def test_an_audit_is_shown_while_it_is_of_all_images(store):
    change = {"appeared": 0, "went": 1, "share": 1.0, "interval": [0.2065, 1.0], "without_query": None}
    direction = {"images": 1, "n": 1, "changes": {"<i>hat": change}, "verdict": "'<i>hat' changes in 100%"}
    row = {"originals": 0.12345, "interval": [0.1, 0.25], "changes": None, "with_query": None, "in_data": -0.5}
    audit = {"images": 2, "n": 1, "verdict": "in 2 originals", "correlations": {"hat": row}}
    audit["directions"] = {f"cat -> {k}": direction for k in range(9)}
    store.write_json("audit.json", audit)
    page = Page(write_report(store))
    for place in range(8):
        assert ("dt", f"Audit, cat -> {place}") in page.text
    assert ("dt", "Audit, cat -> 8") not in page.text, "eight are enough"
    assert ("dd", "'<i>hat' changes in 100%") in page.text
    assert page.text[page.text.index(("dt", "Audit, all directions")) + 1] == ("dd", "in 2 originals")
    assert page.row("cat -> 8: <i>hat", 6) == ["cat -> 8: <i>hat", "100%", "21% to 100%", "0", "1", "—"]
    assert page.row("hat", 6) == ["hat", "0.1235", "0.1 to 0.25", "—", "—", "-0.5"]

    store.add(explained("d"), {})
    assert "Audit" not in "".join(text for tag, text in Page(write_report(store)).text if tag == "dt"), "out of date"


def test_settings_and_the_way_to_reproduce_are_shown(store):
    page = Page(write_report(store))
    assert page.row("attack.steps", 2) == ["attack.steps", "25"]
    assert yaml.safe_load((store.folder / "generate.yaml").read_text()) == {"model": {"steps": 25}}
    command = f"python explain.py generate --config {store.folder}/generate.yaml --output_dir {store.folder}-again"
    assert ("code", command) in page.text
    assert ("pre", "model:\n  steps: 25") in page.text


def test_a_refined_run_shows_no_command_that_would_make_another_one(make_run, tmp_path):
    store = make_run(tmp_path / "run", [explained("a")])
    refined = RunStore.create(tmp_path / "refined", store.config, store.settings | {"refined_from": "0123"})
    refined.add(explained("a"), pictures())
    page = Page(write_report(refined))
    assert not any("explain.py generate" in text for _, text in page.text)
    assert page.row("refined_from", 2) == ["refined_from", "0123"]
    assert not (refined.folder / "generate.yaml").exists()


def test_a_run_made_from_python_shows_no_command(tmp_path):
    store = RunStore.create(tmp_path / "run", {}, {"model": {"steps": 25}})
    store.add(explained("a"), pictures())
    page = Page(write_report(store))
    assert not any("explain.py generate" in text for _, text in page.text)
    assert page.row("model.steps", 2) == ["model.steps", "25"]
    assert not (store.folder / "generate.yaml").exists()


@pytest.mark.parametrize("size", [(8, 8), (300, 600)])
def test_a_damaged_picture_is_named_and_not_the_one_to_write(size, make_run, tmp_path):
    store = make_run(tmp_path / "run", [explained("a")], size=size)
    write_report(store)
    picture = store.image_path("counterfactual", "a")
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(OSError, match=r"counterfactual/a\.png cannot be read .*restore it"):
        write_report(store)


def test_writing_again_replaces_the_page_and_leaves_nothing_else(store, tmp_path):
    first = write_report(store).read_bytes()
    before = sorted(tmp_path.rglob("*"))
    assert write_report(store).read_bytes() == first
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_comparison_holds_the_images_that_all_runs_have(store, make_run, tmp_path):
    other = make_run(tmp_path / "else" / "two #1%", [explained("b.2", p_after=0.7), explained("z")], ["cat"] * 3)
    path = write_comparison([store, other])
    assert path == store.folder / "compare.html"
    page = Page(path)
    one, two = page.runs()
    assert [run["name"] for run in (one, two)] == ["run", "two #1%"]
    assert [[image["id"] for image in run["images"]] for run in (one, two)] == [["b.2"]] * 2
    assert [run["images"][0]["p_after"] for run in (one, two)] == [0.8, 0.7]
    for run in (one, two):
        base = store.folder / unquote(run["base"])
        assert (base / "report.html").is_file()
        assert (base / "images" / "change" / "b.2.png").is_file()
    assert "%231%25" in two["base"]
    assert page.row("run", 2) == ["run", "Images"]
    assert page.row("two #1%", 3) == ["two #1%", "1", "1 of 1 attempted (100.0%)"]
    assert page.row("decision.class_names", 3) == ["decision.class_names", str(NAMES), "['cat', 'cat', 'cat']"]
    assert "attack.steps" not in {text for _, text in page.text}, "the same in both"


def test_a_comparison_shows_metrics_side_by_side(store, make_run, tmp_path):
    other = make_run(tmp_path / "run2", [explained("a-1")])
    for run, value in ((store, 0.5), (other, 0.25)):
        rate = {"value": value, "n": 1, "subset": "attempted", "interval": [0.1, 0.75], "convention": ""}
        run.write_json("metrics.json", {"metrics": {"flip_rate": rate}})
    other.write_json("metrics.json", {"metrics": {"flip_rate": rate, "fid": rate | {"interval": None}}})
    page = Page(write_comparison([store, other]))
    assert page.row("metric", 3) == ["metric", "run", "run2"]
    assert page.row("flip_rate", 3) == ["flip_rate", "0.5 (0.1 to 0.75)", "0.25 (0.1 to 0.75)"]
    assert page.row("fid", 3) == ["fid", "—", "0.25"]


def test_runs_of_one_name_are_told_apart_by_their_folders(store, make_run, tmp_path):
    other = make_run(tmp_path / "else" / "run", [explained("a-1")])
    assert [run["name"] for run in Page(write_comparison([store, other])).runs()] == ["run", "else"]


def test_what_cannot_be_shown_is_refused(store, make_run, tmp_path):
    empty = RunStore.create(tmp_path / "empty", {}, {})
    for write in (write_report, lambda run: write_comparison([store, run])):
        with pytest.raises(ValueError, match="empty holds no records to report"):
            write(empty)
    with pytest.raises(ValueError, match="needs different runs"):
        write_comparison([store])
    with pytest.raises(ValueError, match="needs different runs"):
        write_comparison([store, RunStore.open(store.folder)])
    with pytest.raises(ValueError, match="no image in common"):
        write_comparison([store, make_run(tmp_path / "other", [explained("z")])])
    assert not (store.folder / "compare.html").exists()
