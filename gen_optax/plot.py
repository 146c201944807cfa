"""Pictures of a training run with GeN: needs matplotlib (`pip install "gen-optax[plot]"`).

Each function draws on one pair of axes and returns it; `report` draws a figure. A history is what a training loop
collected, in any of these forms:

* a sequence, one entry a step: :func:`gen_optax.metrics`, or the optimizer state, or its :class:`gen_optax.GenInfo`
  where the learning rate itself is not asked for;
* one such entry whose values are arrays, from `jax.lax.scan`: `metrics(states)` of the stacked states does it.

Colours are told apart with any colour vision and stand out from white and from black; what they say, the shape of the
mark says too.
"""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from gen_optax import _history, _report
from gen_optax._history import REASONS, History
from gen_optax._measurement import ProbeStatus

# Okabe and Ito's palette; the orange is darker, to stand out from white.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#CC8400", "#009E73", "#D55E00", "#808080"

# Why a probe was not accepted, as a mark.
_MARKS = {
    ProbeStatus.NOT_FINITE: "s",
    ProbeStatus.OVERSHOOT: "P",
    ProbeStatus.BELOW_ROUNDING: "|",
    ProbeStatus.ASCENT: "^",
    ProbeStatus.NO_CURVATURE: "D",
    ProbeStatus.POOR_FIT: "x",
    ProbeStatus.JUMP: "v",
    ProbeStatus.FALSE_ALARM: "*",
}


def learning_rate(history: History, ax: Axes | None = None, *, steps: Any = None) -> Axes:
    """The learning rate over training, with a mark for every probe.

    Args:
      history: see the module.
      ax: where to draw; None: a new figure.
      steps: the step that each entry was collected at, where that was not every step from the first, shape `(n,)`.

    Returns:
      The axes, with eta as a line, the rate as applied as a thin one where it differs (a decay, or a step not taken),
      `b / A` of each accepted probe as a dot, and below them each other probe, in one row for every reason. A probe
      that judges steps as they were applied (the default one does) measures `b / A` in the applied rate. Of a history
      of :class:`gen_optax.GenInfo`, which has no learning rates, the probes alone are drawn.

    Raises:
      ValueError: if the history is empty, holds several learning rates, or has not one entry per step.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax
      >>> import gen_optax.plot
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(controller=gen_optax.algorithm_1()).init(jnp.zeros(3))
      >>> ax = gen_optax.plot.learning_rate([gen_optax.metrics(state)] * 3)
    """
    columns = _history.columns(history)
    steps = _history.steps_of(steps, len(columns["status"]))
    ax = _axes(ax)
    _draw_rates(columns, ax, steps)
    return ax


def report(history: History, figure: Figure | None = None, *, steps: Any = None) -> Figure:
    """What :func:`gen_optax.report` says of a run, with its picture.

    Args:
      history: see the module; with learning rates. If it has the name `loss`, the loss is drawn as well.
      figure: where to draw; None: a new one.
      steps: as in :func:`gen_optax.plot.learning_rate`.

    Returns:
      The figure, with the loss of each step, below it :func:`gen_optax.plot.learning_rate` with the schedule to copy as
      a dashed line, and the lines of the report.

    Raises:
      ValueError: as :func:`gen_optax.report` does.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax
      >>> import gen_optax.plot
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(controller=gen_optax.algorithm_1()).init(jnp.zeros(3))
      >>> figure = gen_optax.plot.report([gen_optax.metrics(state)] * 3)
    """
    found, columns = _report.report(history, steps=steps), _history.columns(history)
    steps = _history.steps_of(steps, len(columns["status"]))
    if figure is None:
        figure = plt.figure(figsize=(8, 7.5 if "loss" in columns else 5), layout="constrained")
    if "loss" in columns:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        above.plot(steps, columns["loss"], color=BLUE, lw=1)
        positive = np.nanmin(columns["loss"]) > 0
        above.set(ylabel="loss", yscale="log" if positive else "linear")
    else:
        below = figure.subplots()
    _draw_rates(columns, below, steps, found.copied)
    lines = [textwrap.fill(line, 92, subsequent_indent="    ") for line in str(found).splitlines()]
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize="small")
    return figure


def parabola(
    info: Any,
    step_sizes: Any = None,
    losses: Any = None,
    learning_rate: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The fitted parabola over the losses measured along the step.

    Args:
      info: the fit: a :class:`gen_optax.GenInfo`, or the dict of :func:`gen_optax.metrics`. Of a history the last one.
      step_sizes: steps at which the loss was measured, shape `(n,)`, in units of the learning rate. Optional.
      losses: the losses there, shape `(n,)`; see :func:`gen_optax.probe_losses`.
      learning_rate: a rate to mark, for example the one that was applied.
      ax: where to draw; None: a new figure.

    Returns:
      The axes. A minimum far beyond the points measured is named in the legend and not drawn.

    Raises:
      ValueError: if only one of `step_sizes` and `losses` is given.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax.plot
      >>> fit = {"value": 1.0, "slope": 2.0, "curvature": 10.0, "optimal_learning_rate": 0.2}
      >>> ax = gen_optax.plot.parabola(fit)
    """
    if (step_sizes is None) != (losses is None):
        raise ValueError("parabola needs step_sizes and losses together, one loss per step size.")
    fit = {name: column[-1] for name, column in _history.columns(info).items()}
    value, slope, curvature, best = (
        float(fit[name]) for name in ("value", "slope", "curvature", "optimal_learning_rate")
    )
    rate = None if learning_rate is None else float(learning_rate)
    has_minimum = bool(np.isfinite(best)) and curvature > 0
    if step_sizes is None:
        inside = [0.0, *([best] if has_minimum else []), *([] if rate is None else [rate])]
        reach = max(map(abs, inside)) or 1.0
        low, high = min(inside) - 0.4 * reach, max(inside) + 0.6 * reach
    else:
        low, high = float(np.min(step_sizes)), float(np.max(step_sizes))
        margin = 0.1 * (high - low)
        if rate is not None:
            low, high = min(low, rate - margin), max(high, rate + margin)
        if has_minimum and abs(best) <= 4 * max(abs(low), abs(high)):
            low, high = min(low, best - margin), max(high, best + margin)
    t = np.linspace(low, high, 200)
    reason = REASONS.get(ProbeStatus(int(fit.get("status", ProbeStatus.NONE))))
    ax = _axes(ax)
    fitted = "fitted parabola" if reason is None else f"fitted parabola, not used: {reason}"
    ax.plot(t, value - slope * t + curvature * t**2 / 2, color=BLUE, lw=2, label=fitted)
    if step_sizes is not None:
        ax.plot(step_sizes, losses, "o", color=ORANGE, ms=5, label="loss along the step")
    if has_minimum:
        label = rf"$\eta^* = b/A$ = {best:.2g}"
        if low <= best <= high:
            ax.axvline(best, color=GREEN, lw=1.5, ls="--", label=label)
        else:
            ax.plot([], [], " ", label=f"{label}, out of sight")
    if rate is not None:
        ax.axvline(rate, color=GREY, lw=1.5, ls=":", label=rf"$\eta$ = {rate:.2g}")
    ax.set(xlabel=r"learning rate $\eta$ along the step", ylabel="loss")
    ax.ticklabel_format(axis="x", scilimits=(-2, 3))
    _legend(ax)
    return ax


def decrease(history: History, actual: Any, ax: Axes | None = None, *, along: str = "path") -> Axes:
    r"""The decrease of the loss that the parabola predicts against the one that came.

    Both are of the steps that the probe judged: all steps since its anchor for a probe along the path (the default
    one), the step to come for a probe along the step. On the batch of the probe they agree by construction along the
    path, and as far as the loss is a parabola along the step. So measure `actual` on other data: off the diagonal, the
    batch of the probe had a part in the steps, or is noisy.

    Args:
      history: see the module; with learning rates, an entry for every step.
      actual: the decrease of the loss, in the order of the history, shape `(number of steps,)`. Along the path: the
        loss of some data at the anchor less that at the parameters before this call of `update`. The anchor lies
        `optax.tree.get(state, "probe").length` steps back, where `state` is the one that `update` gets. Along the step:
        the loss before this step less that after it. Only the entries of accepted probes are drawn.
      ax: where to draw; None: a new figure.
      along: what the probe measures along, "path" or "step", as in :func:`gen_optax.finite_difference`.

    Returns:
      The axes, with one dot per accepted probe, :math:`b h - A h^2 / 2` against the real decrease; on the diagonal they
      agree. `h` is the rate as applied: that of the step itself, or along the path that of the step before.

    Raises:
      ValueError: if `actual` has another length than the history, if the history is empty or holds no learning rates,
        or if `along` is something else.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax
      >>> import gen_optax.plot
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(controller=gen_optax.algorithm_1()).init(jnp.zeros(3))
      >>> history = [gen_optax.metrics(state)] * 3
      >>> ax = gen_optax.plot.decrease(history, [0.1, 0.2, 0.1], along="step")
    """
    if along not in ("path", "step"):
        raise ValueError(f'along must be "path" or "step", got {along!r}.')
    columns = _history.columns(history)
    if "applied_learning_rate" not in columns:
        raise ValueError("decrease needs the rate of each step: collect gen_optax.metrics(state), not state.info.")
    actual = np.asarray(actual)
    if actual.shape != columns["applied_learning_rate"].shape:
        raise ValueError(
            f"decrease needs one actual decrease per step, got {actual.shape} for a history of "
            f"{columns['applied_learning_rate'].shape}."
        )
    h = columns["applied_learning_rate"]
    if along == "path":
        h = np.concatenate([[np.nan], h[:-1]])  # a path is measured in the rate of its last step
    shown = _history.probed(columns) & (columns["status"] == ProbeStatus.ACCEPTED) & ~np.isnan(h)
    h = h[shown]
    predicted = columns["slope"][shown] * h - columns["curvature"][shown] * h**2 / 2
    ax = _axes(ax)
    ax.plot(predicted, actual[shown], "o", color=ORANGE, ms=3, alpha=0.7, label=_counted("accepted probes", shown))
    ends = np.array([predicted.min(initial=0.0), predicted.max(initial=0.0)])
    ax.plot(ends, ends, color=GREY, lw=1, label="as predicted")
    ax.axhline(0.0, color=GREY, lw=0.8, ls=":", label="no decrease")
    ax.set(xlabel=r"predicted decrease of the loss, $b h - A h^2/2$", ylabel="real decrease of the loss")
    _legend(ax)
    return ax


_ROW_HEIGHT = 0.05  # of a row of marks, as a part of the axes


def _draw_rates(columns: dict[str, np.ndarray], ax: Axes, steps: np.ndarray, copied: Any = None) -> None:
    """See `learning_rate`; `copied`: a schedule to draw as well."""
    status = columns["status"]
    nothing = np.full(status.shape, np.nan)
    best, rate = (columns.get(name, nothing) for name in ("optimal_learning_rate", "learning_rate"))
    applied = columns.get("applied_learning_rate", rate)
    if not np.allclose(rate, applied, rtol=1e-6, equal_nan=True):
        ax.plot(steps, _positive(applied), color=GREY, lw=1, label="as applied")
    if "learning_rate" in columns:
        ax.plot(steps, _positive(rate), color=BLUE, lw=2, label=r"learning rate $\eta$")
    if copied is not None:
        ax.plot(steps, _positive(np.asarray(copied(steps - 1))), "--", color=GREEN, lw=1.5, label="schedule to copy")
    probed = _history.probed(columns)
    good = probed & (status == ProbeStatus.ACCEPTED)
    if good.any():
        ax.plot(steps[good], _positive(best[good]), "o", color=ORANGE, ms=3, alpha=0.7, label=_counted("$b/A$", good))
    ax.set(xlabel="step", ylabel="learning rate", yscale="log")
    rejected = [(status == reason) & probed for reason in _MARKS]
    row = 0
    for (reason, marker), here in zip(_MARKS.items(), rejected, strict=True):
        if here.any():
            height = np.full(here.sum(), _ROW_HEIGHT * (row + 0.6))
            ax.plot(
                steps[here],
                height,
                marker,
                color=VERMILION,
                ms=4,
                mew=0.8,
                mfc="none",
                transform=ax.get_xaxis_transform(),
                label=_counted(REASONS[reason], here),
            )
            row += 1
    _make_room(ax, row, _legend(ax, loc="upper center", ncols=2))


def _positive(x: np.ndarray) -> np.ndarray:
    """Values that a logarithmic axis can show; the others leave a gap."""
    return np.where((x > 0) & np.isfinite(x), x, np.nan)


def _counted(words: str, where: np.ndarray) -> str:
    return f"{words} ({where.sum()})"


def _make_room(ax: Axes, rows: int, legend: Legend | None) -> None:
    """Room for rows of marks below the data and for the legend above it, on a logarithmic axis."""
    below = _ROW_HEIGHT * (rows + 0.3) if rows else 0.0
    above = min(legend.get_window_extent().height / ax.bbox.height, 0.5) if legend else 0.0
    low, high = ax.get_ylim()
    unit = (high / low) ** (1 / (1 - below - above))
    ax.set_ylim(low / unit**below, high * unit**above, auto=None)


def _legend(ax: Axes, **where: Any) -> Legend | None:
    """None where nothing has a label."""
    if not ax.get_legend_handles_labels()[0]:
        return None
    return ax.legend(frameon=True, framealpha=0.75, edgecolor="none", fontsize="small", **where)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax
