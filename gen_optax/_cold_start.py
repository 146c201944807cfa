"""The first learning rate: the first that changes the loss visibly, rates that rise from there, and what they say.

No size of the parameters is asked for, and none of the loss. Along the step `u` the rates are powers of two, in units
of `1 / max|u|`: eight forward passes bisect the range of the exponents for the least that changes the loss by more than
its rounding; from there on each rate is four times the last one. In float64 that begins far lower, and more rates
follow. A loss that is 0 at first, or nearly, leaves far to go: where it has clearly fallen, as a line does, rates far
below the unit rise by 2^16, and where that was too much, the end of the line is bisected.

Some losses are rough: along the step they go up and down at scales far below the one at which they fall. Pretrained
networks with batch normalisation over few examples are. Steps at the scale of the bumps get nowhere, and no probe of
them says so. The rates then rise in longer steps, and the search begins above the bumps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _tree
from gen_optax._measurement import Context, ProbeStatus, first_of

_BISECTIONS = 8  # nearly 2^8 exponents of float32
# A change of the loss by 4 roundings of float32, times 4^14, is any; so is one by those of float64, times 4^28.
_RISES, _RISES_FLOAT64 = 14, 28
_VISIBLE = 4.0  # times its rounding error: a change of the loss that is seen beyond doubt
# Exponents from one rate to the next where the loss falls as a line; the one from which on no such step is taken, as a
# cliff would be passed; the part of what a line falls by that is a line's; and of the loss, that shows what is a line.
_LONG_STEP, _NEAR, _LINE, _CLEAR = 16, -8, 0.9, 2.0**-8
# At a bump the gradient promises this many times what was gained so far, and of the gain this part is lost again. On a
# smooth line the promise is at most a few times the gain, up to where half of the fall is gained.
_PROMISE, _BUMP = 16.0, 0.25
# Exponents from one rate to the next above a bump; and where the search then begins, as a part of the best rate. On a
# parabola half of the fall is gained at 0.29 of its minimiser.
_BUMPY_STEP, _ABOVE_BUMPS = 3, 0.25

# Between powers of two: at these the losses of exercises often are what they were at 0.
_MANTISSA = 0.7
_POWERS = np.ldexp(np.float32(_MANTISSA), np.arange(-126, 128))

_RISING = slice(1 + _BISECTIONS, None)  # the first rate is 0
_STEP, _NONE = 2, 1000  # exponents between rates that rise; one beyond all


def num_rates() -> int:
    """How many rates are tried, at most: in float64, if jax has it enabled, a loss is tried at more of them."""
    has_float64 = jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64
    return 1 + _BISECTIONS + (_RISES_FLOAT64 if has_float64 else _RISES)


def rate(k: jax.Array, tried: jax.Array, losses: jax.Array, context: Context) -> jax.Array:
    """The `k`-th rate to try, where the losses at those before it are known; infinite: there is none.

    Behind a rate that rose too far, so that the loss is not finite, none is tried.
    """
    exponent = _exponent(k, tried, losses, context)
    found = _unit(context) * jnp.asarray(_POWERS)[jnp.clip(exponent, -126, 127) + 126]
    last = _BISECTIONS + (_RISES_FLOAT64 if context.arithmetic.is_fine else _RISES)
    ends = (k > _BISECTIONS) & (found >= _wall(tried, losses)) | (exponent > 127) | (k > last)
    return jnp.where(k == 0, 0, jnp.where(ends, jnp.inf, found))


def first_rate(
    context: Context, tried: jax.Array, losses: jax.Array, fraction: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where to begin; whether a decrease was seen; a `ProbeStatus`.

    It is `fraction` of the least rate that gains half of what the best one does: losses may fall for ever. Where the
    loss has bumps on the way to three quarters of that gain, it is a quarter of the best rate. Where rounding hides
    every decrease, what is seen first is that the loss rises as a parabola does, by four roundings or more; it is least
    below a third of that rate, and a sixteenth is taken for it. A loss that rises as a line, though no gradient says
    that it falls before, is an ascent, and gives no rate: 0. The status says why nothing was found, `ASCENT`,
    `BELOW_ROUNDING` or `NOT_FINITE`, or else `NONE`.
    """
    known = jnp.isfinite(losses[0]) & jnp.isfinite(tried[1])
    wall = _wall(tried, losses)
    value, losses, tried = _finite(losses[0]), losses[_RISING], tried[_RISING]
    rounding = context.arithmetic.error_of(value)
    usable = known & jnp.isfinite(tried[0]) & (tried[0] > 0)
    falls = jnp.where(tried < wall, value - losses, -jnp.inf)
    best = jnp.max(falls)
    half, most_of_it = (jnp.min(jnp.where(falls >= part * best, tried, jnp.inf)) for part in (1 / 2, 3 / 4))
    seen = usable & (best > rounding)
    rises = losses[:2] - value
    # From one rate to four times that a line rises by a factor of 4, a parabola by 16.
    descends = ~(rises[1] < 8 * rises[0]) if context.slope is None else context.slope > 0
    hidden = usable & ~seen & descends & (rises[0] > 0)
    is_rough = jnp.any(_bumps(tried, falls, rounding) & (tried < most_of_it))
    begin = jnp.where(is_rough, _ABOVE_BUMPS * tried[jnp.argmax(falls)], fraction * half)
    start = jnp.where(seen, begin, jnp.where(hidden, fraction / 16 * tried[0], 0))
    reasons = [
        (start > 0, ProbeStatus.NONE),
        (~known, ProbeStatus.NOT_FINITE),
        (usable & (rises[0] > rounding), ProbeStatus.ASCENT),
    ]
    return start, seen, first_of(reasons, ProbeStatus.BELOW_ROUNDING)


def _exponent(k: jax.Array, tried: jax.Array, losses: jax.Array, context: Context) -> jax.Array:
    """That of the `k`-th rate. The bits of the bracket's lower end are what the bisections have answered."""
    value = _finite(losses[0])  # at first it is infinite: not known
    rounding = context.arithmetic.error_of(value)
    hidden = jnp.abs(losses[1 : 1 + _BISECTIONS] - value) <= _VISIBLE * rounding
    call, width = jnp.arange(1, 1 + _BISECTIONS), 2 ** jnp.arange(_BISECTIONS - 1, -1, -1)
    low = -127 + jnp.sum(jnp.where(hidden & (call < k), width, 0))
    first_even = (low + 2) & ~1  # the rates that rise are the same ones whatever the loss is rounded to
    rates, falls = tried[_RISING], value - losses[_RISING]
    known, exponents = _known_exponents(rates, context)
    clear = jnp.maximum(_CLEAR * jnp.abs(value), 8 * _VISIBLE * rounding)
    line, is_line = _along_a_line(_steepness(rates, falls, clear), known, exponents)
    bumps = _bumps(rates, falls, rounding)
    above = _untried(jnp.min(jnp.where(bumps, exponents, _NONE)), _BUMPY_STEP, known, exponents)
    risen = first_even + _STEP * (k - 1 - _BISECTIONS)
    risen = jnp.where(jnp.any(bumps), above, jnp.where(is_line, line, risen))
    return jnp.where(k <= _BISECTIONS, low + jnp.sum(jnp.where(call == k, width, 0)), risen)


def _along_a_line(steepness: jax.Array, known: jax.Array, exponents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next exponent of a rate that rises, once the loss has clearly fallen; and whether it has.

    Up to some rate it falls as a line. Far below the unit a long step follows. Where that leads beyond the line, its
    end is bisected, and the rates rise from there.
    """
    is_line = (steepness > 0) & (steepness >= _LINE * jnp.max(steepness))
    low = jnp.max(jnp.where(is_line, exponents, -_NONE))
    above = jnp.min(jnp.where(known & (exponents > low), exponents, _NONE))
    onwards = jnp.where(low + _LONG_STEP <= _NEAR, _LONG_STEP, _STEP)
    step = jnp.where(above < _NONE, (above - low) // 2, onwards)
    found = jnp.where(above - low > _STEP, low + step, _untried(low, _STEP, known, exponents))
    return found, jnp.any(is_line)


def _bumps(tried: jax.Array, falls: jax.Array, rounding: jax.Array) -> jax.Array:
    """The rates at which the loss has risen again, though the gradient promises far more than was gained; bool.

    A rate far above the last one may have passed the minimum by.
    """
    known = jnp.isfinite(tried) & (tried > 0) & jnp.isfinite(falls)
    up_to = known[None] & (tried[None] <= tried[:, None])
    steepness = _steepness(tried, falls, 8 * _VISIBLE * rounding)
    promised = jnp.where(known, tried, 0) * jnp.max(jnp.where(up_to, steepness[None], 0), axis=1)
    gained = jnp.max(jnp.where(up_to, falls[None], 0), axis=1)
    below = known[None] & (tried[None] < tried[:, None]) & (tried[:, None] < 1.5 * 2**_BUMPY_STEP * tried[None])
    return known & jnp.any(below, axis=1) & (promised > _PROMISE * gained) & (falls < (1 - _BUMP) * gained)


def _steepness(tried: jax.Array, falls: jax.Array, least: jax.Array) -> jax.Array:
    """What the loss falls by for each unit of the rate, where it falls by more than `least`; else 0."""
    clear = jnp.isfinite(tried) & (tried > 0) & (falls > least)
    return jnp.where(clear, falls / jnp.where(clear, tried, 1), 0)


def _known_exponents(tried: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    """Which rates have been tried, and their exponents."""
    known = jnp.isfinite(tried) & (tried > 0)
    unit = jnp.where(jnp.any(known), _unit(context), 1)
    return known, jnp.round(jnp.log2(jnp.where(known, tried, unit)) - jnp.log2(unit) - np.log2(_MANTISSA)).astype(int)


def _untried(low: jax.Array, step: int, known: jax.Array, exponents: jax.Array) -> jax.Array:
    """The first exponent that was not tried, of those that rise from `low` by a step each."""
    rising = low + step * jnp.arange(1, 1 + exponents.size)
    return rising[jnp.argmax(~jnp.any((rising[:, None] == exponents[None]) & known[None], axis=1))]


def _wall(tried: jax.Array, losses: jax.Array) -> jax.Array:
    """The least rate that rises at which the loss is not finite; infinite where there is none."""
    return jnp.min(jnp.where(jnp.isfinite(losses[_RISING]), jnp.inf, tried[_RISING]))


def _finite(value: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(value), value, 0)


def _unit(context: Context) -> jax.Array:
    """`1 / max|u|`; 0 where the step is zero, infinite where it is not finite."""
    largest = _axes.maximum(_tree.largest(context.updates), context.axis_name)
    inverse = jnp.where(largest == 0, 0, 1 / jnp.where(largest == 0, 1, largest))
    return jnp.where(jnp.isfinite(largest), inverse, jnp.inf)
