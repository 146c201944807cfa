"""The picture that `quality` opens with: the gain on each workload, a panel for each length of the runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.lines import Line2D

from benchmarks import report as pages
from gen_optax.plot import BLUE, GREY, ORANGE

REACH = 30.0
"""Gains beyond, in per cent, stand at the edge with an arrow and their number: one of -400 would hide all others."""

_LETTERS = 10.0  # points: no smaller ones, they are to be read where a phone shows the picture at half its size
_ROW = 0.42  # inches: four lanes
_NUMBER = 40.0  # points: an arrow with its number
_GEN: dict[str, dict[str, Any]] = {
    "gen_horizon": {"label": "GeN, steps given", "color": BLUE, "marker": "o", "ms": 5.5},
    "gen": {"label": "GeN, open end", "color": ORANGE, "marker": "s", "ms": 5},
}
_LIGHT: dict[str, dict[str, Any]] = {
    "untuned AdamW, 1e-3": {"label": "AdamW at 1e-3, untuned", "color": GREY, "marker": "x", "ms": 5},
    "prodigy:schedule=cosine": {"label": "Prodigy with cosine", "color": GREY, "marker": "^", "ms": 5, "mfc": "none"},
}
METHODS = (*_GEN, *_LIGHT)
_LANES = dict(zip(METHODS, (-0.33, -0.11, 0.11, 0.33), strict=True))  # in rows


class Gain(NamedTuple):
    """Per cent beside the tuned baseline, and their standard error.

    The value is minus infinity where a seed failed, the error NaN where there are too few seeds for one.
    """

    value: float
    error: float


Panel = Mapping[str, Mapping[str, Gain]]  # by workload and method


def draw(path: Path, panels: Mapping[str, Panel]) -> None:
    """Draws the panels below each other, by their titles; all have the order of workloads of the first.

    GeN has a dot with its standard error; the others have a light mark, where they are known.
    """
    rows = {title: _ordered(panel, next(iter(panels.values()))) for title, panel in panels.items()}
    heights = [len(names) * _ROW for names in rows.values()]
    size = (5.2, sum(heights) + 0.4 * len(panels) + 1.0)
    shared = {"sharex": True, "height_ratios": heights}
    with pages.picture(path, rows=len(panels), size=size, **shared) as axes:
        for axis, (title, names) in zip(axes.flat, rows.items(), strict=True):
            axis.set_title(title, loc="left", fontsize=_LETTERS, fontweight="bold")
            _panel(axis, [panels[title][name] for name in names])
            axis.set_yticks(range(len(names)), names, fontsize=_LETTERS)
        axes[-1, 0].set_xlabel("gain beside the tuned baseline, per cent", fontsize=_LETTERS)
        known = {method for panel in panels.values() for gains in panel.values() for method in gains}
        lines = [Line2D([], [], ls="none", **style) for method, style in (_GEN | _LIGHT).items() if method in known]
        axes[0, 0].figure.legend(handles=lines, loc="outside upper left", ncols=2, frameon=False, fontsize=_LETTERS)


def _ordered(panel: Panel, first: Panel) -> list[str]:
    """The workloads, the greatest gain first; those of the first panel in its order."""

    def key(name: str) -> tuple[bool, float]:
        gains = first.get(name) or panel[name]
        return name not in first, -next(gains[method].value for method in _GEN if method in gains)

    return sorted(panel, key=key)


def _panel(axis: Any, rows: list[Mapping[str, Gain]]) -> None:
    axis.set(xlim=(-REACH - 2, REACH + 2), ylim=(len(rows) - 0.5, -0.5))
    axis.tick_params(left=False, labelsize=_LETTERS)
    axis.spines["left"].set_visible(False)
    axis.axvline(0.0, color="black", lw=1)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    for y, gains in enumerate(rows):
        if y:
            axis.axhline(y - 0.5, color="0.92", lw=0.8)
        near = False  # whether a number stands at the edge in the lane above
        for method, style in (_GEN | _LIGHT).items():
            off = method in gains and abs(gains[method].value) > REACH
            indent, near = off and near, off and not near
            if method in gains:
                if method in _GEN:
                    _bar(axis, gains[method], y + _LANES[method], style["color"])
                _mark(axis, gains[method].value, y + _LANES[method], style, indent)


def _bar(axis: Any, gain: Gain, y: float, color: str) -> None:
    if abs(gain.value) <= REACH and math.isfinite(gain.error):
        axis.plot([gain.value - gain.error, gain.value + gain.error], [y, y], color=color, lw=1.8)


def _mark(axis: Any, value: float, y: float, style: Mapping[str, Any], indent: bool) -> None:
    """A mark at its place, or at the edge with an arrow and the number.

    Letters are higher than a lane, so the numbers of two neighbouring lanes stand beside each other.
    """
    side = math.copysign(1, value)
    off = abs(value) > REACH
    x = side * REACH if off else value
    axis.plot([x], [y], ls="none", clip_on=False, zorder=3, **style)
    if off:
        number = f"{value:+.0f}" if math.isfinite(value) else "failed"
        axis.annotate(
            f"← {number}" if value < 0 else f"{number} →",
            (x, y),
            (-(7 + _NUMBER * indent) * side, -0.5),
            textcoords="offset points",
            ha="left" if value < 0 else "right",
            va="center",
            fontsize=9,
            color=style["color"],
        )
