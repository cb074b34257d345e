"""Bootstrap intervals, against distributions whose answer is known."""

import pytest
import torch

from ace import measurement
from ace.measurement import Measurement, bootstrap, measure_mean, measure_share, wilson


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    values = torch.cat([torch.ones(300), torch.zeros(700)]).double()
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert bootstrap(values) == pytest.approx((0.3 - half, 0.3 + half), abs=0.15 * half)


def test_the_interval_shrinks_with_the_root_of_the_number_of_images():
    values = torch.randn(100, generator=torch.Generator().manual_seed(1)).double()
    widths = [high - low for low, high in (bootstrap(values), bootstrap(values.repeat(16)))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("number", [1, 7])
def test_equal_values_have_an_interval_without_width(number):
    low, high = bootstrap(torch.full((number,), 0.1).double())
    assert low == high == pytest.approx(0.1)


def test_the_interval_is_the_same_each_time_and_leaves_other_chance_alone():
    values = torch.rand(50, generator=torch.Generator().manual_seed(1)).double()
    torch.manual_seed(3)
    first, number = bootstrap(values), torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == number
    assert bootstrap(values) == first


def test_any_statistic_of_rows_has_an_interval():
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)).double() * torch.tensor([2.0, 0.0])
    low, high = bootstrap(rows, lambda drawn: drawn.std(0).sum())
    assert low < rows[:, 0].std() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 800**0.5, rel=0.15)  # of a normal distribution's deviation
    same = bootstrap(rows, lambda drawn: drawn[:, 0].mean())
    assert same == pytest.approx(bootstrap(rows[:, 0]), abs=0.02)


def test_large_sets_are_drawn_in_parts(monkeypatch):
    values = torch.randn(100, generator=torch.Generator().manual_seed(1)).double()
    whole = bootstrap(values)
    monkeypatch.setattr(measurement, "_CHUNK", 700)
    assert bootstrap(values) == pytest.approx(whole)


def test_a_mean_knows_its_images_and_convention():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
    measured = measure_mean(values, "flipped", "a convention")
    assert measured == Measurement(1.5, 4, "flipped", bootstrap(values.detach().double()), "a convention")
    assert 0 <= measured.interval[0] < 1.5 < measured.interval[1] <= 3


def test_a_certain_event_has_an_interval_with_a_width():
    measured = measure_share(torch.ones(16, dtype=torch.bool), "attempted", "a convention")
    assert measured == Measurement(1.0, 16, "attempted", wilson(16, 16), "a convention")
    assert measured.interval == pytest.approx((0.806, 1), abs=1e-3)
    assert measure_share(torch.tensor([True, False, False]), "attempted").value == 1 / 3


@pytest.mark.parametrize("measure", [measure_mean, measure_share])
def test_of_no_images_there_is_no_measurement(measure):
    assert measure(torch.empty(0), "flipped") is None


def test_a_statistic_of_several_numbers_has_an_interval_for_each():
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double()
    lows, highs = bootstrap(rows, lambda drawn: drawn.mean(0))
    for column, interval in enumerate(zip(lows, highs, strict=True)):
        assert interval == pytest.approx(bootstrap(rows, lambda drawn, column=column: drawn[:, column].mean()))


@pytest.mark.parametrize(("count", "n"), [(0, 10), (5, 10), (1, 3), (30, 100), (100, 100)])
def test_wilson_s_interval_ends_where_the_share_is_just_not_refused(count, n):
    low, high = wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(count / n - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5, rel=1e-4)
    assert low == pytest.approx(1 - wilson(n - count, n)[1])


@pytest.mark.parametrize(("count", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_has_no_interval(count, n):
    with pytest.raises(ValueError, match=f"{count} of {n} is no share"):
        wilson(count, n)
