"""What the run folder costs, and how a run scales from one process to two, each bound to one core.

python -m benchmarks.distributed

Explains avatars with the weights of the repository and prints the table of docs/distributed.md. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from ace.run_store import RunStore
from lit_modules import commands

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="images of the longer run; the shorter one has a half")
    parser.add_argument("--iterations", type=int, default=10, help="of the attack")
    parser.add_argument("--slots", type=int, default=8, help="images of a process at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"run folder: {share_of_writing(Path(folder), options):.2%} of the time of a run")
        seconds = {processes: seconds_per_image(Path(folder), processes, options) for processes in (1, 2)}
    for processes, each in seconds.items():
        print(f"{processes} processes of one core: {each:.2f} s an image, start and end left out")
    print(f"efficiency of two: {seconds[1] / seconds[2] / 2:.1%}")


def arguments(folder: Path, images: int, options: argparse.Namespace) -> list[str]:
    """Of a run into a new folder."""
    return [
        "generate",
        f"--config={ROOT / 'configs' / 'avatars' / 'explain.yaml'}",
        f"--output_dir={folder}",
        f"--data.num_images={images}",
        "--data.num_workers=0",
        f"--model.attack.iterations={options.iterations}",
        f"--model.slots={options.slots}",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]


def share_of_writing(folder: Path, options: argparse.Namespace) -> float:
    """Time in `RunStore.add`, as a share of the time between the first image's entry and the last record."""
    spent, add = [], RunStore.add

    def timed(*call: object) -> None:
        started = time.perf_counter()
        add(*call)
        spent.append(time.perf_counter() - started)

    with patch.object(RunStore, "add", timed):
        store = commands.generate(arguments(folder / "alone", options.images // 2, options)[1:])
    return sum(spent) / (sum(spent) + sum(record.seconds for record in store.records()))


def seconds_per_image(folder: Path, processes: int, options: argparse.Namespace) -> float:
    """From two runs of different length: what both need, such as the imports, cancels out."""
    times = []
    for images in (options.images // 2, options.images):
        run = arguments(folder / f"{processes}-{images}", images, options)
        started = time.perf_counter()
        port = free_port()
        ranks = [start(run, rank, processes, port) for rank in range(processes)]
        if any(rank.wait() for rank in ranks):
            sys.exit("a run has failed, see above")
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (options.images - options.images // 2)


def start(run: list[str], rank: int, processes: int, port: int) -> subprocess.Popen:
    """Start one process of a run on the core of its number; Lightning reads its place from the environment."""
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    several = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, str(ROOT / "explain.py"), *run, *several],
        env=os.environ | {name: str(value) for name, value in place.items()},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {rank}),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
