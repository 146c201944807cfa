"""Whether the run keeps its direction: the cosine between one stretch of it and the next.

From call `t` to `1.5 t` the parameters move by `d_1`, and from there to `2 t` by `d_2`. The alignment is

    cos(d_1, d_2) = d_1.d_2 / (|d_1| |d_2|)

It is near 1 where steps are too short to get anywhere, 0 for a random walk, and negative where the parameters go to and
fro. No loss is evaluated for it, so the noise of batches does not blur it. Stretches are as long as half of the run so
far: soon longer than the momentum of the base, and as long as what a decay or an average takes the scatter off.

A copy of the parameters for it would be too much. A sketch keeps inner products (Charikar, Chen and Farach-Colton,
`Finding frequent items in data streams`, 2002): the entries of an array are added up, each with a sign of its own, into
some hundred sums. Each array has a cosine of its own, and they are averaged by size, so that the units of a parameter
do not matter.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _flow, _tree
from gen_optax._measurement import Context

# The first stretch begins at this call, long after the search; a power of two.
_FIRST = 128
# Sums per array: the error of its cosine is one over the root of their number.
_SUMS = 256


class AlignmentState(NamedTuple):
    """What is kept of the parameters at two calls."""

    marks: jax.Array  # float32 [2, arrays, 256]: sketches, where the first stretch began and where it ended


def init(params: Any) -> AlignmentState:
    """Nothing was seen yet."""
    return AlignmentState(jnp.zeros((2, len(_tree.inexact(params)), _SUMS), jnp.float32))


def is_due(state: Any, call: jax.Array) -> Any:
    """Whether a stretch ends or begins at this call; never where nothing is kept, or nothing is trained."""
    if not isinstance(state, AlignmentState) or not state.marks.size:
        return False
    return (call >= _FIRST) & (is_power_of_two(call) | (call % 3 == 0) & is_power_of_two(call // 3))


def sketches(context: Context) -> jax.Array:
    """The parameters in short, as `marks` has them."""
    return jnp.stack([_sketch(p, context.axis_name) for p in _tree.inexact(context.params)])


def update(state: AlignmentState, here: Any, context: Context) -> tuple[jax.Array, jax.Array, Any]:
    """Whether a second stretch ends at this call, the alignment then, and the state; `here` are the sketches if due."""
    call, nothing = context.count + 1, jnp.zeros_like(context.learning_rate)

    def look():
        ends = is_power_of_two(call)
        start, middle = state.marks
        sizes = _sizes(_tree.inexact(context.params), context.axis_name)
        moved, cosine = _cosine(middle - start, here - middle, sizes)
        cosine = _axes.mean(cosine, context.axis_name).astype(nothing.dtype)
        _axes.require_agreement(cosine, nothing, context.axis_name)
        known = ends & _axes.everywhere(moved, context.axis_name)  # at the first call nothing has moved yet
        marks = jnp.where(ends, jnp.stack([here, middle]), jnp.stack([start, here]))
        return known | (nothing > 0), cosine + nothing, AlignmentState(marks)

    return _flow.cond(is_due(state, call), look, lambda: (nothing > 0, nothing, state))


def is_power_of_two(n: jax.Array) -> jax.Array:
    """Whether `n` is one; 0 counts as one."""
    return (n & (n - 1)) == 0


def _cosine(first: jax.Array, second: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether an array moved in both stretches, and the cosines of those that did, averaged by size."""
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    cosines = jnp.sum(first * second, axis=-1) / jnp.where(lengths > 0, lengths, 1)
    weights = jnp.where(lengths > 0, sizes, 0)
    total = jnp.sum(weights)
    return (total > 0) & jnp.all(jnp.isfinite(cosines)), jnp.sum(weights * cosines) / jnp.maximum(total, 1)


def _sizes(arrays: list[Any], axis_name: Any) -> jax.Array:
    """How many entries each array has on all devices."""
    return jnp.array([jnp.size(p) * _axes.num_shards(p, axis_name) for p in arrays], jnp.float32)


def _sketch(p: Any, axis_name: Any) -> jax.Array:
    """Signed sums of the entries of an array: over all axes but the longest, which is folded."""
    x = jnp.atleast_1d(jnp.asarray(p))
    x = (jnp.real(x) + jnp.imag(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    longest = int(np.argmax(x.shape))
    sums = jnp.sum(_signs(x.shape) * x, axis=tuple(axis for axis in range(x.ndim) if axis != longest))
    folded = jnp.pad(sums, (0, -sums.size % _SUMS)).reshape(-1, _SUMS).sum(axis=0)
    return _axes.sum_of_shards(folded, p, axis_name)


def _signs(shape: tuple[int, ...]) -> jax.Array:
    """1 or -1 for each entry, by a hash of its place."""
    h = _tree.places(shape) * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    return jnp.where((h ^ (h >> 13)) >> 31 == 0, jnp.float32(1), jnp.float32(-1))
