"""Metrics of a run folder made by hand, against numbers computed by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.closeness import l1, linf
from ace.evaluation import evaluate, evaluate_published, measure_diversity
from ace.images import save_png
from ace.judges import Judges
from ace.record import Record
from ace.run_store import RunStore


def explained(id: str, prediction: int, status: str, number: float) -> Record:
    """All numbers of the record are multiples of one."""
    return Record(
        id=id,
        prediction=prediction,
        target=1 - prediction,
        flipped=status == "flipped",
        p_before=number / 100,
        p_attack=number / 10,
        p_after=number / 8,
        l1=number,
        l2=number * 2,
        linf=number * 3,
        changed_area=number / 16,
        iterations=int(number) * 10,
        unet_forwards=int(number) * 60,
        unet_backwards=int(number) * 50,
        seconds=number * 4,
        peak_memory=int(number) * 1000,
        seed=0,
        status=status,
    )


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore.create(tmp_path / "run", {}, {"decision": {"class_names": ["sad", "glad"]}})


def means(number: float) -> dict[str, float]:
    return {
        "p_before": pytest.approx(number / 100),
        "p_attack": pytest.approx(number / 10),
        "p_after": pytest.approx(number / 8),
        "l1": pytest.approx(number),
        "l2": pytest.approx(number * 2),
        "linf": pytest.approx(number * 3),
        "changed_area": pytest.approx(number / 16),
        "iterations": pytest.approx(number * 10),
        "unet_forwards": pytest.approx(number * 60),
        "unet_backwards": pytest.approx(number * 50),
        "seconds": pytest.approx(number * 4),
        "peak_memory": pytest.approx(number * 1000),
    }


def test_metrics_are_those_computed_by_hand(store):
    for record in (
        explained("a", 0, "flipped", 1),
        explained("b", 1, "flipped", 2),
        explained("c", 0, "not_flipped", 3),
        explained("d", 0, "flipped", 5),
        Record(id="e", prediction=1, seed=0, status="skipped: already decided as the target"),
        Record(id="f", seed=0, status="failed: a loss or gradient of the attack was not finite"),
        Record(id="g", seed=0, status="failed: the result is not finite", prediction=1, target=0, p_before=0.5),
    ):
        store.add(record, {})
    metrics = evaluate(store)
    measured = metrics.pop("metrics")
    assert {name: value["value"] for name, value in measured.items()} == {
        "flip_rate": 0.5, "valid_closeness": pytest.approx((0 - 1 - 4) / 6), "bkl": pytest.approx(1 - 11 / 32),
        **means(11 / 4),
    }  # fmt: skip
    assert (measured["flip_rate"]["n"], measured["flip_rate"]["subset"]) == (6, "attempted")
    assert (measured["l1"]["n"], measured["l1"]["subset"]) == (4, "explained")
    low, high = measured["l1"]["interval"]
    assert 1 <= low < 11 / 4 < high <= 5
    assert metrics == {
        "n": 6,
        "directions": {
            "? -> ?": {"n": 1, "flip_rate": 0.0},
            "glad -> sad": {"n": 2, "flip_rate": 0.5, **means(2)},
            "sad -> glad": {"n": 3, "flip_rate": pytest.approx(2 / 3), **means(3)},
        },
        "status": {
            "failed: a loss or gradient of the attack was not finite": 1,
            "failed: the result is not finite": 1,
            "flipped": 3,
            "not_flipped": 1,
            "skipped: already decided as the target": 1,
        },
    }
    assert list(metrics["directions"]) == ["? -> ?", "glad -> sad", "sad -> glad"]
    stored = json.loads((store.folder / "metrics.json").read_text())
    assert stored.pop("metrics").keys() == measured.keys()
    assert stored == metrics
    assert len((store.folder / "records.csv").read_text().splitlines()) == 8


def test_an_image_that_was_redone_counts_once(store):
    store.add(explained("a", 0, "not_flipped", 4), {})
    store.add(explained("a", 0, "flipped", 2), {})
    metrics = evaluate(store)
    assert metrics["n"] == 1
    assert [metrics["metrics"][name]["value"] for name in ("flip_rate", "l1")] == [1.0, 2]


def test_classes_without_names_go_by_number(tmp_path):
    store = RunStore.create(tmp_path / "run", {}, {})
    store.add(explained("a", 1, "flipped", 1), {})
    assert list(evaluate(store)["directions"]) == ["1 -> 0"]


def test_a_direction_is_named_by_what_was_asked(tmp_path):
    names = {"class_names": ["sad", "glad"], "target_names": ["not sad", "not glad"]}
    store = RunStore.create(tmp_path / "run", {}, {"decision": names})
    store.add(explained("a", 1, "flipped", 1), {})
    assert list(evaluate(store)["directions"]) == ["glad -> not sad"]


def test_a_run_in_which_all_failed(store):
    store.add(Record(id="a", prediction=1, seed=0, status="failed: why"), {})
    metrics = evaluate(store)
    assert metrics.pop("metrics").keys() == {"flip_rate", "valid_closeness"}
    assert metrics == {
        "n": 1,
        "directions": {"glad -> ?": {"n": 1, "flip_rate": 0.0}},
        "status": {"failed: why": 1},
    }


def test_a_run_that_explained_nothing(store):
    assert evaluate(store) == {"n": 0, "metrics": {}, "directions": {}, "status": {}}
    store.add(Record(id="a", prediction=1, seed=0, status="skipped: why"), {})
    assert evaluate(store) == {"n": 0, "metrics": {}, "directions": {}, "status": {"skipped: why": 1}}


# --- what networks judge


def pictures(before: int, after: int) -> dict[str, np.ndarray]:
    return {
        "original": np.full((4, 4, 3), before, np.uint8),
        "counterfactual": np.full((4, 4, 3), after, np.uint8),
    }


@pytest.fixture
def judged(store) -> RunStore:
    """A run of two images, judged."""
    store.add(explained("a", 0, "flipped", 1), pictures(0, 51))
    store.add(explained("b", 1, "not_flipped", 2), pictures(0, 102))
    evaluate(store, Judges(distances={"far": l1}))
    return store


def test_what_a_judge_says_is_stored_beside_the_records_numbers(judged):
    stored = json.loads((judged.folder / "metrics.json").read_text())
    assert stored["metrics"]["l1"]["value"] == 1.5
    assert stored["metrics"]["far"] == {
        "value": pytest.approx(0.3),
        "n": 2,
        "subset": "explained",
        "interval": pytest.approx([0.2, 0.4]),
        "convention": "far",
    }


def test_what_was_judged_stays_while_the_records_are_the_same(judged):
    before = (judged.folder / "metrics.json").read_bytes()
    (judged.folder / "records.csv").unlink()
    assert evaluate(judged)["metrics"]["far"]["value"] == pytest.approx(0.3)
    assert (judged.folder / "metrics.json").read_bytes() == before
    evaluate(judged, Judges(distances={"other": linf}))
    evaluate(judged, Judges(distances={"far": linf}))
    kept = evaluate(judged)["metrics"]
    assert "other" in kept, "another network takes nothing away"
    assert kept["far"]["value"] == kept["other"]["value"], "judged anew"


@pytest.mark.parametrize(
    "record",
    [
        explained("c", 1, "not_flipped", 1.5),
        replace(explained("a", 0, "flipped", 1), seconds=5),
        Record(id="c", seed=0, status="skipped: why"),
    ],
    ids=["one more", "one redone", "one skipped"],
)
def test_what_was_judged_goes_with_the_records(record, judged):
    judged.add(record, pictures(0, 0))
    assert "far" not in evaluate(judged)["metrics"]
    assert "far" not in json.loads((judged.folder / "metrics.json").read_text())["metrics"]


def test_a_judgement_that_is_no_number_does_not_stay(judged):
    evaluate(judged, Judges(distances={"broken": lambda before, _: before.mean((1, 2, 3)) * torch.nan, "far": l1}))
    kept = evaluate(judged)["metrics"].keys()
    assert "far" in kept
    assert "broken" not in kept


def test_metrics_of_an_older_version_are_replaced(judged):
    judged.write_json("metrics.json", {"n": 2, "flip_rate": 0.5, "mean_l1": 1.5})
    assert evaluate(judged).keys() == {"n", "metrics", "directions", "status"}


def test_records_of_an_older_version_lack_the_memory(store):
    store.add(explained("a", 0, "flipped", 1), {})
    store.add(explained("b", 0, "flipped", 2), {})
    [log] = store.folder.glob("records.rank*")
    log.write_text(log.read_text().replace(', "peak_memory": 1000', ""))
    metrics = evaluate(store)
    assert (metrics["metrics"]["peak_memory"]["value"], metrics["metrics"]["peak_memory"]["n"]) == (2000, 1)
    assert metrics["directions"]["sad -> glad"]["peak_memory"] == 2000
    log.write_text(log.read_text().replace(', "peak_memory": 2000', ""))
    assert "peak_memory" not in evaluate(store)["metrics"]


# --- results of another code


def test_results_without_records_are_measured_from_their_images(tmp_path):
    cases = (("a", "Correct", "CC/CCF", 51), ("b", "Correct", "CC/ICF", 102), ("c", "Incorrect", "IC/CCF", 0))
    for name, original, outcome, level in cases:
        before, after = pictures(0, level).values()
        after[2:] = 0
        after[0, 0] += 1  # a grey level off is no change
        places = tmp_path / "Original" / original, tmp_path / "Results" / "mine" / outcome / "CF"
        for place, array in zip(places, (before, after), strict=True):
            place.mkdir(parents=True, exist_ok=True)
            save_png(array, place / f"{name}.png")
    metrics = evaluate_published(tmp_path, "mine", Judges(batch_size=2, distances={"far": linf}))
    assert metrics["n"] == 3
    found = {name: measured["value"] for name, measured in metrics["metrics"].items()}
    assert found.keys() == {"flip_rate", "l1", "l2", "linf", "changed_area", "far"}
    assert found["flip_rate"] == pytest.approx(2 / 3)
    assert found["l1"] == pytest.approx((51 + 102 + 3 * 1 / 8) / 255 / 2 / 3)
    assert found["linf"] == found["far"] == pytest.approx((52 + 103 + 1) / 255 / 3)
    assert found["changed_area"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert {(measured["n"], measured["subset"]) for measured in metrics["metrics"].values()} == {(3, "explained")}
    assert metrics["metrics"]["flip_rate"]["convention"] == "by the folders"
    assert json.loads((tmp_path / "Results" / "mine" / "metrics.json").read_text())["metrics"].keys() == found.keys()


# --- several runs


@pytest.fixture
def make_run(tmp_path):
    def make(name: str, levels: dict[str, int]) -> RunStore:
        store = RunStore.create(tmp_path / name, {}, {})
        for id, level in levels.items():
            store.add(explained(id, 0, "flipped" if level % 2 else "not_flipped", 1), pictures(0, level))
        return store

    return make


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_diversity_is_the_distance_between_runs_of_what_all_explained(batch_size, make_run):
    first, second = make_run("1", {"a": 10, "b": 51, "c": 0}), make_run("2", {"a": 20, "b": 51, "c": 0, "d": 0})
    third = make_run("3", {"a": 40, "b": 0})
    third.add(Record(id="c", prediction=0, target=1, seed=0, status="failed: why"), {})
    judges = Judges(distances={"lpips_alex": l1}, batch_size=batch_size)
    found = measure_diversity([first, second, third], judges)
    assert found.keys() == {"diversity_lpips_alex"}
    measured = found["diversity_lpips_alex"]
    assert measured.value == pytest.approx(((10 + 20 + 30) / 3 + (0 + 51 + 51) / 3) / 2 / 255)
    assert (measured.n, measured.subset) == (2, "explained in all runs")
    assert measured.interval[0] < measured.value < measured.interval[1]
    assert measured.convention == "lpips_alex, mean over pairs of the runs 1, 2, 3"


def test_diversity_is_between_runs_that_differ_in_their_seed_alone(tmp_path):
    def run(name, earlier=(), **model):
        store = RunStore.create(tmp_path / name, {}, {"model": model, "earlier": {"avoid": list(earlier)}})
        store.add(explained("a", 0, "flipped", 1), pictures(0, 10))
        return store

    judges, first = Judges(distances={"far": l1}), run("1", seed=0, steps=5)
    assert measure_diversity([first, run("2", seed=1, steps=5)], judges).keys() == {"diversity_far"}
    assert measure_diversity([first, run("4", seed=1, steps=5, earlier=["1"])], judges).keys() == {"diversity_far"}
    with pytest.warns(UserWarning, match="diversity is left out: the runs differ in more than their seed"):
        assert measure_diversity([first, run("3", seed=1, steps=6)], judges) == {}


def test_without_a_distance_or_a_shared_image_there_is_no_diversity(make_run):
    first, second, other = make_run("1", {"a": 10}), make_run("2", {"a": 20}), make_run("3", {"b": 20})
    assert measure_diversity([first, second], Judges()) == {}
    assert measure_diversity([first, other], Judges(distances={"far": l1})) == {}


def test_one_run_has_no_diversity(make_run):
    with pytest.raises(ValueError, match="got 1: give at least two"):
        measure_diversity([make_run("1", {"a": 10})], Judges(distances={"far": l1}))
