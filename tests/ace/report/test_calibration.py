"""The picture of a calibration."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ace.calibration import Survival
from ace.images import load_png
from ace.report import write_calibration
from ace.report.sheet import BAD, GOOD
from ace.settings_search import Outcome, Settings, Trial

CURVE = [Survival(tau, kept, 64) for tau, kept in ((1, 64), (2, 64), (5, 63), (8, 50))]
START = Settings(5, 25.0, 50, 1.25, 0.0, 0.15, 5)
ATTACKS = [
    Trial(START, Outcome(24, 24, 0.004, 70)),
    Trial(replace(START, step_size=50.0), Outcome(20, 24, 0.006, 40)),
    Trial(replace(START, threshold=2.5), Outcome(0, 24, math.inf, 250)),
    Trial(replace(START, step_size=12.5), None),
]
MASKS = [Trial(START, Outcome(24, 24, 0.004, 5))]


def draw(path, curve=CURVE, attacks=ATTACKS, masks=MASKS):
    return load_png(write_calibration(path, curve, 0.98, 5, attacks, masks))


def count(picture, colour):
    return int((picture == np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)).all(-1).sum())


def test_the_chosen_settings_stand_out_and_those_that_flip_less_too(tmp_path):
    whole = draw(tmp_path / "whole.png")
    without = draw(tmp_path / "without.png", attacks=ATTACKS[:1])
    assert count(whole, GOOD) > 0
    assert count(whole, BAD) > 0
    assert count(without, BAD) == 0


@pytest.mark.parametrize("attacks", [ATTACKS[2:], [replace(ATTACKS[0], settings=replace(START, threshold=None))]])
def test_it_can_be_drawn_of_what_did_not_flip_and_of_sign_steps(attacks, tmp_path):
    assert draw(tmp_path / "a.png", CURVE[2:3], attacks).std() > 10


def test_the_same_calibration_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
