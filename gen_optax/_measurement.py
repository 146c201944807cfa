"""What a probe may use, what it reports, and the one place where a report is judged.

A probe looks at the loss along a step `d = h u` of the parameters and reports the parabola in multiples of that step,

    L(start + c d) ~ value - slope * c + curvature * c^2 / 2,        slope = b h,  curvature = A h^2.

Every number is in units of the loss, and `slope / curvature` is the factor by which the step was too short. Nothing is
divided by a learning rate, so none is too small or too large.
"""

import dataclasses
import enum
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import _arithmetic, _axes, _batch
from gen_optax._loss import Loss

_MIN_R_SQUARED = 0.99  # Algorithm 1


class Measurement(NamedTuple):
    """The loss along one step. Scalars; `value`, `slope`, `curvature`, `noise` and `end_value` in units of the loss."""

    value: jax.Array  # the loss where the step starts; NaN if the step itself is NaN or infinite
    slope: jax.Array  # b h: the decrease that the slope at the start promises; > 0 on a descending step
    curvature: jax.Array  # A h^2
    end_value: jax.Array  # a loss measured at the end of the step; `value` where none was
    step_size: jax.Array  # h: the step is h u, in units of the learning rate
    r_squared: Any = 1.0  # of the fit; 1 where it cannot fail
    noise: Any = 0.0  # rounding error: slope and curvature mean nothing below it
    jumped: Any = False  # the step raised the loss by far more than the steps before it changed it
    value_before: Any = jnp.inf  # the loss where the step starts of the batch that was next to be trained on there
    is_complete: Any = False  # the step ends here, and the next one starts
    is_path: Any = False  # the step is the path of all steps since some probe: their changes of the loss add up
    is_flattered: Any = False  # the batch had a part in the steps, and there is no other: nothing speaks for more
    out_of_turn: Any = False  # an alarm asked for the probe: its batch was chosen for its loss


class ProbeStatus(enum.IntEnum):
    """What became of a probe, as `info.status` holds it."""

    NONE = 0
    """No probe so far, and nothing in the way of a first rate."""
    ACCEPTED = 1
    """A convex, descending, trustworthy fit: there is a minimum ahead, and the learning rate follows it."""
    NOT_FINITE = 2
    """The loss is NaN or infinite where the step starts or at a candidate beside the step itself, or the step is NaN or
    infinite: the rate stays."""
    OVERSHOOT = 3
    """The step itself makes a finite loss NaN or infinite: the rate falls to a tenth, and no step is taken. The
    next call probes. With a probe along the path, the steps judged are taken back, and the call after the next probes.
    """
    BELOW_ROUNDING = 4
    """The loss changes by no more than its rounding error, or the step is zero: the rate stays."""
    ASCENT = 5
    """The loss rises along the step: with `balance` the rate falls. Before the first probe: no rate lowers the loss, so
    none was found."""
    NO_CURVATURE = 6
    """The curvature along the step is negative or vanishes, so there is no minimum in sight. With `balance` the rate
    rises, but during the search it ignores curvature that is clearly negative."""
    POOR_FIT = 7
    """The points are no parabola (R^2 of at most 0.99): the rate stays."""
    JUMP = 8
    """The steps raised the loss by more than four times what those before them changed it: they are taken back, and the
    rate falls at once, by a factor of 2 at most."""
    FALSE_ALARM = 9
    """A high loss asked for the probe out of turn, and the steps were not its cause: the rate stays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What probes and controllers may use in one call of `update`. All but `loss` and `axis_name` may be traced."""

    loss: Loss  # params -> a real scalar
    params: optax.Params
    updates: optax.Updates  # u, the step to come, per unit of learning rate
    value: jax.Array | None  # the loss at params, if the caller knew it
    grad: optax.Updates | None  # its gradient, likewise
    count: jax.Array  # int32, calls before this one
    every: Any  # calls between two regular probes
    learning_rate: jax.Array  # eta
    applied_learning_rate: jax.Array  # what the last updates were multiplied by
    decay: jax.Array  # s(t)
    in_turn: Any  # bool: a probe is due at this call whatever the loss is
    searching: Any  # bool: the controller asks for a probe at every call
    axis_name: Any

    trusts_value: Any = True  # bool: `value` is the loss at params

    @property
    def call(self) -> jax.Array:
        """The number of this call, int32, 1 for the first; at the end of int32 it stays where it is."""
        return optax.safe_increment(self.count)

    def average_value(self, dtype: Any) -> jax.Array:
        """`value`, which is known, over all devices, in this dtype. Nothing is differentiated through it."""
        return _axes.mean(jnp.asarray(jax.lax.stop_gradient(self.value), dtype), self.axis_name)

    @functools.cached_property
    def trace(self) -> Any:
        """The loss as a jaxpr of the parameters."""
        return jax.make_jaxpr(self.loss)(self.params)

    @functools.cached_property
    def arithmetic(self) -> _arithmetic.Arithmetic:
        """The arithmetic that the loss is computed in."""
        return _arithmetic.arithmetic(self.trace)

    @property  # not kept: a branch that is traced would leave its own behind
    def slope(self) -> jax.Array | None:
        """`b = -G.u`, where the gradient is known."""
        return None if self.grad is None else -_axes.inner_product(self.grad, self.updates, self.axis_name)

    @functools.cached_property
    def batch(self) -> jax.Array:
        """The fingerprint of the batch, uint32."""
        return _batch.fingerprint(self.trace, self.learning_rate)


def overshot(status: jax.Array) -> jax.Array:
    """Whether the steps overshot beyond doubt, so that none is taken."""
    return (status == ProbeStatus.OVERSHOOT) | (status == ProbeStatus.JUMP)


def judge(measurement: Measurement) -> jax.Array:
    """The `ProbeStatus` of a measurement, int32: the first reason against it, or ACCEPTED."""
    slope, curvature, noise = measurement.slope, measurement.curvature, measurement.noise
    fit_is_finite = jnp.isfinite(slope) & jnp.isfinite(curvature) & jnp.isfinite(measurement.r_squared)
    reasons = [
        (~jnp.isfinite(measurement.value), ProbeStatus.NOT_FINITE),
        (~jnp.isfinite(measurement.end_value), ProbeStatus.OVERSHOOT),
        (measurement.jumped, ProbeStatus.JUMP),
        (measurement.out_of_turn, ProbeStatus.FALSE_ALARM),
        (~fit_is_finite, ProbeStatus.NOT_FINITE),
        (jnp.abs(slope) <= noise, ProbeStatus.BELOW_ROUNDING),
        (slope < 0, ProbeStatus.ASCENT),
        (curvature <= noise, ProbeStatus.NO_CURVATURE),
        (measurement.r_squared <= _MIN_R_SQUARED, ProbeStatus.POOR_FIT),
    ]
    return first_of(reasons, ProbeStatus.ACCEPTED)


def first_of(reasons: list[tuple[jax.Array, ProbeStatus]], otherwise: ProbeStatus) -> jax.Array:
    """The first status whose condition holds, int32."""
    conditions, statuses = zip(*reasons, strict=True)
    return jnp.select(conditions, [jnp.int32(status) for status in statuses], jnp.int32(otherwise))
