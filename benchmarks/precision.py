"""What a precision does to the gradient and to the explanations: agreement with float32.

python -m benchmarks.precision

Input gradients of avatars through the filter, in float32 and by autocast of the UNet: how many signs agree. Then the
same images are explained: flips, distance, time.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from ace import CounterfactualExplainer, Explanation
from ace.noise import draw, generator
from ace.precision import PRECISIONS, autocast
from benchmarks.occupancy import make_explainer
from datamodules import AvatarsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--modes", nargs="+", choices=PRECISIONS, default=list(PRECISIONS)[:2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # else float32, to which the others are compared, is not float32 on GPUs
    dataset = AvatarsDataModule().dataset("test")
    dataset.draw_first(options.images)
    images = torch.stack([dataset[row]["image"] for row in range(options.images)]).to(options.device)
    explainer = make_explainer(slots=8)
    explainer.diffusion_filter.to(options.device)
    explainer.classifier.to(options.device)
    print("| precision | signs as in float32 | cosine | flipped | mean l1 | iterations | s an image |")
    print("|---|---|---|---|---|---|---|")
    exact = None
    for name in options.modes:
        with autocast(options.device, name):
            gradient = gradients(explainer, images)
            exact = gradient if exact is None else exact
            started = time.perf_counter()
            explanations = explainer.explain(images)
            seconds = (time.perf_counter() - started) / len(images)
        print(f"| {name} | {row(gradient, exact, explanations)} | {seconds:.2f} |")


def gradients(explainer: CounterfactualExplainer, images: Tensor) -> Tensor:
    """Gradients of the first iteration of the attack, shape (N, C, H, W)."""
    decision, steps = explainer.decision, explainer.diffusion_filter.steps
    with torch.no_grad():
        target = 1 - decision.prediction(explainer.classifier(images))
    noise = draw(
        [generator(0, str(k), "precision") for k in range(len(images))], steps, images.shape[1:], images.device
    )
    parts = zip(images.split(8), target.split(8), noise.split(8, dim=1), strict=True)
    evaluate = explainer.pool.objective.evaluate
    return torch.cat([evaluate(x, x, goal, torch.zeros_like(goal).float(), draws).gradient for x, goal, draws in parts])


def row(gradient: Tensor, exact: Tensor, explanations: list[Explanation]) -> str:
    count = len(explanations)
    agreement = (gradient.sign() == exact.sign()).float().mean()
    cosine = torch.cosine_similarity(gradient.flatten(1), exact.flatten(1)).mean()
    l1 = sum(e.l1 for e in explanations) / count
    iterations = sum(e.iterations for e in explanations) / count
    flipped = sum(e.flipped for e in explanations)
    return f"{agreement:.2%} | {cosine:.4f} | {flipped} of {count} | {l1:.5f} | {iterations:.1f}"


if __name__ == "__main__":
    main()
