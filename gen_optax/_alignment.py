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

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _flow, _tree
from gen_optax._measurement import Context

# The first stretch begins at this call, long after the search; a power of two.
_FIRST = 128
# Sums per array, at most: the error of its cosine is one over the root of their number.
_SUMS = 256
# The square of the sine between an array and its decay, at most: more than rounding to bfloat16 makes of it.
_ASIDE = 1e-4


class AlignmentState(NamedTuple):
    """What is kept of the parameters at two calls."""

    marks: jax.Array  # float32 [2, arrays, sums]: sketches, where the first stretch began and where it ended


class Here(NamedTuple):
    """What an alignment needs of the present call."""

    sketches: jax.Array  # float32 [arrays, sums]
    decayed: jax.Array  # bool [arrays]: the step to come is that of weight decay alone


def init(params: Any) -> AlignmentState:
    """Nothing was seen yet."""
    sizes = [jax.eval_shape(_parts, p).size for p in _tree.inexact(params)]
    return AlignmentState(jnp.zeros((2, len(sizes), min(_SUMS, max(sizes, default=0))), jnp.float32))


def is_due(state: Any, call: jax.Array) -> Any:
    """Whether a stretch ends or begins at this call; never where nothing is kept, or nothing is trained."""
    if not isinstance(state, AlignmentState) or not state.marks.size:
        return False
    return (call >= _FIRST) & (is_power_of_two(call) | (call % 3 == 0) & is_power_of_two(call // 3))


def look(state: AlignmentState, context: Context) -> Here:
    """The present call, where one is due."""
    params, steps = map(_tree.inexact, (context.params, context.updates))
    sketches = jnp.stack([_sketch(p, state.marks.shape[-1], context.axis_name) for p in params])
    decayed = jnp.stack([_is_decayed(p, u, context.axis_name) for p, u in zip(params, steps, strict=True)])
    return Here(sketches, _axes.everywhere(decayed, context.axis_name) | _no(sketches))


def look_away(state: AlignmentState, context: Context) -> Here:
    """The same at any other call: no matter what."""
    sketches = state.marks[0]
    return Here(sketches, jnp.zeros(len(_tree.inexact(context.params)), bool) | _no(sketches))


def update(state: AlignmentState, here: Here, context: Context) -> tuple[jax.Array, jax.Array, Any]:
    """Whether a second stretch ends at this call, the alignment then, and the state."""
    call, nothing = context.call, jnp.zeros_like(context.learning_rate)

    def follow():
        ends = is_power_of_two(call)
        start, middle = state.marks
        sizes = jnp.where(here.decayed, 0, _sizes(_tree.inexact(context.params), context.axis_name))
        moved, cosine = _cosine(middle - start, here.sketches - middle, sizes)
        cosine = _axes.mean(cosine, context.axis_name).astype(nothing.dtype)
        _axes.require_agreement(cosine, nothing, context.axis_name)
        known = ends & _axes.everywhere(moved, context.axis_name)  # at the first call nothing has moved yet
        marks = jnp.where(ends, jnp.stack([here.sketches, middle]), jnp.stack([start, here.sketches]))
        return known | (nothing > 0), cosine + nothing, AlignmentState(marks)

    return _flow.cond(is_due(state, call), follow, lambda: (nothing > 0, nothing, state))


def is_power_of_two(n: jax.Array) -> jax.Array:
    """Whether `n` is one; 0 counts as one."""
    return (n & (n - 1)) == 0


def _no(x: jax.Array) -> jax.Array:
    """False, typed as varying over the axes over which `x` does."""
    return jnp.ravel(x)[0] > jnp.inf


def _cosine(first: jax.Array, second: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether an array moved in both stretches, and the cosines of those that did, averaged by size.

    One with entries that are not finite, such as a mask, has no cosine.
    """
    # No unit is too small or too large to be squared.
    first, second = (rows / jax.vmap(_tree.power_of_two)(rows)[:, None] for rows in (first, second))
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    cosines = jnp.sum(first * second, axis=-1) / jnp.where(lengths > 0, lengths, 1)
    counts = (lengths > 0) & jnp.isfinite(cosines)
    weights = jnp.where(counts, sizes, 0)
    total = jnp.sum(weights)
    return total > 0, jnp.sum(weights * jnp.where(counts, cosines, 0)) / jnp.maximum(total, 1)


def _sizes(arrays: list[Any], axis_name: Any) -> jax.Array:
    """How many entries each array has on all devices."""
    return jnp.array([jnp.size(p) * _axes.num_shards(p, axis_name) for p in arrays], jnp.float32)


def _sketch(p: Any, num_sums: int, axis_name: Any) -> jax.Array:
    """Signed sums of the entries of an array: over all axes but the longest, which is folded."""
    x = _parts(p)
    longest = int(np.argmax(x.shape))
    signs = _signs(x.shape, _axes.shard(p, axis_name))
    sums = _axes.whole(jnp.sum(signs * x, axis=tuple(axis for axis in range(x.ndim) if axis != longest)))
    folded = jnp.pad(sums, (0, -sums.size % num_sums)).reshape(-1, num_sums).sum(axis=0)
    return _axes.sum_of_shards(folded, p, axis_name)


def _parts(p: Any) -> jax.Array:
    """The array in float32, with an axis at least; a complex one as its real and imaginary parts."""
    x = jnp.atleast_1d(jnp.asarray(p))
    return (jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x).astype(jnp.float32)


def _signs(shape: tuple[int, ...], shard: Any) -> jax.Array:
    """1 or -1 for each entry, by a hash of its place; `shard` is the number of the part that a device holds."""
    places = _tree.places(shape) + jnp.uint32(math.prod(shape) % 2**32) * jnp.asarray(shard, jnp.uint32)
    h = places * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    return jnp.where((h ^ (h >> 13)) >> 31 == 0, jnp.float32(1), jnp.float32(-1))


def _is_decayed(p: Any, u: Any, axis_name: Any) -> jax.Array:
    """Whether a step takes an array straight to zero: weight decay, and no gradient.

    It keeps its direction for ever, at any learning rate.
    """
    if jnp.size(p) * _axes.num_shards(p, axis_name) == 1:
        return jnp.zeros((), bool)
    x, y = _parts(p), _parts(u)
    products = jnp.stack([jnp.sum(x * y), jnp.sum(x * x), jnp.sum(y * y)])
    xy, xx, yy = _axes.sum_of_shards(products, p, axis_name)
    against = xy < 0  # else nothing is divided: both may be 0
    xx, yy = jnp.where(against, xx, 1), jnp.where(against, yy, 1)
    return against & ((xy / xx) * (xy / yy) > 1 - _ASIDE)
