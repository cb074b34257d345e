"""Each check before a run fires with its own sentence, and none fires on a healthy set-up."""

import warnings

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ace import BinaryDecision, ClassDecision, CounterfactualExplainer, DiffusionFilter, Untargeted
from ace.models.classifiers import ImageClassifier
from ace.models.normalised import NormalisedClassifier
from ace.preflight import UnfitNetworkError, check_networks, compare_with_labels, try_networks

IDS = list("abcd")


def network(outputs: int = 1) -> nn.Sequential:
    """Logits of both signs."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, outputs)).eval()


@pytest.fixture(scope="module")
def diffusion_filter(tiny_unet) -> DiffusionFilter:
    return DiffusionFilter(tiny_unet, DDPMScheduler(), steps=2, respacing=50)


@pytest.fixture(scope="module")
def make_explainer(diffusion_filter):
    def make(classifier, decision=None, **options) -> CounterfactualExplainer:
        return CounterfactualExplainer(classifier, decision or BinaryDecision(), diffusion_filter, **options)

    return make


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Two dark and two bright images."""
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return noise * 0.1 + torch.tensor([0.1, 0.1, 0.8, 0.8]).view(-1, 1, 1, 1)


def brightness(images: Tensor) -> Tensor:
    return 20 * (images.mean((1, 2, 3)) - 0.5)


def two_classes(images: Tensor) -> Tensor:
    return torch.stack([-brightness(images), brightness(images)], dim=1)


@pytest.mark.parametrize(
    ("classifier", "decision", "options"),
    [
        (brightness, BinaryDecision(), {}),
        (two_classes, ClassDecision(["dark", "bright"]), {}),
        (two_classes, ClassDecision(["dark", "bright"]), {"policy": Untargeted()}),
        # Decided without any doubt: the cross-entropy has no gradient left, the logits do.
        (lambda images: brightness(images) * 100, BinaryDecision(), {}),
        (lambda images: (images.mean((1, 2, 3)) + 1) * 40, BinaryDecision(), {}),
    ],
)
def test_a_healthy_set_up_passes_in_silence(make_explainer, images, classifier, decision, options):
    explainer = make_explainer(classifier, decision, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_networks(explainer, 3, 16, 16)
        check_networks(explainer, 3, 16, 18)
        try_networks(explainer, images, IDS)


def test_a_network_in_evaluation_mode_passes(make_explainer):
    check_networks(make_explainer(network()), 3, 16, 16)


@pytest.mark.parametrize(
    ("channels", "height", "width", "message"),
    [
        (1, 16, 16, "the images have 1 channels, the diffusion model takes 3: give --data.channels"),
        (3, 15, 15, "images of 15x15: both sides must be multiples of 2; resize them .it was made for 16"),
        (3, 16, 17, "images of 16x17"),
    ],
)
def test_images_that_the_unet_cannot_take(make_explainer, channels, height, width, message):
    with pytest.raises(ValueError, match=message):
        check_networks(make_explainer(brightness), channels, height, width)


@pytest.mark.parametrize(("height", "width", "warned"), [(16, 16, 0), (16, 32, 0), (32, 32, 1)])
def test_images_of_another_size_than_the_unet_was_made_for(make_explainer, height, width, warned):
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        check_networks(make_explainer(brightness), 3, height, width)
    assert len(complaints) == warned
    for complaint in complaints:
        assert "the images are 32x32, the diffusion model was made for 16" in str(complaint.message)
        assert "(image_size: 16)" in str(complaint.message)


def test_a_classifier_in_training_mode(make_explainer):
    with pytest.raises(ValueError, match=r"training mode.*call classifier.eval\(\)"):
        check_networks(make_explainer(network().train()), 3, 16, 16)
    one_part = network()
    one_part[1].train()
    with pytest.raises(ValueError, match="training mode"):
        check_networks(make_explainer(one_part), 3, 16, 16)


def test_a_classifier_that_refuses_the_images(make_explainer):
    with pytest.raises(ValueError, match="the classifier cannot take images of 3x32x32: mat1 and mat2"):
        check_networks(make_explainer(network()), 3, 32, 32)
    transformer = VisionTransformer(16, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=1).eval()
    with pytest.raises(ValueError, match="cannot take images of 3x32x32: Wrong image height! Expected 16"):
        check_networks(make_explainer(transformer), 3, 32, 32)
    four = ImageClassifier("squeezenet1_1", ["a", "b"], "multiclass", mean=(0.5,) * 4, std=(0.5,) * 4).eval()
    with pytest.raises(ValueError, match=r"cannot take images of 3x16x16: the images have 3 channels, .* takes 4"):
        check_networks(make_explainer(four, ClassDecision(["a", "b"])), 3, 16, 16)


def test_a_network_in_training_mode_inside_a_function(make_explainer, images):
    inside = nn.BatchNorm2d(3).train()
    explainer = make_explainer(lambda batch: brightness(inside(batch)))
    with pytest.raises(UnfitNetworkError, match=r"change by .* other images of its batch.* call eval\(\)"):
        explainer.explain(images)
    inside.eval()
    make_explainer(lambda batch: brightness(inside(batch))).explain(images[:1])


def test_an_exported_program_says_nothing_of_its_mode(make_explainer):
    batch = {"x": {0: torch.export.Dim("batch")}}
    made = torch.export.export(Bright(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=batch).module()
    assert made.training
    check_networks(make_explainer(made), 3, 16, 16)


class Bright(nn.Module):
    def forward(self, x):
        return brightness(x)


def test_outputs_that_are_no_tensor(make_explainer):
    with pytest.raises(ValueError, match=r"a tensor of logits, it gives tuple: .*\.logits"):
        check_networks(make_explainer(lambda batch: (brightness(batch),)), 3, 16, 16)


def normalised(channels: int, entries: int, size: tuple[int, int] | None = None) -> NormalisedClassifier:
    """A network of some channels, with a mean and a std of some entries."""
    made = NormalisedClassifier(["a", "b"], "multiclass", [0.4] * entries, [0.5] * entries, size)
    made.network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    return made.eval()


@pytest.mark.parametrize(("channels", "entries"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("size", [None, (16, 16)])
def test_a_mean_and_std_of_other_channels_than_the_network_s_are_told_apart(make_explainer, channels, entries, size):
    side, decision = 16 if size is None else 32, ClassDecision(["a", "b"])
    told = rf"Given groups=1.*; its network takes {channels} channels: give `mean` and `std` {channels} entries each$"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the images are 32x32")
        with pytest.raises(ValueError, match=told):
            check_networks(make_explainer(normalised(channels, entries, size), decision), 3, side, side)
        check_networks(make_explainer(normalised(channels, channels, size), decision), 3, side, side)


def test_a_function_of_one_channel_is_told_how_to_get_it(make_explainer):
    grey = nn.Sequential(nn.Conv2d(1, 1, 16), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r"Given groups=1.*; it takes 1 channels: give it images\.mean\(1, "):
        check_networks(make_explainer(grey), 3, 16, 16)
    check_networks(make_explainer(lambda images: grey(images.mean(1, keepdim=True))), 3, 16, 16)


@pytest.mark.parametrize(
    ("outputs", "decision", "message"),
    [(2, BinaryDecision(), "needs one logit an image"), (2, ClassDecision(list("abc")), "3 classes are named")],
)
def test_outputs_that_do_not_fit_the_decision(make_explainer, outputs, decision, message):
    options = {"policy": Untargeted()} if len(decision.class_names) > 2 else {}
    with pytest.raises(ValueError, match=message):
        check_networks(make_explainer(network(outputs), decision, **options), 3, 16, 16)


def test_outputs_that_are_nowhere_finite(make_explainer, images):
    with pytest.raises(ValueError, match="not finite for any image: check its weights"):
        try_networks(make_explainer(lambda images: brightness(images) * torch.nan), images, IDS)


def test_a_single_output_that_is_not_finite_is_left_to_the_run(make_explainer, images):
    def classifier(images: Tensor) -> Tensor:
        return brightness(images).where(images[:, 0, 0, 0] < 5, torch.nan)

    images = images.clone()
    images[1, 0, 0, 0] = 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try_networks(make_explainer(classifier), images, IDS)


def test_probabilities_after_a_softmax(make_explainer, images):
    explainer = make_explainer(lambda images: two_classes(images).softmax(1), ClassDecision(["dark", "bright"]))
    with pytest.raises(ValueError, match=r"sum to 1.*logits before the softmax"):
        try_networks(explainer, images, IDS)


def test_probabilities_after_a_sigmoid(make_explainer, images):
    explainer = make_explainer(lambda images: brightness(images).sigmoid())
    with pytest.warns(UserWarning, match="logits before the sigmoid"):
        try_networks(explainer, images, IDS)


@pytest.mark.parametrize(
    "classifier",
    [
        lambda images: brightness(images).detach(),
        lambda images: brightness((images * 255).round() / 255),
        torch.no_grad()(brightness),
    ],
)
def test_a_classifier_without_gradient(make_explainer, images, classifier):
    with pytest.raises(ValueError, match="no gradient of the classifier reaches the images"):
        try_networks(make_explainer(classifier), images, IDS)


def test_decisions_that_do_not_survive_the_filter(make_explainer, images):
    def roughness(images: Tensor) -> Tensor:
        """The filter of an untrained network leaves noise on a smooth image."""
        return 1000 * (images.diff(dim=3).abs().mean((1, 2, 3)) - 0.01)

    smooth = torch.full_like(images, 0.5)
    with pytest.warns(UserWarning, match=r"changes 100% of the decisions: use a smaller tau \(steps=2 of respacing=50"):
        try_networks(make_explainer(roughness), smooth, IDS)


def test_a_classifier_that_takes_one_image_at_a_time(make_explainer):
    def classifier(images: Tensor) -> Tensor:
        return brightness(images.view(1, 3, 16, 16))

    with pytest.raises(ValueError, match="cannot take two images at once of 3x16x16"):
        check_networks(make_explainer(classifier), 3, 16, 16)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, None], [1, 1, 0], [None] * 4])
def test_labels_that_agree_or_say_too_little_pass_in_silence(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_with_labels([0, 0, 1, 1][: len(labels)], labels)


def test_labels_that_the_classifier_contradicts(make_explainer, images):
    with pytest.warns(UserWarning, match=r"agrees with the labels for only 1 of 4 images: check its normalisation"):
        compare_with_labels([0, 0, 1, 1, 1], [1, 1, 0, 1, None])
    explainer = make_explainer(brightness, slots=4)
    with pytest.warns(UserWarning, match="only 0 of 4 images"):
        explainer.submit(images, labels=torch.tensor([1, 1, 0, 0]), ids=IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_explainer(brightness, slots=4).submit(images, labels=torch.tensor([0, 0, 1, 1]), ids=IDS)


def test_only_eight_images_are_tried(make_explainer, images):
    seen = []

    def classifier(images: Tensor) -> Tensor:
        seen.append(len(images))
        return brightness(images)

    try_networks(make_explainer(classifier), images.repeat(3, 1, 1, 1), [str(number) for number in range(12)])
    assert set(seen) == {8, 1, 2}  # one of them alone, and beside its negative


def test_an_explainer_refuses_the_first_images_where_a_check_fails(make_explainer, images):
    explainer = make_explainer(network().train())
    for _ in range(2):
        with pytest.raises(ValueError, match="training mode"):
            explainer.submit(images)
    with pytest.raises(ValueError, match="no gradient of the classifier"):
        make_explainer(lambda images: brightness(images).detach()).explain(images)


def test_an_explainer_checks_once_with_no_more_images_than_slots(make_explainer, images, monkeypatch):
    networks, tried = [], []
    monkeypatch.setattr("ace.explainer.check_networks", lambda _, *shape: networks.append(shape))
    monkeypatch.setattr("ace.preflight.try_networks", lambda _, images, ids: tried.append((len(images), ids)))
    explainer = make_explainer(brightness, slots=2)
    explainer.submit(images[:0], ids=[])
    assert tried == []
    explainer.submit(images, ids=IDS)
    explainer.submit(images[:1], ids=["e"])
    assert networks == [(3, 16, 16)]
    assert tried == [(2, ["a", "b"])]
