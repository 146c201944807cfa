"""Which batch a loss is of: a number that is the same for the same data, from what `value_fn` closes over.

Whatever a loss takes besides the parameters stands in its trace: the batch, a random key, statistics, frozen weights.
The batch is its integers (tokens, labels, indices) and the largest of the floating-point arrays that are as long as
these. Without integers it is the largest of the least length that two arrays have, one of them with more axes than one,
which statistics of a layer have not; or else the largest of all. A length that is another axis of an array as well is
the width of a layer, and counts only where there is no other.
Random keys and scalars are left out, since they change while the data stay. The order of the examples, and on which
device they are, makes no difference. The place of an entry within its example does: it is all that tells one-hot
vectors apart.
"""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from gen_optax import _axes, _tree

# Where new batches come after repeated ones, a probe waits for one for this many times the calls that are remembered.
_PATIENCE = 3
_FACTORS = 0x9E3779B1, 0x85EBCA77  # odd, of an even mixture of bits
_PLACE = 0xC2B2AE3D  # likewise: far apart for places that are near


class Batches(NamedTuple):
    """The batches of the last calls, and how long a probe waits for a new one."""

    last: jax.Array  # uint32, shape (window,): their fingerprints, the latest first
    repeated: jax.Array  # bool: the latest was among those before it
    waited: jax.Array  # int32, calls that a probe has waited for a new one
    patience: jax.Array  # int32, calls that it waits


def init(window: int) -> Batches:
    """Before the first batch."""
    zero = functools.partial(jnp.zeros, ())
    return Batches(jnp.zeros((window,), jnp.uint32), zero(jnp.bool_), zero(jnp.int32), jnp.full((), window, jnp.int32))


def is_repeated(state: Batches, batch: jax.Array, count: jax.Array) -> jax.Array:
    """Whether this batch is one of the last ones, though not the only one of late."""
    same, known = state.last == batch, jnp.arange(state.last.size) < count
    return jnp.any(same & known) & jnp.any(~same & known)


def follow(state: Batches, batch: jax.Array, repeated: jax.Array, waits: Any, probed: Any) -> Batches:
    """The state after this batch: whether it `is_repeated`, a probe waits, and one was made in turn.

    A new batch after repeated ones means that more will come. A probe that has waited in vain, that there are no
    others: the data are few.
    """
    patience = jnp.where(probed & repeated, 0, state.patience)
    return Batches(
        last=jnp.concatenate([batch[None], state.last[:-1]]),
        repeated=repeated,
        waited=jnp.where(waits, state.waited + 1, 0),
        patience=jnp.where(state.repeated & ~repeated, _PATIENCE * state.last.size, patience),
    )


def fingerprint(trace: Any, learning_rate: jax.Array) -> jax.Array:
    """The number, uint32, the same on all devices that share the rate; 0 for a loss of the parameters alone."""
    total = jnp.uint32(0)
    for x in _data(_arrays(trace.consts) or _arrays(_inner_constants(trace))):
        total += jnp.sum(_mixed(jax.lax.stop_gradient(jnp.asarray(x))), dtype=jnp.uint32)
    for name in _split_over(total, learning_rate):
        total = jax.lax.psum(total, name)
    return total


def _inner_constants(trace: Any) -> Iterator[Any]:
    """What functions with a `jit` of their own close over; outside of one they do so by themselves."""
    for equation in trace.jaxpr.eqns:
        for inner in equation.params.values():
            if isinstance(inner, core.ClosedJaxpr):
                yield from [*inner.consts, *_inner_constants(inner)]


def _arrays(constants: Iterable[Any]) -> list[Any]:
    return [x for x in constants if hasattr(x, "dtype") and jnp.size(x) > 1 and not _is_key(x)]


def _data(arrays: list[Any]) -> list[Any]:
    """Those by which a batch is known."""
    integers = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_]
    floats = sorted((x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)), key=jnp.size)
    lengths = collections.Counter(jnp.shape(x)[0] for x in integers or floats)
    wide = {jnp.shape(x)[0] for x in floats if jnp.ndim(x) > 1}
    shared = [length for length, number in lengths.items() if integers or (number > 1 and length in wide)]
    widths = {width for x in floats for width in jnp.shape(x)[1:]}
    least = min(set(shared) - widths or shared, default=0)
    long = [x for x in floats if jnp.shape(x)[0] in (shared if integers else [least])]
    return [*integers, *(long or ([] if integers else floats))[-1:]]


def _mixed(x: jax.Array) -> jax.Array:
    """Each entry, at its place in an example, as 32 bits without a pattern: different batches have different sums."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        x = jax.lax.bitcast_convert_type(jnp.real(x).astype(jnp.float32), jnp.uint32)
    bits = x.astype(jnp.uint32) + (_tree.places(jnp.shape(x)[1:]) * jnp.uint32(_PLACE))[None]
    for factor, shift in zip(_FACTORS, (15, 13), strict=True):
        bits = bits * jnp.uint32(factor)
        bits ^= bits >> shift
    return bits


def _is_key(x: Any) -> bool:
    """Whether an array is a random key, or looks like one of the old kind."""
    is_old = x.dtype == jnp.uint32 and jnp.shape(x) in ((2,), (4,))
    return is_old or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _split_over(x: jax.Array, learning_rate: jax.Array) -> Iterator[Any]:
    """The mesh axes over which devices hold different data and the same rate."""
    if apart := _axes.varying(x) - _axes.varying(learning_rate):
        yield from sorted(apart, key=str)
        return
    for name in jax.sharding.get_abstract_mesh().manual_axes:  # without types no one knows: over all of them
        if name not in _axes.varying(jax.lax.axis_index(name)):
            yield name
