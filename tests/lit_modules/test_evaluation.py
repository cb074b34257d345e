"""The networks that judge a run: from their files, and from what the run's configuration names."""

import errno
import json
import re
import shutil

import numpy as np
import pytest
import torch
from torchvision.models import alexnet

import explain
from ace.images import load_png, save_png
from ace.models.classifiers import ImageClassifier
from ace.models.encoders import NETWORKS
from ace.run_store import RunStore
from datamodules.avatar_faces import ATTRIBUTES
from datamodules.avatars import AvatarsDataset
from tests.conftest import records
from tests.lit_modules.conftest import JUDGED, TRAIN_SIZE, change_config, evaluate, refusal, stored

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def logits(folder, images):
    return ImageClassifier.from_pretrained(folder)(images)


def test_a_run_is_judged_by_networks_from_folders(run, judge, capsys):
    metrics = evaluate(
        run, "--subsets=all", "--min_images=2", second_classifier=judge, oracle_classifier=judge, classifier=judge
    )
    assert metrics.keys() >= JUDGED | {"flip_rate", "l1", "fd_classifier", "sfd_classifier"}
    assert {metrics[name]["subset"] for name in JUDGED} == {"explained"}
    found = RunStore.open(run).records()

    before, after = (logits(judge, stored(run, kind)) for kind in ("original", "counterfactual"))
    second = [(logit > 0) == record.target for logit, record in zip(after[:, 0], found, strict=True)]
    both = [flips and record.flipped for flips, record in zip(second, found, strict=True)]
    assert metrics["non_adversarial_flip_rate"]["value"] == pytest.approx(np.mean(both))
    changes = (after > 0).double() - (before > 0).double()
    assert metrics["mnac"]["value"] == pytest.approx(changes.abs().sum(1).mean().item())
    assert metrics["attributes_changed"]["value"] == pytest.approx(changes[:, 1:].abs().sum(1).mean().item())

    printed, page = capsys.readouterr().out, (run / "report.html").read_text()
    for name, measured in metrics.items():
        assert re.search(rf"^ *{name} +{re.escape(format(measured['value'], '.4g'))} ", printed, re.MULTILINE)
        assert name in page


def test_the_correlation_difference_is_to_the_run_s_training_labels(run, judge, avatar_cache):
    def correlations(values):
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.corrcoef(values, rowvar=False)[0])

    before, after = (logits(judge, stored(run, kind)) > 0 for kind in ("original", "counterfactual"))
    labels = AvatarsDataset("train", TRAIN_SIZE, cache_dir=str(avatar_cache)).labels
    expected = np.abs(correlations(after.numpy().astype(int) - before.numpy()) - correlations(labels)).sum()
    metrics = evaluate(run, "--subsets=all", oracle_classifier=judge)
    assert metrics["cd"]["value"] == pytest.approx(expected)


def test_the_subsets_of_the_papers_are_the_default(run, judge):
    metrics = evaluate(run, oracle_classifier=judge, second_classifier=judge)
    found = RunStore.open(run).records()
    flipped = sum(record.flipped for record in found)
    correct = sum(record.label == record.prediction for record in found)
    assert correct, "a test needs one"
    for name in ("mnac", "attributes_changed", "factors_preserved", "cd", "change_in_region"):
        assert (metrics[name]["n"], metrics[name]["subset"]) == (flipped, "flipped")
    for name in ("cout", "cout_paper"):
        assert (metrics[name]["n"], metrics[name]["subset"]) == (correct, "decided correctly")
    assert (metrics["non_adversarial_flip_rate"]["n"], metrics["non_adversarial_flip_rate"]["subset"]) == (
        4, "explained"
    )  # fmt: skip


def test_a_change_inside_the_query_s_region_is_told_from_others(run, avatar_cache):
    faces = AvatarsDataset("test", 8, cache_dir=str(avatar_cache))
    regions = {id: faces.query_region(id, "smiling") for id, record in records(run).items() if record["flipped"]}

    def repaint(change):
        for id, region in regions.items():
            original = load_png(run / "images" / "original" / f"{id}.png")
            everywhere = np.where(original > 127, original - 50, original + 50)
            picture = np.where(change(region)[..., None], everywhere, original)
            save_png(picture, run / "images" / "counterfactual" / f"{id}.png")
        return evaluate(run)["change_in_region"]

    inside = repaint(lambda region: region)
    assert (inside["value"], inside["n"]) == (pytest.approx(1), len(regions))
    everywhere = repaint(np.ones_like)
    assert everywhere["value"] == pytest.approx(np.mean([region.mean() for region in regions.values()]))
    assert 0 < everywhere["value"] < 0.2, "a mouth is small"
    assert repaint(np.logical_not)["value"] == 0


def test_an_untargeted_run_is_judged_by_leaving_the_class(arguments, judge, tmp_path):
    run = tmp_path / "run"
    explain.main(arguments(run, "--model.policy=ace.Untargeted", num_images=4))
    metrics = evaluate(run, "--subsets=all", second_classifier=judge)
    after = logits(judge, stored(run, "counterfactual"))[:, 0] > 0
    found = RunStore.open(run).records()
    both = [record.flipped and bool(a) != record.prediction for record, a in zip(found, after, strict=True)]
    assert any(record.flipped for record in found)
    assert metrics["non_adversarial_flip_rate"]["value"] == np.mean(both)
    assert metrics["cout"]["value"] != 0


def test_a_run_made_by_hand_is_measured_without_judges_of_its_own(tmp_path, judge, finished):
    [record, *_] = RunStore.open(finished).records()
    store = RunStore.create(tmp_path / "hand", {}, {})
    store.add(
        record,
        {kind: load_png(finished / "images" / kind / f"{record.id}.png") for kind in ("original", "counterfactual")},
    )
    metrics = evaluate(store.folder, "--subsets=all", oracle_classifier=judge, second_classifier=judge)
    assert {"flip_rate", "mnac"} <= metrics.keys()
    assert not {"cout", "non_adversarial_flip_rate", "change_in_region"} & metrics.keys()


# --- what is missing or unfit


def test_missing_networks_are_reported_with_their_remedy_and_the_others_go_on(run, judge, tmp_path):
    missing = dict.fromkeys([*NETWORKS, "second_classifier"], tmp_path / "nowhere")
    with pytest.warns(UserWarning, match=" is left out: ") as found:
        metrics = evaluate(run, "--subsets=all", **missing | {"oracle_classifier": judge})
    reasons = dict(str(warning.message).split(" is left out: ") for warning in found)
    assert reasons.keys() == missing.keys() - {"oracle_classifier"}
    assert "no classifier at" in reasons.pop("second_classifier")
    for name, reason in reasons.items():
        remedy = "download |`pip install |train a classifier "
        assert re.fullmatch(rf"the weights of '{name}' are missing: ({remedy}).*; put it at '.*nowhere'", reason), name
    assert metrics.keys() & JUDGED == JUDGED - {"non_adversarial_flip_rate"}
    assert not {"fid", "sfid", "s3", "fva", "lpips_alex"} & metrics.keys()


def test_a_run_in_which_nothing_changed_gives_numbers(run, judge, tmp_path):
    """All that is computed from unchanged images is a number; of what is not there the reason is said."""
    records = [json.loads(line) for line in (run / "records.rank0.jsonl").read_text().splitlines()]
    for record in records:
        record |= {"status": "flipped", "flipped": True, "l1": 0.0, "l2": 0.0, "linf": 0.0, "changed_area": 0.0}
        shutil.copy(*(run / "images" / kind / f"{record['id']}.png" for kind in ("original", "counterfactual")))
    (run / "records.rank0.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    network = alexnet()
    torch.save({f"features.{name}": t for name, t in network.features.state_dict().items()}, tmp_path / "alex.pth")
    networks = dict.fromkeys(("oracle_classifier", "second_classifier", "classifier"), judge)
    with pytest.warns(UserWarning, match="change_in_region is left out: no image has changed"):
        metrics = evaluate(run, "--min_images=2", **networks, lpips_alex=tmp_path / "alex.pth")
    assert metrics.keys() >= (JUDGED - {"change_in_region"}) | {"lpips_alex", "fd_classifier", "sfd_classifier"}
    for name, measured in metrics.items():
        assert np.isfinite([measured["value"], *(measured["interval"] or ())]).all(), name
        assert "nan" not in measured["convention"]
    for name in ("l1", "lpips_alex", "mnac", "attributes_changed"):
        assert metrics[name]["value"] == 0, name
    assert metrics["fd_classifier"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_network_without_a_path_comes_from_its_package(run, monkeypatch):
    monkeypatch.setattr("ace.models.encoders.find_spec", lambda _: None)
    with pytest.warns(UserWarning, match="stlpips is left out: .*pip install"):
        assert "stlpips" not in evaluate(run, stlpips=None)


def test_a_damaged_network_is_refused_in_a_sentence(run, judge, tmp_path, capsys):
    shutil.copytree(judge, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name in ("oracle_classifier", "second_classifier", "classifier"):
        said = refusal(capsys, run, **{name: weights.parent})
        assert str(weights.parent) in said
        assert "damaged" in said


def test_an_unknown_network_is_refused_with_the_known_ones(run, capsys):
    assert "unknown network 'incepton': use one of inception, " in refusal(capsys, run, incepton="somewhere")


@pytest.mark.parametrize(
    ("option", "words"),
    [("--batch_size=0", "batch_size must be at least 1"), ("--min_images=1", "min_images must be at least 2")],
)
def test_options_out_of_range_are_refused(option, words, run, judge, capsys):
    assert words in refusal(capsys, run, option, classifier=judge)


@pytest.mark.parametrize(
    ("classifier", "words"), [("nowhere", "no classifier at 'nowhere'"), ({"class_path": "nobody.Network"}, "nobody")]
)
def test_a_classifier_that_moved_away_takes_cout_along(classifier, words, run, judge):
    change_config(run, lambda config: config["model"].update(classifier=classifier))
    with pytest.warns(UserWarning, match=f"(?s)^COUT is left out: [^\n]*{words}") as found:
        metrics = evaluate(run, "--subsets=all", oracle_classifier=judge, second_classifier=judge)
    assert len(found) == 1
    assert metrics.keys() & JUDGED == JUDGED - {"cout", "cout_paper"}


def test_another_classifier_in_its_place_is_not_taken_for_it(run, judge):
    change_config(run, lambda config: config["model"].update(classifier=str(judge)))
    with pytest.warns(UserWarning, match="^COUT is left out: the classifier at .* has changed since the run was made"):
        assert "cout" not in evaluate(run)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": "nowhere"}}, "no folder 'nowhere'"),
        ({"class_path": "nobody.DataModule"}, "nobody"),
    ],
)
def test_data_that_moved_away_take_along_what_they_tell(data, words, run, judge):
    change_config(run, lambda config: config.update(data=data))
    with pytest.warns(UserWarning, match=f"(?s)^the run's data, for .*, is left out: [^\n]*{words}") as found:
        metrics = evaluate(run, "--subsets=all", oracle_classifier=judge, second_classifier=judge)
    assert len(found) == 1
    assert metrics.keys() & JUDGED == JUDGED - {"cd", "change_in_region"}


@pytest.mark.parametrize(
    ("names", "task", "words"),
    [
        (("hat", "beard"), "multilabel", "unknown query 'smiling'"),
        (("sad", "glad"), "multiclass", "query 'smiling' asks for an attribute"),
    ],
)
def test_a_second_classifier_of_another_question_is_left_out(names, task, words, run, make_judge):
    with pytest.warns(UserWarning, match=f"^second_classifier is left out: {words}"):
        assert "non_adversarial_flip_rate" not in evaluate(run, second_classifier=make_judge(names, task))


def test_a_second_classifier_and_an_oracle_are_asked_by_the_name_of_the_attribute(run, judge):
    expected = evaluate(run, "--subsets=all", second_classifier=judge, oracle_classifier=judge)
    config = json.loads((judge / "config.json").read_text())
    turned = judge.with_name("turned")
    network = ImageClassifier.from_pretrained(judge)
    order = torch.arange(len(ATTRIBUTES)).flip(0)
    network.class_names = config["class_names"][::-1]
    head = network.network.classifier
    head.weight.data, head.bias.data = head.weight[order], head.bias[order]
    network.save_pretrained(turned)
    (run / "metrics.json").unlink()
    with pytest.warns(UserWarning, match="^cd is left out: the attributes of the run's data"):
        metrics = evaluate(run, "--subsets=all", second_classifier=turned, oracle_classifier=turned)
    for name in ("non_adversarial_flip_rate", "attributes_changed", "factors_preserved"):
        assert metrics[name]["value"] == expected[name]["value"]
        assert metrics[name]["convention"].endswith(f"; {turned}")
        assert expected[name]["convention"].endswith(f"; {judge}")
    assert "cd" not in metrics, "the data list their attributes in another order"


def test_a_report_that_cannot_be_written_ends_with_a_sentence(run, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ace.report.page.write_whole", full)
    assert "generate.yaml cannot be written (No space left on device): free space" in refusal(capsys, run)


def test_a_second_oracle_is_refused(run, judge, capsys):
    networks = f"--networks={{oracle_classifier: {judge}, oracle_celeba: {judge}}}"
    loaded = refusal(capsys, run, networks)
    assert "oracle_celeba is a second oracle, and one alone tells attributes: leave one of them out" in loaded
