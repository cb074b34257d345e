"""Fine-tuning, frozen parts, learned variance and the losses by timestep of `LitDDPM`."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from ace.diffusion_filter import DiffusionFilter
from ace.images import load_png
from ace.models.unet import load_diffusion
from callbacks import ExportModel, LastCheckpoint, SampleGrid
from datamodules import ImageDataModule
from lit_modules.ddpm import LitDDPM

SIZE = 16


class Faces(torch.utils.data.Dataset):
    """Sixteen blurred images."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(index))
        image = torch.nn.functional.interpolate(image[None], size=SIZE, mode="bilinear")[0]
        return {"image": image, "label": 0, "id": f"face-{index}"}


def fit(module, steps, folder, **options):
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=CSVLogger(folder, flush_logs_every_n_steps=1),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing="callbacks" in options,
        log_every_n_steps=1, default_root_dir=folder, **options,
    )  # fmt: skip
    loader = DataLoader(Faces(), batch_size=8)
    trainer.fit(module, loader, loader)
    return trainer


def learned_variance_unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE, out_channels=6, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip


def test_fine_tuning_starts_from_the_weights_and_schedule_of_the_folder(make_ddpm_folder):
    folder = make_ddpm_folder(size=SIZE)
    module = LitDDPM(pretrained=str(folder))
    unet, scheduler = load_diffusion(folder)
    assert dict(module.scheduler.config) == dict(scheduler.config)
    for name, weight in unet.state_dict().items():
        assert torch.equal(module.unet.state_dict()[name], weight), name
    assert module.unet.training
    assert all(parameter.requires_grad for parameter in module.unet.parameters())


def test_frozen_parts_keep_their_weights_and_the_others_learn(make_ddpm_folder, tmp_path):
    module = LitDDPM(pretrained=str(make_ddpm_folder(size=SIZE)), freeze=["down_blocks", "time_embedding"], lr=1e-3)
    before = {name: weight.clone() for name, weight in module.unet.state_dict().items()}
    fit(module, 2, tmp_path)
    changed = {name for name, weight in module.unet.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith(("down_blocks", "time_embedding"))]
    assert any(name.startswith("up_blocks") for name in changed)


def test_a_frozen_part_that_does_not_exist_is_named(make_unet):
    with pytest.raises(ValueError, match=r"no part 'encoder', its parts are conv_in.*down_blocks"):
        LitDDPM(make_unet(size=SIZE), DDPMScheduler(), freeze=["encoder"])


def test_a_network_that_asks_for_classes_is_refused(make_unet):
    conditional = UNet2DModel.from_config(make_unet(size=SIZE).config, num_class_embeds=3)
    with pytest.raises(ValueError, match="class-conditional: ACE needs an unconditional"):
        LitDDPM(conditional, DDPMScheduler())


def test_neither_a_network_nor_a_pretrained_model_is_refused(make_unet):
    with pytest.raises(ValueError, match=r"unet and scheduler.*or pretrained"):
        LitDDPM(unet=make_unet(size=SIZE))


def test_a_learned_variance_is_trained_exported_and_filtered_with(tmp_path):
    module = LitDDPM(learned_variance_unet(), DDPMScheduler(variance_type="learned_range"), lr=1e-3)
    before = module.unet.conv_out.weight[3:].clone()
    fit(module, 2, tmp_path)
    assert not torch.equal(module.unet.conv_out.weight[3:], before)
    module.export(tmp_path / "ddpm", torch.float32)
    diffusion_filter = DiffusionFilter(*load_diffusion(tmp_path / "ddpm"), steps=2, respacing=10)
    assert diffusion_filter(torch.rand(1, 3, SIZE, SIZE), torch.randn(2, 1, 3, SIZE, SIZE)).isfinite().all()


def test_losses_by_timestep_are_logged_and_their_mean_is_the_loss(make_unet, tmp_path):
    module = LitDDPM(make_unet(size=SIZE), DDPMScheduler())
    trainer = fit(module, 1, tmp_path, val_check_interval=1)
    metrics = trainer.logged_metrics
    buckets = [name for name in metrics if name.startswith("val/loss_t")]
    assert set(buckets) <= {"val/loss_t0000-0049", "val/loss_t0050-0099", "val/loss_t0100-0499", "val/loss_t0500-0999"}
    assert len(buckets) >= 2
    values = [metrics[name] for name in buckets]
    assert min(values) <= metrics["val/loss"] <= max(values)


def test_compiling_keeps_the_names_of_the_weights(make_unet):
    plain, compiled = (LitDDPM(make_unet(size=SIZE), DDPMScheduler(), compile=compile) for compile in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()


def test_training_starts_from_the_averaged_weights_of_a_checkpoint(make_unet, tmp_path):
    first = LitDDPM(make_unet(size=SIZE), DDPMScheduler(), lr=1e-2, warmup_steps=0)
    trainer = fit(first, 3, tmp_path, callbacks=[EMAWeightAveraging(decay=0.5), LastCheckpoint(str(tmp_path), 1)])
    averaged = {name: weight.clone() for name, weight in first.unet.state_dict().items()}
    second = LitDDPM(make_unet(size=SIZE), DDPMScheduler(), pretrained=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == 3
    assert all(torch.equal(weight, averaged[name]) for name, weight in second.unet.state_dict().items())

    with pytest.raises(ValueError, match=r"last\.ckpt' \(.*size mismatch.*damaged, or of another network"):
        LitDDPM(make_unet(size=SIZE, width=8), DDPMScheduler(), pretrained=str(tmp_path / "last.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'none\.ckpt'"):
        LitDDPM(make_unet(size=SIZE), DDPMScheduler(), pretrained="none.ckpt")


def test_half_precision_accumulation_and_clipping_leave_finite_float32_weights(make_unet, tmp_path):
    module = LitDDPM(make_unet(size=SIZE), DDPMScheduler(), lr=1e-3)
    before = module.unet.conv_in.weight.clone()
    fit(module, 2, tmp_path, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert module.unet.conv_in.weight.dtype == torch.float32
    assert module.unet.conv_in.weight.isfinite().all()
    assert not torch.equal(module.unet.conv_in.weight, before)


class FaceData(ImageDataModule):
    channels, class_names = 3, ["a"]

    def __init__(self, image_size):
        super().__init__(batch_size=4, num_workers=0)
        self.image_size = image_size

    def dataset(self, split):
        return Faces()


def one_step(tmp_path, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **quiet, **options)


def test_images_that_the_network_cannot_halve_are_refused_before_the_training(make_unet, tmp_path):
    with pytest.raises(ValueError, match="cannot take images of 15x15: both sides must be multiples of 2"):
        one_step(tmp_path).fit(LitDDPM(make_unet(size=SIZE), DDPMScheduler()), datamodule=FaceData(15))


def test_the_network_samples_and_is_exported_in_the_size_of_its_images(make_unet, tmp_path):
    module = LitDDPM(make_unet(size=2 * SIZE), DDPMScheduler())
    callbacks = [SampleGrid(count=1, inference_steps=1), ExportModel(str(tmp_path / "ddpm"))]
    one_step(tmp_path, val_check_interval=1, callbacks=callbacks).fit(module, datamodule=FaceData(SIZE))
    assert load_png(tmp_path / "samples" / "step-0000001.png").shape[:2] == (SIZE, SIZE)
    assert load_diffusion(tmp_path / "ddpm")[0].config.sample_size == SIZE


def test_an_export_does_not_tell_where_its_training_began(ddpm_folder, tmp_path):
    unet, scheduler = load_diffusion(ddpm_folder)
    LitDDPM(unet, scheduler, pretrained=str(ddpm_folder)).export(tmp_path / "new", torch.float32)
    written = "".join(path.read_text() for path in (tmp_path / "new").rglob("*.json"))
    assert str(ddpm_folder) not in written


@pytest.mark.parametrize(("focus", "early"), [(None, 0.1), (100, 0.75 + 0.25 * 0.1), (1000, 0.1)])
def test_the_focus_is_trained_more_often(make_unet, focus, early):
    torch.manual_seed(0)
    timesteps = LitDDPM(make_unet(SIZE), DDPMScheduler(), focus=focus).draw_timesteps(20_000)
    assert (timesteps < 100).float().mean() == pytest.approx(early, abs=0.01)
    assert timesteps.min() >= 0
    assert 990 <= timesteps.max() < 1000


@pytest.mark.parametrize("focus", [0, 1001, -1])
def test_a_focus_that_does_not_exist_is_refused(make_unet, focus):
    with pytest.raises(ValueError, match=f"focus must be a timestep from 1 to 1000, got {focus}"):
        LitDDPM(make_unet(SIZE), DDPMScheduler(), focus=focus)
