"""What a network's output means, for the loss and for the filter alike."""

import pytest
import torch
from diffusers import DDPMScheduler

from ace.parametrisation import PREDICTION_TYPES, check_channels, check_types, estimated_x0, ranged_log_variance


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_what_was_predicted_leads_back_to_the_clean_image(prediction_type):
    clean, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    signal = torch.tensor([0.6, 0.8])[:, None, None, None]
    sigma = (1 - signal.square()).sqrt()
    output = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - sigma * clean}[prediction_type]
    config = DDPMScheduler(prediction_type=prediction_type, clip_sample=False).config
    found = estimated_x0(config, signal * clean + sigma * noise, output, signal, sigma)
    torch.testing.assert_close(found, clean)
    clipping = DDPMScheduler(prediction_type=prediction_type, clip_sample=True, clip_sample_range=0.5).config
    clipped = estimated_x0(clipping, signal * clean + sigma * noise, output, signal, sigma)
    torch.testing.assert_close(clipped, clean.clamp(-0.5, 0.5))


def test_a_learned_variance_lies_between_that_of_the_posterior_and_beta():
    small, large = torch.tensor(-4.0), torch.tensor(-2.0)
    assert ranged_log_variance(torch.tensor([-1.0, 0.0, 1.0]), small, large).tolist() == [-4, -3, -2]


@pytest.mark.parametrize("setting", [{"prediction_type": "score"}, {"variance_type": "constant"}])
def test_unknown_types_are_named_with_the_known_ones(setting):
    [(name, value)] = setting.items()
    with pytest.raises(ValueError, match=rf"unknown {name} '{value}': use \w+, \w+"):
        check_types(DDPMScheduler(**setting))


@pytest.mark.parametrize(("variance_type", "needed"), [("fixed_small", 3), ("learned", 6), ("learned_range", 6)])
def test_a_learned_variance_takes_as_many_channels_as_the_image(variance_type, needed, make_unet):
    unet, scheduler = make_unet(size=16), DDPMScheduler(variance_type=variance_type)
    for channels in (3, 6):
        unet.register_to_config(out_channels=channels)
        if channels == needed:
            check_channels(unet, scheduler)
        else:
            with pytest.raises(ValueError, match=f"'{variance_type}' needs a UNet with {needed} output channels"):
                check_channels(unet, scheduler)
