"""The audit command on a run of tiny networks."""

import json
import re
import shutil

import pytest
import torch

import explain
from ace.images import load_png, save_png
from ace.models.classifiers import ImageClassifier
from ace.run_store import RunStore
from datamodules.avatar_faces import ATTRIBUTES
from tests.lit_modules.conftest import change_config, stored

pytestmark = pytest.mark.usefixtures("one_thread")


def audit(run, *options, **networks):
    """Run the command; what it wrote."""
    given = json.dumps({name: str(path) for name, path in networks.items()})
    explain.main(["audit", str(run), f"--networks={given}", *options])
    return json.loads((run / "audit.json").read_text())


def refusal(run, *options, **networks):
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as exit:
        audit(run, *options, **networks)
    assert re.fullmatch(r"error: .+", exit.value.code)
    return exit.value.code


@pytest.fixture
def changed(run):
    """A copy of the run with counterfactuals that change a lot, all flipped."""
    log = run / "records.rank0.jsonl"
    records = [json.loads(line) | {"flipped": True, "status": "flipped"} for line in log.read_text().splitlines()]
    log.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    for path in (run / "images" / "counterfactual").iterdir():
        save_png(255 - load_png(path), path)
    return run


def test_a_run_is_audited_from_its_pictures(changed, judge, capsys):
    run, found = changed, audit(changed, oracle_classifier=judge)
    network = ImageClassifier.from_pretrained(judge)
    with torch.no_grad():
        before, after = (network(stored(run, kind)) > 0 for kind in ("original", "counterfactual"))
    records = RunStore.open(run).records()
    assert (found["images"], found["n"], found["query"]) == (4, 4, "smiling")
    assert len(found["directions"]) == 2
    for name, direction in found["directions"].items():
        target = 0 if name.endswith("not smiling") else 1
        chosen = torch.tensor([record.target == target for record in records])
        assert direction["n"] == direction["images"] == chosen.sum()
        appeared, went = (~before & after)[chosen].sum(0), (before & ~after)[chosen].sum(0)
        for place, attribute in enumerate(ATTRIBUTES):
            counts = {"appeared": int(appeared[place]), "went": int(went[place])}
            change = direction["changes"].get(attribute, {"appeared": 0, "went": 0})
            assert counts.items() <= change.items()
        assert next(iter(direction["changes"])) == "smiling"
    assert all(len(direction["changes"]) > 1 for direction in found["directions"].values()), "a test needs it"
    assert found["correlations"].keys() == set(ATTRIBUTES)
    assert found["correlations"]["smiling"]["in_data"] == pytest.approx(1)

    printed, page = capsys.readouterr().out, (run / "report.html").read_text()
    for name, direction in found["directions"].items():
        assert re.search(rf"^{name}: {direction['n']} counterfactuals of {direction['images']} images$", printed, re.M)
        assert direction["verdict"] in printed
        assert name.replace(">", "&gt;") in page
    assert found["verdict"] in printed
    assert re.search(r"^ +smiling \(query\) +\d+% +\[\d+%, \d+%\] +\d+ +\d+ +0$", printed, re.M)
    assert re.search(r"^ +correlation difference +\d\S*: sum over", printed, re.M)
    assert f"audit  {run}/audit.json" in printed


def test_of_other_networks_none_is_read(run, judge, tmp_path, recwarn):
    found = audit(run, oracle_classifier=judge, second_classifier=tmp_path / "nowhere", inception=tmp_path / "nowhere")
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]
    assert found["n"]


def test_the_classifier_and_the_diffusion_model_are_not_needed(run, judge, tmp_path):
    change_config(run, lambda config: config["model"].update(classifier="nowhere", diffusion="nowhere"))
    assert audit(run, oracle_classifier=judge)["verdict"]


def test_data_that_moved_away_take_the_comparison_along(run, judge):
    data = {"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": "nowhere"}}
    change_config(run, lambda config: config.update(data=data))
    with pytest.warns(UserWarning, match="the run's data, for .*, is left out: There is no folder 'nowhere'"):
        found = audit(run, oracle_classifier=judge)
    assert (found["query"], found["cd"], found["verdict"]) == ("smiling", None, None)
    assert found["correlations"]["smiling"]["in_data"] is None


def test_an_oracle_that_does_not_know_the_query_tells_of_its_attributes(run, make_judge, capsys):
    found = audit(run, "--threshold=0.5", oracle_classifier=make_judge(("hat", "beard")))
    assert (found["query"], found["threshold"], found["cd"]) == (None, 0.5, None)
    assert found["correlations"].keys() == {"hat", "beard"}
    assert "(query)" not in capsys.readouterr().out


def test_what_cannot_be_audited_is_refused_in_a_sentence(run, judge, tmp_path):
    assert "give --networks.oracle_classifier FOLDER" in refusal(run)
    assert "give --networks.oracle_classifier FOLDER" in refusal(run, second_classifier=judge)
    with pytest.warns(UserWarning, match="oracle_classifier is left out: .*nowhere"):
        assert "an audit needs an oracle" in refusal(run, oracle_classifier=tmp_path / "nowhere")
    assert "threshold must be a share from 0 to below 1, got 2.0" in refusal(
        run, "--threshold=2", oracle_classifier=judge
    )
    assert "batch_size must be at least 1" in refusal(run, "--batch_size=0", oracle_classifier=judge)
    assert "is no run folder" in refusal(tmp_path, oracle_classifier=judge)
    shutil.rmtree(run / "images")
    (run / "records.rank0.jsonl").unlink()
    assert "holds no explained image to audit" in refusal(run, oracle_classifier=judge)
