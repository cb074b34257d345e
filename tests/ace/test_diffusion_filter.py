"""The filter against the published implementation, diffusers' scheduler, and itself with less memory."""

import copy
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ace.decision import BinaryDecision
from ace.diffusion_filter import DiffusionFilter, filter_steps, respaced_timesteps
from ace.objective import Distance, Objective

CHAINS = [(500, 50), (500, 25), (1000, 25), (1000, 100)]


def linear_scheduler(train_steps: int, **settings) -> DDPMScheduler:
    scale = 1000 / train_steps
    return DDPMScheduler(train_steps, beta_start=scale * 1e-4, beta_end=scale * 0.02, **settings)


@pytest.mark.parametrize(("train_steps", "respacing"), CHAINS)
def test_respaced_timesteps_are_those_of_guided_diffusion(train_steps, respacing, reference):
    kept = reference("b_diffusion")[f"s{train_steps}_r{respacing}_timestep_map"]
    assert respaced_timesteps(train_steps, respacing) == kept.tolist()


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_respaced_timesteps_ascend_from_the_first_to_the_last(lengths):
    train_steps, respacing = lengths
    kept = respaced_timesteps(train_steps, respacing)
    assert len(kept) == respacing
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert respacing == 1 or kept[-1] == train_steps - 1


@pytest.mark.parametrize(
    ("steps", "respacing", "count"),
    [(5, 50, 5), (1, 50, 1), (1.0, 50, 50), (0.29, 100, 29), (0.1, 50, 5), (5.0, 50, 5)],
)
def test_tau_is_a_count_or_a_fraction(steps, respacing, count):
    assert filter_steps(steps, respacing) == count


@pytest.mark.parametrize("steps", [0, -1, 51, 0.0, 0.01, -0.5, 2.5, 51.0, math.nan, math.inf])
def test_a_tau_out_of_range_is_named(steps):
    with pytest.raises(ValueError, match=rf"steps={steps!r}.*\[1, 50\]"):
        filter_steps(steps, 50)


@pytest.mark.parametrize(("train_steps", "respacing"), CHAINS)
def test_schedule_is_that_of_the_respaced_process(train_steps, respacing, reference, toy_unet):
    tables, prefix = reference("b_diffusion"), f"s{train_steps}_r{respacing}_"
    filter_ = DiffusionFilter(toy_unet(), linear_scheduler(train_steps), steps=1, respacing=respacing)
    for ours, theirs in {
        "log_beta": tables[prefix + "betas"].log(),
        "sqrt_alpha_bar": tables[prefix + "alphas_cumprod"].sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - tables[prefix + "alphas_cumprod"]).sqrt(),
        "log_variance": tables[prefix + "posterior_log_variance_clipped"],
        "mean_from_x0": tables[prefix + "posterior_mean_coef1"],
        "mean_from_xt": tables[prefix + "posterior_mean_coef2"],
    }.items():
        # diffusers keeps its betas in float32
        torch.testing.assert_close(getattr(filter_, ours).double(), theirs, rtol=2e-5, atol=2e-6, msg=ours)


@pytest.mark.parametrize(("train_steps", "respacing"), CHAINS)
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_reverse_step_and_noising_equal_the_reference(train_steps, respacing, case, reference, toy_unet):
    values = reference("b_diffusion")
    case = f"s{train_steps}_r{respacing}_{case}_"
    unet = toy_unet(out_channels=6)
    scheduler = linear_scheduler(train_steps, variance_type="learned_range")
    filter_ = DiffusionFilter(unet, scheduler, steps=respacing, respacing=respacing)
    seen = []
    for row, index in enumerate(values[case + "t_index"].tolist()):

        def fixed_output(x, timestep, row=row):
            seen.append(timestep)
            return values["model_output"][row : row + 1]

        filter_._predict = fixed_output
        posterior = filter_.p_mean_std(values["x_t"][row : row + 1], index)
        noised = filter_.q_sample(values["x_start"][row : row + 1], index, values["noise"][row : row + 1])
        for ours, theirs in {
            posterior.mean: values[case + "mean"],
            posterior.std: (0.5 * values[case + "log_variance"]).exp(),
            posterior.std.square(): values[case + "variance"],
            posterior.pred_x0: values[case + "pred_xstart"],
            noised: values[case + "q_sample"],
        }.items():
            # Where hardly any signal is left, the float32 betas of diffusers show.
            atol = 5e-5 if "_c2_" in case else 2e-6
            torch.testing.assert_close(ours, theirs[row : row + 1], rtol=1e-5, atol=atol)
    assert seen == values[case + "t_seen_by_model"].tolist()


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_output_and_vector_jacobian_product_equal_the_reference(segments, make_filter, reference):
    case = reference("c_filter")
    x = case["x"].clone().requires_grad_()
    filtered = make_filter(segments=segments)(x)
    (product,) = torch.autograd.grad((filtered * case["vjp_cotangent"]).sum(), x)
    torch.testing.assert_close(filtered, case["filtered"], rtol=0, atol=1e-5)
    torch.testing.assert_close(product, case["vjp"], rtol=0, atol=1e-4)


def test_the_chain_equals_the_reference_step_by_step(make_filter, reference):
    case, filter_ = reference("c_filter"), make_filter()
    with torch.no_grad():
        for position, index in enumerate([4, 3, 2, 1, 0]):
            posterior = filter_.p_mean_std(case["chain_in"][position], index)
            following = case["chain_in"][position + 1] if index else case["filtered"] * 2 - 1
            torch.testing.assert_close(posterior.mean, following, rtol=0, atol=1e-5)
            torch.testing.assert_close(posterior.pred_x0, case["chain_pred_xstart"][position], rtol=0, atol=1e-5)


@torch.no_grad()
def test_given_noise_gives_the_stochastic_reference(make_filter, reference):
    case = reference("c_filter")
    stochastic = make_filter(stochastic=True)
    filtered = stochastic(case["x"], case["stoch_noise"])
    torch.testing.assert_close(filtered, case["stoch_filtered"], rtol=0, atol=1e-5)
    assert torch.equal(stochastic(case["x"]), make_filter()(case["x"]))
    assert torch.equal(make_filter()(case["x"], case["stoch_noise"]), make_filter()(case["x"]))


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_checkpointing_has_the_joint_gradient_where_the_original_is_wrong(segments, make_filter, reference, classifier):
    case = reference("d_checkpoint_shortcut")
    objective = Objective(classifier("binary"), BinaryDecision(), make_filter(segments=segments), Distance(l1=0))
    gradient = objective.evaluate(case["x"], case["x"], case["target"].long(), torch.ones(1)).gradient
    scale = case["grad_joint"].abs().max()
    assert (gradient - case["grad_joint"]).abs().max() < 1e-4 * scale
    assert (gradient - case["grad_checkpoint_bs5"]).abs().max() < 1e-4 * scale
    wrong = case["grad_checkpoint_bs1"]
    assert (gradient - wrong).norm() > 0.5 * wrong.norm()


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_gradients_of_the_stochastic_filter_do_not_depend_on_the_segments(segments, make_filter, reference):
    case, gradients = reference("c_filter"), []
    for count in (1, segments):
        x = case["x"][:1].clone().requires_grad_()
        filtered = make_filter(segments=count, stochastic=True)(x, case["stoch_noise"][:, :1])
        gradients += torch.autograd.grad(filtered.square().sum(), x)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6 * gradients[0].abs().max().item())


@pytest.mark.parametrize(("steps", "segments"), [(5, 1), (5, 2), (5, 5), (7, 3), (10, 4)])
def test_pass_counts(steps, segments, toy_unet):
    filter_ = DiffusionFilter(
        toy_unet(gain=0.1), DDPMScheduler(), steps=steps, respacing=20, stochastic=False, segments=segments
    )
    x = torch.full((2, 3, 8, 8), 0.4, requires_grad=True)
    filter_(x).sum().backward()
    last = steps - round((segments - 1) * steps / segments)
    assert filter_.passes.backwards == steps
    assert filter_.passes.forwards == steps + (steps - last)
    assert filter_.passes.forwards == steps if segments == 1 else filter_.passes.forwards < 2 * steps
    with torch.no_grad():
        filter_(x)
    assert filter_.passes.forwards == 3 * steps - last
    assert filter_.passes.backwards == steps


def test_segments_save_memory(make_filter, reference):
    kept = {}
    for segments in (1, 5):
        kept[segments] = 0

        def keep(tensor, segments=segments):
            kept[segments] += tensor.numel()
            return tensor

        x = reference("c_filter")["x"][:1].clone().requires_grad_()
        filter_ = make_filter(segments=segments)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            filter_(x)
    assert kept[5] < kept[1] / 4


def test_the_network_is_frozen_and_gets_no_gradients(make_filter, reference):
    filter_ = make_filter(segments=2)
    x = reference("c_filter")["x"].clone().requires_grad_()
    filter_(x).sum().backward()
    assert not filter_.unet.training
    assert all(not weight.requires_grad and weight.grad is None for weight in filter_.unet.parameters())
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_every_step_agrees_with_the_scheduler_of_diffusers(prediction_type, variance_type, clip_sample, toy_unet):
    scheduler = DDPMScheduler(
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip_sample=clip_sample,
        clip_sample_range=0.8,
    )
    unet = toy_unet(gain=0.3, weight=0.2, out_channels=6 if variance_type == "learned_range" else 3)
    filter_ = DiffusionFilter(unet, scheduler, steps=12, respacing=12)
    scheduler.set_timesteps(timesteps=filter_.timesteps[::-1])
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)  # no rounding of its own
    scheduler.one = scheduler.one.double()
    for index, timestep in enumerate(filter_.timesteps):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(100 + index))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        output = unet(x, timestep).sample
        theirs = scheduler.step(output, timestep, x, generator=torch.Generator().manual_seed(index)).prev_sample
        ours = filter_.p_sample(x, index, noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    clean, noise = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = scheduler.add_noise(clean, noise, torch.tensor([filter_.timesteps[7]] * 2))
    torch.testing.assert_close(filter_.q_sample(clean, 7, noise), theirs, rtol=1e-5, atol=1e-5)


def test_learned_variance_is_the_variance_itself(toy_unet):
    filter_ = DiffusionFilter(
        toy_unet(weight=1.0, out_channels=6), DDPMScheduler(variance_type="learned"), steps=3, respacing=10
    )
    posterior = filter_.p_mean_std(torch.zeros(1, 3, 4, 4), 0)  # the second output is half the first, cos 0
    torch.testing.assert_close(posterior.std, torch.full((1, 3, 4, 4), math.sqrt(0.5)))


def test_a_filter_of_another_tau_shares_the_network_and_counts_for_itself(make_filter, reference):
    x, filter_ = reference("c_filter")["x"], make_filter(segments=4)
    other = filter_.with_steps(2)
    assert torch.equal(other(x), make_filter(steps=2)(x))
    assert not torch.equal(other(x), filter_(x))
    assert (filter_.steps, filter_.segments, filter_.passes.forwards) == (5, 4, 5)
    assert (other.steps, other.segments, other.passes.forwards) == (2, 2, 4)
    assert other.unet is filter_.unet
    with pytest.raises(ValueError, match=r"tau \(steps=51\)"):
        filter_.with_steps(51)


def test_a_denoiser_that_sees_no_noise_makes_the_filter_the_identity(identity_filter):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(identity_filter(x), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stochastic", [True, False])
def test_inpainting_keeps_the_outside_bit_for_bit(stochastic, make_filter, reference):
    case = reference("c_filter")
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 8:20, 4:16] = True
    noise = torch.randn(10, *case["x"].shape, generator=torch.Generator().manual_seed(0))
    start = (case["x"] + 0.2).clamp(0, 1)
    result = make_filter(stochastic=stochastic).inpaint(start, case["x"], mask, noise)
    outside = ~mask.expand_as(result)
    assert torch.equal(result[outside], case["x"][outside])
    assert (result - case["x"])[~outside].abs().max() > 0.01
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("respacing", [0, -3, 501])
def test_a_respacing_out_of_range_is_named(respacing, toy_unet):
    with pytest.raises(ValueError, match=rf"\[1, 500\].*got {respacing}"):
        DiffusionFilter(toy_unet(), linear_scheduler(500), steps=1, respacing=respacing)


@pytest.mark.parametrize("segments", [0, 6])
def test_segments_out_of_range_are_named(segments, toy_unet):
    with pytest.raises(ValueError, match=rf"\[1, 5\].*got {segments}"):
        DiffusionFilter(toy_unet(), DDPMScheduler(), steps=5, segments=segments)


def test_a_class_conditional_network_is_refused(toy_unet):
    unet = toy_unet()
    unet.class_embedding = torch.nn.Embedding(10, 4)
    with pytest.raises(ValueError, match="class-conditional"):
        DiffusionFilter(unet, DDPMScheduler())


@pytest.mark.parametrize(
    ("variance_type", "out_channels", "expected"),
    [("learned_range", 3, 6), ("fixed_small", 6, 3), ("learned", 3, 6)],
)
def test_output_channels_that_do_not_fit_the_variance_are_refused(variance_type, out_channels, expected, toy_unet):
    with pytest.raises(ValueError, match=f"{variance_type}.*{expected} output channels.* has {out_channels}"):
        DiffusionFilter(toy_unet(out_channels=out_channels), DDPMScheduler(variance_type=variance_type))


def test_dynamic_thresholding_is_refused(toy_unet):
    with pytest.raises(ValueError, match="thresholding=False"):
        DiffusionFilter(toy_unet(), DDPMScheduler(thresholding=True))


@pytest.mark.parametrize("setting", [{"prediction_type": "score"}, {"variance_type": "constant"}])
def test_unknown_parametrisations_are_refused(setting, toy_unet):
    [(name, value)] = setting.items()
    with pytest.raises(ValueError, match=f"unknown {name} '{value}': use "):
        DiffusionFilter(toy_unet(), DDPMScheduler(**setting), steps=2, respacing=10)


def test_fewer_passes_end_with_an_estimate_of_the_clean_image(make_filter):
    filter_ = make_filter(steps=4, respacing=10, stochastic=True)
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = filter_(image, noise)
    assert torch.equal(filter_(image, noise, passes=4), whole)
    noisy = filter_.q_sample(image * 2 - 1, 3, noise[0])
    torch.testing.assert_close(filter_(image, noise, passes=1), filter_.p_mean_std(noisy, 3).pred_x0 / 2 + 0.5)
    then = filter_.p_sample(noisy, 3, noise[1])
    torch.testing.assert_close(filter_(image, noise, passes=2), filter_.p_mean_std(then, 2).pred_x0 / 2 + 0.5)
    before = filter_.passes.forwards
    filter_(image, noise, passes=2)
    assert filter_.passes.forwards - before == 2


def test_a_scheduler_of_another_sampler_stands_for_its_chain(tiny_unet):
    images, noise = torch.rand(2, 3, 16, 16), torch.randn(3, 2, 3, 16, 16)
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    found = DiffusionFilter(tiny_unet, DDIMScheduler(**settings), 3)(images, noise)
    assert torch.equal(found, DiffusionFilter(tiny_unet, DDPMScheduler(**settings), 3)(images, noise))


def test_half_precision_weights_are_refused_with_the_remedy(tiny_unet):
    with pytest.raises(ValueError, match=r"weights are torch.float16: load it in float32, and use torch.autocast"):
        DiffusionFilter(copy.deepcopy(tiny_unet).half(), DDPMScheduler())
