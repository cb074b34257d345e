"""Time, passes, memory and FLOPs of a counterfactual, beside a plain loop of the published algorithm, in one run.

python -m benchmarks.generate
python -m benchmarks.generate --networks celeba_hq --slots 1 8 16 --precision bf16-mixed

Networks have random weights: time does not depend on them. Variants are measured in turn, several times over; medians
are printed. A few iterations of the attack tell as much as all of them: each costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ace import PGD, BinaryDecision, CounterfactualExplainer, DiffusionFilter
from ace.memory import peak_memory
from ace.models.guided_diffusion import Flags
from ace.models.unet import build_scheduler, build_unet
from benchmarks.published_loop import PublishedLoop

LARGE = {"learn_sigma": True, "resblock_updown": True, "use_scale_shift_norm": True, "attention_resolutions": "32,16,8"}


@dataclass(frozen=True)
class Network:
    """A diffusion model's architecture and the published settings that go with it."""

    flags: Flags
    steps: int
    respacing: int
    classifier: str


NETWORKS = {
    "mid": Network(Flags(64, 64, 1, "1,2,2", "16", resblock_updown=True), 5, 50, "resnet18"),
    "celeba": Network(Flags(128, 128, 2, num_heads=4, diffusion_steps=500, **LARGE), 5, 50, "densenet121"),
    "celeba_hq": Network(Flags(256, 128, 2, num_head_channels=64, diffusion_steps=500, **LARGE), 5, 25, "densenet121"),
    "imagenet": Network(Flags(256, 256, 2, num_head_channels=64, **LARGE), 5, 25, "resnet50"),
}

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Flops(TorchDispatchMode):
    """Counts floating-point operations with torch's formulas; its own counter cannot follow gradients of inputs."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass
class Variant:
    """A way to explain images, and what was measured of it."""

    name: str
    images: int
    run: Callable[[], None]
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    flops: float = 0.0

    def measure(self, device: torch.device) -> None:
        """Time one run."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.seconds.append(timed(self.run, device))
        self.memory = max(self.memory, peak_memory(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["mid"])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8], help="images at a time, of the explainer")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["32-true"])
    parser.add_argument("--segments", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=3, help="of the attack")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    rate = matrix_rate(device)
    print(f"{device_name(device)}, torch {torch.__version__}; matrix products in float32: {rate / 1e9:.0f} GFLOP/s\n")
    print("| network | variant | seconds an image | ratio | GFLOP an image | share of the rate | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|")
    for name in options.networks:
        for row in rows(NETWORKS[name], options, device, rate):
            print(f"| {name} | {row} |")


def rows(network: Network, options: argparse.Namespace, device: torch.device, rate: float) -> Iterator[str]:
    """A line of the table for each variant; the first is the plain loop, to which the others are compared."""
    variants = list(build_variants(network, options, device))
    for _ in range(options.repeats):
        for variant in variants:
            variant.measure(device)
    base = None
    for variant in variants:
        seconds = statistics.median(variant.seconds) / variant.images
        base = base or seconds
        flops = variant.flops / variant.images
        yield (
            f"{variant.name} | {seconds:.3f} | {base / seconds:.2f} | {flops / 1e9:.0f} | {flops / seconds / rate:.0%} "
            f"| {variant.memory / 2**30:.1f}"
        )


def build_variants(network: Network, options: argparse.Namespace, device: torch.device) -> Iterator[Variant]:
    """The plain loop, and the explainer with each number of slots and precision; each has run once to warm up."""
    torch.manual_seed(0)
    size = network.flags.image_size
    images = torch.rand(max(options.slots), 3, size, size).to(device)
    classifier = torchvision.models.get_model(network.classifier, num_classes=1).eval().to(device)

    def prepare(name: str, count: int, run: Callable[[], None]) -> Variant:
        variant = Variant(name, count, run)
        run()  # the first run also checks the networks
        with Flops() as counter:
            run()
        variant.flops = counter.total
        return variant

    halves = [False, True] if device.type == "cuda" else [False]
    for half in halves:
        unet, scheduler = build_unet(network.flags).to(device), build_scheduler(network.flags)
        loop = PublishedLoop(unet, scheduler, classifier, network.steps, network.respacing, options.iterations, half)
        yield prepare(f"plain loop, {'float16' if half else 'float32'}", 1, lambda loop=loop: loop(images[:1], 1.0))
    for precision in options.precision:
        for slots in options.slots:
            explain = explainer(network, options, slots, classifier, device)

            def run(explain: CounterfactualExplainer = explain, slots: int = slots, name: str = precision) -> None:
                with torch.autocast(device.type, PRECISIONS[name], enabled=PRECISIONS[name] is not None):
                    explain.explain(images[:slots], targets=torch.ones(slots, dtype=torch.long, device=device))

            yield prepare(f"{slots} at a time, {precision}", slots, run)


def explainer(
    network: Network, options: argparse.Namespace, slots: int, classifier: nn.Module, device: torch.device
) -> CounterfactualExplainer:
    """The explainer with the published settings and fresh weights."""
    unet, scheduler = build_unet(network.flags), build_scheduler(network.flags)
    diffusion_filter = DiffusionFilter(unet, scheduler, network.steps, network.respacing, segments=options.segments)
    attack = PGD(options.iterations)
    return CounterfactualExplainer(classifier, BinaryDecision(), diffusion_filter.to(device), attack, slots=slots)


def timed(run: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second in a product of square matrices, the best of some."""
    a, b = torch.randn(2, size, size, device=device)
    a @ b
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(5))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


if __name__ == "__main__":
    main()
