"""Pictures of a training run with GeN: needs matplotlib (`pip install "gen-optax[plot]"`).

Each function draws on one pair of axes and returns it. A history is what a training loop collected: a sequence of
`gen_optax.metrics(state)`, one a step, or one such dict whose values are arrays (from `jax.lax.scan`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gen_optax._control import ProbeStatus

History = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Okabe and Ito's palette: told apart by readers with any colour vision, on light and on dark.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8a8a"


def learning_rate(history: History, ax: Axes | None = None) -> Axes:
    """The learning rate over training, with a mark for every probe.

    Args:
      history: see the module.
      ax: where to draw; None: a new figure.

    Returns:
      The axes: eta as a line, the rate as applied (with its decay) as a thin one where they differ, `b / A` of each
      accepted probe as a dot and each other probe as a cross at the bottom.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax
      >>> import gen_optax.plot
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(init_learning_rate=1e-3).init(jnp.zeros(3))
      >>> ax = gen_optax.plot.learning_rate([gen_optax.metrics(state)] * 3)
    """
    columns = _columns(history)
    ax = _axes(ax)
    steps = np.arange(1, len(columns["learning_rate"]) + 1)
    rate, applied = columns["learning_rate"], columns["applied_learning_rate"]
    if not np.allclose(rate, applied, rtol=1e-6):
        ax.plot(steps, _positive(applied), color=GREY, lw=1, label="applied, with the decay")
    ax.plot(steps, _positive(rate), color=BLUE, lw=2, label=r"learning rate $\eta$")
    probed, accepted = _probes(columns)
    good, bad = probed & accepted, probed & ~accepted
    ax.plot(
        steps[good], _positive(columns["optimal_learning_rate"][good]), "o", color=ORANGE, ms=3, label=r"probe: $b/A$"
    )
    if bad.any():
        ax.plot(
            steps[bad],
            np.full(bad.sum(), 0.02),
            "x",
            color=VERMILION,
            ms=5,
            transform=ax.get_xaxis_transform(),
            label="probe that abstained",
        )
    ax.set(xlabel="step", ylabel="learning rate", yscale="log")
    ax.legend(frameon=False)
    return ax


def parabola(
    info: Any,
    step_sizes: Any = None,
    losses: Any = None,
    learning_rate: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The fitted parabola over the losses measured along the step.

    Args:
      info: the fit: a :class:`gen_optax.GenInfo`, or the dict of :func:`gen_optax.metrics`.
      step_sizes: steps at which the loss was measured, shape `(n,)`, in units of the learning rate. Optional.
      losses: the losses there, shape `(n,)`; see :func:`gen_optax.probe_losses`.
      learning_rate: a rate to mark, for example the one that was applied.
      ax: where to draw; None: a new figure.

    Returns:
      The axes.

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
    fit = info if isinstance(info, Mapping) else info._asdict()
    value, slope, curvature, best = (
        float(fit[name]) for name in ("value", "slope", "curvature", "optimal_learning_rate")
    )
    ax = _axes(ax)
    minimum = np.isfinite(best) and curvature > 0
    if step_sizes is None:
        reach = 2.2 * abs(best) if minimum else 1.0
        t = np.linspace(-0.4 * reach, reach, 200)
    else:
        t = np.linspace(np.min(step_sizes), np.max(step_sizes), 200)
    ax.plot(t, value - slope * t + curvature * t**2 / 2, color=BLUE, lw=2, label="fitted parabola")
    if step_sizes is not None:
        ax.plot(step_sizes, losses, "o", color=ORANGE, ms=5, label="loss along the step")
    if minimum:
        ax.axvline(best, color=GREEN, lw=1, ls="--", label=rf"$\eta^* = b/A$ = {best:.2g}")
    if learning_rate is not None:
        ax.axvline(float(learning_rate), color=GREY, lw=1, ls=":", label=rf"$\eta$ = {float(learning_rate):.2g}")
    ax.set(xlabel="learning rate", ylabel="loss")
    ax.ticklabel_format(axis="x", scilimits=(-2, 3))
    ax.legend(frameon=False)
    return ax


def decrease(history: History, actual: Any, ax: Axes | None = None) -> Axes:
    r"""The decrease of the loss that the parabola predicts against the one that came.

    Args:
      history: see the module.
      actual: the decrease of the loss by each step, on whatever batch it was measured, shape `(number of steps,)`.
      ax: where to draw; None: a new figure.

    Returns:
      The axes: one dot per accepted probe, :math:`b h - A h^2 / 2` for the step `h` as applied against the real one;
      on the diagonal the model was right.

    Raises:
      ValueError: if `actual` has another length than the history.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> import gen_optax
      >>> import gen_optax.plot
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(init_learning_rate=1e-3).init(jnp.zeros(3))
      >>> ax = gen_optax.plot.decrease([gen_optax.metrics(state)] * 3, [0.1, 0.2, 0.1])
    """
    columns = _columns(history)
    actual = np.asarray(actual)
    if actual.shape != columns["learning_rate"].shape:
        raise ValueError(
            f"decrease needs one actual decrease per step, got {actual.shape} for a history of "
            f"{columns['learning_rate'].shape}."
        )
    probed, accepted = _probes(columns)
    shown = probed & accepted
    h = columns["applied_learning_rate"][shown]
    predicted = columns["slope"][shown] * h - columns["curvature"][shown] * h**2 / 2
    ax = _axes(ax)
    ax.plot(predicted, actual[shown], "o", color=ORANGE, ms=3, label="accepted probes")
    ends = np.array([min(0.0, *predicted), max(*predicted)]) if len(predicted) > 1 else np.array([0.0, 1.0])
    ax.plot(ends, ends, color=GREY, lw=1, label="as predicted")
    ax.set(xlabel=r"predicted decrease of the loss, $b h - A h^2/2$", ylabel="real decrease of the loss")
    ax.legend(frameon=False)
    return ax


def _columns(history: History) -> dict[str, np.ndarray]:
    if isinstance(history, Mapping):
        return {name: np.atleast_1d(np.asarray(value)) for name, value in history.items()}
    if not len(history):
        raise ValueError("The history is empty: collect gen_optax.metrics(state) after every step.")
    return {name: np.asarray([entry[name] for entry in history]) for name in history[0]}


def _probes(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """At which steps there was a probe, and at which of them (or since) it was accepted."""
    probed = np.diff(columns["num_probes"], prepend=0) > 0
    return probed, columns["status"] == ProbeStatus.ACCEPTED


def _positive(x: np.ndarray) -> np.ndarray:
    """Values that a logarithmic axis can show; the others leave a gap."""
    return np.where((x > 0) & np.isfinite(x), x, np.nan)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax
