"""Decisions: what is read from logits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.decision import AttributeDecision, AwayFrom, BinaryDecision, ClassDecision, relabel

finite = st.floats(-30, 30, width=32)
logit_rows = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(finite, min_size=k, max_size=k), min_size=1, max_size=4)
)
logit_columns = st.lists(finite, min_size=1, max_size=6)


def class_decision(logits: torch.Tensor) -> ClassDecision:
    return ClassDecision([f"class {index}" for index in range(logits.shape[1])])


@given(logit_rows, st.data())
def test_class_decision_with_any_number_of_classes(rows, data):
    logits = torch.tensor(rows)
    decision = class_decision(logits)
    k = logits.shape[1]
    target = torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=len(rows), max_size=len(rows))))
    decision.check(logits)
    prediction = decision.prediction(logits)
    assert torch.equal(decision.flipped(logits, target), prediction == target)
    assert (logits.gather(1, prediction[:, None])[:, 0] == logits.amax(1)).all()
    probabilities = torch.stack([decision.probability(logits, torch.full_like(target, c)) for c in range(k)])
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    torch.testing.assert_close(probabilities.sum(0), torch.ones(len(rows)))
    chosen = decision.probability(logits, target).double()
    torch.testing.assert_close(
        decision.cross_entropy(logits.double(), target),
        -logits.double().log_softmax(1)[range(len(rows)), target],
    )
    torch.testing.assert_close((-decision.cross_entropy(logits, target)).exp().double(), chosen, atol=1e-6, rtol=1e-4)
    margin = decision.margin(logits, target)
    assert (margin[prediction == target] >= 0).all()
    assert (margin[prediction != target] <= 0).all()


@given(logit_columns, st.data())
def test_one_logit_is_two_classes_with_scores_zero_and_the_logit(column, data):
    logits = torch.tensor(column)
    target = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(column), max_size=len(column))))
    binary, two = BinaryDecision(), ClassDecision(["0", "1"])
    scores = torch.stack([torch.zeros_like(logits), logits], 1)
    binary.check(logits)
    binary.check(logits[:, None])
    assert torch.equal(binary.scores(logits[:, None]), scores)
    assert torch.equal(binary.prediction(logits), two.prediction(scores))
    assert torch.equal(binary.flipped(logits, target), binary.prediction(logits) == target)
    torch.testing.assert_close(binary.cross_entropy(logits, target), two.cross_entropy(scores, target))
    torch.testing.assert_close(binary.margin(logits, target), logits * (2 * target - 1))
    torch.testing.assert_close(binary.probability(logits, target), (logits * (2 * target - 1)).sigmoid())


@given(logit_rows, st.data())
def test_an_attribute_is_the_binary_decision_of_its_logit(rows, data):
    logits = torch.tensor(rows)
    query = data.draw(st.integers(0, logits.shape[1] - 1))
    attribute, binary = AttributeDecision(query, "Smiling"), BinaryDecision()
    attribute.check(logits)
    target = torch.ones(len(rows), dtype=torch.long)
    assert torch.equal(attribute.prediction(logits), binary.prediction(logits[:, query]))
    assert torch.equal(attribute.cross_entropy(logits, target), binary.cross_entropy(logits[:, query], target))
    assert torch.equal(attribute.probability(logits, target), binary.probability(logits[:, query], target))
    assert attribute.class_names == ["not Smiling", "Smiling"]
    labels = (logits > 0).float()
    assert torch.equal(attribute.label(labels), attribute.prediction(logits))


@given(logit_rows)
def test_away_from_reads_the_target_as_the_class_to_leave(rows):
    logits = torch.tensor(rows)
    decision = class_decision(logits)
    away, leave = AwayFrom(decision), decision.prediction(logits)
    away.check(logits)
    assert away.class_names == decision.class_names
    assert torch.equal(away.scores(logits), logits)
    assert torch.equal(away.prediction(logits), leave)
    assert not away.flipped(logits, leave).any()
    assert away.flipped(logits, (leave + 1) % logits.shape[1]).all()
    torch.testing.assert_close(away.probability(logits, leave), 1 - decision.probability(logits, leave))
    assert torch.equal(away.cross_entropy(logits, leave), -decision.cross_entropy(logits, leave))
    assert torch.equal(away.margin(logits, leave), -decision.margin(logits, leave))
    assert (away.margin(logits, leave) <= 0).all()


def test_away_from_works_on_a_binary_decision_with_vector_labels():
    away = AwayFrom(AttributeDecision(1))
    logits = torch.tensor([[9.0, -1.0], [9.0, 2.0]])
    assert away.prediction(logits).tolist() == [0, 1]
    assert away.flipped(logits, torch.tensor([1, 1])).tolist() == [True, False]
    assert away.label(torch.tensor([[0, 1], [1, 0]])).tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(2,), (), (2, 2, 1), (2, 1)])
def test_labels_of_attributes_are_rows_with_the_attribute(shape):
    with pytest.raises(ValueError, match=r"labels of attributes have shape \(N, A\), got \("):
        AttributeDecision(1).label(torch.ones(shape))


def test_targets_are_named_by_what_is_asked():
    decision = ClassDecision(["a", "b"])
    assert decision.target_names == ["a", "b"]
    assert AwayFrom(decision).target_names == ["b", "a"]
    assert AwayFrom(ClassDecision(["a", "b", "c"])).target_names == ["not a", "not b", "not c"]
    assert AttributeDecision(0, "hat").target_names == ["not hat", "hat"]


def test_margin_writes_nothing_into_the_logits():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]], requires_grad=True)
    before = logits.detach().clone()
    margin = ClassDecision(["a", "b", "c"]).margin(logits, torch.tensor([1, 2]))
    assert margin.tolist() == [1.0, -6.0]
    margin.sum().backward()
    assert torch.equal(logits, before)
    assert logits.grad.tolist() == [[0, 1, -1], [-1, 0, 1]]


def test_a_logit_of_zero_is_class_0():
    assert BinaryDecision().prediction(torch.zeros(1)).item() == 0


@pytest.mark.parametrize(
    ("decision", "shape"),
    [
        (BinaryDecision(), (4, 2)),
        (BinaryDecision(), (4, 1, 1)),
        (AttributeDecision(3), (4, 3)),
        (AttributeDecision(0), (4,)),
        (ClassDecision(["a", "b"]), (4, 3)),
        (ClassDecision(["a", "b"]), (4,)),
        (AwayFrom(ClassDecision(["a", "b"])), (4, 1)),
    ],
)
def test_logits_that_cannot_be_read_are_refused(decision, shape):
    with pytest.raises(ValueError, match=rf"\({', '.join(map(str, shape))},?\)"):
        decision.check(torch.zeros(shape))


def test_impossible_decisions_are_refused():
    with pytest.raises(ValueError, match="-1"):
        AttributeDecision(-1)
    with pytest.raises(ValueError, match=r"two classes.*\['a'\]"):
        ClassDecision(["a"])


@pytest.mark.parametrize(
    ("task", "known", "names", "labels", "expected"),
    [
        ("multilabel", ["male", "smiling"], ["hat", "smiling", "male"], [[0.0, 1.0, 0.0]], [[0.0, 1.0]]),
        ("multilabel", ["male", "smiling"], ["hat", "smiling"], [[0.0, 1.0]], [[-1.0, 1.0]]),
        ("multilabel", ["male", "smiling"], ["male", "smiling"], [[0.0, 1.0]], [[0.0, 1.0]]),
        ("multiclass", ["zebra", "sorrel"], ["cat", "sorrel", "zebra"], [0, 1, 2, -1], [-1, 1, 0, -1]),
        ("binary", ["calm", "smiling"], ["smiling", "calm"], [0, 1], [1, 0]),
        ("multiclass", ["0", "1"], ["zebra", "sorrel"], [0, 1], [0, 1]),
        ("multiclass", ["male", "smiling"], ["smiling", "male"], [[0.0, 1.0]], None),
        ("binary", ["calm", "smiling"], ["hat", "beard", "smiling"], [[0.0, 1.0, 0.0]], None),
        ("multilabel", ["smiling"], ["images"], [0, 0], None),
        ("multiclass", ["zebra", "sorrel"], ["images"], [0, 0], None),
        ("multilabel", ["male", "smiling"], ["hat", "beard", "red"], [[0.0, 1.0, 0.0]], None),
    ],
)
def test_labels_are_found_by_name(task, known, names, labels, expected):
    found = relabel(torch.tensor(labels), names, SimpleNamespace(class_names=known, task=task))
    assert (found if found is None else found.tolist()) == expected
