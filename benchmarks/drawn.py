r"""What metrics say of counterfactuals that are drawn, with the attribute turned, and of images left as they are.

python -m benchmarks.drawn FOLDER
python explain.py evaluate FOLDER --experiment drawn --config configs/avatars/evaluate.yaml --splits 5 \
    --subsets all --min_images 64 --classifier weights/avatars/classifier --query smiling

Writes test avatars in the layout of the published code, a scale for distances like sFID; the other experiment is
``unchanged``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ace.images import save_png
from datamodules import AvatarsDataModule
from datamodules.avatar_faces import counterparts, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--query", default="smiling")
    options = parser.parse_args()
    dataset = AvatarsDataModule().dataset("test")
    for index in range(options.images):
        face, name = dataset.face(index), f"{dataset.ids[index]}.png"
        original = render(face.factors)
        write(original, options.folder / "Original" / "Correct" / name)
        drawn = next(counterparts(face, options.query))
        for experiment, picture in (("drawn", drawn), ("unchanged", original)):
            write(picture, options.folder / "Results" / experiment / "CC" / "CCF" / "CF" / name)


def write(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, path)


if __name__ == "__main__":
    main()
