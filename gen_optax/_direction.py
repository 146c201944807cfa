"""Directions, the steps that a probe judges: the step to come, or the path of the last steps.

A direction knows when it has to be looked at, which step `d = h u` it is, how the parabola about the present parameters
reads from where that step starts, and what to do with the parameters when it was a bad one.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gen_optax import _axes, _flow, _tree
from gen_optax._measurement import Context, Measurement, ProbeStatus

_JUMP = 2.0  # a step that multiplies the loss of a fresh batch by more than this has overshot beyond doubt


class Direction(Protocol):
    """What a probe measures along: `Step`, the step to come, or `Path`, the steps that were taken last."""

    @property
    def independent(self) -> bool:
        """Whether the batch of the probe had no part in the step."""
        ...

    def init(self, params: optax.Params) -> Any:
        """The state, `GenState.probe`."""
        ...

    def due(self, state: Any, context: Context) -> Any:
        """Whether to measure at this call, in turn or out of turn: bool."""
        ...

    def vector(self, state: Any, context: Context) -> optax.Updates:
        """The step, up to `factor`: a tree like the parameters."""
        ...

    def factor(self, context: Context) -> jax.Array:
        """The step is `factor * vector`."""
        ...

    def measurement(
        self, context: Context, start: jax.Array, end: jax.Array, slope: jax.Array, curvature: jax.Array
    ) -> Measurement:
        """From the losses at both ends of the step and the parabola about the present parameters, per step."""
        ...

    def settle(
        self, state: Any, context: Context, measurement: Measurement, status: jax.Array, updates: optax.Updates
    ) -> tuple[optax.Updates, Any]:
        """The updates to apply, and the state. Called at every step; `status` is `NONE` where nothing was measured."""
        ...


@dataclasses.dataclass(frozen=True)
class Step:
    """The step to come, `d = eta u`, on the gradient's own batch or on another one (`independent`)."""

    independent: bool = False

    def init(self, params):
        """Nothing to remember."""
        return ()

    def due(self, state, context):
        """In turn."""
        return context.in_turn

    def vector(self, state, context):
        """The updates."""
        return context.updates

    def factor(self, context):
        """The step size: as it will be applied where another batch judges it; else the rate itself, as in the paper."""
        return context.learning_rate * context.decay if self.independent else context.learning_rate

    def measurement(self, context, start, end, slope, curvature):
        """The parabola as it is. A step that is not finite has no loss to start from."""
        finite = _axes.everywhere(_tree.all_finite(context.updates), context.axis_name)
        _axes.require_agreement(finite, context.learning_rate, context.axis_name)
        start = jnp.where(finite, start, jnp.nan)
        jumped = end > _JUMP * jnp.abs(start) if self.independent else False  # else the parabola alone judges
        return Measurement(start, slope, curvature, end, self.factor(context), jumped=jumped)

    def settle(self, state, context, measurement, status, updates):
        """A step that is known to overshoot is not taken."""
        overshot = status == ProbeStatus.OVERSHOOT
        if _flow.is_known(overshot) and not overshot:
            return updates, state
        return jax.tree.map(lambda u: jnp.where(overshot, jnp.zeros_like(u), u), updates), state


class PathState(NamedTuple):
    """Where the path starts."""

    anchor: optax.Params  # a copy of the parameters at that call
    loss: jax.Array  # there, as the last probe measured it; infinite before the first


@dataclasses.dataclass(frozen=True)
class Path:
    """The last steps as one: `d = params - anchor`, judged on the present batch.

    Attributes:
      window: steps. The anchor is set anew at every call whose number is a multiple of `window` (or of the first
        multiple of `every` above it), and before that at calls 1, 2, 4, 8, ..., as the first steps are the wildest.
        Fewer steps scatter more, and change a rounded loss by less.
      alarming_growth: a loss of more than this times that of the last probe makes a probe due at once.
    """

    window: int = 16
    alarming_growth: float = 3.0
    independent = True

    def init(self, params):
        """The anchor is a copy, so that both can be donated."""
        return PathState(jax.tree.map(jnp.copy, params), jnp.array(jnp.inf, jax.dtypes.canonicalize_dtype(jnp.float64)))

    def due(self, state, context):
        """In turn or at an alarm; at the first call there is no path yet."""
        return _flow.both(context.count > 0, _flow.either(context.in_turn, self._alarm(state, context)))

    def _alarm(self, state, context):
        """A loss that leaves no time to wait: it is not finite, or far above that of the last probe.

        Without `value` no alarm is heard; a probe then looks wherever a path ends, so that none starts at an overshot.
        """
        if context.value is None:
            return self._begins(context.count + 1, context.every)
        value = _axes.mean(context.value, context.axis_name)
        return ~jnp.isfinite(value) | ~(value <= self.alarming_growth * jnp.abs(state.loss))

    def _begins(self, call, every):
        """Whether a path begins at this call; the first call is number 1."""
        window = every * -(-self.window // every)
        return (call % window == 0) | ((call < window) & (call & (call - 1) == 0))

    def vector(self, state, context):
        """All of the steps."""
        return _tree.difference(context.params, state.anchor)

    def factor(self, context):
        """The path is the whole vector."""
        return jnp.ones_like(context.learning_rate)

    def measurement(self, context, start, end, slope, curvature):
        """The parabola told from where the path starts, one path behind the present parameters.

        It jumped during a search or at an alarm; at other times small losses of few examples double by chance.
        """
        out_of_turn = ~jnp.asarray(context.in_turn)
        jumped = (end > _JUMP * jnp.abs(start)) & (context.searching | out_of_turn)
        h = context.applied_learning_rate
        return Measurement(
            start, slope + curvature, curvature, end, h, jumped=jumped, is_path=True, out_of_turn=out_of_turn
        )

    def settle(self, state, context, measurement, status, updates):
        """Steps that made the loss infinite are taken back. A path that jumped is answered for: the next one begins."""
        taken_back, jumped = status == ProbeStatus.OVERSHOOT, status == ProbeStatus.JUMP
        begins = (self._begins(context.count + 1, context.every) | jumped) & ~taken_back
        anchor = _flow.cond(begins, lambda: context.params, lambda: state.anchor)
        if _flow.is_known(begins):
            anchor = jax.tree.map(jnp.copy, anchor) if begins else anchor  # a buffer of its own, as in init
        probed = status != ProbeStatus.NONE
        state = PathState(anchor, jnp.where(probed, measurement.value, state.loss))
        if _flow.is_known(taken_back) and not taken_back:
            return updates, state
        back = _tree.difference(context.params, anchor)

        def choose(d, u):
            return jnp.where(taken_back, (-d).astype(u.dtype), u) if _tree.is_inexact(u) else u

        return jax.tree.map(choose, back, updates), state
