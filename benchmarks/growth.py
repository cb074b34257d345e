"""How the time of an image grows with tau, iterations, image size and images at a time; a table, and a plot.

python -m benchmarks.growth --plot docs/images/growth.png

With the diffusion model of the avatars, on images of noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ace import PGD, BinaryDecision, CounterfactualExplainer, DiffusionFilter
from ace.models.unet import load_diffusion

USUAL = {"tau": 5, "iterations": 2, "size": 64, "images": 4}
GRIDS = {"tau": (1, 3, 5, 10), "iterations": (1, 2, 4, 8), "size": (32, 64, 96, 128), "images": (1, 4, 8, 16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    times = {
        name: {value: seconds_per_image({**USUAL, name: value}, options.repeats) for value in grid}
        for name, grid in GRIDS.items()
    }
    for name, found in times.items():
        print(f"| {name} | {' | '.join(f'{value}: {seconds:.2f} s' for value, seconds in found.items())} |")
    if options.plot:
        draw(times, options.plot)


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3)) - 0.5


def seconds_per_image(settings: dict[str, int], repeats: int) -> float:
    """The median of some runs, after one that warms up."""
    unet, scheduler = load_diffusion("weights/avatars/ddpm")
    diffusion_filter = DiffusionFilter(unet, scheduler, settings["tau"])
    attack, slots = PGD(settings["iterations"]), settings["images"]
    explainer = CounterfactualExplainer(brightness, BinaryDecision(), diffusion_filter, attack, slots=slots)
    images = torch.rand(slots, 3, settings["size"], settings["size"])
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        explainer.explain(images)
        times.append((time.perf_counter() - started) / slots)
    return statistics.median(times[1:])


def draw(times: dict[str, dict[int, float]], path: Path) -> None:
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(times)), times.items(), strict=True):
        axes.plot(found.keys(), found.values(), marker="o")
        axes.set(xlabel=name, ylabel="s an image", ylim=(0, None))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
