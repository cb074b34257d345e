"""Quality of the shipped avatar weights on the test split: the figures in the README and the sample grid in docs.

python -m benchmarks.avatars_quality
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from torch import Tensor
from torch.utils.data import DataLoader

from ace.diffusion_filter import DiffusionFilter
from ace.images import save_png
from ace.models.classifiers import ImageClassifier
from ace.models.unet import load_diffusion
from ace.noise import draw, generator
from datamodules import AvatarsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights/avatars"))
    parser.add_argument("--images", type=int, default=512, help="test images to filter")
    parser.add_argument("--respacing", type=int, default=50)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 8, 12])
    parser.add_argument("--samples", type=Path, default=Path("docs/images/avatars_samples.png"))
    options = parser.parse_args()
    classifier = ImageClassifier.from_pretrained(options.weights / "classifier")
    accuracy(classifier)
    for steps in options.steps:
        filter_agreement(classifier, options.weights / "ddpm", steps, options.respacing, options.images)
    sample_grid(options.weights / "ddpm", options.samples)


def batches(count: int | None = None) -> DataLoader:
    data = AvatarsDataModule(batch_size=64)
    dataset = data.dataset("test")
    dataset.draw_first(count or len(dataset))
    return DataLoader(torch.utils.data.Subset(dataset, range(count or len(dataset))), batch_size=64)


@torch.no_grad()
def accuracy(classifier: ImageClassifier) -> None:
    hits = torch.cat([(classifier(batch["image"]) > 0) == batch["label"].bool() for batch in batches()])
    shares = hits.float().mean(0)
    for name, share in zip(classifier.class_names, shares.tolist(), strict=True):
        print(f"accuracy {name:<16} {share:.3f}")
    print(f"accuracy {'mean':<16} {shares.mean():.4f}  ({len(hits)} test images)")


@torch.no_grad()
def filter_agreement(classifier: ImageClassifier, diffusion: Path, steps: int, respacing: int, count: int) -> None:
    diffusion_filter = DiffusionFilter(*load_diffusion(diffusion), steps=steps, respacing=respacing)
    same: list[Tensor] = []
    for batch in batches(count):
        images = batch["image"]
        noise = draw([generator(0, id, "quality") for id in batch["id"]], steps, images.shape[1:], "cpu")
        same.append((classifier(images) > 0) == (classifier(diffusion_filter(images, noise)) > 0))
    agreement = torch.cat(same).float().mean(0)
    query = classifier.class_names.index("smiling")
    first = diffusion_filter.timesteps[steps - 1]
    print(
        f"C(F_tau(x)) = C(x)  tau {steps} of {respacing} (first timestep {first}): "
        f"smiling {agreement[query]:.4f}, mean over attributes {agreement.mean():.4f}  ({count} test images)"
    )


def sample_grid(diffusion: Path, path: Path, rows: int = 5, columns: int = 10) -> None:
    pipeline = DDPMPipeline.from_pretrained(diffusion, use_safetensors=True)
    pipeline.set_progress_bar_config(desc="sampling")
    output = pipeline(
        rows * columns, generator=torch.Generator().manual_seed(0), num_inference_steps=100, output_type="np"
    )
    images = (output.images * 255).round().astype("uint8")
    height, width = images.shape[1:3]
    grid = images.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(grid, path)
    print(f"samples {path}")


if __name__ == "__main__":
    main()
