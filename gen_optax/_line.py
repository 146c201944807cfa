"""The losses at a few points along a direction: the one place where a step evaluates the loss for a probe.

The search for the first rate and a probe want the loss at different points along different directions, and never at
the same call. One loop over points serves both, so that the loss stands once in the compiled program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import _axes, _flow, _tree
from gen_optax._measurement import Context


class Line(NamedTuple):
    """Points along a direction, `params + c * direction`. The direction is built where it is used, and never kept."""

    size: int  # points at most
    point: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # the k-th c, from k, those before it and the losses
    direction: Callable[[], optax.Updates]


def losses(context: Context, lines: Sequence[tuple[Any, Line]]) -> tuple[jax.Array, jax.Array]:
    """The points of the first line that is wanted, and the losses there; infinite where none was evaluated.

    `lines` holds pairs: whether a line is wanted, a bool, and the line; one of them is. A point that is infinite ends
    it. Both results have the length of the longest line; the losses are averaged over the axis.
    """
    length = max(line.size for _, line in lines)
    dtype, arithmetic = context.learning_rate.dtype, context.arithmetic
    tried = jnp.full((length,), jnp.inf, dtype)
    found = jnp.full((length,), jnp.inf, arithmetic.loss_dtype)
    if not length:
        return tried, found
    found = _axes.vary(found, arithmetic.varying, context.axis_name)
    _axes.require_agreement(found, context.learning_rate, context.axis_name)
    directions = [(wanted, line.direction) for wanted, line in lines if line.size]

    def point(k, tried, found):
        made = _first_wanted([(wanted, functools.partial(next_of, line, k, tried, found)) for wanted, line in lines])
        made = _axes.vary(made, arithmetic.varying, context.axis_name)
        return jax.lax.stop_gradient(made)  # what a caller differentiates stays out of the loop: it has no reverse rule

    def next_of(line, k, tried, found):
        if not line.size:
            return jnp.full((), jnp.inf, dtype)
        return jnp.where(k < line.size, jnp.asarray(line.point(k, tried, found), dtype), jnp.inf)

    def evaluate(carry):
        k, c, tried, found = carry
        moved = _tree.step_along(context.params, _selected(directions), c)
        loss = context.loss(jax.lax.stop_gradient(moved)).astype(found.dtype)
        loss = _axes.mean(jax.lax.stop_gradient(loss), context.axis_name)
        _axes.require_agreement((loss, c), context.learning_rate, context.axis_name)
        tried, found = tried.at[k].set(c), found.at[k].set(loss)
        return k + 1, point(k + 1, tried, found), tried, found

    def is_unfinished(carry):
        k, c, *_ = carry
        return (k < length) & jnp.isfinite(c)

    def is_known(carry):  # the parameters may be known and their losses traced, by `vmap` over batches
        return all(map(_flow.is_known, (carry[1], *jax.tree.leaves(context.params))))

    first = point(jnp.int32(0), tried, found)
    carry = (jnp.int32(0), first, *(_axes.vary(x, _axes.varying(first), None) for x in (tried, found)))
    while is_known(carry) and is_unfinished(carry):
        carry = evaluate(carry)
    if not is_known(carry):
        carry = jax.lax.while_loop(is_unfinished, evaluate, carry)
    return carry[2:]


def after_listening(line: Line, alarms: Callable[[jax.Array], jax.Array]) -> Line:
    """The line behind a first point at the parameters, with whose loss it ends unless that alarms."""

    def point(k, tried, losses):
        if not line.size:
            return jnp.where(k == 0, 0.0, jnp.inf)
        c = line.point(jnp.maximum(k - 1, 0), tried[1:], losses[1:])
        return jnp.where(k == 0, 0, jnp.where(alarms(losses[0]), c, jnp.inf))

    return Line(1 + line.size, point, line.direction)


def _first_wanted(options: Sequence[tuple[Any, Callable[[], Any]]]) -> Any:
    """What the first wanted option makes, or else the last one; the others are not run."""
    (wanted, make), *others = options
    return _flow.cond(wanted, make, lambda: _first_wanted(others)) if others else make()


def _selected(directions: Sequence[tuple[Any, Callable[[], optax.Updates]]]) -> optax.Updates:
    """The same entry by entry, which XLA fuses into the step along the direction."""
    (wanted, make), *others = directions
    if not others or (_flow.is_known(wanted) and wanted):
        return make()
    if _flow.is_known(wanted):
        return _selected(others)

    def choose(x, y):
        return jnp.where(wanted, x, y) if _tree.is_inexact(x) else x

    return jax.tree.map(choose, make(), _selected(others))
