"""The picture of `quality` about stopping at any time: the test metric against the steps, a panel for each workload."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import NullFormatter

from benchmarks import report as pages
from gen_optax.plot import BLUE, GREY, ORANGE

STYLES: dict[str, dict[str, Any]] = {
    "tuned": {"label": "schedule tuned for each length", "color": GREY, "marker": "x", "ls": ":", "ms": 5},
    "gen_horizon": {"label": "GeN, steps given", "color": BLUE, "marker": "o", "ls": ":", "ms": 5},
    "gen": {"label": "GeN, open end: one run", "color": ORANGE, "marker": "s", "ls": "-", "ms": 4.5},
}
"""What is drawn: a dotted line where each point is a run of its own."""

_COLUMNS, _LETTERS = 2, 9.0  # on a phone the picture is at half its size
_WIDE = 5.0  # the axis of a metric that spans more than this factor is logarithmic


class Point(NamedTuple):
    """A mean over the seeds, and its standard error, NaN where there is one seed."""

    value: float
    error: float


Curves = Mapping[str, Mapping[int, Point]]  # by the name of the style and the number of steps


def point(cells: pages.Cells) -> Point | None:
    """The mean test metric of some seeds; None where a seed failed, since a mean without it would flatter."""
    if len(pages.survivors(cells)) < len(cells):
        return None
    values = [cell["final"]["test"][cell["workload"]["metric"]] for cell in cells]
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Point(float(np.mean(values)), error)


def draw(path: Path, panels: Mapping[str, Curves]) -> None:
    """Draws a panel for each title."""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with pages.picture(path, columns, rows, size=(5.2, 1.75 * rows + 0.9)) as axes:
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            _panel(axis, curves)
            axis.set_title(title, loc="left", fontsize=_LETTERS)
        figure = axes[0, 0].figure
        figure.supxlabel("steps", fontsize=_LETTERS)
        known = {
            name: line for axis in figure.axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(known.values(), known, loc="outside upper left", ncols=1, frameon=False, fontsize=_LETTERS)


def _panel(axis: Any, curves: Curves) -> None:
    for name, style in STYLES.items():
        if points := curves.get(name):
            steps = sorted(points)
            values, errors = np.transpose([points[step] for step in steps])
            axis.errorbar(steps, values, yerr=np.nan_to_num(errors), lw=1.3, elinewidth=1.3, **style)
    values = [seen.value for points in curves.values() for seen in points.values()]
    if min(values) > 0 and max(values) > _WIDE * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.locator_params(axis="y", nbins=4)
    axis.set_xscale("log")
    steps = sorted({step for points in curves.values() for step in points})
    axis.set_xticks(steps, map(_short, steps), fontsize=_LETTERS)
    axis.set_xticks([], minor=True)
    axis.tick_params(axis="y", labelsize=_LETTERS)


def _short(steps: int) -> str:
    return f"{steps / 1000:g}k" if steps >= 1000 else str(steps)
