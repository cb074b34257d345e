"""One stream of noise per image: stable, and blind to the image's company."""

import pytest
import torch

from ace.noise import draw, generator


def test_the_numbers_never_change():
    noise = torch.randn(4, generator=generator(0, "img_1", "attack"))
    torch.testing.assert_close(noise, torch.tensor([0.884895, -2.282994, 1.00719, -0.17233]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", [(1, "a", "attack"), (0, "b", "attack"), (0, "a", "refine"), (-1, "a", "attack")])
def test_seed_id_and_stage_each_make_another_stream(other):
    noise = torch.randn(100, generator=generator(0, "a", "attack"))
    assert not torch.isclose(noise, torch.randn(100, generator=generator(*other))).any()


def test_the_arguments_do_not_run_into_each_other():
    assert generator(1, "1", "x").initial_seed() != generator(11, "", "x").initial_seed()
    assert generator(1, "a", "bc").initial_seed() != generator(1, "ab", "c").initial_seed()


def test_noise_does_not_depend_on_the_batch_or_its_order():
    def noise(ids: list[str], calls: int) -> dict[str, torch.Tensor]:
        streams = [generator(7, image_id, "attack") for image_id in ids]
        drawn = torch.cat([draw(streams, 3, (3, 8, 8), "cpu") for _ in range(calls)])
        return {image_id: drawn[:, row] for row, image_id in enumerate(ids)}

    alone, together, reversed_ = noise(["b"], 2), noise(["a", "b", "c"], 2), noise(["c", "b"], 2)
    assert torch.equal(alone["b"], together["b"])
    assert torch.equal(alone["b"], reversed_["b"])
    assert torch.equal(together["c"], reversed_["c"])
    assert not torch.equal(together["a"], together["b"])
    assert not torch.equal(alone["b"][:3], alone["b"][3:])


def test_shape_and_distribution():
    noise = draw([generator(0, str(i), "attack") for i in range(16)], 5, (3, 32, 32), "cpu")
    assert noise.shape == (5, 16, 3, 32, 32)
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    untouched = torch.randn(3)
    torch.manual_seed(3)
    draw([generator(0, "a", "attack")], 2, (3, 4, 4), "cpu")
    assert torch.equal(torch.randn(3), untouched)


@pytest.mark.parametrize("inference", [False, True])
def test_threads_and_inference_mode_change_no_number(inference, monkeypatch):
    monkeypatch.setattr("ace.noise.WORTH_A_THREAD", 1)

    def noise(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode(inference):
                streams = [None if i == 3 else generator(7, str(i), "attack") for i in range(9)]
                return draw(streams, 2, (3, 8, 8), "cpu")
        finally:
            torch.set_num_threads(before)

    one, several = noise(1), noise(4)
    assert torch.equal(one, several)
    assert not several[:, 3].any()
    assert all(several[:, row].abs().sum() > 0 for row in range(9) if row != 3)


def test_where_no_image_has_a_stream_there_are_zeros():
    assert torch.equal(draw([None, None], 1, (1, 2, 2), "cpu"), torch.zeros(1, 2, 1, 2, 2))
