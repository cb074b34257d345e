"""The choice between settings, and the walk to the best ones."""

import math
from dataclasses import replace

import pytest

from ace import Explanation
from ace.settings_search import (
    Outcome,
    Settings,
    Trial,
    attack_names,
    attack_neighbours,
    choose,
    mask_neighbours,
    outcome,
    search,
)

PROXIMAL = Settings(5, 25.0, 50, 1.25, 0.0, 0.15, 5)
SIGNS = Settings(5, 1.0, 50, None, 0.001, 0.15, 15)


def trials(*outcomes):
    return [Trial(replace(PROXIMAL, dilation=2 * row + 1), found) for row, found in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([Outcome(9, 10, 0.001, 1), Outcome(10, 10, 0.9, 99)], 1),  # flips before closeness
        ([Outcome(99, 100, 0.001, 9), Outcome(100, 100, 0.002, 1)], 0),  # one in a hundred is no difference
        ([Outcome(10, 10, 0.02, 1), Outcome(10, 10, 0.01, 99)], 1),  # closeness before cost
        ([Outcome(10, 10, 0.0100, 99), Outcome(10, 10, 0.0109, 1)], 1),  # a tenth is no difference
        ([Outcome(10, 10, 0.01, 5), Outcome(10, 10, 0.01, 5)], 0),  # the first of equal ones
        ([Outcome(0, 10, math.inf, 9), None], 0),  # nothing else was reached
        ([Outcome(9, 10, 0.01, 9), Outcome(0, 10, math.inf, 1)], 0),
    ],
)
def test_flips_come_first_then_closeness_then_cost(outcomes, best):
    found = trials(*outcomes)
    assert choose(found) is found[best]


def test_an_outcome_counts_what_is_flipped_and_what_all_have_cost():
    common = {"original": None, "unet_forwards": 6, "unet_backwards": 2}
    found = outcome(
        [
            Explanation("a", status="flipped", l1=0.1, **common),
            Explanation("b", status="flipped", l1=0.3, **common),
            Explanation("c", status="not_flipped", l1=0.9, **common | {"unet_backwards": 8}),
            Explanation("d", status="failed: why", **common),
        ]
    )
    assert found == Outcome(2, 4, pytest.approx(0.2), pytest.approx((8 + 8 + 14 + 8) / 4))
    assert found.validity == 0.5
    assert outcome([], 3) == Outcome(0, 3, math.inf, 0)


def bowl(step, threshold):
    """Measures settings by how far they are from the best ones, in doublings."""

    def measure(settings):
        doublings = abs(math.log2(settings.step_size / step)) + abs(math.log2(settings.threshold / threshold))
        return Outcome(10, 10, 0.01 * 1.5**doublings, 50)

    return measure


def test_the_walk_ends_where_no_neighbour_is_better():
    found = list(search(PROXIMAL, attack_neighbours(PROXIMAL), bowl(100, 0.3125), lambda: False))
    chosen = choose(found).settings
    assert (chosen.step_size, chosen.threshold) == (100, 0.3125)
    tried = [trial.settings for trial in found]
    assert tried[0] == PROXIMAL
    assert len(set(tried)) == len(tried), "nothing is measured twice"
    assert set(attack_neighbours(PROXIMAL)(chosen)) <= set(tried)


def test_what_the_time_does_not_reach_is_named():
    measured = []

    def measure(settings):
        measured.append(settings)
        return bowl(100, 0.3125)(settings)

    whole = list(search(PROXIMAL, attack_neighbours(PROXIMAL), bowl(100, 0.3125), lambda: False))
    cut = list(search(PROXIMAL, attack_neighbours(PROXIMAL), measure, lambda: len(measured) >= 3))
    assert cut[:3] == whole[:3]
    assert [trial.settings for trial in cut[3:]] == [trial.settings for trial in whole[3:5]]
    assert [trial.outcome for trial in cut[3:]] == [None, None]
    assert len(measured) == 3


def test_the_start_is_measured_however_late_it_is():
    first, *others = search(PROXIMAL, attack_neighbours(PROXIMAL), bowl(25, 1.25), lambda: True)
    assert first.outcome is not None
    assert len(others) == 4
    assert all(trial.outcome is None for trial in others)


def test_a_proximal_attack_has_longer_and_shorter_steps_and_thresholds():
    found = {(s.step_size, s.threshold, s.iterations) for s in attack_neighbours(PROXIMAL)(PROXIMAL)}
    assert found == {(50, 1.25, 50), (12.5, 1.25, 50), (25, 2.5, 50), (25, 0.625, 50)}
    assert attack_names(PROXIMAL) == ("step_size", "threshold")


def test_sign_steps_reach_as_far_in_fewer_or_more_iterations():
    neighbours = attack_neighbours(SIGNS)
    found = {(s.step_size, s.iterations, s.weight) for s in neighbours(SIGNS)}
    assert found == {(2, 25, 0.001), (0.5, 100, 0.001), (1, 50, 0.01), (1, 50, 0.0001)}
    longer = replace(SIGNS, step_size=4.0, iterations=12)
    assert replace(SIGNS, step_size=2.0, iterations=25) in neighbours(longer), "back on the same grid"
    assert replace(SIGNS, step_size=64.0, iterations=1) in neighbours(replace(SIGNS, step_size=32.0, iterations=2))
    assert attack_names(SIGNS) == ("step_size", "iterations", "weight")


@pytest.mark.parametrize(("dilation", "found"), [(1, {3, 1}), (3, {7, 1}), (5, {11, 3}), (9, {19, 5}), (15, {31, 7})])
def test_masks_have_odd_dilations_and_relative_thresholds(dilation, found):
    settings = replace(PROXIMAL, dilation=dilation, mask_threshold=0.6)
    neighbours = mask_neighbours(settings)
    assert {s.dilation for s in neighbours} == found | {dilation}
    assert {s.mask_threshold for s in neighbours} == {0.6, 0.3, 1.0}


def test_settings_are_described_by_names():
    assert PROXIMAL.describe(["step_size", "threshold"]) == "step_size 25, threshold 1.25"
