"""The first learning rate: the first that changes the loss visibly, rates that rise from there, and what they say.

No size of the parameters is asked for, and none of the loss. Along the step `u` the rates are powers of two, in units
of `1 / max|u|`: eight forward passes bisect the range of the exponents for the least that changes the loss by more than
its rounding; from there on each rate is four times the last one. A loss that is 0 at first, or nearly, leaves far to
go: where it has fallen by more than its size, and still falls as a line does, rates far below the unit rise by 2^16.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _tree
from gen_optax._measurement import Context, ProbeStatus, first_of

_BISECTIONS, _RISES = 8, 14  # nearly 2^8 exponents of float32; a change of the loss by 4 roundings, times 4^14, is any
_VISIBLE = 4.0  # times its rounding error: a change of the loss that is seen beyond doubt
_STEP, _LONG_STEP = 2, 16  # exponents between rates that rise
_NEAR = -8  # the exponent from which on no long step is taken: a cliff would be passed
_LINE = 0.9  # the part of what a line falls by that is a line's

# Between powers of two: at these the losses of exercises often are what they were at 0.
_POWERS = np.ldexp(np.float32(0.7), np.arange(-126, 128))

NUM_RATES = 1 + _BISECTIONS + _RISES  # the first is 0


def rate(k: jax.Array, tried: jax.Array, losses: jax.Array, context: Context) -> jax.Array:
    """The `k`-th rate to try, where the losses at those before it are known; infinite: there is none.

    Behind a rate that rose too far, so that the loss is not finite, none is tried.
    """
    exponent = _exponent(k, tried, losses, context)
    last = losses[jnp.maximum(k - 1, 0)]
    ends = (k > 1 + _BISECTIONS) & ~jnp.isfinite(last) | (exponent > 127)
    return jnp.where(
        k == 0, 0, jnp.where(ends, jnp.inf, _unit(context) * jnp.asarray(_POWERS)[jnp.minimum(exponent, 127) + 126])
    )


def first_rate(
    context: Context, tried: jax.Array, losses: jax.Array, fraction: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where to begin; whether a decrease was seen; a `ProbeStatus`.

    It is `fraction` of the least rate that gains half of what the best one does: losses may fall for ever. Where
    rounding hides every decrease, what is seen first is that the loss rises as a parabola does, by four roundings or
    more; it is least below a third of that rate, and a sixteenth is taken for it. A loss that rises as a line, though
    no gradient says that it falls before, is an ascent, and gives no rate: 0. The status says why nothing was found,
    `ASCENT`, `BELOW_ROUNDING` or `NOT_FINITE`, or else `NONE`.
    """
    known = jnp.isfinite(losses[0]) & jnp.isfinite(tried[1])
    value, losses, tried = _finite(losses[0]), losses[1 + _BISECTIONS :], tried[1 + _BISECTIONS :]
    rounding = rounding_error(value, context)
    usable = known & jnp.isfinite(tried[0]) & (tried[0] > 0)
    finite = jnp.cumprod(jnp.isfinite(losses)) == 1
    falls = jnp.where(finite, value - losses, -jnp.inf)
    best = jnp.max(falls)
    half = tried[jnp.argmax(falls >= best / 2)]
    seen = usable & (best > rounding)
    rises = losses[:2] - value
    # From one rate to four times that a line rises by a factor of 4, a parabola by 16.
    descends = ~(rises[1] < 8 * rises[0]) if context.slope is None else context.slope > 0
    hidden = usable & ~seen & descends & (rises[0] > 0)
    start = jnp.where(seen, fraction * half, jnp.where(hidden, fraction / 16 * tried[0], 0))
    reasons = [
        (start > 0, ProbeStatus.NONE),
        (~known, ProbeStatus.NOT_FINITE),
        (usable & (rises[0] > rounding), ProbeStatus.ASCENT),
    ]
    return start, seen, first_of(reasons, ProbeStatus.BELOW_ROUNDING)


def rounding_error(value: jax.Array, context: Context) -> jax.Array:
    """That of a loss at the start; of one that is 0, what leaves its changes some digits."""
    limits = jnp.finfo(value.dtype)
    return context.arithmetic.rounding() * jnp.maximum(jnp.abs(value), limits.tiny / limits.eps**2)


def _exponent(k: jax.Array, tried: jax.Array, losses: jax.Array, context: Context) -> jax.Array:
    """That of the `k`-th rate. The bits of the bracket's lower end are what the bisections have answered."""
    value = _finite(losses[0])  # at first it is infinite: not known
    change = jnp.abs(losses[1 : 1 + _BISECTIONS] - value)
    hidden = change <= _VISIBLE * rounding_error(value, context)
    call, width = jnp.arange(1, 1 + _BISECTIONS), 2 ** jnp.arange(_BISECTIONS - 1, -1, -1)
    low = -127 + jnp.sum(jnp.where(hidden & (call < k), width, 0))
    first_even = (low + 2) & ~1  # the rates that rise are the same ones whatever the loss is rounded to
    rising = slice(1 + _BISECTIONS, NUM_RATES)
    far = tried[rising] <= 2.0 ** (_NEAR - _LONG_STEP) * _unit(context)
    steps = jnp.where(far & _falls_as_a_line(tried[rising], value - losses[rising], value), _LONG_STEP, _STEP)
    risen = jnp.sum(jnp.where(jnp.arange(1 + _BISECTIONS, NUM_RATES) < k, steps, 0))
    return jnp.where(k <= _BISECTIONS, low + jnp.sum(jnp.where(call == k, width, 0)), first_even + risen)


def _falls_as_a_line(tried: jax.Array, falls: jax.Array, value: jax.Array) -> jax.Array:
    """At which rates that rise the loss has fallen by more than its size, and as much as a line from the one before."""
    expected = _LINE * falls[:-1] * (tried[1:] / tried[:-1])
    return jnp.concatenate([jnp.zeros(1, bool), (falls[1:] > jnp.abs(value)) & (falls[1:] >= expected)])


def _finite(value: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(value), value, 0)


def _unit(context: Context) -> jax.Array:
    """`1 / max|u|`; 0 where the step is zero, infinite where it is not finite."""
    largest = _axes.maximum(_tree.largest(context.updates), context.axis_name)
    inverse = jnp.where(largest == 0, 0, 1 / jnp.where(largest == 0, 1, largest))
    return jnp.where(jnp.isfinite(largest), inverse, jnp.inf)
