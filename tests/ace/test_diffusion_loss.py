"""The training loss, by hand and against its definitions."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.distributions import Normal, kl_divergence

from ace.diffusion_loss import DiffusionLoss, discretised_log_likelihood, normal_kl
from ace.parametrisation import estimated_x0


class Constant(nn.Module):
    """A UNet whose output is given."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x, timesteps):
        return SimpleNamespace(sample=self.output)


@pytest.fixture
def case():
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 4, 4), generator=stream) / 255
    noise = torch.randn(4, 3, 4, 4, generator=stream)
    return images, noise, torch.tensor([0, 1, 400, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_squared_distance_to_what_diffusers_defines(prediction_type, case):
    images, noise, timesteps = case
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    clean = images * 2 - 1
    goal = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, timesteps)}
    output = goal[prediction_type] + torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None, None, None]
    loss = DiffusionLoss(scheduler)(Constant(output), *case)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0, 9.0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weights_are_one_loss_on_x0_cut_off(prediction_type, case):
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the squared error of x_0."""
    images, noise, timesteps = case
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    loss = DiffusionLoss(scheduler, "min_snr", gamma=5.0)
    x = scheduler.add_noise(images * 2 - 1, noise, timesteps)
    output = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    signal, sigma = (share.sqrt()[:, None, None, None] for share in (alpha_bar, 1 - alpha_bar))
    error = (estimated_x0(scheduler.config, x, output, signal, sigma) - (images * 2 - 1)).square().mean((1, 2, 3))
    expected = (alpha_bar / (1 - alpha_bar)).clamp(max=5.0) * error
    torch.testing.assert_close(loss(Constant(output), *case), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weights_are_numbers_where_no_signal_is_left(prediction_type, case):
    scheduler = DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    network = Constant(torch.zeros(4, 3, 4, 4))
    loss = DiffusionLoss(scheduler, "min_snr")(network, *case)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert network.output.grad.isfinite().all()
    if prediction_type == "epsilon":  # min(SNR, gamma) / SNR is 1 there
        torch.testing.assert_close(loss[-1], case[1][-1].square().mean())


def test_the_bound_trains_the_variance_and_the_simple_loss_the_mean(case):
    _, noise, _ = case
    unet = Constant(torch.cat([noise + 1, torch.zeros_like(noise)], dim=1))
    scheduler = DDPMScheduler(variance_type="learned_range")
    loss = DiffusionLoss(scheduler)(unet, *case)
    (gradient,) = torch.autograd.grad(loss.sum(), unet.output)
    torch.testing.assert_close(gradient[:, :3], torch.full_like(noise, 2 / noise[0].numel()))
    assert (gradient[:, 3:].abs().amax((1, 2, 3)) > 0).all()


def test_the_bound_is_the_divergence_of_the_posteriors(case):
    _, noise, _ = case
    perfect = Constant(
        torch.cat([noise, -torch.ones_like(noise)], dim=1)
    )  # true mean, smallest variance: the posterior
    scheduler = DDPMScheduler(variance_type="learned_range")
    loss = DiffusionLoss(scheduler)(perfect, *case)
    torch.testing.assert_close(loss[1:], torch.zeros(3), atol=1e-3, rtol=0)
    wide = Constant(torch.cat([noise, torch.ones_like(noise)], dim=1))
    alpha_bar = scheduler.alphas_cumprod.double()
    beta = scheduler.betas[400].double()
    variance = beta * (1 - alpha_bar[399]) / (1 - alpha_bar[400])
    divergence = kl_divergence(Normal(0.0, variance.sqrt()), Normal(0.0, beta.sqrt())) / math.log(2)
    torch.testing.assert_close(
        DiffusionLoss(scheduler)(wide, *case)[2].double(), 0.001 * 1000 * divergence, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "limit"), [({}, 1.0), ({"clip_sample_range": 2.0}, 2.0), ({"clip_sample": False}, 5.0)]
)
def test_the_bound_is_of_the_mean_that_the_filter_takes(options, limit):
    """x_0 is estimated far out of range; the bound grows with the square of what is left of the distance."""
    images, timesteps = torch.full((1, 3, 4, 4), 0.5), torch.tensor([400])
    scheduler = DDPMScheduler(variance_type="learned_range", prediction_type="sample", **options)
    output = Constant(torch.cat([torch.full((1, 3, 4, 4), 5.0), -torch.ones(1, 3, 4, 4)], dim=1))
    loss = DiffusionLoss(scheduler)(output, images, torch.zeros_like(images), timesteps)
    weight = loss.item() - 25  # without the simple loss
    alpha_bar, beta = scheduler.alphas_cumprod.double(), scheduler.betas[400].double()
    variance = beta * (1 - alpha_bar[399]) / (1 - alpha_bar[400])
    shift = beta * alpha_bar[399].sqrt() / (1 - alpha_bar[400]) * limit
    assert weight == pytest.approx((shift**2 / variance / 2 / math.log(2)).item(), rel=1e-3)


def test_divergence_equals_torch():
    stream = torch.Generator().manual_seed(0)
    mean, other = torch.randn(2, 50, generator=stream)
    log_variance, other_log_variance = torch.randn(2, 50, generator=stream)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(other, (other_log_variance / 2).exp()))
    torch.testing.assert_close(normal_kl(mean, log_variance, other, other_log_variance), expected)


def test_probabilities_of_all_levels_sum_to_one():
    levels = torch.linspace(-1, 1, 256)
    for mean, std in [(0.0, 0.01), (0.9, 0.3), (-1.0, 0.05)]:
        log = discretised_log_likelihood(levels, torch.full((256,), mean), torch.full((256,), math.log(std)))
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        ({"prediction_type": "flow"}, {}, "flow.*epsilon, sample, v_prediction"),
        ({"variance_type": "learned"}, {}, "cannot be trained: use learned_range"),
        ({"variance_type": "constant"}, {}, "unknown variance_type 'constant': use fixed_small, "),
        ({}, {"weighting": "p2"}, "p2.*min_snr"),
        ({}, {"gamma": 0.0}, "gamma must be positive, got 0"),
    ],
)
def test_bad_settings_are_named(scheduler, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionLoss(DDPMScheduler(**scheduler), **options)
