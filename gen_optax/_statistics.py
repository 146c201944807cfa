"""Statistics of batch normalisation for parameters that they were not taken with, such as an average."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gen_optax import _flow


def mean_over(forward: Callable[[Any, Any], Any], statistics: Any, batches: Iterable[Any]) -> Any:
    """The mean over batches of the statistics of each; those of layers that do not follow the batches stay.

    `forward(statistics, batch)` returns the running ones, `m statistics + (1 - m) of_batch` with a momentum `m` of the
    layer. From zeros these are `(1 - m) of_batch`, and from ones more by `m`, which tells both.

    Raises:
      ValueError: if there is no batch, or no layer follows the batches.
    """
    forward = jax.jit(forward)
    zeros, ones = jax.tree.map(jnp.zeros_like, statistics), jax.tree.map(jnp.ones_like, statistics)
    total: Any = None
    number = 0
    for batch in batches:
        if total is None:
            stay = jax.tree.map(_stays, forward(zeros, batch), forward(ones, batch))
            _require_one_that_follows(stay)
            # What a layer that stays puts out depends on its statistics.
            zeros, ones = (jax.tree.map(jnp.where, stay, statistics, start) for start in (zeros, ones))
            momentum = jax.tree.map(lambda o, z: jnp.mean(o - z), forward(ones, batch), forward(zeros, batch))
            total = zeros
        total = jax.tree.map(jnp.add, total, forward(zeros, batch))
        number += 1
    if total is None:
        raise ValueError("update_batch_stats needs at least one batch, got none.")

    def mean(x, m, s, stays):
        return jnp.where(stays, s, x / number / (1 - m)).astype(s.dtype)

    return jax.tree.map(mean, total, momentum, statistics, stay)


def _stays(zero: jax.Array, one: jax.Array) -> jax.Array:
    """Whether a batch has left statistics of zeros and of ones as they were."""
    return jnp.all(zero == 0) & jnp.all(one == 1)


def _require_one_that_follows(stay: Any) -> None:
    leaves = jax.tree.leaves(stay)
    if leaves and all(_flow.is_known(x) and bool(x) for x in leaves):
        raise ValueError(
            "update_batch_stats: no layer follows the batches. Put the model into training mode, model.train() with "
            "nnx, use_running_average=False with linen."
        )
