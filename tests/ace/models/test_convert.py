"""The command that makes a diffusers folder of a guided-diffusion checkpoint."""

import pytest
import torch

from ace.models.convert import PRESETS, main
from ace.models.guided_diffusion import Flags
from ace.models.unet import load_diffusion

UNREADABLE = ["--image_size=32", "--num_heads=4", "--diffusion_steps=500"]


@pytest.fixture
def checkpoint(reference, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(dict(reference("a_unet_weights")), path)
    return path


def output(folder, case):
    with torch.no_grad():
        return load_diffusion(folder)[0](case["x"], case["t"]).sample


def test_flags_that_are_left_out_are_read_off_the_checkpoint(checkpoint, reference, tmp_path, capsys):
    main([str(checkpoint), str(tmp_path / "ddpm"), *UNREADABLE])
    case = reference("a_unet_cases")
    torch.testing.assert_close(output(tmp_path / "ddpm", case), case["out_celeba"], rtol=1e-4, atol=2e-5)
    assert load_diffusion(tmp_path / "ddpm")[1].config.num_train_timesteps == 500
    assert not list((tmp_path / "ddpm").rglob("*.bin"))
    assert str(tmp_path / "ddpm") in capsys.readouterr().out


def test_a_network_of_another_kind_and_half_precision(reference, tmp_path):
    """Convolutions that change the resolution, no scale and shift; weights as fp16 trainings save them."""
    case = reference("a_unet_cases")
    torch.save({name: t.half() for name, t in reference("a_unet_plain_weights").items()}, tmp_path / "half.pt")
    main([str(tmp_path / "half.pt"), str(tmp_path / "ddpm"), *UNREADABLE])
    found = output(tmp_path / "ddpm", case)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, case["out_plain"], rtol=0, atol=0.02)


def test_the_flags_line_of_the_published_scripts_is_taken_as_it_is(checkpoint, reference, tmp_path):
    line = (
        "--channel_mult 1,2 --attention_resolutions 16,8 --class_cond False --diffusion_steps 500 --learn_sigma True "
        "--noise_schedule linear --num_channels 32 --num_head_channels 32 --num_res_blocks 1 --resblock_updown True "
        "--use_fp16 True --use_scale_shift_norm True --image_size 32"
    )
    main([str(checkpoint), str(tmp_path / "ddpm"), *line.split()])
    case = reference("a_unet_cases")
    torch.testing.assert_close(output(tmp_path / "ddpm", case), case["out_headch32"], rtol=1e-4, atol=2e-5)


def test_wrong_flags_are_answered_with_those_to_give(checkpoint, tmp_path):
    wrong = ["--num_channels=64", "--channel_mult=1,2,4", "--learn_sigma=False", "--attention_resolutions=32"]
    with pytest.raises(SystemExit) as exit:
        main([str(checkpoint), str(tmp_path / "ddpm"), *UNREADABLE, *wrong])
    *_, remedy = str(exit.value.code).partition("; give ")
    assert remedy == "--num_channels 32 --channel_mult 1,2 --learn_sigma True --attention_resolutions 16"
    main([str(checkpoint), str(tmp_path / "ddpm"), *UNREADABLE, *wrong, *remedy.split()])
    assert load_diffusion(tmp_path / "ddpm")[0].config.out_channels == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "give --image_size"), (["--image_size=32", "--num_heads=3"], "num_heads=3 does not divide")],
)
def test_what_cannot_be_converted_ends_in_a_sentence(arguments, message, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main([str(checkpoint), str(tmp_path / "ddpm"), *arguments])
    with pytest.raises(SystemExit, match=r"error: no checkpoint at .*absent"):
        main([str(tmp_path / "absent"), str(tmp_path / "ddpm"), *arguments])
    assert not (tmp_path / "ddpm").exists()


def test_neither_true_nor_false_is_refused(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "ddpm"), "--learn_sigma=yes"])
    assert "'yes' is neither True nor False" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_flags(name):
    assert Flags(**PRESETS[name]).image_size in (128, 256)
