"""The first learning rate: rates that double along the first step, and where the search for a better one begins."""

from typing import Any

import jax
import jax.numpy as jnp

from gen_optax import _axes, _tree
from gen_optax._measurement import Context, ProbeStatus, first_of

_NUM_RATES = 18  # 2^17 > 1e5: from a step of 1e-5 relative to the parameters to one of their own size


def rates(context: Context) -> jax.Array:
    """The rates to try, shape (18,) or, where the loss at the parameters is unknown, (19,) with 0 in front.

    From a step of 1e-5 relative to the parameters to one of their own size; parameters near zero count as 0.1 an entry.
    All 0 where the step is zero, and infinite where it is not finite.
    """
    params, updates, axis_name = context.params, context.updates, context.axis_name
    leaves = filter(_tree.is_inexact, jax.tree.leaves(params))
    size = sum(jnp.size(leaf) * _axes.num_shards(leaf, axis_name) for leaf in leaves)
    unit = jnp.sqrt(jnp.maximum(_squared_norm(params, axis_name, 1.0), 0.01 * size))
    largest = _axes.maximum(_tree.power_of_two(updates), axis_name)
    step = largest * jnp.sqrt(_squared_norm(updates, axis_name, 1 / largest))
    first = jnp.where(step == 0, 0, 1e-5 * unit / jnp.where(step == 0, 1, step))
    first = jnp.where(jnp.isfinite(step), first, jnp.inf)
    doubled = jnp.ldexp(first, jnp.arange(_NUM_RATES))
    return doubled if context.value is not None else jnp.concatenate([jnp.zeros_like(doubled[:1]), doubled])


def first_rate(
    context: Context, tried: jax.Array, losses: jax.Array, fraction: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where to begin: `fraction` of the rate of the lowest loss; whether a decrease was seen; a `ProbeStatus`.

    Where coarse rounding (bfloat16) hides every decrease, it is no less than the smallest rate tried, since a rate that
    rounding hides is better than a standstill. Otherwise a rate without a decrease is 0. The status says why nothing
    was found, `ASCENT`, `BELOW_ROUNDING` or `NOT_FINITE`, or else `NONE`.
    """
    if context.value is None:
        value, losses, tried = losses[0], losses[1:], tried[1:]
    else:
        value = _axes.mean(jax.lax.stop_gradient(context.value.astype(losses.dtype)), context.axis_name)
    rounding = context.arithmetic.rounding(context.value) * jnp.abs(value)
    usable = jnp.isfinite(value) & (tried[0] > 0) & jnp.isfinite(tried[0])
    losses = jnp.where(usable & ~jnp.isnan(losses), losses, value)  # a loss that is NaN tells nothing
    lowest = jnp.argmin(losses)
    best = jnp.where(losses[lowest] < value, tried[lowest], 0)
    seen = losses[lowest] < value - rounding
    hidden = jnp.where(usable, jnp.maximum(fraction * best, tried[0]), 0) if context.arithmetic.is_coarse else 0
    start = jnp.where(seen, fraction * best, hidden)
    reasons = [
        (start > 0, ProbeStatus.NONE),
        (~(jnp.isfinite(value) & jnp.isfinite(tried[0])), ProbeStatus.NOT_FINITE),
        (jnp.max(losses) > value + rounding, ProbeStatus.ASCENT),
    ]
    return start, seen, first_of(reasons, ProbeStatus.BELOW_ROUNDING)


def _squared_norm(tree: Any, axis_name: Any, factor: jax.typing.ArrayLike) -> jax.Array:
    conjugate = jax.tree.map(lambda x: jnp.conj(x) if _tree.is_inexact(x) else x, tree)
    return _axes.inner_product(_tree.scale(conjugate, jnp.asarray(factor)), tree, axis_name, factor)
