"""What a calibration measured, as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ace.calibration import Survival
from ace.report.sheet import BAD, EDGE, GOOD, GREY, INK, save_sheet
from ace.settings_search import MASK_NAMES, Trial, attack_names, choose

_SMALL, _MEDIUM = 6.5, 8
_UP = "mean l1 (green: chosen, red: flips fewer)"


def write_calibration(
    path: str | Path,
    curve: Sequence[Survival],
    share: float,
    tau: int,
    attacks: Sequence[Trial],
    masks: Sequence[Trial],
) -> Path:
    """Draw the curve over tau, and what the settings of attack and mask gave.

    Args:
        path: file to write or replace, `.png` or `.pdf`; its folder exists.
        curve: the survival of the decisions.
        share: how much of it was asked for.
        tau: which one was chosen.
        attacks, masks: the trials.

    Returns:
        The path.

    Raises:
        ValueError: the name ends otherwise.
        WriteError: the disk is full, or the folder cannot be written.
    """
    figure = Figure(figsize=(10.5, 3.2), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 3)
    _draw_curve(axes[0], curve, share, tau)
    names = attack_names(attacks[0].settings)
    _draw_trials(axes[1], attacks, lambda trial: trial.outcome.passes, names)
    _label(axes[1], f"Attack: {choose(attacks).settings.describe(names)}", "UNet passes an image", _UP)
    _draw_trials(axes[2], masks, lambda trial: trial.settings.mask_threshold, MASK_NAMES)
    _label(axes[2], f"Mask: {choose(masks).settings.describe(MASK_NAMES)}", "mask_threshold", _UP)
    for part in axes:
        part.spines[["top", "right"]].set_visible(False)
        part.grid(color=EDGE, linewidth=0.5)
        part.tick_params(labelsize=_SMALL, colors=GREY)
    return save_sheet(figure, path, dpi=140)


def _draw_curve(axes: Axes, curve: Sequence[Survival], share: float, tau: int) -> None:
    taus, shares = [point.tau for point in curve], [point.share for point in curve]
    low, high = zip(*(point.interval for point in curve), strict=True)
    axes.fill_between(taus, low, high, color=EDGE)
    axes.plot(taus, shares, marker="o", markersize=3, linewidth=1, color=INK)
    axes.axhline(share, color=GREY, linewidth=0.8, linestyle="--")
    axes.plot([tau], [shares[taus.index(tau)]], marker="o", color=GOOD)
    _label(axes, f"Decisions that survive: tau {tau}", "tau, respaced steps", "share, with 95 % interval")


def _draw_trials(axes: Axes, trials: Sequence[Trial], across: Callable[[Trial], float], names: Sequence[str]) -> None:
    """Closeness over a number of each trial; settings that flip fewer images than the chosen ones are drawn as bad."""
    chosen = choose(trials)
    axes.margins(x=0.15)  # for the text
    for trial in trials:
        found = trial.outcome
        if found is None or not found.flipped:
            continue
        colour = GOOD if trial is chosen else BAD if found.flipped < chosen.outcome.flipped else INK
        point = (across(trial), found.l1)
        axes.plot(*point, marker="o", markersize=4, linestyle="", color=colour)
        text = ", ".join(f"{getattr(trial.settings, name):g}" for name in names)
        axes.annotate(text, point, (4, 2), textcoords="offset points", fontsize=_SMALL, color=colour)


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=_MEDIUM, color=INK, loc="left")
    axes.set_xlabel(across, fontsize=_SMALL, color=GREY)
    axes.set_ylabel(up, fontsize=_SMALL, color=GREY)
