"""Time, passes, memory and FLOPs of a counterfactual, beside a plain loop of the published algorithm, in one run.

python -m benchmarks.generate
python -m benchmarks.generate --networks celeba_hq --slots 1 8 16 --precision bf16-mixed
python -m benchmarks.generate --docs docs      (writes benchmark.md and images/benchmark.png there, too)

Networks have random weights, but for the demo's: time does not depend on them. Variants are measured in turn, several
times over; medians are printed. A few iterations of the attack tell as much as all of them: each costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from diffusers import DDPMScheduler, UNet2DModel
from matplotlib.figure import Figure
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ace import PGD, BinaryDecision, CounterfactualExplainer, DiffusionFilter
from ace.memory import peak_memory
from ace.models.guided_diffusion import Flags
from ace.models.unet import build_scheduler, build_unet, load_diffusion
from ace.precision import PRECISIONS, autocast
from benchmarks.published_loop import PublishedLoop

LARGE = {"learn_sigma": True, "resblock_updown": True, "use_scale_shift_norm": True, "attention_resolutions": "32,16,8"}


@dataclass(frozen=True)
class Network:
    """A diffusion model, by the flags of its architecture or its folder, and the published settings that go with it."""

    source: Flags | str
    size: int
    steps: int
    respacing: int
    classifier: str

    def build(self, device: torch.device) -> tuple[UNet2DModel, DDPMScheduler]:
        """A copy of its own, and its scheduler."""
        if isinstance(self.source, str):
            unet, scheduler = load_diffusion(self.source)
        else:
            unet, scheduler = build_unet(self.source), build_scheduler(self.source)
        return unet.to(device), scheduler


MID = Flags(64, 64, 1, "1,2,2", "16", resblock_updown=True)
CELEBA = Flags(128, 128, 2, num_heads=4, diffusion_steps=500, **LARGE)
CELEBA_HQ = Flags(256, 128, 2, num_head_channels=64, diffusion_steps=500, **LARGE)
IMAGENET = Flags(256, 256, 2, num_head_channels=64, **LARGE)
NETWORKS = {
    "mid": Network(MID, 64, 5, 50, "resnet18"),
    "demo": Network("weights/avatars/ddpm", 64, 5, 50, "resnet18"),
    "celeba": Network(CELEBA, 128, 5, 50, "densenet121"),
    "celeba_hq": Network(CELEBA_HQ, 256, 5, 25, "densenet121"),
    "imagenet": Network(IMAGENET, 256, 5, 25, "resnet50"),
}
COLUMNS = ["seconds", "images/s", "ratio", "UNet passes", "GFLOP", "share of the rate", "peak memory, GiB"]


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
    """A way to explain images, and what was measured of it; each run tells the passes of the UNet for an image."""

    name: str
    images: int
    run: Callable[[], int]
    passes: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    flops: float = 0.0

    @property
    def median(self) -> float:
        """Seconds an image."""
        return statistics.median(self.seconds) / self.images

    def measure(self, device: torch.device) -> None:
        """Time one run."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.seconds.append(timed(self.run, device))
        self.memory = max(self.memory, peak_memory(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["mid", "demo"])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8], help="images at a time, of the explainer")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["32-true"])
    parser.add_argument("--segments", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=3, help="of the attack")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--docs", type=Path, help="folder of the documentation, to write the table and a plot there")
    options = parser.parse_args()
    device = torch.device(options.device)
    rate = matrix_rate(device)
    measured = {name: measure(NETWORKS[name], options, device) for name in options.networks}
    lines = list(table(measured, options.iterations, rate, device))
    print(*lines, sep="\n")
    if options.docs:
        write_docs(options.docs, lines, measured)


def write_docs(folder: Path, lines: list[str], measured: dict[str, list[Variant]]) -> None:
    """The table and its plot, as a page of the documentation."""
    heading = "# What `make bench` measured\n\nSee [speed](speed.md) for what the numbers mean.\n"
    picture = "![Seconds an image of each variant](images/benchmark.png)"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text("\n".join([heading, *lines, "", picture, ""]), encoding="utf-8")
    plot(measured, folder / "images" / "benchmark.png")


def measure(network: Network, options: argparse.Namespace, device: torch.device) -> list[Variant]:
    """All variants, in turn; the first is the plain loop, to which the others are compared."""
    variants = list(build_variants(network, options, device))
    for _ in range(options.repeats):
        for variant in variants:
            variant.measure(device)
    return variants


def table(measured: dict[str, list[Variant]], iterations: int, rate: float, device: torch.device) -> Iterator[str]:
    """Lines of a table in markdown, all numbers for one image."""
    yield f"{device_name(device)}, torch {torch.__version__}, {iterations} iterations and the refinement."
    memory = "" if device.type == "cuda" else " Peak memory is the process's, the largest variant's in every row."
    yield f"Matrix products in float32: {rate / 1e9:.0f} GFLOP/s.{memory}\n"
    yield f"| network | variant | {' | '.join(COLUMNS)} |"
    yield "|---" * (2 + len(COLUMNS)) + "|"
    for name, variants in measured.items():
        for variant in variants:
            seconds, flops = variant.median, variant.flops / variant.images
            yield (
                f"| {name} | {variant.name} | {seconds:.3f} | {1 / seconds:.3g} | {variants[0].median / seconds:.2f} "
                f"| {variant.passes} | {flops / 1e9:.0f} | {flops / seconds / rate:.0%} "
                f"| {variant.memory / 2**30:.1f} |"
            )


def plot(measured: dict[str, list[Variant]], path: Path) -> None:
    """Bars of the seconds an image, and of each variant's fastest and slowest run."""
    figure = Figure(figsize=(4.5 * len(measured), 2.6), layout="constrained")
    [panels] = figure.subplots(1, len(measured), squeeze=False)
    for axes, (name, variants) in zip(panels, measured.items(), strict=True):
        middle = [variant.median for variant in variants]
        ends = [[seconds / variant.images for seconds in sorted(variant.seconds)] for variant in variants]
        errors = [
            [m - run[0] for m, run in zip(middle, ends, strict=True)],
            [run[-1] - m for m, run in zip(middle, ends, strict=True)],
        ]
        axes.barh([variant.name for variant in variants], middle, xerr=errors, color="tab:blue", ecolor="black")
        axes.invert_yaxis()
        axes.set(title=name, xlabel="seconds an image")
    figure.savefig(path, dpi=110)


def build_variants(network: Network, options: argparse.Namespace, device: torch.device) -> Iterator[Variant]:
    """The plain loop, and the explainer with each number of slots and precision; each has run once to warm up."""
    torch.manual_seed(0)
    images = torch.rand(max(options.slots), 3, network.size, network.size).to(device)
    classifier = torchvision.models.get_model(network.classifier, num_classes=1).eval().to(device)

    def prepare(name: str, count: int, run: Callable[[], int]) -> Variant:
        variant = Variant(name, count, run)
        run()  # the first run also checks the networks
        with Flops() as counter:
            variant.passes = run()
        variant.flops = counter.total
        return variant

    for half in [False, True] if device.type == "cuda" else [False]:
        unet, scheduler = network.build(device)
        loop = PublishedLoop(unet, scheduler, classifier, network.steps, network.respacing, options.iterations, half)

        def run_loop(loop: PublishedLoop = loop) -> int:
            loop(images[:1], 1.0)
            return network.steps * (2 * options.iterations + 1)

        yield prepare(f"plain loop, {'float16' if half else 'float32'}", 1, run_loop)
    for precision in options.precision:
        for slots in options.slots:
            explain = explainer(network, options, slots, classifier, device)

            def run(explain: CounterfactualExplainer = explain, slots: int = slots, name: str = precision) -> int:
                with autocast(device, name):
                    explanations = explain.explain(images[:slots])
                if odd := {e.status for e in explanations} - {"flipped", "not_flipped"}:
                    raise RuntimeError(f"not every image was explained, and passes would be missing: {odd}")
                return explanations[0].unet_forwards + explanations[0].unet_backwards

            yield prepare(f"{slots} at a time, {precision}", slots, run)


def explainer(
    network: Network, options: argparse.Namespace, slots: int, classifier: nn.Module, device: torch.device
) -> CounterfactualExplainer:
    """The explainer with the published settings."""
    unet, scheduler = network.build(device)
    if options.device == "cuda":
        unet.to(memory_format=torch.channels_last)  # as `explain.py` has it
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
