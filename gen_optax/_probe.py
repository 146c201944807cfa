"""Probes: how the parabola of the loss along a step is measured.

A probe looks at the loss along one step `d` of the parameters and reports the parabola in multiples of that step,

    L(w + c d) ~ value - slope * c + curvature * c^2 / 2,        slope = b h,  curvature = A h^2  for d = h u,

so every number is in units of the loss, and the minimiser `slope / curvature` says by what factor the step was too
short. Nothing is ever divided by a learning rate here, so none is too small or too large.

Three ways to measure it, and one distinction that runs through all of them: *which* step, judged on *which* batch.

* `finite_difference` and `exact` look ahead, along the step that is about to be taken, on the batch of `value_fn`.
* `retrospective` looks back, at the steps that were taken last, on the present batch, which they never saw.

A probe whose batch is independent of the step (`retrospective` always, the others when they are told so) judges the
step as it is applied, decay included: see `_control.py` for why.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_optax import _arithmetic, _axes, _fit, _loss

# A loss that is not finite counts as a rise of this many times the change that is seen.
_WALL = 1000.0


class Measurement(NamedTuple):
    """The parabola in multiples of the step probed; every field but `r_squared` in units of the loss."""

    value: jax.Array  # L(w), the loss where the step starts
    slope: jax.Array  # b h: decrease of the loss that the slope alone promises
    curvature: jax.Array  # A h^2
    r_squared: jax.Array  # of the fit; 1 where it cannot fail
    noise: jax.Array  # slope and curvature mean nothing below it; 0 for derivatives
    end_value: jax.Array  # a loss measured at the far end of the step; `value` where none was


class Context(NamedTuple):
    """What a probe may use. Everything but `loss` is traced."""

    loss: _loss.Loss
    params: optax.Params
    updates: optax.Updates
    step_size: jax.Array  # h: the step to look along is h * updates
    value: jax.Array | None  # the loss at params, if the caller knew it
    grad: optax.Updates | None  # its gradient, likewise
    memory: Any  # for a probe that looks back, the parameters where the steps started that it judges
    axis_name: Any


class Probe(Protocol):
    """What `scale_by_gen` asks of a probe."""

    @property
    def independent(self) -> bool:
        """Whether the batch of the probe is independent of the step that it judges."""

    @property
    def looks_back(self) -> bool:
        """Whether the step judged is one that was taken; then there is nothing to judge at the first call."""

    def judged(self, context: Context) -> optax.Updates:
        """The step that is judged, up to a factor."""

    def measure(self, context: Context) -> Measurement:
        """Measures the parabola."""


def finite_difference(
    candidates: Sequence[float] | None = None,
    batching: Literal["vmap", "map"] = "vmap",
    *,
    free_slope: bool = False,
    independent: bool = False,
) -> Probe:
    r"""Fits the parabola to losses at a few multiples of the current learning rate.

    With the default candidates this is the rule of Algorithm 1,

    .. math::
      b\,\eta = \tfrac12 (L_- - L_+), \qquad A\,\eta^2 = L_+ - 2 L_0 + L_-,

    whose symmetric points cancel the odd terms of the Taylor series. More candidates give a least-squares fit, whose
    `r_squared` can fail and is then checked. With `free_slope` the slope is :math:`-\langle G, u\rangle`, known from
    the gradient, and each candidate `c` measures :math:`A\,\eta^2 = 2 (L_c - L_0 + c\,b\,\eta) / c^2`.

    What it costs at a step on which a probe is due: one forward pass per candidate; the candidate 0 is free where
    `update` is given `value`.

    What it cannot do: see a change of the loss below the loss's own rounding. Such a probe abstains, and says so in
    `info.status`. The rounding is that of the loss's own type, 0.8 % in bfloat16; of bfloat16 layers below a mean in
    float32 it is 0.1 %. A single step often changes the loss by no more than a few times that: half of the answers are
    then off by more than 5 %. :func:`gen_optax.exact` and :func:`gen_optax.retrospective` see more there.

    Args:
      candidates: multiples of the current learning rate. Default `(-1, 0, 1)`, or `(0, 1)` with `free_slope`. At
        least three distinct ones, or one other than 0 with `free_slope`.
      batching: `"vmap"` evaluates the candidates at once, `"map"` one after the other at the memory of one forward
        pass and one copy of the parameters.
      free_slope: take the slope from `grad`, which `update` then needs: the gradient of `value_fn` itself, neither
        clipped nor from another batch. (`gen` hands it on where it was given `value`.)
      independent: `value_fn` evaluates another batch than the one the step was computed from. The probe then judges
        the step as applied, decay included, and a step that made that batch worse lowers the learning rate.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Raises:
      ValueError: on candidates that cannot determine a parabola, an unknown `batching`, or `free_slope` together
        with `independent` (the gradient is then not that of the probe's batch).

    Examples:
      >>> import gen_optax
      >>> gen_optax.finite_difference().candidates
      (-1.0, 0.0, 1.0)
      >>> gen_optax.finite_difference(free_slope=True).candidates
      (0.0, 1.0)

    References:
      Bu and Xu, `Gradient descent with generalized Newton's method <https://arxiv.org/abs/2407.02772>`_, 2024

      Zhu et al., `Automatic, dynamic, and nearly optimal learning rate specification via local quadratic
      approximation <https://arxiv.org/abs/2004.03260>`_, 2020
    """
    if candidates is None:
        candidates = (0.0, 1.0) if free_slope else (-1.0, 0.0, 1.0)
    candidates = tuple(float(c) for c in candidates)
    if not all(math.isfinite(c) for c in candidates):
        raise ValueError(f"candidates must be finite multiples of the learning rate, got {candidates}.")
    if free_slope and not any(candidates):
        raise ValueError(f"With free_slope, candidates needs a point other than 0, got {candidates}.")
    if not free_slope and len(set(candidates)) < 3:
        raise ValueError(
            f"A parabola needs at least three distinct candidates, got {candidates}. Add one, or pass "
            "free_slope=True to take the slope from the gradient."
        )
    if batching not in ("vmap", "map"):
        raise ValueError(f'batching must be "vmap" or "map", got {batching!r}.')
    if free_slope and independent:
        raise ValueError(
            "free_slope takes the slope from the gradient of the step's own batch, which says nothing about an "
            "independent one. Choose one of the two."
        )
    return FiniteDifference(candidates, batching, free_slope, independent)


def exact(*, independent: bool = False) -> Probe:
    r"""Differentiates the loss along the step: :math:`b = -G^\top u`, :math:`A = u^\top H u`.

    No step size and no cancellation, hence good to about a percent in bfloat16, and at any learning rate. Costs about
    three forward passes at a step on which a probe is due, at no more than forward-mode memory. The function has to
    be differentiable in forward mode twice; see :func:`gen_optax.directional_derivatives`.

    Args:
      independent: as in :func:`gen_optax.finite_difference`.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Examples:
      >>> import gen_optax
      >>> gen_optax.exact()
      Exact(independent=False)
    """
    return Exact(independent)


def retrospective() -> Probe:
    r"""Judges the last steps, as one, on the present batch, which none of them has seen.

    They are those since the last call whose number is a multiple of 16 (or of the first multiple of `every` above it):
    16 where probes come at every 16th call, fewer where they come more often. With `d` their sum, the present batch
    gives the loss :math:`L_-` where `d` started, :math:`L_0` here and :math:`L_+` as far beyond: the three points of
    Algorithm 1, about the present parameters, on a batch that had no part in the steps. The parabola through them
    starts where the steps did,

    .. math::
      A h^2 = L_+ - 2 L_0 + L_-, \qquad b h = A h^2 - \tfrac12 (L_+ - L_-) .

    Of `k` steps together the batch's noise hides less than of one: they have gone up to `k` times as far. What one
    step does and the next one undoes does not count. And losses see the landscape at the scale of the way, where a
    slope, as it would be free here, may see no more than a wrinkle in it (batch norm over few examples).

    And 16 steps change the loss by more than layers in bfloat16 or float16 blur it, or matrix units that round float32.
    Below that the probe abstains, and says so in `info.status`. A loss that is itself rounded to bfloat16 hides changes
    of up to 0.8 %: form its mean in float32.

    Costs two forward passes, given `value`, else three, at a step on which a probe is due, and one copy of the
    parameters in the state: the point where `d` starts, written anew at every 16th call or so. As `d` is read off the
    parameters, whatever else moved or rounded them is judged with it. Nothing is differentiated.

    Steps that made a finite loss NaN or infinite are taken back, and the learning rate falls. That needs finite
    updates: an optimizer whose moments would keep the NaN goes inside `optax.apply_if_finite`.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Examples:
      >>> import gen_optax
      >>> gen_optax.retrospective()
      Retrospective()
    """
    return Retrospective()


@dataclasses.dataclass(frozen=True)
class FiniteDifference:
    """See :func:`finite_difference`."""

    candidates: tuple[float, ...]
    batching: Literal["vmap", "map"]
    free_slope: bool
    independent: bool
    looks_back = False

    def judged(self, context):
        """The step to come."""
        return context.updates

    def measure(self, context):
        """Losses at the candidates, then the fit."""
        x, losses, rounding = self._losses(context)
        centre, scale = int(np.argmin(np.abs(x))), float(np.max(np.abs(x)))
        end = int(np.searchsorted(x, 1.0, side="right")) - 1  # the step itself, or the longest that is shorter
        if self.free_slope:
            if context.grad is None:
                raise ValueError(
                    "finite_difference(free_slope=True) needs grad=..., the gradient of value_fn before any clipping. "
                    "Pass it to update, or use gen_optax.gen, which hands it on where it was given value."
                )
            slope = -_axes.inner_product(context.grad, context.updates, context.axis_name, context.step_size)
            curvature, r_squared = _curvature_given_slope(x, losses - losses[centre], slope)
        else:
            xs = jnp.asarray(x / scale, losses.dtype)
            slope, curvature, r_squared = _fit.fit_own_scale(xs, losses, jnp.ones_like(xs))
            slope, curvature = slope / scale, curvature / scale**2
        return Measurement(
            value=self._value(context, x, losses[centre]),
            slope=slope,
            curvature=curvature,
            r_squared=r_squared,
            noise=rounding * jnp.max(jnp.abs(losses)) / min(scale, scale**2),
            end_value=losses[max(end, 0)],
        )

    def _value(self, context: Context, x: np.ndarray, nearest: jax.Array) -> jax.Array:
        """The loss where the step starts, as far as it is known; or else of the candidate nearest to that."""
        if 0 in x or context.value is None:
            return nearest
        return _axes.mean(context.value.astype(nearest.dtype), context.axis_name)

    def _losses(self, context: Context) -> tuple[np.ndarray, jax.Array, float]:
        """The candidates in order, their losses averaged over the axis, and their relative error."""
        x = np.array(sorted(set(self.candidates) | ({0.0} if self.free_slope else set())))
        known = context.value if 0 in x else None
        evaluated = x if known is None else x[x != 0]
        losses = _loss.probe_losses(
            context.loss, context.params, context.updates, context.step_size * evaluated, self.batching
        )
        rounding = _arithmetic.arithmetic(context.loss, context.params).rounding(known)
        losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
        if known is not None:
            below = int(np.searchsorted(evaluated, 0.0))
            centre = known.astype(losses.dtype)[None]
            losses = jnp.concatenate([losses[:below], centre, losses[below:]])
        return x, _axes.mean(losses, context.axis_name), rounding


@dataclasses.dataclass(frozen=True)
class Exact:
    """See :func:`exact`."""

    independent: bool
    looks_back = False

    def judged(self, context):
        """The step to come."""
        return context.updates

    def measure(self, context):
        """Derivatives along the step."""
        # Differentiate along u brought to the order of one by a power of two, which is exact: h u would underflow in
        # float16, and u itself overflow where the gradient is huge.
        size = _axes.maximum(_loss.power_of_two(context.updates), context.axis_name)
        direction = _loss.scale(context.updates, 1 / size)
        value, slope, curvature = (
            _axes.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), context.axis_name)
            for x in _loss.directional_derivatives(context.loss, context.params, direction)
        )
        h = context.step_size * size
        return Measurement(
            value=value,
            slope=h * slope,
            curvature=h * (h * curvature),
            r_squared=jnp.ones_like(value),
            noise=jnp.zeros_like(value),
            end_value=value,
        )


@dataclasses.dataclass(frozen=True)
class Retrospective:
    """See :func:`retrospective`."""

    independent = True
    looks_back = True

    def judged(self, context):
        """All of the steps, as one."""
        return _loss.difference(context.params, context.memory)

    def measure(self, context):
        """The losses at both ends of the steps and as far beyond."""
        ahead = _loss.step_along(context.params, self.judged(context), 1.0)
        value = context.loss(context.params) if context.value is None else context.value
        rounding = _arithmetic.arithmetic(context.loss, context.params).rounding(value)
        losses = context.loss(context.memory), value, context.loss(ahead)
        start_value, value, beyond = (_axes.mean(_at_least_float32(x), context.axis_name) for x in losses)
        noise = rounding * jnp.maximum(jnp.abs(value), jnp.abs(start_value))
        fall, rise = start_value - value, beyond - value
        # Where the way does not lead on, for the loss is not finite there, a wall stands for it.
        rise = jnp.where(jnp.isfinite(rise), rise, _WALL * jnp.maximum(jnp.abs(fall), noise))
        return Measurement(
            value=start_value,
            slope=(3 * fall + rise) / 2,
            curvature=fall + rise,
            r_squared=jnp.ones_like(value),
            noise=noise,
            end_value=value,
        )


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _curvature_given_slope(x: np.ndarray, change: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares for the curvature alone, through `(0, L_0)` with the known slope; and R^2 of the changes."""
    bend = change + slope * x
    curvature = 2 * jnp.sum(x**2 * bend) / np.sum(x**4)
    if np.count_nonzero(x) < 2:
        return curvature, jnp.ones_like(curvature)
    size = _fit.nonzero(jnp.max(jnp.abs(change)))
    residual = jnp.sum(((bend - curvature * x**2 / 2) / size) ** 2)
    total = jnp.sum((change / size) ** 2)
    return curvature, jnp.where(total == 0, 1.0, 1 - residual / _fit.nonzero(total))
