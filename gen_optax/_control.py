"""From a measured parabola to the next learning rate: judge it, aim, smooth.

The parabola comes in multiples of the step that was probed, so `rho = slope / curvature = b / (A h)` is the factor by
which that step fell short of the minimum. The target is `sigma * rho` times the present learning rate, whichever step
was probed:

* along the step to come, on its own batch, `h = eta` and the target is `sigma b / A`, the paper's rule for `sigma = 1`;
* on a batch independent of the step, `h` is the step as applied, decay included. At its noise floor training under h
  no longer changes the expected loss: `b h = A h^2 / 2`, hence `rho = 1/2` although nothing is wrong, for one step and
  for several judged as one. With `sigma = 2` the rule stands still exactly there; the greedy rule would halve the rate,
  again and again.

Exactly there nothing is gained any more, and in a long run a rate that was right at first stays when noise is all that
is left of its steps. So the default is a little less. With 1.8 the rate rests where a twentieth of `A h^2` is progress,
`1 / 1.8 - 1 / 2`: a decay takes it down in the end. Where the end is open nothing else does, and with 1.6 it sinks
until an eighth is. So it does ahead of a single step: without noise `2 b / A` is the edge where such a step gains
nothing. Of several steps judged as one only the progress counts that they make together, not what one does across the
valley and the next one undoes.

Near balance `sigma rho` scatters about 1 with the noise of `b`. A mean of its logarithm would lie below that of `sigma
rho`, the more so the noisier the batch, and the rate would sink for no other reason. So on an independent batch, once a
rate is found, its logarithm follows the mean of `sigma rho - 1`, within the logarithms of the clamp.

While a rate is being found, `sigma` is at most 1. Break-even is a state of balance, which the first steps are far
from: there it overshoots, and stays, since balance is found at any rate within reach. It only climbs from where it
started: below, on a landscape that is rough in the small, probes read the roughness and their rates sink. On an
independent batch it rises by the cube root of the factor to the target: far from it as fast as the clamp allows, but a
short way from it with care, since steps that are too long for a dozen calls leave dead units and settled outputs, which
no probe sees; and it falls at once. And what says nothing of a rate does not count there: an ascent with little
curvature, `-b > 2 A h`, where that batch disagrees with the direction at any rate, and negative curvature, where the
parabola has no minimum.

Balance is found at any rate, so a probe cannot tell that the rate which it keeps is too high for the noise of tiny
batches. The loss can: `Losses` follows its average, and where the steps cost it what it had gained the rate falls.
"""

import enum
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax import _arithmetic, _axes, _fit, _loss
from gen_optax._probe import Context, Measurement

_MIN_R_SQUARED = 0.99  # Algorithm 1
_SIGMA_HELD, _SIGMA_SINKING = 1.8, 1.6  # on an independent batch
_FIRST_SIGMA = 1.0  # at most, while a rate is being found
_STEPS_TOGETHER = 16  # that a probe judges as one, or as many as lie between two probes: fewer scatter more
_BLIND_ASCENT = 2.0  # an ascent of more than this times A h says nothing of a rate that is being found
# The first rate is this part of what the first step alone would bear: momentum is still to come, and curvature falls
# from its height at the start. The climb from there costs a few dozen steps, an overshoot may cost the run.
_FIRST_FRACTION = 0.02
# A search begins at a given rate instead, if that is lower, down to this part: the climb from below takes too long.
_LEAST_GIVEN = 0.1
_NUM_FIRST_RATES = 18  # 2^17 > 1e5: from a step of 1e-5 relative to the parameters to one of their own size
# While the rate is being found every call probes, this many times; a probe at call t has the weight
# _MEMORY * (calls since the last probe) / t, at most _MAX_WEIGHT: an average over a fixed part of the past.
_NUM_FIRST_PROBES, _MEMORY, _MAX_WEIGHT = 50, 4.0, 0.5
# A step that multiplies the loss of a fresh batch by the first has overshot beyond doubt: the rate falls unsmoothed,
# and below the clamp. (Not so several steps, after the search: small losses of few examples double by chance.) A loss
# that is the second times that of the last probe makes a probe due at once. That one is there because its batch is a
# bad one, so it answers no other question than this.
_OVERSHOT_GROWTH, _ALARMING_GROWTH = 2.0, 3.0
# How far a learning rate falls when the step itself made the loss non-finite: the distance to safety is unknown, every
# try costs a probe, and a rate that is too low is found and raised again. And how far it may fall where the step is
# known to have overshot: beyond the edge of stability each further step multiplies the loss.
_OVERSHOOT_FACTOR = 0.1
# A setback: the average of the loss stands above the lowest it has been by this part of what it had gained until then,
# and by this many of its standard errors. The second alone would mind the ripple of a full batch, the first noise. One
# outlier, however large, amounts to sqrt((2 - weight) / (1 - weight)) of them, with _MAX_WEIGHT 1.73. Unless what the
# steps did to the loss is less than that beyond doubt, by this many standard errors: the loss then rose without them.
_SETBACK, _SETBACK_ERRORS, _CHANGE_ERRORS = 0.25, 1.75, 3.0
_MIN_SETBACK_PROBES = 10


class ProbeStatus(enum.IntEnum):
    """What became of a probe, as `info.status` holds it."""

    NONE = 0
    """No probe so far, and nothing in the way of a first rate."""
    ACCEPTED = 1
    """A convex, descending, trustworthy fit: the learning rate follows it."""
    NOT_FINITE = 2
    """The loss is NaN or infinite where the step starts or at a candidate beside the step itself, or the step is NaN or
    infinite: the probe abstains."""
    OVERSHOOT = 3
    """The step itself makes a finite loss NaN or infinite: the rate falls, no step is taken, the next call probes. With
    a probe that looks back the steps judged are taken back."""
    BELOW_ROUNDING = 4
    """The loss changes by no more than its rounding error, or the step is zero: the probe abstains."""
    ASCENT = 5
    """The loss rises along the step. The probe abstains; on an independent batch the rate falls, but for ascents of
    -b > 2 A h while it is being found. Before the first probe: no rate lowers the loss, so none was found."""
    NO_CURVATURE = 6
    """The curvature along the step is negative or vanishes, so there is no minimum in sight. The probe abstains; on an
    independent batch, or where the rate was found by a cold start, the rate rises, while it is being found only where
    the curvature is within its rounding error."""
    POOR_FIT = 7
    """The points are no parabola (R^2 of at most 0.99): the probe abstains."""


class Rule(NamedTuple):
    """The settings of `scale_by_gen` that turn a parabola into a learning rate. See there."""

    smoothing: Any
    smooth: Literal["learning_rate", "log", "coefficients"]
    max_change: Any
    sigma: Any
    every: Any
    min_learning_rate: Any
    max_learning_rate: Any
    searches: bool  # for a first rate: it is unknown or, being tied to it by the clamp, has to be plausible


class Averages(NamedTuple):
    """Moving averages of b and A from zero; their bias corrections are the same and cancel in the ratio."""

    slope: jax.Array
    curvature: jax.Array


class Losses(NamedTuple):
    """The loss where probed steps start, on batches that these have not seen. All infinite before the first."""

    first: jax.Array
    average: jax.Array
    deviation: jax.Array  # standard, of single losses about it; no square, which might overflow, is kept
    lowest: jax.Array  # that the average was, since the last setback
    # Since then by the steps judged, from one end of them to the other on the same batch, and its standard error. ()
    # where a probe looks ahead: it sees a single step.
    change: Any
    change_error: Any


def judge(measured: Measurement, step_is_finite: jax.Array) -> jax.Array:
    """The `ProbeStatus` of a measurement, int32: the first reason against it, or ACCEPTED."""
    slope, curvature, noise = measured.slope, measured.curvature, measured.noise
    finite = jnp.isfinite(measured.value) & step_is_finite
    fit_finite = jnp.isfinite(slope) & jnp.isfinite(curvature) & jnp.isfinite(measured.r_squared)
    reasons = [
        (~finite, ProbeStatus.NOT_FINITE),
        (~jnp.isfinite(measured.end_value), ProbeStatus.OVERSHOOT),
        (~fit_finite, ProbeStatus.NOT_FINITE),
        ((jnp.abs(slope) <= noise), ProbeStatus.BELOW_ROUNDING),
        (slope < 0, ProbeStatus.ASCENT),
        (curvature <= noise, ProbeStatus.NO_CURVATURE),
        (measured.r_squared <= _MIN_R_SQUARED, ProbeStatus.POOR_FIT),
    ]
    return _first_of(reasons, ProbeStatus.ACCEPTED)


def advance(
    rule: Rule,
    learning_rate: jax.Array,
    first_learning_rate: jax.Array,
    averages: Averages | tuple[()],
    num_probes: jax.Array,
    measured: Measurement,
    step_size: jax.Array,
    status: jax.Array,
    independent: bool,
    looks_back: bool,
    planned: jax.Array,
) -> tuple[jax.Array, Averages | tuple[()], jax.Array]:
    """The next learning rate and averages, given a measurement along `step_size` times the update.

    And whether that overshot beyond doubt. `planned`: or else the probe follows an alarm.
    """
    searched = first_learning_rate > 0
    first = finding(rule, first_learning_rate, num_probes)
    gamma = 1 - _weight(rule, searched, num_probes, learning_rate.dtype)
    overshot = status == ProbeStatus.OVERSHOOT
    if independent:
        grown = measured.end_value > _OVERSHOT_GROWTH * jnp.abs(measured.value)
        overshot |= grown & (first | ~planned | (not looks_back))
        gamma = jnp.where(overshot, 0, gamma)
        status = jnp.where(planned | overshot, status, jnp.int32(ProbeStatus.NONE))
    accepted = status == ProbeStatus.ACCEPTED
    slope, curvature = measured.slope, measured.curvature
    if isinstance(averages, Averages):
        unit = _fit.nonzero(step_size)
        new = Averages(slope / unit, curvature / unit / unit)
        accepted &= jnp.isfinite(new.slope) & jnp.isfinite(new.curvature)
        averages = Averages(
            *(jnp.where(accepted, gamma * m + (1 - gamma) * x, m) for m, x in zip(averages, new, strict=True))
        )
        slope, curvature = averages.slope * unit, averages.curvature * unit * unit

    sigma = jnp.where(first, jnp.minimum(_FIRST_SIGMA, rule.sigma), rule.sigma)
    ratio = _towards(rule, sigma * slope / jnp.where(accepted, curvature, 1), first, overshot, independent)
    moves = accepted
    for applies, without_minimum in _blindly(rule, sigma, measured, status, first, searched, overshot, independent):
        ratio, moves = jnp.where(applies, without_minimum, ratio), moves | applies

    if rule.smooth == "learning_rate":
        smoothed = learning_rate * (gamma + (1 - gamma) * ratio)
    else:
        smoothed = learning_rate * ratio ** (1 - gamma)
    if rule.smooth == "coefficients":  # these are averages already, where a parabola was accepted
        smoothed = jnp.where(accepted, learning_rate * ratio, smoothed)
    # A minimum beyond the range of the dtype is none in sight; and a known rate never becomes 0, which means unknown.
    moved = jnp.where(moves & jnp.isfinite(smoothed), smoothed, learning_rate)
    lowest = jnp.where(first & ~overshot, jnp.minimum(first_learning_rate, learning_rate), 0)
    moved = jnp.maximum(moved, lowest)
    moved = jnp.where(status == ProbeStatus.OVERSHOOT, _OVERSHOOT_FACTOR * learning_rate, moved)
    moved = jnp.where(learning_rate > 0, jnp.maximum(moved, jnp.finfo(moved.dtype).tiny), 0)
    return bound(rule, moved), averages, overshot


def _towards(rule: Rule, ratio: jax.Array, first: jax.Array, overshot: jax.Array, independent: bool) -> jax.Array:
    """The factor by which a parabola moves the rate before smoothing, where the target is `ratio` times the rate."""
    limit = _limit(rule)
    if independent:
        steady = ratio
        if rule.smooth == "log" and rule.max_change is not None:  # so that noise averages out; exp(m - 1) > m
            steady = jnp.where(overshot, ratio, jnp.exp(jnp.minimum(ratio, limit) - 1))
        careful = jnp.minimum(jnp.cbrt(ratio), ratio)  # up with care, down at once
        ratio = jnp.where(first, careful, steady)
    if rule.max_change is None:
        return ratio
    return jnp.clip(ratio, jnp.where(overshot, jnp.minimum(_OVERSHOOT_FACTOR, 1 / limit), 1 / limit), limit)


def _blindly(
    rule: Rule,
    sigma: jax.Array,
    measured: Measurement,
    status: jax.Array,
    first: jax.Array,
    searched: jax.Array,
    overshot: jax.Array,
    independent: bool,
) -> list[tuple[jax.Array, jax.Array]]:
    """When a measurement without a minimum in sight moves the rate, and by which factor."""
    limit = _limit(rule)
    cases = []
    if independent or rule.searches:
        # Curvature hidden in the rounding error is at most that error: the minimum lies beyond aim / noise.
        hidden = (status == ProbeStatus.NO_CURVATURE) & (independent | searched)
        if independent:
            hidden &= ~first | (measured.curvature >= -measured.noise)
        at_least = sigma * measured.slope / jnp.maximum(measured.noise, jnp.finfo(measured.slope.dtype).tiny)
        cases.append((hidden, jnp.clip(at_least, 1, limit)))
    if independent:
        blind = first & ~overshot & (-measured.slope > _BLIND_ASCENT * jnp.abs(measured.curvature))
        cases.append(((status == ProbeStatus.ASCENT) & ~blind, jnp.asarray(1 / limit)))
    return cases


def watch(
    rule: Rule,
    losses: Losses,
    learning_rate: jax.Array,
    first_learning_rate: jax.Array,
    num_probes: jax.Array,
    measured: Measurement,
    planned: jax.Array,
    looks_back: bool,
) -> tuple[jax.Array, Losses]:
    """The learning rate, lower by the clamp after a setback that no search explains; and the losses with this one.

    Nor may harder data explain it, or a penalty that grows. Where probes see all steps, they tell: what the steps did
    to the loss they see on one and the same batch, where such a shift cancels.
    """
    # A probe that an alarm made due is there because its batch is a bad one.
    counts = jnp.isfinite(measured.value) & planned
    loss = jnp.where(counts, measured.value, 0)
    none = jnp.zeros_like(loss)
    unchanged = none if looks_back else ()
    known, start = jnp.isfinite(losses.average), Losses(loss, loss, none, loss, unchanged, unchanged)
    first, average, deviation, lowest, change, change_error = jax.tree.map(
        lambda old, new: jnp.where(known, old, new), losses, start
    )

    weight = _weight(rule, first_learning_rate > 0, num_probes, loss.dtype)
    weight = jnp.maximum(weight, 1 / (num_probes.astype(loss.dtype) + 1))
    error = loss - average
    average += weight * error
    deviation = jnp.sqrt(1 - weight) * jnp.hypot(deviation, jnp.sqrt(weight) * error)
    lowest = jnp.minimum(lowest, average)
    rise, standard_error = average - lowest, deviation * jnp.sqrt(weight / (2 - weight))
    setback = (rise > _SETBACK * jnp.abs(first - lowest)) & (rise > _SETBACK_ERRORS * standard_error)
    setback &= counts & (num_probes >= _MIN_SETBACK_PROBES)
    setback &= ~finding(rule, first_learning_rate, num_probes)
    if looks_back:
        here = measured.end_value - measured.value
        here = jnp.where(jnp.isfinite(here), here, 0)
        change, change_error = change + here, jnp.hypot(change_error, here)
        setback &= change + _CHANGE_ERRORS * change_error >= rise
        risen = (rise > 0) & ~setback
        change, change_error = jnp.where(risen, change, 0), jnp.where(risen, change_error, 0)
    learning_rate = bound(rule, jnp.where(setback, learning_rate / _limit(rule), learning_rate))
    seen = Losses(first, average, deviation, jnp.where(setback, average, lowest), change, change_error)
    return learning_rate, jax.tree.map(lambda new, old: jnp.where(counts, new, old), seen, losses)


def no_losses(looks_back: bool, dtype: Any) -> Losses:
    """Before the first probe."""
    losses = Losses(*(jnp.full((), jnp.inf, dtype) for _ in Losses._fields))
    return losses if looks_back else losses._replace(change=(), change_error=())


def sigma_for(independent: bool, looks_back: bool, decays: bool) -> float:
    """The default sigma: see the module."""
    if not independent:
        return 1.0
    return _SIGMA_HELD if looks_back and decays else _SIGMA_SINKING


def finding(rule: Rule, first_learning_rate: jax.Array, num_probes: jax.Array) -> jax.Array:
    """Whether every call probes: the rate has only just been found."""
    if not rule.searches:
        return jnp.zeros((), jnp.bool_)
    return (first_learning_rate > 0) & (num_probes < _NUM_FIRST_PROBES)


def begins(rule: Rule, count: jax.Array) -> jax.Array:
    """Whether what the next probes judge starts where call number `count` starts its step; the first is number 1.

    At every 16th call, or a multiple of `every`; until then at every power of two, as the first steps are the wildest.
    """
    together = rule.every * -(-_STEPS_TOGETHER // rule.every)
    return (count % together == 0) | ((count < together) & (count & (count - 1) == 0))


def alarming(value: jax.Array, last_value: jax.Array, num_probes: jax.Array) -> jax.Array:
    """Whether a loss leaves no time to wait for the next probe: it is not finite, or far above that of the last one."""
    return ~jnp.isfinite(value) | ((num_probes > 0) & ~(value <= _ALARMING_GROWTH * jnp.abs(last_value)))


def _first_of(reasons: list[tuple[jax.Array, ProbeStatus]], otherwise: ProbeStatus) -> jax.Array:
    """The first status whose condition holds, int32."""
    conditions, statuses = zip(*reasons, strict=True)
    return jnp.select(conditions, [jnp.int32(status) for status in statuses], jnp.int32(otherwise))


def _limit(rule: Rule) -> Any:
    """The clamp, or what takes its place where there is none: how far a rate falls at most that has to fall."""
    return 2.0 if rule.max_change is None else rule.max_change


def _weight(rule: Rule, searched: jax.Array, num_probes: jax.Array, dtype: Any) -> jax.Array:
    """The weight of a probe in the average: 1 - gamma, and more in the time after a rate was searched for."""
    weight = 1 - jnp.asarray(rule.smoothing, dtype)
    if not rule.searches:
        return weight
    n = num_probes.astype(dtype)
    later = n >= _NUM_FIRST_PROBES
    spacing = jnp.where(later, rule.every, 1)
    calls = jnp.where(later, _NUM_FIRST_PROBES + (n - _NUM_FIRST_PROBES) * spacing, n)
    more = jnp.clip(_MEMORY * spacing / jnp.maximum(calls, 1), weight, jnp.maximum(weight, _MAX_WEIGHT))
    return jnp.where(searched, more, weight)


def bound(rule: Rule, learning_rate: jax.Array) -> jax.Array:
    """The learning rate within the user's bounds and the range of its dtype; 0, which means unknown, stays 0."""
    limits = jnp.finfo(learning_rate.dtype)
    low = limits.tiny if rule.min_learning_rate is None else rule.min_learning_rate
    high = limits.max if rule.max_learning_rate is None else rule.max_learning_rate
    return jnp.where(learning_rate > 0, jnp.clip(learning_rate, low, high), 0).astype(learning_rate.dtype)


def first_rate(context: Context, given: jax.Array, needed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rate to begin with; where the search for a better one begins: the same, or 0 if none is needed; a status.

    That is the `ProbeStatus` that says why nothing was found, `ASCENT`, `BELOW_ROUNDING` or `NOT_FINITE`; else `NONE`.

    `given`: what the user said; 0 for nothing. A search begins at 0.02 times the rate that lowers the loss most along
    the first step, or at what was given from 0.002 times it; where coarse rounding (bfloat16) hides every decrease, at
    no less than the smallest rate tried. Where nothing lowered the loss, what was given is kept, without a search; 0
    means that it is tried again at the next call.

    `needed`: whether it is; under `vmap` this is computed at every call, and where it is not needed, without a loss.
    """
    loss, params = context.loss, context.params
    value = loss(params) if context.value is None else context.value
    arithmetic = _arithmetic.arithmetic(loss, params)
    rounding = arithmetic.rounding(value)
    value = _axes.mean(value.astype(jnp.promote_types(value.dtype, jnp.float32)), context.axis_name)
    value = jax.lax.stop_gradient(value)
    least, best, best_loss, worst_loss = _bracket(context, value, needed)
    seen = best_loss < value - rounding * jnp.abs(value)
    # Coarse rounding may hide a decrease: a rate that it hides is then better than a standstill.
    hidden = jnp.maximum(_FIRST_FRACTION * best, least) if arithmetic.is_coarse else 0
    start = jnp.where(seen, _FIRST_FRACTION * best, hidden)
    start = start.astype(given.dtype)
    finite = jnp.isfinite(value) & _axes.everywhere(_loss.all_finite(context.updates), context.axis_name)
    reasons = [
        (start > 0, ProbeStatus.NONE),
        (~finite, ProbeStatus.NOT_FINITE),
        (worst_loss > value + rounding * jnp.abs(value), ProbeStatus.ASCENT),
    ]
    status = _first_of(reasons, ProbeStatus.BELOW_ROUNDING)
    kept = (given > 0) & ~seen
    start = jnp.where(given >= _LEAST_GIVEN * start, jnp.minimum(given, start), start)
    return jnp.where(kept, given, start), jnp.where(kept, 0, start), status


def _bracket(context: Context, value: jax.Array, needed: jax.Array) -> tuple[jax.Array, ...]:
    """Rates that double, along the first step: the smallest, the one of the lowest loss, that loss, and the highest.

    From a step of 1e-5 relative to the parameters to one of their own size (parameters near zero count as 0.1 per
    entry), or to where the loss is no longer finite. Not to where it first rises: in a rough landscape that is at once.
    At most 18 forward passes, one after the other. All 0 where the step is, where the loss at its start is
    not finite, or where none is needed.
    """
    loss, params, updates = context.loss, context.params, context.updates
    size = sum(
        jnp.size(leaf) * _axes.num_shards(leaf, context.axis_name)
        for leaf in jax.tree.leaves(params)
        if _loss.is_inexact(leaf)
    )
    unit = jnp.sqrt(jnp.maximum(_squared_norm(params, context.axis_name, 1.0), 0.01 * size))
    largest = _axes.maximum(_loss.power_of_two(updates), context.axis_name)
    step_norm = largest * jnp.sqrt(_squared_norm(updates, context.axis_name, 1 / largest))
    # Nothing that a caller differentiates may flow into the loop, which has no reverse rule, nor out with the rate.
    first = jax.lax.stop_gradient(1e-5 * unit / jnp.where(step_norm > 0, step_norm, 1)).astype(value.dtype)

    def doubled(carry):
        k, best, best_loss, worst_loss, _ = carry
        rate = jnp.ldexp(first, k)
        here = loss(_loss.step_along(params, updates, rate)).astype(value.dtype)
        here = jax.lax.stop_gradient(_axes.mean(here, context.axis_name))
        _axes.require_agreement((here, value, rate), context.step_size, context.axis_name)
        lower = here < best_loss
        best, best_loss = jnp.where(lower, rate, best), jnp.where(lower, here, best_loss)
        return k + 1, best, best_loss, jnp.where(here > worst_loss, here, worst_loss), jnp.isfinite(here)

    def going_on(carry):
        k, *_, finite = carry
        return finite & (k < _NUM_FIRST_RATES)

    is_usable = needed & jnp.isfinite(value) & (step_norm > 0)
    none = jnp.where(is_usable, jnp.zeros_like(value), 0)  # a zero that varies over the axes over which the rates will
    start = (jnp.int32(0), none, value, value, is_usable)
    _, best, best_loss, worst_loss, _ = jax.lax.while_loop(going_on, doubled, jax.lax.stop_gradient(start))
    return jnp.where(is_usable, first, 0), best, best_loss, worst_loss


def _squared_norm(tree: Any, axis_name: Any, factor: jax.typing.ArrayLike) -> jax.Array:
    conjugate = jax.tree.map(lambda x: jnp.conj(x) if _loss.is_inexact(x) else x, tree)
    return _axes.inner_product(_loss.scale(conjugate, jnp.asarray(factor)), tree, axis_name, factor)
