"""The losses at a few points along a direction: the one place where a step evaluates the loss for a probe.

The search for the first rate and a probe want the loss at different points along different directions, and never at
the same call. One loop over points serves both, so that the loss stands once in the compiled program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import _axes, _flow, _tree
from gen_optax._measurement import Context


class Line(NamedTuple):
    """Points along a direction, `params + c * direction`. Both are built where they are used, and never kept."""

    points: Callable[[], jax.Array]  # c, shape (n,); evaluated in this order
    direction: Callable[[], optax.Updates]
    ends_at_infinity: bool  # whether no point is tried behind a loss that is not finite

    @property
    def size(self) -> int:
        """The number of points."""
        return jax.eval_shape(self.points).size


def losses(context: Context, lines: Sequence[tuple[Any, Line]]) -> tuple[jax.Array, jax.Array]:
    """The points of the first line that is wanted, and the losses there; infinite where none was evaluated.

    `lines` holds pairs: whether a line is wanted, a bool, and the line; one of them is. Both results have the length of
    the longest line; the losses are averaged over the axis.
    """
    sizes = [line.size for _, line in lines]
    length = max(sizes)
    if not length:
        return jnp.zeros((0,)), jnp.zeros((0,))

    def padded(line: Line, n: int) -> Callable[[], tuple[jax.Array, bool, int]]:
        dtype = context.learning_rate.dtype
        return lambda: (jnp.pad(line.points().astype(dtype), (0, length - n)), line.ends_at_infinity, n)

    points, stops, count = _first_wanted(
        [(wanted, padded(line, n)) for (wanted, line), n in zip(lines, sizes, strict=True)]
    )
    directions = [(wanted, line.direction) for (wanted, line), n in zip(lines, sizes, strict=True) if n]
    # Nothing that a caller differentiates may flow into the loop, which has no reverse rule.
    points = jax.lax.stop_gradient(points)

    def evaluate(carry):
        k, found = carry
        moved = _tree.step_along(context.params, _selected(directions), points[k])
        loss = context.loss(jax.lax.stop_gradient(moved)).astype(found.dtype)
        loss = _axes.mean(jax.lax.stop_gradient(loss), context.axis_name)
        _axes.require_agreement((loss, points), context.learning_rate, context.axis_name)
        return k + 1, found.at[k].set(loss)

    def is_unfinished(carry):
        k, found = carry
        return (k < count) & ~(stops & (k > 0) & ~jnp.isfinite(found[k - 1]))

    arithmetic = context.arithmetic
    nothing = jnp.full((length,), jnp.inf, arithmetic.loss_dtype)
    nothing = _axes.vary(nothing, arithmetic.varying, context.axis_name)
    if all(map(_flow.is_known, (points, count, *jax.tree.leaves(context.params)))):
        carry = (0, nothing)
        while is_unfinished(carry):
            carry = evaluate(carry)
        return points, carry[1]
    return points, jax.lax.while_loop(is_unfinished, evaluate, (jnp.int32(0), nothing))[1]


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
