"""Statistics of batch normalisation for parameters that they were not taken with, such as an average."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp


def mean_over(forward: Callable[[Any, Any], Any], statistics: Any, batches: Iterable[Any]) -> Any:
    """The mean over batches of the statistics of each.

    `forward(statistics, batch)` returns the running ones, `m statistics + (1 - m) of_batch` with a momentum `m` of the
    layer. From zeros these are `(1 - m) of_batch`, and from ones more by `m`, which tells both.

    Raises:
      ValueError: if there is no batch, or the layers do not follow the batches.
    """
    forward = jax.jit(forward)
    zeros, ones = jax.tree.map(jnp.zeros_like, statistics), jax.tree.map(jnp.ones_like, statistics)
    total: Any = None
    number = 0
    for batch in batches:
        new = forward(zeros, batch)
        if total is None:
            momentum = jax.tree.map(lambda one, zero: jnp.mean(one - zero), forward(ones, batch), new)
            if any(bool(m == 1) for m in jax.tree.leaves(momentum)):
                raise ValueError(
                    "update_batch_stats needs layers that follow the batches: put the model into training mode, "
                    "model.train() with nnx, use_running_average=False with linen."
                )
            total = zeros
        total = jax.tree.map(jnp.add, total, new)
        number += 1
    if total is None:
        raise ValueError("update_batch_stats needs at least one batch, got none.")
    return jax.tree.map(lambda x, m, s: (x / number / (1 - m)).astype(s.dtype), total, momentum, statistics)
