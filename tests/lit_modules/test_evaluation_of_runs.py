"""Runs judged side by side, results of another code, and what a later `generate` keeps."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.models import alexnet

import explain
from ace.images import load_png, save_png
from ace.models.encoders import load_encoder
from tests.conftest import records
from tests.lit_modules.conftest import JUDGED, TRAIN_SIZE, evaluate, refusal, stored

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def other(finished, tmp_path):
    """A copy of the run with other counterfactuals."""
    shutil.copytree(finished, tmp_path / "other")
    for path in (tmp_path / "other" / "images" / "counterfactual").iterdir():
        save_png(255 - load_png(path), path)
    return tmp_path / "other"


def test_runs_are_compared_side_by_side_and_by_their_diversity(run, other, tmp_path, capsys):
    torch.manual_seed(0)
    state = {f"features.{name}": t.half() for name, t in alexnet().features.state_dict().items()}
    torch.save(state, tmp_path / "alexnet-owt-7be5be79.pth")
    metrics = evaluate(run, f"--compare=[{other}]", lpips_alex=tmp_path)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == [str(folder)[-31:] for folder in (run, other)]
    printed = {line.split()[0]: line for line in lines}
    for name in ("flip_rate", "lpips_alex", "cout"):
        assert len(re.findall(r" -?\d\S* +\[", printed[name])) == 2

    distance = load_encoder("lpips_alex", tmp_path)
    pairs = [stored(folder, "counterfactual") for folder in (run, other)]
    expected = distance(*pairs).mean().item()
    assert printed["diversity_lpips_alex"].split()[1] == format(expected, ".4g")
    assert metrics["diversity_lpips_alex"]["value"] == pytest.approx(expected), "and stored"
    assert "diversity_lpips_alex" in (run / "report.html").read_text()
    assert (
        metrics.keys() == json.loads((other / "metrics.json").read_text())["metrics"].keys() >= {"lpips_alex", "cout"}
    )


def test_a_network_that_is_missing_is_reported_once_for_all_runs(run, other, tmp_path):
    with pytest.warns(UserWarning, match="inception") as found:
        evaluate(run, f"--compare=[{other}]", inception=tmp_path / "nowhere")
    assert len(found) == 1


@pytest.fixture
def published(finished, tmp_path):
    """The run's images in the layout of the published code."""
    for id, record in records(finished).items():
        correct = record["label"] == record["prediction"]
        outcome = Path("CC" if correct else "IC", "CCF" if record["flipped"] else "ICF", "CF")
        places = {
            "original": tmp_path / "Original" / ("Correct" if correct else "Incorrect"),
            "counterfactual": tmp_path / "Results" / "mine" / outcome,
        }
        for kind, place in places.items():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(finished / "images" / kind / f"{id}.png", place)
    return tmp_path


def test_results_of_another_code_are_judged_as_those_of_a_run(published, run, judge, capsys):
    networks = f"--networks={{oracle_classifier: {judge}, second_classifier: {judge}, classifier: {judge}}}"
    options = ["--subsets=all", "--min_images=2", networks]
    explain.main(["evaluate", str(published), "--experiment=mine", *options])
    found = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert found.keys() == {"flip_rate", "l1", "l2", "linf", "changed_area", "mnac", "fd_classifier", "sfd_classifier"}
    metrics = evaluate(run, *options[:-1], oracle_classifier=judge, classifier=judge)
    for name in found.keys() - {"changed_area"}:
        assert float(found[name]) == pytest.approx(metrics[name]["value"], rel=1e-3)


def test_with_the_classifier_they_are_judged_as_the_run_is(published, run, judge, classifier_folder, capsys):
    options = ["--subsets=all", f"--networks={{oracle_classifier: {judge}, second_classifier: {judge}}}"]
    asked = [f"--classifier={classifier_folder}", "--query=smiling"]
    with pytest.warns(UserWarning, match="^cd is left out: it needs the labels of training data"):
        explain.main(["evaluate", str(published), "--experiment=mine", *asked, *options])
    found = json.loads((published / "Results" / "mine" / "metrics.json").read_text())["metrics"]
    metrics = evaluate(run, "--subsets=all", oracle_classifier=judge, second_classifier=judge)
    own = {"l1", "l2", "linf", "changed_area", "flip_rate", "p_after", "bkl"}
    assert found.keys() == own | JUDGED - {"cd", "change_in_region"}, "without the data"
    for name in found.keys() - {"changed_area"}:
        assert found[name]["value"] == pytest.approx(metrics[name]["value"], rel=1e-5), name
    assert found["flip_rate"]["convention"] == "as saved"


def test_what_was_explained_is_asked_of_other_code_alone(published, run, classifier_folder, make_judge, capsys):
    assert "a run folder knows" in refusal(capsys, run, "--query=smiling")
    assert "give the folder of" in refusal(capsys, published, "--experiment=mine", "--query=smiling")
    assert "unknown query 'x'" in refusal(
        capsys, published, "--experiment=mine", f"--classifier={classifier_folder}", "--query=x"
    )
    three = make_judge(("x", "y", "z"), "multiclass")
    assert "which of ['x', 'y', 'z'] was the target" in refusal(
        capsys, published, "--experiment=mine", f"--classifier={three}"
    )


def test_an_experiment_that_is_not_there_is_refused(published, capsys):
    assert "no counterfactuals in" in refusal(capsys, published, "--experiment=other")
    assert "leave one of them out" in refusal(capsys, published, "--experiment=mine", f"--compare=[{published}]")


# --- generate afterwards


def test_generate_keeps_what_was_judged_while_nothing_is_new(run, judge, arguments):
    evaluate(run, second_classifier=judge, oracle_classifier=judge)
    before = (run / "metrics.json").read_bytes()
    again = f"--data.train_size={TRAIN_SIZE}"
    explain.main(arguments(run, again))
    assert (run / "metrics.json").read_bytes() == before
    assert "non_adversarial_flip_rate" in (run / "report.html").read_text()
    explain.main(arguments(run, again, num_images=5))
    after = json.loads((run / "metrics.json").read_text())
    assert after["n"] == 5
    assert not JUDGED & after["metrics"].keys()
