"""The second stage against the published implementation, and what it promises."""

import pytest
import torch
from torch.nn.functional import max_pool2d

from ace.refinement import Refinement, change_map


@pytest.mark.parametrize("name", ["blob", "pgd20"])
def test_change_map_equals_the_reference(name, reference):
    case = reference("e_mask_refine")
    change = change_map(case["x"], case[f"{name}_pe"])
    torch.testing.assert_close(change, case[f"{name}_mask"], rtol=0, atol=1e-6)
    for dilation in (5, 15):
        dilated = max_pool2d(change, dilation, stride=1, padding=dilation // 2)
        torch.testing.assert_close(dilated, case[f"{name}_dilmask_d{dilation}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dilation", "threshold"),
    [("blob", 5, 0.05), ("blob", 5, 0.15), ("blob", 15, 0.15), ("pgd20", 5, 0.05), ("pgd20", 15, 0.15)],
)
@torch.no_grad()
def test_mask_and_refined_images_equal_the_reference(name, dilation, threshold, reference, make_filter):
    case, setting = reference("e_mask_refine"), f"d{dilation}_i{threshold}"
    refinement = Refinement(threshold, dilation)
    refined, mask = refinement.refine(make_filter(), case["x"], case[f"{name}_pe"])
    keep = case[f"{name}_boolmask_{setting}"]  # theirs is 1 where the original is kept
    assert torch.equal(mask, keep == 0)
    assert torch.equal(mask, refinement.mask(case["x"], case[f"{name}_pe"]))
    torch.testing.assert_close(refined, case[f"{name}_ce_{setting}"], rtol=0, atol=1e-5)
    outside = (keep == 1).expand_as(refined)
    assert torch.equal(refined[outside], case["x"][outside])


@torch.no_grad()
def test_recorded_noise_gives_the_stochastic_reference(reference, make_filter):
    case, filter_ = reference("e_mask_refine"), make_filter(stochastic=True)
    refinement = Refinement(threshold=0.15, dilation=5)
    noise = case["stoch_noise_calls"]
    assert refinement.noise_steps(filter_) == len(noise)
    refined, _ = refinement.refine(filter_, case["x"], case["blob_pe"], noise)
    torch.testing.assert_close(refined, case["stoch_blob_ce_d5_i0.15"], rtol=0, atol=1e-5)
    without, _ = refinement.refine(make_filter(), case["x"], case["blob_pe"], noise)
    assert (refined - without).abs().max() > 1e-3


@torch.no_grad()
def test_threshold_zero_repaints_a_changed_image_entirely(reference, make_filter):
    case = reference("e_mask_refine")
    refined, mask = Refinement(threshold=0, dilation=5).refine(make_filter(), case["x"], case["pgd20_pe"])
    assert mask.all()
    torch.testing.assert_close(refined, case["pgd20_ce_d5_i0.0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.15, 1.0])
def test_an_unchanged_image_has_an_empty_mask_and_comes_back(threshold, identity_filter):
    original = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = original.clone()
    changed[1, 0, 8, 8] += 0.5
    refined, mask = Refinement(threshold, 3).refine(identity_filter, original, changed)
    assert not mask[0].any()
    assert torch.equal(refined[0], original[0])
    assert mask[1].any()
    assert torch.equal(change_map(original, original), torch.zeros(2, 1, 16, 16))


def test_mask_by_hand():
    original = torch.zeros(1, 2, 5, 7)
    changed = original.clone()
    changed[0, :, 2, 3] = torch.tensor([0.3, 0.1])  # 0.4 in all: the largest
    changed[0, 0, 4, 6] = -0.04  # a tenth of it
    change = change_map(original, changed)
    assert change.shape == (1, 1, 5, 7)
    assert change[0, 0, 2, 3] == 1
    torch.testing.assert_close(change[0, 0, 4, 6], torch.tensor(0.1))
    narrow = Refinement(threshold=0.15, dilation=3).mask(original, changed)[0, 0]
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(narrow, expected)
    wide = Refinement(threshold=0.05, dilation=3).mask(original, changed)[0, 0]
    expected[3:5, 5:7] = True
    assert torch.equal(wide, expected)
    single = Refinement(threshold=0.15, dilation=1).mask(original, changed)[0, 0]
    assert single.nonzero().tolist() == [[2, 3]]


def test_a_pixel_at_the_threshold_is_repainted():
    changed = torch.tensor([1.0, 0.5, 0.25, 0.0]).view(1, 1, 2, 2)
    mask = Refinement(threshold=0.5, dilation=1).mask(torch.zeros(1, 1, 2, 2), changed)
    assert mask.flatten().tolist() == [True, True, False, False]


def test_the_mask_of_an_image_does_not_depend_on_its_batch(reference):
    case, refinement = reference("e_mask_refine"), Refinement(0.15, 5)
    together = refinement.mask(case["x"], case["blob_pe"])
    for row in range(2):
        pick = slice(row, row + 1)
        assert torch.equal(together[pick], refinement.mask(case["x"][pick], case["blob_pe"][pick]))


@pytest.mark.parametrize("dilation", [0, -3, 2, 14])
def test_a_dilation_that_is_not_odd_is_refused(dilation):
    with pytest.raises(ValueError, match=f"odd.*got {dilation}"):
        Refinement(dilation=dilation)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match=rf"\[0, 1\].*got {threshold}"):
        Refinement(threshold=threshold)


def test_what_is_not_allowed_is_not_repainted(identity_filter):
    original, changed = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    allowed = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    allowed[..., 1] = True
    refined, mask = Refinement(0.15, 3).refine(identity_filter, original, changed, allowed=allowed)
    assert torch.equal(mask, allowed)
    assert (refined != original).any(1, keepdim=True).logical_and(~allowed).sum() == 0
