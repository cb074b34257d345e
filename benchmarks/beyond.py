"""The presets side by side, on the same images and networks: the tables and plots of docs/beyond.md.

python -m benchmarks.beyond
python -m benchmarks.beyond --images 256 --seeds 0 1 2      (a day on 2 CPU cores)
python -m benchmarks.beyond --subjects plain --variants all --plot docs/images/frontier.png

Explains test images with every setting, or goes on with what is in outputs/beyond, and measures the runs with
``explain.py evaluate``. The digits need the images and networks of docs/your-own.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from ace.run_store import RunStore

ROOT = Path(__file__).parents[1]
AVATARS = ["--config=configs/avatars/explain.yaml"]
SECOND = "weights/own/second"
SUBJECTS = {
    "plain": AVATARS,
    "biased": [*AVATARS, "--model.classifier=weights/avatars/biased"],
    "robust": [*AVATARS, "--model.classifier=weights/avatars/robust"],
    "digits": [
        "--config=configs/image_folder/explain.yaml",
        "--data.root=digits",
        "--data.image_size=32",
    ],
}
TAU = {"digits": ["--model.steps=0.2"]}  # in place of the presets', see docs/your-own.md
PRESETS = ("paper", "best", "fast")


def change(preset: str, *settings: str) -> list[str]:
    """Arguments of a preset with other settings of the model."""
    return [f"--config=configs/presets/{preset}.yaml", *(f"--model.{setting}" for setting in settings)]


STEP, MASK = "attack.init_args.step_size", "refinement.threshold=0.15"
VARIANTS = {
    **{name: change(name) for name in PRESETS},
    "best, tau 2 of 12": change("best", "respacing=12", "steps=2"),
    "best, tau 3 of 12": change("best", "respacing=12", "steps=3"),
    "best, tau 4 of 25": change("best", "steps=4"),
    "best, step 12.5": change("best", f"{STEP}=12.5"),
    "best, tau 5 of 50, mask 0.15": change("best", "respacing=50", "steps=5", MASK),
    "fast, tau 3 of 12, mask 0.15": change("fast", "respacing=12", "steps=3", MASK),
    "fast, tau 4 of 17, mask 0.15": change("fast", "respacing=17", "steps=4", MASK),
    "fast, mask 0.15": change("fast", MASK),
    "fast, step 40, mask 0.15": change("fast", f"{STEP}=40", MASK),
    "fast, tau 8 of 33, mask 0.15": change("fast", "respacing=33", "steps=8", MASK),
    "fast, tau 12 of 50, mask 0.15": change("fast", "respacing=50", "steps=12", MASK),
}
TICKS = (20, 50, 100, 200, 500, 1000)
COLUMNS = {
    "passes": "UNet passes",
    "flip_rate": "valid as saved",
    "l1": "l1",
    "changed_area": "changed area",
    "cout": "COUT",
    "non_adversarial_flip_rate": "NAFR",
    "change_in_region": "in the region",
    "attributes_changed": "other attributes",
    "sfd_classifier": "sFD",
    "seconds": "s an image",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=["plain", "biased", "robust"])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, "all"], default=list(PRESETS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/beyond"))
    parser.add_argument("--plot", type=Path, help="file of the plot")
    options = parser.parse_args()
    if "all" in options.variants:
        options.variants = list(VARIANTS)
    for subject in options.subjects:
        rows = {variant: measure(subject, variant, options) for variant in options.variants}
        print(*table(subject, rows), sep="\n")
        if options.plot:
            plot(rows, options.plot.with_stem(f"{options.plot.stem}_{subject}"))


def measure(subject: str, variant: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """What the runs of all seeds gave, by column."""
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for seed in options.seeds:
        run = options.folder / subject / variant.replace(", ", "-").replace(" ", "_") / str(seed)
        own = [*TAU.get(subject, ()), f"--model.seed={seed}", f"--output_dir={run}"]
        arguments = [*SUBJECTS[subject], *VARIANTS[variant], *own]
        quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        # Also where all are done: a run of other networks or settings is refused.
        explain("generate", *arguments, f"--data.num_images={options.images}", *quiet)
        if (count := len(RunStore.open(run).finished_ids())) > options.images:
            sys.exit(
                f"error: {run} holds {count} images, not {options.images}: take --images {count}, or another --folder"
            )
        explain("evaluate", str(run), *judges(subject), "--splits=5", f"--min_images={options.images // 4}")
        metrics = json.loads((run / "metrics.json").read_text())["metrics"]
        values = {name: measured["value"] for name, measured in metrics.items()}
        values["passes"] = values["unet_forwards"] + values["unet_backwards"]
        for name, numbers in found.items():
            numbers += [values[name]] if name in values else []
    return found


def judges(subject: str) -> list[str]:
    """The networks that judge a subject's counterfactuals."""
    if subject == "digits":
        return [f"--networks.second_classifier={SECOND}", f"--networks.classifier={SECOND}"]
    return ["--config=configs/avatars/evaluate.yaml"]


def explain(*arguments: str) -> None:
    subprocess.run([sys.executable, "explain.py", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def table(subject: str, rows: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Lines of a table in markdown; with several seeds the mean and the largest deviation from it."""
    yield f"\n| {subject} | {' | '.join(COLUMNS.values())} |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for name, found in rows.items():
        yield f"| {name} | {' | '.join(cell(values) for values in found.values())} |"


def cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    digits = max(0, 3 - math.ceil(math.log10(abs(mean)))) if mean else 0
    spread = max(abs(value - mean) for value in values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def plot(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Validity, COUT, NAFR and l1 against the passes of the UNet."""
    figure, colours, marks = Figure(figsize=(14, 3.2), layout="constrained"), colormaps["tab10"], "os^"
    for axes, name in zip(figure.subplots(1, 4), ("flip_rate", "cout", "non_adversarial_flip_rate", "l1"), strict=True):
        for number, (label, found) in enumerate(rows.items()):
            axes.scatter(
                found["passes"], found[name], label=label, color=colours(number % 10), marker=marks[number // 10]
            )
        axes.set(xscale="log", xlabel=COLUMNS["passes"], ylabel=COLUMNS[name])
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.set_xticks([], minor=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right", fontsize="x-small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
