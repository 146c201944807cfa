"""Probes: how the parabola of the loss along a step is measured.

A probe is a direction times a way to measure. The direction is the step to come (`along="step"`) or the path of the
last steps (`along="path"`), which ends at the present parameters. The way to measure is the same for both: the losses
at a few multiples `c` of the step, `L(w + c d)`, or derivatives at `w`. Either gives the parabola about `w`, which is
then told from where the step starts: `c = 0` for the step to come, `c = -1` for the path.

The batch matters. A path was computed from earlier batches, so the present one is independent of it. A step to come is
judged on its own batch, unless the user evaluates `value_fn` on another one and says so.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _fit, _flow, _loss, _tree
from gen_optax._direction import Direction, Step
from gen_optax._measurement import Context, Measurement
from gen_optax._path import Path

# A loss that is not finite beyond the end of a path counts as a rise of this many times the change that is seen.
_WALL = 1000.0


class Probe(Protocol):
    """What `scale_by_gen` asks of a probe: a direction times a way to measure. Subclass it and define `measure`."""

    direction: Direction
    """What it measures along: `gen_optax.Step(...)` or `gen_optax.Path()`."""

    def points(self, state: Any, context: Context) -> jax.Array:
        """Multiples of `direction.vector` at which `measure` wants to know the loss, shape (n,). By default none.

        They are evaluated in this order; one that is infinite says that it and those behind it are not needed.
        """
        return jnp.zeros((0,))

    def measure(self, state: Any, losses: jax.Array, context: Context) -> Measurement:
        """The parabola along the step, from the losses at `points` or in a way of its own.

        `losses` are those at `points`, shape (n,), and `state` is that of the direction.
        """
        ...


def finite_difference(
    candidates: Sequence[float] | None = None,
    batching: Literal["vmap", "map"] = "vmap",
    *,
    along: Literal["step", "path"] = "step",
    free_slope: bool = False,
    independent: bool = False,
) -> Probe:
    r"""Fits the parabola to losses at a few multiples of a step.

    With the default candidates this is the rule of Algorithm 1,

    .. math::
      b\,\eta = \tfrac12 (L_- - L_+), \qquad A\,\eta^2 = L_+ - 2 L_0 + L_-,

    whose symmetric points cancel the odd terms of the Taylor series. More candidates give a least-squares fit, whose
    `r_squared` can fail and is then checked. With `free_slope` the slope is :math:`-\langle G, u\rangle`, known from
    the gradient, and each candidate `c` measures :math:`A\,\eta^2 = 2 (L_c - L_0 + c\,b\,\eta) / c^2`.

    What it costs at a step on which a probe is due: one forward pass per candidate; the candidate 0 is free where
    `update` is given `value`. A controller that searches for the first rate, as `balance` does, checks `value` by it:
    at the probes 1, 2, 4, 8, ... with `batching="map"`, and at every one with `"vmap"`, which cannot leave a point out.

    What it cannot do: see a change of the loss below the loss's own rounding. Such a probe abstains, and says so in
    `info.status`. The rounding is that of the loss's own type, 0.8 % in bfloat16; of bfloat16 layers below a mean in
    float32 it is 0.1 %. A single step often changes the loss by no more than a few times that: half of the answers are
    then off by more than 5 %. :func:`gen_optax.exact` and a path see more there.

    Args:
      candidates: multiples of the step. Default `(-1, 0, 1)`, or `(0, 1)` (along the path `(-1, 0)`) with `free_slope`.
        At least three distinct ones, or one other than 0 with `free_slope`; along the path -1, where it starts, is one
        of them.
      batching: `"vmap"` evaluates the candidates at once and holds one copy of the parameters for each, `"map"` one
        after the other at the memory of one forward pass and one copy. `"map"` also keeps the loss once in the compiled
        program, where the default controller evaluates it for the first rate as well.
      along: `"step"`, the step to come, or `"path"`, the last steps as one, see :func:`gen_optax.retrospective`.
      free_slope: take the slope from `grad`, which `update` then needs: the gradient of `value_fn` itself, neither
        clipped nor from another batch. (`gen` hands it on where it was given `value`.)
      independent: along the step, that `value_fn` evaluates another batch than the one the step was computed from. This
        is a promise: on the step's own batch `balance` runs away. Give `update` no `value` then, which is the loss of
        the own batch. The probe judges the step as applied, decay included. Along the path it always does.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Raises:
      ValueError: on candidates that cannot determine a parabola, an unknown `batching` or `along`, or `free_slope`
        together with `independent` (the gradient is then not that of the probe's batch).

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
    direction = _direction(along, independent)
    if candidates is None:
        candidates = (-1.0, 0.0, 1.0) if not free_slope else (-1.0, 0.0) if isinstance(direction, Path) else (0.0, 1.0)
    candidates = tuple(float(c) for c in candidates)
    if not all(math.isfinite(c) for c in candidates):
        raise ValueError(f"candidates must be finite multiples of the step, got {candidates}.")
    if free_slope and not any(candidates):
        raise ValueError(f"With free_slope, candidates needs a point other than 0, got {candidates}.")
    if not free_slope and len(set(candidates)) < 3:
        raise ValueError(
            f"A parabola needs at least three distinct candidates, got {candidates}. Add one, or pass "
            "free_slope=True to take the slope from the gradient."
        )
    if isinstance(direction, Path) and -1.0 not in candidates:
        raise ValueError(f"Along the path, candidates needs -1, where the path starts, got {candidates}.")
    if batching not in ("vmap", "map"):
        raise ValueError(f'batching must be "vmap" or "map", got {batching!r}.')
    if free_slope and independent:
        raise ValueError(
            "free_slope takes the slope from the gradient of the step's own batch, which says nothing about an "
            "independent one. Choose one of the two."
        )
    return FiniteDifference(direction, candidates, batching, free_slope)


def exact(*, along: Literal["step", "path"] = "step", independent: bool = False) -> Probe:
    r"""Differentiates the loss along a step: :math:`b = -G^\top u`, :math:`A = u^\top H u`.

    No step size and no cancellation, hence good to about a percent in bfloat16, and at any learning rate. Costs three
    to five forward passes at a step on which a probe is due, and keeps nothing for a backward pass. The function has to
    be differentiable in forward mode twice; see :func:`gen_optax.directional_derivatives`.

    Args:
      along: as in :func:`gen_optax.finite_difference`.
      independent: as in :func:`gen_optax.finite_difference`.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Raises:
      ValueError: on an unknown `along`.

    Examples:
      >>> import gen_optax
      >>> gen_optax.exact()
      Exact(direction=Step(independent=False))
    """
    return Exact(_direction(along, independent))


def retrospective() -> Probe:
    r"""Judges the last steps, as one, on the present batch, which none of them has seen.

    A name for `finite_difference(along="path", batching="map")`. The steps are those since the last call whose number
    is a multiple of 16 (or of the first multiple of `every` above it): 16 where probes come at every 16th call, fewer
    where they come more often. With `d` their sum, the present batch gives the loss :math:`L_-` where `d` started,
    :math:`L_0` here and :math:`L_+` as far beyond: the three points of Algorithm 1, about the present parameters. The
    parabola through them starts where the steps did,

    .. math::
      A h^2 = L_+ - 2 L_0 + L_-, \qquad b h = A h^2 - \tfrac12 (L_+ - L_-) .

    The noise of a batch hides less of `k` steps together than of one: they have gone up to `k` times as far. What one
    step does and the next one undoes does not count. Losses see the landscape at the scale of the path, where a
    slope, as it would be free here, may see no more than a wrinkle in it (batch norm over few examples).

    And 16 steps change the loss by more than layers in bfloat16 or float16 blur it, or matrix units that round float32.
    Below that the probe abstains, and says so in `info.status`. A loss that is itself rounded to bfloat16 hides changes
    of up to 0.8 %: form its mean in float32.

    Costs two forward passes, given `value`, else three, at a step on which a probe is due, and one copy of the
    parameters in the state: the point where `d` starts, written anew at every 16th call or so. As `d` is read off the
    parameters, whatever else moved or rounded them is judged with it. Nothing is differentiated.

    Steps that made a finite loss NaN or infinite, or raised it by far more than its recent changes, are taken back,
    and the learning rate falls. That needs finite updates: an optimizer whose moments would keep the NaN goes inside
    `optax.apply_if_finite`.

    Returns:
      A probe for :func:`gen_optax.scale_by_gen`.

    Examples:
      >>> import gen_optax
      >>> gen_optax.retrospective().candidates
      (-1.0, 0.0, 1.0)
    """
    return finite_difference(along="path", batching="map")


def _direction(along: str, independent: bool) -> Path | Step:
    if along not in ("step", "path"):
        raise ValueError(f'along must be "step" or "path", got {along!r}.')
    return Path() if along == "path" else Step(independent)


@dataclasses.dataclass(frozen=True)
class FiniteDifference(Probe):
    """See :func:`finite_difference`."""

    direction: Direction
    candidates: tuple[float, ...]
    batching: Literal["vmap", "map"]
    free_slope: bool

    def points(self, state, context):
        """The multiples that are evaluated one after the other: all of them, or with `vmap` none."""
        if self.batching == "vmap":
            return jnp.zeros((0,))
        x, known = self._evaluated(context)
        return self.direction.factor(context) * jnp.where(known, jnp.inf, x)

    def measure(self, state, losses, context):
        """Losses at the candidates, then the fit."""
        x, losses = self._losses(state, losses, context)
        first = -1.0 if isinstance(self.direction, Path) else 0.0  # where the step starts; it ends at first + 1
        start, end = (losses[max(int(np.searchsorted(x, c, side="right")) - 1, 0)] for c in (first, first + 1))
        if first == 0:
            start = losses[np.argmin(np.abs(x))]
        if 0 not in x and context.value is not None:
            nearest = start if first == 0 else end
            here = context.average_value(losses.dtype)
            here = jnp.where(jnp.isfinite(here), here, nearest)
            start, end = (here, end) if first == 0 else (start, here)
        size = jnp.max(jnp.where(jnp.isfinite(losses), jnp.abs(losses), 0))
        noise = context.arithmetic.rounding(context.value) * size
        if first == -1:  # where the path does not lead on, for the loss is not finite there, a wall stands for it
            wall = end + _WALL * jnp.maximum(jnp.abs(end - start), noise)
            losses = jnp.where((x > 0) & ~jnp.isfinite(losses), wall, losses)
        slope, curvature, r_squared = self._fit(state, x, losses, context)
        measurement = self.direction.measurement(state, context, start, end, slope, curvature)
        return measurement._replace(r_squared=r_squared, noise=noise / self._resolution(x))

    def _fit(self, state, x, losses, context):
        """Slope, curvature and R^2 about `w`, in multiples of the step."""
        if not self.free_slope:
            return _fit.fit_at(x, losses)
        if context.grad is None:
            raise ValueError(
                "finite_difference(free_slope=True) needs grad=..., the gradient of value_fn before any clipping. "
                "Pass it to update, or use gen_optax.gen, which hands it on where it was given value."
            )
        vector, factor = self.direction.vector(state, context), self.direction.factor(context)
        slope = -_axes.inner_product(context.grad, vector, context.axis_name, factor)
        return slope, *_curvature_given_slope(x, losses - losses[np.argmin(np.abs(x))], slope)

    def _resolution(self, x: np.ndarray) -> float:
        """What the rounding of the losses is divided by to give that of slope and curvature."""
        if not self.free_slope:
            return _fit.resolution(x)
        scale = float(np.max(np.abs(x)))  # points far inside of the outermost one hardly count for the curvature
        return min(scale, scale**2)

    def _points(self) -> np.ndarray:
        """The candidates in order; with a free slope 0 is one of them."""
        return np.array(sorted(set(self.candidates) | ({0.0} if self.free_slope else set())))

    def _evaluated(self, context: Context) -> tuple[np.ndarray, Any]:
        """Those whose loss is not known while tracing, 0 behind the others; and whether 0 is known after all."""
        x = self._points()
        if context.value is None or 0 not in x:
            return x, np.zeros(x.shape, bool)
        x = x[x != 0]
        if context.trusts_value is True:
            return x, np.zeros(x.shape, bool)
        return np.append(x, 0.0), jnp.append(jnp.zeros(x.shape, bool), context.trusts_value)

    def _losses(self, state, losses, context) -> tuple[np.ndarray, jax.Array]:
        """The candidates in order, and their losses, averaged over the axis."""
        x, (evaluated, _) = self._points(), self._evaluated(context)
        if self.batching == "vmap":
            vector, step_sizes = self.direction.vector(state, context), self.direction.factor(context) * evaluated
            losses = _loss.probe_losses(context.loss, context.params, vector, step_sizes)
            losses = _axes.mean(losses.astype(context.arithmetic.loss_dtype), context.axis_name)
        if context.value is not None and 0 in x:
            centre = context.average_value(losses.dtype)
            if context.trusts_value is not True:
                centre = jnp.where(context.trusts_value, centre, losses[x.size - 1])
            below = int(np.searchsorted(x, 0.0))
            losses = jnp.concatenate([losses[:below], centre[None], losses[below : x.size - 1]])
        losses = losses[: x.size]
        return x, losses


@dataclasses.dataclass(frozen=True)
class Exact(Probe):
    """See :func:`exact`."""

    direction: Direction

    def measure(self, state, losses, context):
        """Derivatives along the step."""
        # Differentiate along a step brought to the order of one by a power of two, which is exact: h u would underflow
        # in float16, and u itself overflow where the gradient is huge.
        vector = self.direction.vector(state, context)
        size = _axes.maximum(_tree.power_of_two(vector), context.axis_name)
        derivatives = _loss.directional_derivatives(context.loss, context.params, _tree.scale(vector, 1 / size))
        value, slope, curvature = (
            _axes.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), context.axis_name) for x in derivatives
        )
        h = self.direction.factor(context) * size
        slope, curvature = h * slope, h * (h * curvature)
        start = value
        if isinstance(self.direction, Path):

            def at_anchor():  # where no parabola leads back: is it the batch, or the steps?
                loss = jnp.asarray(context.loss(self.direction.anchor(state)))
                return _axes.mean(loss.astype(value.dtype), context.axis_name)

            start = _flow.cond(jnp.isfinite(value), lambda: value + slope + curvature / 2, at_anchor)
        return self.direction.measurement(state, context, start, value, slope, curvature)


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
