"""Metrics by networks that look at single pixels, so that every number is known."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.closeness import l1
from ace.decision import AwayFrom, BinaryDecision, ClassDecision
from ace.images import save_png
from ace.judges import Judges
from ace.measurement import wilson
from ace.results import Result

PIXELS = 121  # no multiple of 50: the published axis of COUT ends at 122/121
FLIPPED, CORRECT, EXPLAINED = "flipped", "decided correctly", "explained"


def look(*pixels):
    """A network that gives the levels of some pixels of the first row."""
    return lambda images: images[:, 0, 0, list(pixels)]


def decide(*pixels):
    """A network of attributes, or of a binary decision: there where the pixel is white."""
    return lambda images: 1e3 * (look(*pixels)(images) - 0.5)


# Pixels 0 to 2 are attributes, the first of them the query; 3 and 4 features; 5 is what the second classifier sees.
# By image: white pixels before and after, label (all are decided as 0), whether it flipped.
IMAGES = {
    "a": ({3}, {0, 3, 5}, 0, True),
    "b": ({3}, {1, 4, 5}, 0, False),
    "c": ({3}, {0, 1, 2, 3, 4}, 1, True),
    "d": ({3}, {3}, 1, False),
}
REGION = np.zeros((11, 11), bool)
REGION[0, 0] = True
ROOT = math.sqrt(0.5)
VALUES = {
    "cout": {"a": 119 / PIXELS, "b": -1, "c": 119 / PIXELS, "d": -1},
    "cout_paper": {"a": 120 / PIXELS, "b": -122 / PIXELS, "c": 120 / PIXELS, "d": -122 / PIXELS},
    "non_adversarial_flip_rate": {"a": 1, "b": 0, "c": 0, "d": 0},
    "mnac": {"a": 1, "b": 1, "c": 3, "d": 0},
    "attributes_changed": {"a": 0, "b": 1, "c": 2, "d": 0},
    "factors_preserved": {"a": 1, "b": 0.5, "c": 0, "d": 1},
    "fva": {"a": 1, "b": 0, "c": 1, "d": 1},
    "fs": {"a": 1, "b": 0, "c": ROOT, "d": 1},
    "s3": {"a": 1, "b": 0, "c": ROOT, "d": 1},
    "l1": {"a": 2 / PIXELS, "b": 4 / PIXELS, "c": 4 / PIXELS, "d": 0},
    "change_in_region": {"a": 1 / 2, "b": 0, "c": 1 / 4},
}
SUBSETS = dict.fromkeys(VALUES, FLIPPED) | {
    "cout": CORRECT, "cout_paper": CORRECT, "s3": CORRECT, "non_adversarial_flip_rate": EXPLAINED, "l1": EXPLAINED,
}  # fmt: skip
SHARES = ("fva", "non_adversarial_flip_rate")
NAMES = VALUES.keys() | {"cd"}
MEMBERS = {FLIPPED: "ac", CORRECT: "ab", EXPLAINED: "abcd"}


@pytest.fixture
def results(tmp_path):
    """The images and their records, as files."""

    def picture(name, white):
        array = np.zeros((11, 11, 3), np.uint8)
        array[0, list(white)] = 255
        save_png(array, tmp_path / name)
        return tmp_path / name

    def result(id, before, after, label, flipped):
        paths = picture(f"{id}-before.png", before), picture(f"{id}-after.png", after)
        return Result(id, *paths, label == 0, flipped, prediction=0, target=1)

    return [result(id, *image) for id, image in IMAGES.items()]


@pytest.fixture
def make_judges():
    """Makes all judges but those of realism."""

    def make(**options):
        decisions = {"decision": BinaryDecision(), "second_decision": BinaryDecision()}
        attributes = {"oracle": decide(0, 1, 2), "query": 0, "correlations": torch.tensor([1.0, 0.0, 0.0])}
        features = {"faces": look(3, 4), "scenes": look(3, 4), "distances": {"l1": l1}, "region": lambda id: REGION}
        classifiers = {"classifier": decide(0), "second": decide(5)}
        return Judges(**decisions | classifiers | attributes | features | options)

    return make


def values(found):
    return {name: measured.value for name, measured in found.items()}


@pytest.mark.parametrize("batch_size", [3, 32])
@pytest.mark.parametrize("subsets", ["paper", "all"])
def test_every_metric_is_that_of_its_images(subsets, batch_size, results, make_judges):
    found = make_judges(subsets=subsets, batch_size=batch_size).measure(results)
    assert found.keys() == NAMES
    for name, of_image in VALUES.items():
        subset = SUBSETS[name] if subsets == "paper" else EXPLAINED
        expected = [of_image[id] for id in MEMBERS[subset] if id in of_image]
        assert found[name].value == pytest.approx(np.mean(expected), abs=1e-6), name
        assert (found[name].n, found[name].subset) == (len(expected), subset), name
        low, high = found[name].interval
        if name in SHARES:
            assert (low, high) == wilson(sum(expected), len(expected)), name
        else:
            assert min(expected) - 1e-6 <= low <= found[name].value + 1e-6, name
            assert found[name].value - 1e-6 <= high <= max(expected) + 1e-6, name
        assert found[name].convention, name


def test_the_correlation_difference_counts_the_query(results, make_judges):
    paper = make_judges().measure(results)["cd"]
    assert (paper.value, paper.n, paper.subset) == (1.0, 2, FLIPPED), "the query always changes: no correlation"
    every = make_judges(subsets="all").measure(results)["cd"]
    assert (every.n, every.subset) == (4, EXPLAINED)
    assert every.value == pytest.approx(1 / math.sqrt(3))
    assert paper.interval is every.interval is None, "resampling makes it larger"


def test_of_unknown_labels_all_are_taken_and_it_is_said(results, make_judges):
    unknown = [replace(result, correct=None) for result in results]
    found = make_judges().measure(unknown)
    for name in ("cout", "s3"):
        assert (found[name].n, found[name].subset) == (4, "explained (labels unknown)")
    assert (found["mnac"].n, found["mnac"].subset) == (2, FLIPPED)
    some = make_judges().measure([unknown[0], *results[1:]])["cout"]
    assert (some.n, some.subset) == (1, CORRECT), "one that is not known takes no other along"


def test_without_a_flip_what_needs_one_is_left_out(results, make_judges):
    none = [replace(result, flipped=False) for result in results]
    judges = make_judges(encoders={"pixels": look(0)})
    with pytest.warns(UserWarning, match="left out: .* needs at least 2 .* and 0") as complaints:
        found = judges.measure(none)
    assert [str(complaint.message).split()[0] for complaint in complaints] == ["fd_pixels", "sfd_pixels"]
    assert found.keys() == {"cout", "cout_paper", "s3", "non_adversarial_flip_rate", "l1"}
    assert found["non_adversarial_flip_rate"].value == 0


def test_without_an_image_there_is_no_metric_and_no_complaint(make_judges):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_judges(encoders={"pixels": look(0)}).measure([]) == {}


def test_without_judges_there_is_no_metric(results):
    assert Judges().measure(results) == {}


def test_identical_images_give_numbers(results, make_judges):
    same = [replace(result, counterfactual=result.original, flipped=True) for result in results]
    with pytest.warns(UserWarning, match="change_in_region is left out: no image has changed"):
        found = make_judges(encoders={"pixels": look(3, 4)}, min_images=2).measure(same)
    assert found.keys() == (NAMES | {"fd_pixels", "sfd_pixels"}) - {"change_in_region"}
    assert all(math.isfinite(value) for value in values(found).values())
    assert (found["fs"].value, found["mnac"].value, found["l1"].value) == (pytest.approx(1), 0, 0)
    assert found["fd_pixels"].value == pytest.approx(0, abs=1e-6)


def test_what_was_asked_is_needed_for_cout_and_the_second_opinion(results, make_judges):
    published = [replace(result, prediction=None, target=None) for result in results]
    without = NAMES - {"cout", "cout_paper", "non_adversarial_flip_rate"}
    for judges in (make_judges(), make_judges(decision=None, second_decision=None)):
        assert judges.measure(published).keys() == without
    assert make_judges(second_decision=None).measure(results).keys() == without | {"cout", "cout_paper"}


def test_an_untargeted_question_is_judged_by_where_it_led(results, make_judges):
    targeted = values(make_judges().measure(results))
    left = [replace(result, target=0) for result in results]
    away = AwayFrom(BinaryDecision())
    assert values(make_judges(decision=away, second_decision=away).measure(left)) == pytest.approx(targeted)


def test_cout_of_several_classes_is_between_the_two_of_the_question(results):
    def classifier(images):  # class 0 until the first pixel turns white, then class 2
        white = look(0)(images)
        return 1e3 * torch.cat([1 - white, torch.full_like(white, 0.5), white], dim=1)

    decision, [image] = ClassDecision(["x", "y", "z"]), results[:1]
    reached, missed, left = (replace(image, target=target) for target in (2, 1, 0))
    for result, asked, expected in (
        (reached, decision, 119 / PIXELS),
        (missed, decision, -1 / PIXELS),
        (left, AwayFrom(decision), 119 / PIXELS),
    ):
        found = Judges(classifier=classifier, decision=asked).measure([result])
        assert found["cout"].value == pytest.approx(expected)
    leaves = Judges(classifier=classifier, decision=decision).measure([missed])["untargeted_flip_rate"]
    assert (leaves.value, leaves.n, leaves.subset) == (1, 1, EXPLAINED)
    assert "untargeted_flip_rate" not in Judges(classifier=classifier, decision=AwayFrom(decision)).measure([left])


def test_an_oracle_without_the_query_counts_attributes_alone(results, make_judges):
    found = make_judges(query=None).measure(results)
    assert found["mnac"].value == 2
    assert not {"attributes_changed", "factors_preserved", "cd"} & found.keys()


def test_an_oracle_of_the_query_alone_preserves_nothing_else(results):
    found = Judges(oracle=decide(0), query=0).measure(results)
    assert values(found) == {"mnac": 1, "attributes_changed": 0}


def attributes_there(images):
    return look(0, 1, 2)(images).sum(1, keepdim=True)


def test_frechet_distances_are_to_all_originals(results):
    found = Judges(subsets="all", encoders={"inception": attributes_there}, min_images=2).measure(results)
    assert found["fid"].value == pytest.approx(1.25**2 + 4.75 / 3)  # mean and variance of 1, 1, 3 and 0
    assert (found["fid"].n, found["fid"].subset, found["fid"].interval) == (4, EXPLAINED, None)
    assert found["fid"].convention == "features: inception"
    # The halves are {1, 1} and {3, 0}, or {1, 3} and {1, 0}.
    assert 3.375 <= found["sfid"].value <= 3.875
    assert found["sfid"].convention.startswith("features: inception; standard deviation 0.")


def test_of_frechet_distances_the_one_that_lacks_images_is_left_out(results):
    judges = Judges(encoders={"pixels": attributes_there}, distances={"l1": l1}, min_images=2)
    with pytest.warns(UserWarning, match=r"^sfd_pixels is left out: each half of sfd_pixels needs at least 2") as all:
        found = judges.measure(results)
    assert len(all) == 1
    assert values(found) == pytest.approx({"l1": 10 / PIXELS / 4, "fd_pixels": 2**2 + 2})  # of 1 and 3
    assert (found["fd_pixels"].n, found["fd_pixels"].subset) == (2, FLIPPED)


def test_too_few_images_are_refused_with_the_number_needed(results, make_judges):
    judges = make_judges(encoders={"pixels": look(0, 1, 2, 3, 4)})
    with pytest.warns(UserWarning, match="needs at least 6 originals and 6 counterfactuals") as found:
        measured = judges.measure(results)
    assert [str(warning.message).split()[0] for warning in found] == ["fd_pixels", "sfd_pixels"]
    assert measured.keys() == NAMES


def test_images_of_one_name_in_two_folders_are_two(results):
    """Other codes number their images anew in each folder."""
    same = [replace(result, id="0") for result in results]
    with pytest.warns(UserWarning, match="sfd_pixels"):
        found = Judges(encoders={"pixels": attributes_there}, min_images=2).measure(same)
    assert (found["fd_pixels"].n, found["fd_pixels"].value) == (2, pytest.approx(6))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Judges(batch_size=0)


def test_results_of_another_code_are_decided_by_their_files(results, make_judges):
    """The classifier looks at the first pixel, which the counterfactuals of a and c alone have white."""
    unknown = [replace(result, prediction=None, target=None, flipped=not result.flipped) for result in results]
    judges = make_judges(batch_size=3)
    decided = judges.decided(unknown)
    assert decided == [replace(result, p_after=float(result.flipped)) for result in results]
    assert values(judges.measure(decided)) == pytest.approx(values(judges.measure(results)))
    turned = [replace(result, original=result.counterfactual, counterfactual=result.original) for result in unknown]
    assert [(r.prediction, r.target, r.flipped) for r in judges.decided(turned)] == [
        (1, 0, True), (0, 1, False), (1, 0, True), (0, 1, False)
    ]  # fmt: skip


def test_of_several_classes_the_files_do_not_tell_the_target(results):
    judges = Judges(classifier=look(0, 1, 2), decision=ClassDecision(["x", "y", "z"]))
    with pytest.raises(ValueError, match=r"which of \['x', 'y', 'z'\] was the target"):
        judges.decided(results)


def test_one_split_has_no_deviation(results):
    found = Judges(subsets="all", encoders={"inception": attributes_there}, min_images=2, splits=1).measure(results)
    assert found["sfid"].convention == "features: inception; one split"
    assert found["sfid"].value in (3.375, 3.875)


def refuse(images):
    raise AssertionError("Wrong image height! Expected 224\nbut got 11")


@pytest.mark.parametrize(
    ("options", "named", "missing"),
    [
        ({"second": refuse}, "second_classifier", {"non_adversarial_flip_rate"}),
        ({"oracle": refuse}, "the oracle", {"mnac", "attributes_changed", "factors_preserved", "cd"}),
        ({"faces": refuse}, "the encoder of faces", {"fva", "fs"}),
        ({"scenes": refuse}, "the encoder of scenes", {"s3"}),
        ({"distances": {"l1": lambda *pair: refuse(pair)}}, "l1", {"l1"}),
        ({"encoders": {"pixels": refuse}}, "pixels", set()),
    ],
)
def test_a_judge_that_cannot_take_the_images_is_left_out_and_the_others_judge(
    options, named, missing, results, make_judges
):
    with pytest.warns(UserWarning, match=f"^{named} is left out, .* these images: Wrong image height! Expected 224$"):
        found = make_judges(**options).measure(results)
    assert found.keys() == NAMES - missing
