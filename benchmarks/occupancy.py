"""How full the slots are in a run whose images finish after different numbers of iterations.

python -m benchmarks.occupancy

Explains avatars by sparse steps along the exact gradient (tau 5 of 50, mask 0.15, no repairs) with continuous batching,
and computes what batches that wait for their last image would have needed.
"""

from __future__ import annotations

import argparse

import torch

from ace import CounterfactualExplainer, DiffusionFilter, ProximalGradient, Refinement, Stop
from ace.decision import decision_for
from ace.models.foreign import load_classifier
from ace.models.unet import load_diffusion
from datamodules import AvatarsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    explainer = make_explainer(options.slots)
    calls: list[None] = []  # one for each iteration of the slots
    explainer.pool.listeners.append(lambda: calls.append(None))
    dataset = AvatarsDataModule().dataset("test")
    dataset.draw_first(options.images)
    images = torch.stack([dataset[row]["image"] for row in range(options.images)])
    iterations = [explanation.iterations for explanation in explainer.explain(images)]
    waiting = sum(options.slots * int(batch.max()) for batch in torch.tensor(iterations).split(options.slots))
    print(f"{options.images} images, {min(iterations)} to {max(iterations)} iterations, {options.slots} slots")
    print(f"continuous batching: {sum(iterations) / (options.slots * len(calls)):.1%} of the slots are taken")
    print(f"batches that wait for their last image: {sum(iterations) / waiting:.1%}")


def make_explainer(slots: int) -> CounterfactualExplainer:
    classifier = load_classifier("weights/avatars/classifier")
    attack = ProximalGradient(step_size=25.0, threshold=2.5, stop=Stop(0.99, 3))
    diffusion_filter = DiffusionFilter(*load_diffusion("weights/avatars/ddpm"))
    refinement = Refinement(0.15, 5)
    decision = decision_for(classifier, "smiling")
    return CounterfactualExplainer(classifier, decision, diffusion_filter, attack, refinement=refinement, slots=slots)


if __name__ == "__main__":
    main()
