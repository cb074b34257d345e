"""Checks before a run: name what would otherwise be found out hours later."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ace.inputs import known_labels
from ace.memory import is_out_of_memory
from ace.memory_fallback import within_memory
from ace.models.normalised import NormalisedClassifier
from ace.noise import draw, generator
from ace.objective import Classifier, logits_of

if TYPE_CHECKING:
    from ace.explainer import CounterfactualExplainer

PROBE_IMAGES = 8
COMPANY_TOLERANCE = 0.05  # share of the largest logit, far above what another batch shape changes by rounding


class UnfitNetworkError(ValueError):
    """A network that nothing can be explained with."""


def check_networks(explainer: CounterfactualExplainer, channels: int, height: int, width: int) -> None:
    """Check that the UNet and the classifier take images of this kind.

    Args:
        explainer: what is going to be run.
        channels, height, width: shape of the images.

    Raises:
        ValueError: wrong channel count, a size that the UNet cannot halve often enough, a classifier in training mode,
            or one that refuses the images or whose outputs do not fit the decision.

    Warns:
        UserWarning: the diffusion model was made for images of another size.
    """
    unet = explainer.diffusion_filter.unet
    check_unet(unet, channels, height, width)
    made_for = unet.config.sample_size
    if made_for not in (None, height, width, (height, width), [height, width]):  # one number may be either side
        warnings.warn(
            f"the images are {height}x{width}, the diffusion model was made for {made_for}: "
            f"give the images that size (image_size: {made_for})",
            stacklevel=1,  # always from here: a run that checks twice says it once
        )
    classifier = explainer.classifier
    # An exported program says that it is in training mode, and cannot be told otherwise.
    tells_mode = isinstance(classifier, nn.Module) and not isinstance(classifier, GraphModule)
    if tells_mode and any(module.training for module in classifier.modules()):
        raise ValueError("the classifier is in training mode, its answers depend on the batch: call classifier.eval()")
    device = next(explainer.diffusion_filter.unet.parameters()).device
    for count in range(1, 1 + min(2, explainer.slots)):  # an exported program may take batches of one size alone
        images = torch.full((count, channels, height, width), 0.5, device=device)
        try:
            with torch.no_grad():
                logits = classifier(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            if count == 2 and is_out_of_memory(error):
                return  # the run will go on with one image at a time
            raise ValueError(
                f"the classifier cannot take {'two images at once' if count == 2 else 'images'} of "
                f"{channels}x{height}x{width}: {error}{_channel_remedy(classifier, images)}"
            ) from error
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the classifier must give a tensor of logits, it gives {type(logits).__name__}: take them out of it, "
                "for a model of transformers by lambda images: model(images).logits"
            )
        explainer.decision.check(logits)


def _channel_remedy(classifier: Classifier, images: Tensor) -> str:
    """What to do about a classifier that is given another number of channels than it takes; empty if it is not."""
    network, given, size = classifier, images.shape[1], images.shape[2:]
    if normalises := isinstance(classifier, NormalisedClassifier):
        network, given, size = classifier.network, classifier.mean.shape[1], classifier.size or size
    for channels in (given, 1, 3):
        try:
            with torch.no_grad():
                network(images.new_full((len(images), channels, *size), 0.5))
        except Exception:  # whatever it has against them
            continue
        if channels == given:
            return ""
        if normalises:
            return f"; its network takes {channels} channels: give `mean` and `std` {channels} entries each"
        grey = "images.mean(1, keepdim=True)" if channels == 1 else "images.expand(-1, 3, -1, -1)"
        return f"; it takes {channels} channels: give it {grey}"
    return ""


def check_answers(
    explainer: CounterfactualExplainer, images: Tensor, ids: Sequence[str], logits: Tensor, labels: Tensor | None
) -> bool:
    """Check the networks on the first images that the classifier gives finite outputs for.

    Args:
        explainer: what is going to be run.
        images: shape (N, C, H, W), in [0, 1].
        ids: their identities.
        logits: the classifier's outputs for them.
        labels: true labels, see `CounterfactualExplainer.explain`.

    Returns:
        Whether there was an image to check with: where all outputs fail, these images may be to blame.

    Raises:
        UnfitNetworkError: see `try_networks`.
    """
    rows = explainer.decision.scores(logits).isfinite().all(1).nonzero().flatten().tolist()
    if not rows:
        return False

    def check_some() -> None:  # the slots become fewer where the memory is not enough
        some = rows[: explainer.slots]
        try_networks(explainer, images[some], [ids[row] for row in some])

    within_memory(explainer, check_some)
    predictions = explainer.decision.prediction(logits).tolist()
    compare_with_labels(predictions, known_labels(labels, explainer.decision, len(images)))
    return True


def compare_with_labels(predictions: list[int], labels: list[int | None]) -> None:
    """Compare the first decisions with the labels, where these are known.

    Warns:
        UserWarning: fewer than half agree, of at least four; of a classifier that is right four times in five this
            happens to one set of eight images in a hundred.
    """
    known = [prediction == label for prediction, label in zip(predictions, labels, strict=True) if label is not None]
    if len(known) >= 4 and sum(known) < len(known) / 2:
        warnings.warn(
            f"the classifier agrees with the labels for only {sum(known)} of {len(known)} images: check its "
            "normalisation (mean, std; it is given images in [0, 1]) and the order of its classes",
            stacklevel=2,
        )


def check_unet(unet: nn.Module, channels: int, height: int, width: int) -> None:
    """Check that a UNet takes images of this kind.

    Raises:
        ValueError: wrong channel count, or a size that the UNet cannot halve often enough.
    """
    if channels != unet.config.in_channels:
        raise ValueError(
            f"the images have {channels} channels, the diffusion model takes {unet.config.in_channels}: "
            "give --data.channels what it takes, 1 or 3, or another diffusion model (from Python, convert the images)"
        )
    factor = 2 ** (len(unet.config.block_out_channels) - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"the diffusion model cannot take images of {height}x{width}: both sides must be multiples of {factor}; "
            f"resize them (it was made for {unet.config.sample_size})"
        )


def try_networks(explainer: CounterfactualExplainer, images: Tensor, ids: list[str]) -> None:
    """Try the networks on some images, at the cost of one iteration of the attack.

    Args:
        explainer: what is going to be run.
        images: shape (N, C, H, W), in [0, 1]; the first eight are used.
        ids: the images' identities.

    Raises:
        UnfitNetworkError: outputs that are not finite or are probabilities, or depend on the other images of a batch,
            or no gradient reaches the images.

    Warns:
        UserWarning: outputs that look like probabilities, or most decisions do not survive the filter.
    """
    images, ids = images[:PROBE_IMAGES], ids[:PROBE_IMAGES]
    with torch.no_grad():
        logits = logits_of(explainer.classifier, images)
    _check_logits(logits)
    if explainer.slots > 1:
        _check_company(explainer.classifier, images[:1])
    filter_, decision = explainer.diffusion_filter, explainer.decision
    streams = [generator(explainer.seed, id, "preflight") for id in ids]
    noise = draw(streams, filter_.steps, images.shape[1:], images.device)
    predictions = decision.prediction(logits)
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        filtered = logits_of(explainer.classifier, filter_(inputs, noise))
        loss = decision.margin(filtered, predictions).sum()  # a cross-entropy is flat where the decision is certain
        gradient = torch.autograd.grad(loss, inputs, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None or not gradient.any():
        raise UnfitNetworkError(
            "no gradient of the classifier reaches the images through the filter: "
            "it must be differentiable (no argmax, rounding, detach or no_grad inside)"
        )
    kept = (decision.prediction(filtered) == predictions).float().mean().item()
    if kept < 0.5:
        warnings.warn(
            f"the filter itself changes {1 - kept:.0%} of the decisions: use a smaller tau "
            f"(steps={filter_.steps} of respacing={len(filter_.timesteps)}), or a better diffusion model",
            stacklevel=2,
        )


def _check_company(classifier: Classifier, image: Tensor) -> None:
    """Ask about an image alone, and beside its negative: a network hidden in a function may be in training mode."""
    with torch.no_grad():
        alone = logits_of(classifier, image)
        beside = logits_of(classifier, torch.cat([image, 1 - image]))[:1]
    difference = (alone - beside).abs().max().item()
    if difference > COMPANY_TOLERANCE * max(1.0, alone.abs().max().item()):
        raise UnfitNetworkError(
            f"the classifier's outputs for an image change by {difference:.3g} with the other images of its batch, or "
            "from call to call: call eval() on the network inside"
        )


def _check_logits(logits: Tensor) -> None:
    logits = logits[logits.isfinite().all(dim=tuple(range(1, logits.ndim)))]
    if not len(logits):
        raise UnfitNetworkError(
            "the classifier's outputs are not finite for any image: check its weights and normalisation"
        )
    if logits.min() < 0 or logits.max() > 1:
        return
    if (
        logits.ndim == 2
        and logits.shape[1] > 1
        and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3)
    ):
        raise UnfitNetworkError(
            "the classifier's outputs are probabilities (they sum to 1): give the logits before the softmax"
        )
    warnings.warn(
        "all outputs of the classifier lie in [0, 1]: if these are probabilities, give the logits before the sigmoid",
        stacklevel=3,
    )
