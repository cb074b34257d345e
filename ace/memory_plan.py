"""How many images to iterate together, and how much of the filter to compute twice, for the memory at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ace.diffusion_filter import DiffusionFilter, segment_bounds
from ace.objective import Classifier, logits_of
from ace.preflight import PROBE_IMAGES
from ace.slots import fixed_batch


@dataclass(frozen=True)
class Device:
    """What is assumed of a kind of device.

    Attributes:
        most: slots; more do not make it faster.
        full: pixels of images at a time that keep it busy: to get fewer, nothing is computed twice.
        spare: steps of the filter whose memory is left free for what is not kept: results on the way, scratch space of
            kernels, holes between tensors.
    """

    most: int
    full: int
    spare: float


# On a CPU one image takes no longer alone than in company, and the holes of the heap took up to two steps, see
# docs/distributed.md. Of a GPU these are assumptions: four images of 256x256 make long matrix products.
DEVICES = {"cpu": Device(most=16, full=1, spare=2.0), "cuda": Device(most=128, full=4 * 256**2, spare=1.0)}
USABLE = 0.9  # of what is free: others use memory too


@dataclass(frozen=True)
class Kept:
    """Bytes that are kept for a gradient, beside the weights: some for all images together, the rest for each."""

    once: int
    image: int

    def bytes(self, images: int) -> int:
        """For so many images at a time."""
        return self.once + images * self.image


@dataclass(frozen=True)
class Workload:
    """What is to be computed, and the memory that its parts need.

    Attributes:
        step: kept by one step of the filter.
        classifier: kept by the classifier.
        steps: of the filter.
        passes: of the UNet in each iteration of the attack, None for all steps, see `DiffusionFilter.forward`.
        pixels: of an image.
        images: that this process will get, None if that is not known.
        fixed_shape: whether batches are filled up to `fixed_batch`.
    """

    step: Kept
    classifier: Kept
    steps: int
    passes: int | None
    pixels: int
    images: int | None = None
    fixed_shape: bool = True

    @property
    def has_segments(self) -> bool:
        """Whether the attack has them; fewer passes are kept whole, and segments cost no time but for the checks."""
        return self.passes is None or self.passes == self.steps

    def bytes(self, slots: int, segments: int, spare: float = 0.0) -> int:
        """Most memory at a time, beside the weights; ``spare`` steps of the filter are added to those that are kept."""
        longest = max(stop - start for start, stop in segment_bounds(self.steps, segments))
        kept = longest if self.has_segments else self.passes
        rows = fixed_batch(slots) if self.fixed_shape else slots
        # Before the attack a few images go through the whole filter, see `ace.preflight.try_networks`.
        stages = ((rows, kept), (min(slots, PROBE_IMAGES), longest))
        return max(math.ceil((count + spare) * self.step.bytes(n)) + self.classifier.bytes(n) for n, count in stages)


@dataclass(frozen=True)
class MemoryPlan:
    """How an explanation run is going to use the memory.

    Attributes:
        slots: images iterated together.
        segments: of the filter's gradient.
        needed: bytes, beside the weights.
        free: bytes that were free.
        fits: whether ``needed`` are among them.
        reason: why it is this plan.
    """

    slots: int
    segments: int
    needed: int
    free: int
    fits: bool
    reason: str

    def __str__(self) -> str:
        return (
            f"slots {self.slots}, segments {self.segments} ({self.reason}): needs "
            f"{self.needed / 2**30:.2g} of {self.free / 2**30:.2g} GiB that are free"
        )


def choose_plan(
    work: Workload, free: int, device: str = "cpu", slots: int | None = None, segments: int | None = None
) -> MemoryPlan:
    """The plan of highest throughput.

    As many slots as fit, up to the device's ``most`` and the number of images. Of the segments the fewest with which as
    many slots fit as keep the device busy, since every further one computes steps twice; where none lets so many fit,
    the fewest with which most fit.

    Args:
        work: what is to be computed.
        free: bytes of memory.
        device: type of the device, ``cuda`` or another.
        slots, segments: set by the user, None to choose.

    Returns:
        The plan; where nothing fits, the one that needs least, with ``fits`` false.
    """
    kind = DEVICES["cuda" if device == "cuda" else "cpu"]
    most = slots or min(kind.most, work.images or kind.most)
    enough = min(most, math.ceil(kind.full / work.pixels)) if work.has_segments and not slots else most

    def fitting(segments: int) -> int:
        allowed = [slots] if slots else range(most, 0, -1)
        return next((n for n in allowed if work.bytes(n, segments, kind.spare) <= USABLE * free), 0)

    choices = [segments] if segments else range(1, work.steps + 1)
    fits = {count: fitting(count) for count in choices}
    if busy := [count for count in choices if fits[count] >= enough]:
        chosen = busy[0]
    else:
        chosen = max(choices, key=lambda count: (fits[count], -count)) if any(fits.values()) else choices[-1]
    number = fits[chosen] or slots or 1
    return MemoryPlan(
        number,
        chosen,
        work.bytes(number, chosen, kind.spare),
        free,
        fits[chosen] > 0,
        "; ".join(_reasons(number, chosen, slots, most, kind.most, fits)),
    )


def _reasons(number: int, chosen: int, slots: int | None, most: int, limit: int, fits: dict[int, int]) -> Iterator[str]:
    if not fits[chosen]:
        yield "not even that fits"
    elif slots:
        yield "slots are given"
    elif number < most:
        yield "more do not fit"
    else:
        yield f"{limit} are the most" if most == limit else "there are no more images"
    if fits[chosen] and (less := fits.get(chosen - 1)) is not None:
        yield f"with fewer segments {less or 'none'} fit"


def measure(diffusion_filter: DiffusionFilter, classifier: Classifier, images: Tensor) -> tuple[Kept, Kept]:
    """What one step of the filter and what the classifier keep, from a pass of one image and one of two.

    Args:
        diffusion_filter: on the images' device.
        classifier: on the images' device.
        images: any two, shape (2, C, H, W); or one, if never more go through together: all is booked as its own then.
    """
    weights = [*diffusion_filter.parameters(), *diffusion_filter.buffers()]
    if isinstance(classifier, nn.Module):
        weights += [*classifier.parameters(), *classifier.buffers()]
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    index = diffusion_filter.steps - 1

    def kept(function: Callable[[Tensor], Tensor]) -> Kept:
        sizes = [_kept_bytes(function, images[: count + 1].clone(), known) for count in range(len(images))]
        return Kept(once=max(0, 2 * sizes[0] - sizes[1]), image=sizes[1] - sizes[0]) if sizes[1:] else Kept(0, sizes[0])

    step = kept(lambda x: diffusion_filter.p_sample(x, index, torch.zeros_like(x)))
    return step, kept(partial(logits_of, classifier))


def _kept_bytes(function: Callable[[Tensor], Tensor], images: Tensor, known: set[int]) -> int:
    """Bytes of all storages that autograd keeps, but for the known ones."""
    found = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = function(images.requires_grad_())
    del output  # until here it has kept all storages alive, each at its own place
    return sum(size for place, size in found.items() if place not in known)
