"""The stages of a calibration, on toy networks."""

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ace import (
    BinaryDecision,
    CounterfactualExplainer,
    DiffusionFilter,
    Distance,
    ProximalGradient,
    Refinement,
    ToClass,
)
from ace.calibration import Budget, Calibration, Survival, largest_tau, questions, usual_taus
from ace.settings_search import Settings, choose, outcome

START = Settings(2, 25.0, 4, 1.25, 0.0, 0.15, 3)
IDS = [f"image-{number}" for number in range(5)]


def brightness(images):
    """One logit: is the image bright?"""
    return 50 * (images.mean((1, 2, 3)) - 0.5)


@pytest.fixture(scope="module")
def images():
    noise = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) / 2
    return noise + torch.tensor([0.2, 0.22, 0.24, 0.26, 0.28]).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        unet = UNet2DModel(sample_size=16, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    diffusion_filter = DiffusionFilter(unet, DDPMScheduler(), steps=2, respacing=50)

    def explainer(settings, **options):
        return CounterfactualExplainer(
            brightness,
            BinaryDecision(),
            diffusion_filter.with_steps(settings.steps),
            ProximalGradient(settings.iterations, settings.step_size, settings.threshold),
            Distance(l1=settings.weight),
            Refinement(settings.mask_threshold, settings.dilation),
            **{"slots": 3, "seed": 7, **options},
        )

    return explainer


@pytest.fixture
def clock():
    """A clock that is moved by hand."""

    def now():
        return now.seconds

    now.seconds = 100.0
    return now


@pytest.fixture
def make_calibration(make, images, clock):
    def calibration(search_images=3, minutes=1.0, make=make):
        return Calibration(make, questions(make(START), images, None, IDS), search_images, Budget(minutes, clock))

    return calibration


def test_a_budget_is_spent_by_the_clock(clock):
    budget = Budget(2, clock)
    clock.seconds += 59
    assert not budget.spent(0.5)
    clock.seconds += 1
    assert budget.spent(0.5)
    assert not budget.spent(1)
    with pytest.raises(ValueError, match="budget must be positive"):
        Budget(0)


def test_only_images_with_a_target_are_asked_about(make, images):
    explainer = make(START, policy=ToClass(1))
    bright = (brightness(images) > 0).tolist()
    assert 0 < sum(bright) < 5, "the test tells nothing"
    queries = questions(explainer, images, None, IDS)
    assert [query.id for query in queries] == [id for id, is_bright in zip(IDS, bright, strict=True) if not is_bright]
    assert not explainer.pool.waiting
    assert explainer.advance(drain=True) == []


def test_without_images_there_is_nothing_to_calibrate(make, clock):
    with pytest.raises(ValueError, match="none of the images has a target"):
        Calibration(make, [], 3, Budget(1, clock))


def test_no_images_to_search_are_refused(make_calibration):
    with pytest.raises(ValueError, match="search_images must be at least 1, got 0"):
        make_calibration(search_images=0)


def test_the_curve_goes_up_until_too_few_survive(make_calibration, monkeypatch):
    kept = {1: 5, 2: 4, 4: 0, 8: 5}
    calibration = make_calibration()
    monkeypatch.setattr(calibration, "_survival", lambda _, tau: Survival(tau, kept[tau], 5))
    curve = list(calibration.curve(START, [8, 4, 1, 2], share=0.8))
    assert [point.tau for point in curve] == [1, 2, 4], "the interval of 0 of 5 ends at 0.43"
    assert largest_tau(curve, 0.8) == 2
    assert largest_tau(curve, 0.9) == 1
    with pytest.raises(ValueError, match=r"no tau keeps 90.0% of the decisions, the best is 2 with 80.0%"):
        largest_tau(curve[1:], 0.9)


def test_the_curve_ends_with_its_part_of_the_time(make_calibration, clock):
    calibration, curve = make_calibration(), []
    for point in calibration.curve(START, [1, 2, 4], share=0.01):
        curve.append(point)
        clock.seconds += 10
    assert [point.tau for point in curve] == [1, 2], "a share of 0.3 of a minute"
    assert all(point.count == 5 for point in curve)
    whole = list(make_calibration().curve(START, [1, 2, 4], share=0.01))
    assert whole[:2] == curve


def test_what_an_attack_gives_is_what_the_method_gives(make, images, make_calibration):
    calibration = make_calibration()
    found = list(islice(calibration.attacks(START), 3))
    for trial in found:
        assert trial.outcome == outcome(make(trial.settings).explain(images[:3], ids=IDS[:3]))
    assert len({trial.outcome for trial in found}) > 1, "the test tells nothing"


def test_a_mask_on_stored_pre_explanations_gives_what_the_whole_method_gives(make, images, make_calibration):
    calibration = make_calibration()
    attack = next(calibration.attacks(START))
    found = list(islice(calibration.masks(START), 3))
    assert found[0].settings == START
    for trial in found:
        whole = outcome(make(trial.settings).explain(images[:3], ids=IDS[:3]))
        assert (trial.outcome.flipped, trial.outcome.l1) == (whole.flipped, whole.l1)
        assert trial.outcome.passes == 2 < attack.outcome.passes, "the refinement alone"


def test_images_that_failed_count_as_not_flipped(make, images, make_calibration):
    def failing(settings):
        explainer = make(settings)
        explainer.pool.objective.decision.cross_entropy = lambda logits, target: logits * torch.nan
        return explainer

    calibration = make_calibration(make=failing)
    found = next(calibration.attacks(START))
    assert (found.outcome.flipped, found.outcome.count) == (0, 3)
    assert [trial.outcome.count for trial in calibration.masks(found.settings)] == [3] * 5


def test_the_time_cuts_off_and_changes_nothing_else(make_calibration, clock):
    whole = list(islice(make_calibration().attacks(START), 5))
    calibration, cut = make_calibration(), []
    for trial in calibration.attacks(START):
        cut.append(trial)
        clock.seconds += 20
    assert cut[:3] == whole[:3]
    assert [trial.settings for trial in cut[3:]] == [trial.settings for trial in whole[3:]]
    assert [trial.outcome for trial in cut[3:]] == [None, None], "0.85 of a minute is over"
    masks = []
    for trial in calibration.masks(choose(cut).settings):
        masks.append(trial)
        clock.seconds += 5
    assert [trial.outcome is None for trial in masks[:3]] == [False, False, True], "9 seconds, however late it is"


def test_nothing_begins_that_may_take_longer_than_is_left(make_calibration, clock, monkeypatch):
    calibration = make_calibration(minutes=1)
    attack = calibration._attack

    def slow(settings):
        clock.seconds += 12
        return attack(settings)

    monkeypatch.setattr(calibration, "_attack", slow)
    found = list(calibration.attacks(START))
    assert [trial.outcome is None for trial in found] == [False, False, False, True, True]
    assert clock.seconds == 100 + 36, "the fourth might have taken until 60, of 51"


def test_other_seeds_and_ids_have_other_noise(make, images):
    found = []
    for ids, seed in ((IDS, 7), (IDS, 8), ([f"other-{id}" for id in IDS], 7), (IDS, 7)):
        explainer = partial(make, seed=seed)
        calibration = Calibration(explainer, questions(explainer(START), images, None, ids), 3, Budget(60))
        found.append(next(calibration.attacks(START)).outcome.l1)
    assert found[0] == found[3]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("respacing", "taus"), [(50, [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25]), (10, [1, 2, 3, 4, 5]), (1, [1])]
)
def test_usual_taus_are_shares_of_the_chain(respacing, taus):
    assert usual_taus(respacing) == taus


def test_a_survival_has_an_interval():
    point = Survival(5, 10, 10)
    assert point.share == 1
    assert point.interval == (pytest.approx(0.722, abs=1e-3), 1)


def test_masks_start_from_repaired_images_as_they_were_repaired(make, make_calibration):
    """The same settings have the same outcome in both stages."""
    start = replace(START, iterations=1, step_size=8.0)
    calibration = make_calibration(5, make=partial(make, repairs=3))
    attacked = next(iter(calibration.attacks(start)))
    assert any(query.repairs for query in calibration._attacked[start])
    refined = next(iter(calibration.masks(start)))
    assert (refined.outcome.flipped, refined.outcome.l1) == (attacked.outcome.flipped, attacked.outcome.l1)
