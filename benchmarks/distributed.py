"""What the run folder costs, and how a run scales from one process to two, each bound to one core.

python -m benchmarks.distributed

Explains avatars with the weights of the repository and prints the table of docs/distributed.md. Wants a quiet machine.
Two independent runs at a time, one on each core, show what the hardware loses; the rest is lost by the distribution.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from callbacks.counterfactual_writer import CounterfactualWriter
from lit_modules import commands

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="images of the longer run; the shorter one has a half")
    parser.add_argument("--iterations", type=int, default=10, help="of the attack")
    parser.add_argument("--slots", type=int, default=8, help="images of a process at a time")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"waiting for the run folder: {share_of_writing(Path(folder), options):.2%} of the time of a run")
        ways = {"one process": (1, 1), "two processes": (1, 2), "two runs of one process": (2, 1)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(options.repeats):
            for name, way in ways.items():
                times[name].append(seconds_per_image(Path(folder) / f"{repeat}", *way, options))
    base = statistics.median(times["one process"])
    for name, values in times.items():
        each, processes = statistics.median(values), math.prod(ways[name])
        print(f"{name}: {each:.3f} s an image, efficiency {base / each / processes:.1%} ({values})")


def arguments(folder: Path, images: int, options: argparse.Namespace) -> list[str]:
    """Of a run into a new folder."""
    return [
        "generate",
        f"--config={ROOT / 'configs' / 'avatars' / 'explain.yaml'}",
        f"--output_dir={folder}",
        f"--data.num_images={images}",
        "--data.num_workers=0",
        f"--model.attack.iterations={options.iterations}",
        "--model.attack.stop=null",  # the same work for every image
        f"--model.slots={options.slots}",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]


def share_of_writing(folder: Path, options: argparse.Namespace) -> float:
    """Time that a run waits for its writer, as a share of the time between the first image's entry and the last one."""
    spent = []

    def timed(hook: Callable) -> Callable:
        def wrapped(*call: object) -> None:
            started = time.perf_counter()
            hook(*call)
            spent.append(time.perf_counter() - started)

        return wrapped

    hooks = ("_store", "on_predict_end")  # at each iteration and batch, and at the end
    with patch.multiple(CounterfactualWriter, **{name: timed(getattr(CounterfactualWriter, name)) for name in hooks}):
        store = commands.generate(arguments(folder / "alone", options.images // 2, options)[1:])
    return sum(spent) / (sum(spent) + sum(record.seconds for record in store.records()))


def seconds_per_image(folder: Path, runs: int, processes: int, options: argparse.Namespace) -> float:
    """From two sizes of a run: what both need, such as the imports, cancels out."""
    times, sizes = [], (options.images // 3, options.images)
    for images in sizes:
        started, commands = time.perf_counter(), []
        for run in range(runs):
            call = arguments(folder / f"{runs}-{processes}-{images}-{run}", images, options)
            port = free_port()
            commands += [start(call, rank, processes, port, core=run + rank) for rank in range(processes)]
        if any(command.wait() for command in commands):
            sys.exit("a run has failed, see above")
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (sizes[1] - sizes[0]) / runs


def start(run: list[str], rank: int, processes: int, port: int, core: int) -> subprocess.Popen:
    """Start one process of a run on a core; Lightning reads its place from the environment."""
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    several = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, str(ROOT / "explain.py"), *run, *several],
        env=os.environ | {name: str(value) for name, value in place.items()},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
