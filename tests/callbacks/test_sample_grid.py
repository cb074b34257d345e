import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ace.images import load_png
from callbacks import SampleGrid
from callbacks.sample_grid import sampler
from lit_modules import LitDDPM


@pytest.fixture
def module(make_unet):
    return LitDDPM(make_unet(16), DDPMScheduler(prediction_type="v_prediction"))


@pytest.fixture
def make_trainer(tmp_path):
    def make(**settings):
        standard = {
            "is_global_zero": True,
            "sanity_checking": False,
            "current_epoch": 0,
            "global_step": 12,
            "default_root_dir": str(tmp_path),
            "loggers": [],
        }
        return SimpleNamespace(**(standard | settings))

    return make


@pytest.mark.parametrize(("count", "columns", "rows"), [(4, 2, 2), (7, 2, 4)])
def test_a_grid_of_samples_is_written_and_logged(count, columns, rows, module, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path / "board")
    trainer = make_trainer(loggers=[logger, object()])
    SampleGrid(count=count, inference_steps=3).on_validation_batch_start(trainer, module, None, 0)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000012.png"]
    grid = load_png(tmp_path / "samples" / "step-0000012.png")
    assert grid.shape == (rows * 18 + 2, columns * 18 + 2, 3)
    cells = [
        grid[2 + 18 * (i // columns) : 18 * (i // columns + 1), 2 + 18 * (i % columns) : 18 * (i % columns + 1)]
        for i in range(count)
    ]
    assert all(cell.std() > 5 for cell in cells), "a sample is blank"
    assert not any(np.array_equal(cells[0], cell) for cell in cells[1:]), "samples repeat"
    logger.experiment.flush()
    [event] = EventAccumulator(logger.log_dir).Reload().Images("samples")
    assert event.step == 12
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), grid)


def test_the_samples_start_from_the_same_noise_every_time(module):
    grid = SampleGrid(count=2, inference_steps=2)
    first, second = grid.sample(module), grid.sample(module)
    assert first.shape == (2, 3, 16, 16)
    assert 0 <= first.min() < first.max() <= 1
    assert (first == second).all()
    assert (SampleGrid(count=1, inference_steps=2).sample(module) - first[:1]).abs().max() < 1e-5


def test_of_a_network_that_learns_the_variance_too_the_noise_alone_is_sampled_with(make_unet):
    plain = make_unet(16)
    learned = UNet2DModel.from_config({**plain.config, "out_channels": 6})
    weights = plain.state_dict()
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = torch.cat([weights[name], torch.rand_like(weights[name])])
    learned.load_state_dict(weights)
    grid, settings = SampleGrid(count=2, inference_steps=2), {"num_train_timesteps": 10}
    expected = grid.sample(LitDDPM(plain, DDPMScheduler(**settings)))
    found = grid.sample(LitDDPM(learned, DDPMScheduler(**settings, variance_type="learned_range")))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_every_schedule_of_a_training_is_sampled_with(schedule, make_unet):
    scheduler = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=schedule == "linear")
    assert torch.equal(sampler(scheduler).alphas_cumprod, scheduler.alphas_cumprod)
    assert SampleGrid(count=1, inference_steps=2).sample(LitDDPM(make_unet(16), scheduler)).isfinite().all()


def test_of_a_short_chain_all_steps_are_taken(make_unet):
    module = LitDDPM(make_unet(16), DDPMScheduler(num_train_timesteps=3))
    expected = SampleGrid(count=1, inference_steps=3).sample(module)
    assert torch.equal(SampleGrid(count=1, inference_steps=50).sample(module), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"current_epoch": 2, "is_global_zero": False},
        {"current_epoch": 2, "sanity_checking": True},
        {"current_epoch": 1},
        {"current_epoch": 3},
    ],
)
def test_other_ranks_sanity_checks_and_epochs_between_draw_nothing(settings, module, make_trainer, tmp_path):
    SampleGrid(every_n_epochs=3).on_validation_batch_start(make_trainer(**settings), module, None, 0)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("indices", [(1, 0), (0, 1)])
def test_only_the_first_batch_draws(indices, module, make_trainer, tmp_path):
    grid = SampleGrid(count=1, inference_steps=1)
    grid.on_validation_batch_start(make_trainer(), module, None, *indices)
    assert not (tmp_path / "samples").exists()
    grid.on_validation_batch_start(make_trainer(), module, None, 0)
    assert (tmp_path / "samples").exists()


@pytest.mark.parametrize("name", ["every_n_epochs", "count", "inference_steps"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SampleGrid(**{name: 0})
