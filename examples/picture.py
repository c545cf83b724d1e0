"""The curves of a run as a picture: losses on the left, and on the right how far each arm is above bf16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from examples.results import BASELINE, ArmResult, smooth

COLOURS = {"bf16": "#4a4e57", "nvfp4-plain": "#d1603d", "averis": "#1b7f8c"}
OTHERS = ("#8c5fbf", "#b8860b", "#3f7d3f", "#b03a6f")
INK, FAINT = "#23262d", "#9aa0ab"
GAP_MEMORY = 0.97  # a gap is a small difference of noisy losses: it needs more smoothing than they do


def draw_curves(arms: Sequence[ArmResult], path: Path) -> None:
    """Write a PNG to `path`: training losses smoothed, validation losses as dots, labels at the ends.

    The right half is drawn when the baseline and another arm have trained; it shows loss / baseline's - 1
    of the smoothed training losses, which are over the same batches, and of the validation losses.
    """
    arms = [arm for arm in arms if arm.train_loss]
    colours = {arm.name: colour for arm, colour in zip(arms, _colours(arms), strict=True)}
    baseline = next((arm for arm in arms if arm.name == BASELINE), None)
    compared = [arm for arm in arms if arm is not baseline] if baseline else []
    halves = 2 if compared else 1
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
    figure, axes = plt.subplots(1, halves, figsize=(7 * halves, 4.6), dpi=140, squeeze=False, layout=layout)
    _draw_losses(axes[0, 0], arms, colours)
    if baseline and compared:
        _draw_gaps(axes[0, 1], baseline, compared, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _draw_losses(axes: Axes, arms: Sequence[ArmResult], colours: dict[str, str]) -> None:
    for arm in arms:
        axes.plot(range(1, len(arm.train_loss) + 1), smooth(arm.train_loss), color=colours[arm.name], linewidth=1.6)
        _dots(axes, arm.validation, colours[arm.name])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _style(axes, "Loss, nats a byte", "line: training, smoothed · dots: validation")
    ends = {arm.name: arm.validation[-1][1] if arm.validation else smooth(arm.train_loss)[-1] for arm in arms}
    _label_ends(axes, ends, {arm.name: f"{_title(arm)} {ends[arm.name]:.3f}" for arm in arms}, colours)


def _draw_gaps(axes: Axes, baseline: ArmResult, arms: Sequence[ArmResult], colours: dict[str, str]) -> None:
    axes.axhline(0, color=colours[BASELINE], linewidth=1.2)
    reference, held_out = smooth(baseline.train_loss, GAP_MEMORY), dict(baseline.validation)
    ends, labels = {BASELINE: 0.0}, {BASELINE: BASELINE}
    for arm in arms:
        gaps = [100 * (a / b - 1) for a, b in zip(smooth(arm.train_loss, GAP_MEMORY), reference, strict=False)]
        validation = [(step, 100 * (loss / held_out[step] - 1)) for step, loss in arm.validation if step in held_out]
        axes.plot(range(1, len(gaps) + 1), gaps, color=colours[arm.name], linewidth=1.6)
        _dots(axes, validation, colours[arm.name])
        if gaps:
            ends[arm.name] = validation[-1][1] if validation else gaps[-1]
            labels[arm.name] = f"{_title(arm)} {ends[arm.name]:+.2f} %"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
    _style(axes, f"Loss above {BASELINE}'s", "same batches · line: training, smoothed · dots: validation")
    _label_ends(axes, ends, labels, colours)


def _dots(axes: Axes, points: Sequence[tuple[int, float]], colour: str) -> None:
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.9)


def _style(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.025, subtitle, transform=axes.transAxes, color=FAINT, fontsize=9)
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.margins(x=0.01)


def _label_ends(axes: Axes, ends: dict[str, float], labels: dict[str, str], colours: dict[str, str]) -> None:
    """Write each label right of its curve's end, moved up where it would cover the one below."""
    axes.autoscale_view()  # otherwise done when drawing, too late for the positions below
    to_height = axes.transData + axes.transAxes.inverted()
    floor = -1.0
    for name in sorted(ends, key=lambda name: ends[name]):
        height = max(float(to_height.transform((1, ends[name]))[1]), floor + 0.055)
        floor = height
        text: dict[str, Any] = {"color": colours[name], "fontsize": 9.5, "fontweight": "bold", "va": "center"}
        axes.annotate(labels[name], (1.015, height), xycoords="axes fraction", annotation_clip=False, **text)


def _title(arm: ArmResult) -> str:
    return f"{arm.name} (to step {len(arm.train_loss)})" if arm.interrupted else arm.name


def _colours(arms: Sequence[ArmResult]) -> list[str]:
    spare = iter(OTHERS * len(arms))
    return [COLOURS.get(arm.name) or next(spare) for arm in arms]
