"""Memory and time of evaluating many images: as many records, whose pictures are links to a few.

The networks are cheap ones that give as many numbers as the real ones: what grows with the images is measured.

python -m benchmarks.evaluation
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ace.closeness import l1
from ace.decision import BinaryDecision
from ace.evaluation import evaluate
from ace.judges import Judges
from ace.memory import peak_memory
from ace.metrics.base import Network
from ace.record import Record
from ace.run_store import RunStore

PICTURES = 16
FEATURES, ATTRIBUTES = 2048, 40
KINDS = ("original", "counterfactual")
_MEGABYTE = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="images to evaluate")
    parser.add_argument("--size", type=int, default=256, help="their height and width")
    parser.add_argument("--cout", action="store_true", help="COUT too, which classifies 102 images for each")
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--measure", metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.measure), options.cout)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = Path(folder) / "run"
        write_run(run, options.images, options.size)
        command = [sys.executable, "-m", "benchmarks.evaluation", "--measure", str(run), *["--cout"] * options.cout]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print("{images} images: {seconds:.0f} s, peak {peak:.0f} MB, of that before {before:.0f} MB".format(**found))


def write_run(run: Path, count: int, size: int) -> None:
    """Make a run folder whose pictures, of 8x8 coloured squares, are links to a few."""
    store, random = RunStore.create(run, {}, {}), np.random.default_rng(0)
    with patch("os.fsync", lambda _: None):
        for index in range(count):
            images = {}
            if index < PICTURES:
                squares = {kind: random.integers(0, 256, (8, 8, 3), np.uint8) for kind in KINDS}
                images = {kind: few.repeat(size // 8, 0).repeat(size // 8, 1) for kind, few in squares.items()}
            store.add(_record(f"image-{index:06d}", random.random()), images)
            for kind in () if images else KINDS:
                drawn = store.image_path(kind, f"image-{index % PICTURES:06d}")
                os.link(drawn, store.image_path(kind, f"image-{index:06d}"))


def _record(id: str, number: float) -> Record:
    numbers = dict.fromkeys(("p_before", "p_attack", "p_after", "l1", "l2", "linf", "changed_area", "seconds"), number)
    costs = {"iterations": 25, "unet_forwards": 155, "unet_backwards": 150, "peak_memory": 2**30}
    classes = {"label": 0, "prediction": 0, "target": 1}
    return Record(id=id, flipped=True, seed=0, status="flipped", **classes, **numbers, **costs)


def measure(run: Path, cout: bool) -> None:
    """Print, as JSON, how long the evaluation takes and the peak of memory before and after, in megabytes."""
    store, device = RunStore.open(run), torch.device("cpu")
    judges = Judges(
        classifier=outputs(1) if cout else None,
        decision=BinaryDecision(),
        second=outputs(1),
        second_decision=BinaryDecision(),
        oracle=outputs(ATTRIBUTES),
        query=0,
        correlations=torch.zeros(ATTRIBUTES),
        faces=outputs(FEATURES),
        scenes=outputs(FEATURES),
        encoders={"inception": outputs(FEATURES)},
        distances={"lpips": l1},
        splits=2,
    )
    before, start = peak_memory(device), time.perf_counter()
    metrics = evaluate(store, judges)
    seconds, peak = time.perf_counter() - start, peak_memory(device)
    memory = {"peak": peak / _MEGABYTE, "before": before / _MEGABYTE}
    print(json.dumps({"images": metrics["n"], "seconds": seconds, **memory}))


def outputs(count: int) -> Network:
    """A network of so many outputs: products of the image, made small, with fixed random numbers."""
    weights = torch.randn(3 * 16 * 16, count, generator=torch.Generator().manual_seed(0))

    def network(images: Tensor) -> Tensor:
        return (F.interpolate(images, (16, 16)).flatten(1) - 0.5) @ weights

    return network


if __name__ == "__main__":
    main()
