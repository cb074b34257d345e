"""Target policies: what each image should be turned into, and who is left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from ace.decision import BinaryDecision, ClassDecision
from ace.targets import CorrectMistakes, OtherSide, Pair, RunnerUp, TargetPolicy, ToClass, Untargeted

THREE = ClassDecision(["cat", "dog", "fox"])
scores = st.integers(2, 6).flatmap(lambda k: st.lists(st.floats(-9, 9), min_size=k, max_size=k))


@pytest.mark.parametrize("prediction", [0, 1])
def test_other_side(prediction):
    OtherSide().check(BinaryDecision())
    OtherSide().check(ClassDecision(["a", "b"]))
    assert OtherSide().choose(torch.zeros(2), prediction, None) == 1 - prediction
    with pytest.raises(ValueError, match="3 classes"):
        OtherSide().check(THREE)


def test_to_class_skips_those_already_there():
    policy = ToClass(2)
    policy.check(THREE)
    assert policy.choose(torch.zeros(3), 0, None) == 2
    assert policy.choose(torch.zeros(3), 2, None) == "already decided as the target"


def test_pair_goes_one_way_or_both():
    one, both = Pair(0, 2), Pair(0, 2, both=True)
    one.check(THREE)
    both.check(THREE)
    outside = "decided as a class outside the pair"
    assert [one.choose(torch.zeros(3), decided, None) for decided in (0, 1, 2)] == [2, outside, outside]
    assert [both.choose(torch.zeros(3), decided, None) for decided in (0, 1, 2)] == [2, outside, 0]
    with pytest.raises(ValueError, match="same class, 1"):
        Pair(1, 1)


def test_classes_may_be_named():
    to_fox, pair = ToClass("fox"), Pair("dog", 0, both=True)
    for classes in (ClassDecision(["fox", "cat", "dog"]), THREE):  # a policy may serve several explainers
        to_fox.check(classes)
        pair.check(classes)
    assert to_fox.choose(torch.zeros(3), 0, None) == 2
    assert [pair.choose(torch.zeros(3), decided, None) for decided in (1, 0)] == [0, 1]
    with pytest.raises(ValueError, match="source cat and target 0 are the same class"):
        Pair("cat", 0).check(THREE)


@pytest.mark.parametrize(
    ("names", "given", "chosen"),
    [
        (["1", "2", "3"], "2", "2"),  # the index 2 would be "3"
        (["1", "2", "3"], "0", "1"),  # no name, but an index
        (["4", "9"], "9", "9"),
        (["08", "09", "10"], "09", "09"),
        (["001", "002", "003"], "2", "002"),
        (["dog", "0"], "0", "0"),
    ],
)
def test_a_class_whose_name_is_a_number_is_found_by_it_from_a_command_line(names, given, chosen):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TargetPolicy, "policy")
    rest = next(name for name in names if name != chosen)
    for options in (["--policy=ace.ToClass"], ["--policy=ace.Pair", f"--policy.source={rest}"]):
        found = parser.parse_args([*options, f"--policy.target={given}"])
        policy = parser.instantiate_classes(found).policy
        policy.check(ClassDecision(names))
        assert policy.choose(torch.zeros(len(names)), names.index(rest), None) == names.index(chosen)


@pytest.mark.parametrize(
    "policy", [ToClass(3), ToClass(-1), ToClass("cow"), Pair(0, 3), Pair(5, "dog"), CorrectMistakes(ToClass(7))]
)
def test_classes_that_do_not_exist_are_refused_with_those_that_do(policy):
    with pytest.raises(ValueError, match="does not exist, choose one of 0: cat, 1: dog, 2: fox"):
        policy.check(THREE)


@given(scores)
def test_runner_up_is_the_best_of_the_other_classes(values):
    row = torch.tensor(values)
    decided = int(row.argmax())
    chosen = RunnerUp().choose(row, decided, None)
    assert chosen != decided
    assert row[chosen] == max(value for index, value in enumerate(row.tolist()) if index != decided)


@given(scores)
def test_untargeted_names_the_class_to_leave(values):
    row = torch.tensor(values)
    assert Untargeted().choose(row, int(row.argmax()), None) == int(row.argmax())


@given(scores, st.data())
def test_mistakes_go_to_their_true_class_and_the_others_follow_the_policy(values, data):
    row = torch.tensor(values)
    decided, label = int(row.argmax()), data.draw(st.integers(0, len(values) - 1))
    for policy in (RunnerUp(), ToClass(0), Pair(0, 1, both=True)):
        chosen = CorrectMistakes(policy).choose(row, decided, label)
        assert chosen == (label if label != decided else policy.choose(row, decided, label))


def test_correcting_mistakes_needs_labels_and_targets():
    assert CorrectMistakes(OtherSide()).choose(torch.zeros(2), 0, None).startswith("the true label is not known")
    with pytest.raises(ValueError, match="Untargeted"):
        CorrectMistakes(Untargeted())
    with pytest.raises(ValueError, match="3 classes"):
        CorrectMistakes(OtherSide()).check(THREE)


@given(scores, st.data())
def test_a_target_is_a_class_other_than_the_decided_one(values, data):
    row = torch.tensor(values)
    decided, label = int(row.argmax()), data.draw(st.integers(0, len(values) - 1))
    policies = [RunnerUp(), ToClass(1), Pair(0, 1), CorrectMistakes(RunnerUp())]
    for policy in policies + ([OtherSide()] if len(values) == 2 else []):
        chosen = policy.choose(row, decided, label)
        assert isinstance(chosen, str) or (chosen != decided and 0 <= chosen < len(values))
