import json
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ace.models.unet import load_diffusion
from callbacks import ExportModel, SampleGrid
from lit_modules import LitDDPM
from lit_modules.ddpm import BUCKETS

SIZE = 16


@pytest.fixture
def module(make_unet):
    def make(prediction_type="epsilon", **settings):
        return LitDDPM(make_unet(SIZE), DDPMScheduler(prediction_type=prediction_type), **settings)

    return make


def loader(batch_size, count=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    samples = [{"image": image, "label": 0, "id": f"toy-{index}"} for index, image in enumerate(images)]
    return DataLoader(samples, batch_size=batch_size)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_loss_equals_a_computation_by_hand(kind, module):
    model = module(kind)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    losses = model.loss(model.unet, images, noise, torch.tensor([10, 700]))

    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    for row, step in enumerate([10, 700]):
        signal, sigma = alpha_bar[step].sqrt(), (1 - alpha_bar[step]).sqrt()
        clean = 2 * images[row] - 1
        noisy = signal * clean + sigma * noise[row]
        wanted = {"epsilon": noise[row], "sample": clean, "v_prediction": signal * noise[row] - sigma * clean}
        error = model.unet(noisy[None], step).sample[0] - wanted[kind]
        assert losses[row].item() == pytest.approx(error.square().mean().item(), rel=1e-4)
    losses.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_validation_in_which_one_image_gives_no_number_has_no_flattering_loss(module, make_trainer):
    data = loader(2)
    data.dataset[3]["image"] *= float("nan")
    metrics = make_trainer().validate(module(), data, verbose=False)[0]
    assert math.isnan(metrics.pop("val/loss"))
    assert 1 <= len(metrics) < len(BUCKETS) - 1
    assert all(map(math.isfinite, metrics.values())), "the parts of the chain without it, and no empty ones"


def test_another_prediction_type_is_refused(module):
    with pytest.raises(ValueError, match="unknown prediction_type 'edm': use epsilon, sample"):
        module("edm")


def test_a_unet_with_other_output_than_input_channels_is_refused(make_unet):
    unet = make_unet(SIZE)
    unet.register_to_config(out_channels=6)
    with pytest.raises(ValueError, match="needs a UNet with 3 output channels, this one has 6"):
        LitDDPM(unet, DDPMScheduler())


def test_the_validation_loss_does_not_depend_on_the_run_or_on_the_batches(module, make_trainer):
    found = []
    for seed, batch_size in ((1, 2), (2, 2), (3, 4), (4, 6)):
        model = module()
        torch.manual_seed(seed)
        found.append(make_trainer().validate(model, loader(batch_size), verbose=False)[0]["val/loss"])
    assert found[1] == found[0]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_a_test_measures_what_a_validation_does(module, make_trainer):
    model = module()
    [validated] = make_trainer().validate(model, loader(4), verbose=False)
    [tested] = make_trainer().test(model, loader(4), verbose=False)
    assert len(validated) > 2
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}


def test_the_validation_noise_belongs_to_the_id(module, make_trainer):
    model = module()
    sample = loader(1).dataset[0]
    losses = {
        make_trainer().validate(model, DataLoader([sample | {"id": name}]), verbose=False)[0]["val/loss"]
        for name in ("a", "a", "b")
    }
    assert len(losses) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_export_is_a_pipeline_folder_without_pickle(dtype, module, tmp_path):
    model = module("v_prediction")
    before = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
    model.export(tmp_path, dtype)

    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {dtype}
    assert json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    assert DDPMPipeline.from_pretrained(tmp_path).unet.config.sample_size == SIZE

    unet, _ = load_diffusion(tmp_path)
    for name, weight in unet.state_dict().items():
        assert torch.equal(weight, before[name].to(dtype).float())
        assert torch.equal(model.unet.state_dict()[name], before[name]), "the export must leave the module alone"


class Weights(Callback):
    """Follows the weights of a training: as they are, and their average with a decay."""

    def __init__(self, decay):
        self.decay, self.average = decay, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.raw = {name: weight.detach().clone() for name, weight in pl_module.unet.named_parameters()}
        old = self.average or self.raw
        self.average = {n: self.decay * old[n] + (1 - self.decay) * weight for n, weight in self.raw.items()}


@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_averaged_weights_are_exported(averaging_first, module, make_trainer, tmp_path):
    weights = Weights(decay=0.5)
    pair = [EMAWeightAveraging(decay=0.5), ExportModel(str(tmp_path / "ddpm"))]
    callbacks = [weights, *(pair if averaging_first else reversed(pair))]
    trainer = make_trainer(max_epochs=2, callbacks=callbacks)
    trainer.fit(module(lr=1e-2, warmup_steps=0), loader(2), loader(2))
    exported = load_file(tmp_path / "ddpm" / "unet" / "diffusion_pytorch_model.safetensors")
    name = "conv_in.weight"
    torch.testing.assert_close(exported[name], weights.average[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(exported[name], weights.raw[name], rtol=1e-4, atol=1e-6)
    assert {"train/loss", "val/loss"} <= set(trainer.callback_metrics)


class Sampling(SampleGrid):
    """Keeps the weights that it would sample with."""

    def sample(self, pl_module):
        self.weights = {name: weight.detach().clone() for name, weight in pl_module.unet.named_parameters()}
        return torch.zeros(1, 3, SIZE, SIZE)


@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_averaged_weights_are_sampled(averaging_first, module, make_trainer):
    weights, sampling = Weights(decay=0.5), Sampling(count=1)
    pair = [EMAWeightAveraging(decay=0.5), sampling]
    callbacks = [weights, *(pair if averaging_first else reversed(pair))]
    make_trainer(max_epochs=2, callbacks=callbacks).fit(module(lr=1e-2, warmup_steps=0), loader(2), loader(2))
    name = "conv_in.weight"
    torch.testing.assert_close(sampling.weights[name], weights.average[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(sampling.weights[name], weights.raw[name], rtol=1e-4, atol=1e-6)


def test_training_lowers_the_validation_loss(module, make_trainer):
    torch.manual_seed(0)
    model = module(lr=1e-2, warmup_steps=2)
    before = make_trainer().validate(model, loader(6), verbose=False)[0]["val/loss"]
    make_trainer(max_epochs=30).fit(model, loader(6))
    assert make_trainer().validate(model, loader(6), verbose=False)[0]["val/loss"] < 0.8 * before


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_a_choice(channels_last, module):
    weight = module(channels_last=channels_last).unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
