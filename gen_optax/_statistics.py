"""Statistics of batch normalisation for parameters that they were not taken with, such as an average.

A forward pass in training mode turns a running statistic `s` into `m s + (1 - m) of_batch`, with a momentum
`0 <= m < 1` of the layer. It is known by its answers:

    from zeros          z = (1 - m) of_batch
    from ones           z + m, so that the difference is one number for all entries
    from what it is     m s + z

Anything else among the statistics is no mean over batches and stays as it is: the vector of a spectral norm, a counter,
a layer that is held fixed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gen_optax import _fit, _flow, _tree

# Rounding errors that the answers may be apart by: those of a few operations.
_ULPS = 32

_Forward = Callable[[Sequence[Any], Any], list[Any]]  # of the leaves of the statistics and a batch: the new leaves


def mean_over(forward: Callable[[Any, Any], Any], statistics: Any, batches: Iterable[Any]) -> Any:
    """The mean over batches of the statistics of each; those of layers that do not follow the batches stay.

    `forward(statistics, batch)` returns the running ones.

    Raises:
      ValueError: if there is no batch, or no layer follows the batches.
    """
    leaves, structure = jax.tree.flatten(statistics)

    @jax.jit
    def moved(leaves, batch):
        return jax.tree.leaves(forward(jax.tree.unflatten(structure, leaves), batch))

    total: Any = None
    number = 0
    for batch in batches:
        if total is None:
            momenta = _momenta(moved, leaves, batch)
            _require_one_that_follows(momenta)
            zeros = _started(leaves, momenta != 1, 0)
            total = zeros
        total = list(map(jnp.add, total, moved(zeros, batch)))
        number += 1
    if total is None:
        raise ValueError("update_batch_stats needs at least one batch, got none.")

    def mean(x, m, s):
        return jnp.where(m == 1, s, x / number / _fit.nonzero(1 - m)).astype(s.dtype)

    return jax.tree.unflatten(structure, list(map(mean, total, momenta, leaves)))


def _momenta(moved: _Forward, leaves: Sequence[Any], batch: Any) -> jax.Array:
    """The momentum of each leaf, shape (n,); 1 where it is no mean over batches.

    What a layer puts out may depend on such a leaf, and with it the batch of every layer behind it. So while the others
    are looked at, it is held. Where it is not clear which one that is, they are looked at one by one.
    """
    present, numbers = moved(leaves, batch), jnp.arange(len(leaves))

    def answers(free):
        """Of the leaves that are free, the others being held: the momenta, whether they are means, or stay."""
        zeros, ones = (moved(_started(leaves, free, x), batch) for x in (0, 1))
        momentum, is_mean, stays = map(jnp.stack, zip(*map(_answer, leaves, zeros, ones, present), strict=True))
        return jnp.where(free & is_mean, momentum, 1), free & is_mean, free & stays

    def one_by_one():
        return answers(jax.lax.map(lambda i: answers(numbers == i)[1][i], numbers))[0]

    if not leaves:
        return jnp.ones((0,))
    _, _, stays = answers(numbers >= 0)
    momenta, is_mean, _ = answers(~stays)
    return _flow.cond(jnp.all(is_mean | stays), lambda: momenta, one_by_one)


def _started(leaves: Sequence[Any], free: jax.Array, start: int) -> list[Any]:
    """The leaves with zeros, or ones, in place of those that are free and no integers."""
    return [jnp.where(f, start, s) if _tree.is_inexact(s) else s for f, s in zip(free, leaves, strict=True)]


def _answer(s: Any, zero: Any, one: Any, present: Any) -> tuple[Any, Any, Any]:
    """The momentum of a leaf, whether it is a mean over batches, and whether ones and zeros stay 1 apart."""
    if not _tree.is_inexact(s):
        return jnp.ones(()), jnp.zeros((), bool), jnp.ones((), bool)
    change = one - zero
    m = jnp.real(jnp.mean(change))
    error = _ULPS * jnp.finfo(change.dtype).eps * (1 + jnp.max(jnp.abs(zero)))
    # What is NaN may be a mean for all that, to be taken anew.
    differs = (jnp.abs(change - m) > error) | (jnp.abs(present - m * s - zero) > error * (1 + jnp.abs(s)))
    return m, ~jnp.any(differs) & (m > -error) & (m < 1), jnp.all(change == 1)


def _require_one_that_follows(momenta: jax.Array) -> None:
    if momenta.size and _flow.is_known(momenta) and bool(jnp.all(momenta == 1)):
        raise ValueError(
            "update_batch_stats: no layer follows the batches. Put the model into training mode, model.train() with "
            "nnx, use_running_average=False with linen."
        )
