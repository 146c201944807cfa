"""Directions, the steps that a probe judges: the Protocol, and the step to come. The path of the last ones: `_path`.

A direction knows when it has to be looked at, which step `d = h u` it is, how the parabola about the present parameters
reads from where that step starts, and what to do with the parameters when it was a bad one.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from gen_optax import _axes, _tree
from gen_optax._measurement import Context, Measurement
from gen_optax._notice import Notice


class Direction(Protocol):
    """What a probe measures along: `Step`, the step to come, or `Path`, the steps that were taken last."""

    @property
    def independent(self) -> bool:
        """Whether the batch of the probe had no part in the step."""
        ...

    def with_probes_every(self, every: int) -> "Direction":
        """The same direction, told how many calls there are between two regular probes, for its `init`."""
        return self

    def init(self, params: optax.Params) -> Any:
        """The state, `GenState.probe`."""
        ...

    def due(self, state: Any, context: Context) -> Any:
        """Whether to measure at this call, in turn or out of turn: bool."""
        ...

    def listens(self, state: Any, context: Context) -> Any:
        """Whether to look at the loss at the parameters, and to measure if it `alarms`: bool."""
        return False

    def alarms(self, state: Any, context: Context, value: jax.Array) -> Any:
        """Whether this loss at the parameters, averaged over devices, makes a measurement due at once: bool."""
        return False

    def notices(self, state: Any, context: Context) -> list[tuple[Any, Notice]]:
        """What is wrong with the situation: conditions, bool, and what each means."""
        return []

    def vector(self, state: Any, context: Context) -> optax.Updates:
        """The step, up to `factor`: a tree like the parameters."""
        ...

    def factor(self, context: Context) -> jax.Array:
        """The step is `factor * vector`."""
        ...

    def measurement(
        self, state: Any, context: Context, start: jax.Array, end: jax.Array, slope: jax.Array, curvature: jax.Array
    ) -> Measurement:
        """From the losses at both ends of the step and the parabola about the present parameters, per step."""
        ...

    def anchor(self, state: Any) -> Any:
        """The parameters that the state keeps; () for none."""
        return ()

    def begins(self, state: Any, context: Context, status: jax.Array) -> Any:
        """Whether the parameters of this call become the anchor: bool."""
        return False

    def settle(
        self,
        state: Any,
        context: Context,
        measurement: Measurement,
        status: jax.Array,
        updates: optax.Updates,
        anchor: Any,
    ) -> tuple[optax.Updates, Any]:
        """The updates to apply, and the state with this anchor.

        Called at every step; `status` is `NONE` where nothing was measured.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Step(Direction):
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

    def measurement(self, state, context, start, end, slope, curvature):
        """The parabola as it is. A step that is not finite has no loss to start from."""
        finite = _axes.everywhere(_tree.all_finite(context.updates), context.axis_name)
        _axes.require_agreement(finite, context.learning_rate, context.axis_name)
        start = jnp.where(finite, start, jnp.nan)
        return Measurement(start, slope, curvature, end, self.factor(context))

    def settle(self, state, context, measurement, status, updates, anchor):
        """Nothing to take back: a step that is known to overshoot has already become 0."""
        return updates, state
