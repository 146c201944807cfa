"""One loss over several micro-batches, at the memory of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gen_optax import _loss


def mean_value_fn(loss_fn: Callable[..., Any], microbatches: Any) -> Callable[[optax.Params], jax.Array]:
    r"""A `value_fn` that is the mean loss over micro-batches, evaluated one at a time.

    .. math::
      L(w) = \frac1k \sum_{i=1}^{k} \ell(w, B_i)

    For gradient accumulation: the probe then sees the loss whose gradient was accumulated.

    Args:
      loss_fn: `loss_fn(params, microbatch)` returns the mean loss of one micro-batch, a real scalar, or `(loss, aux)`.
      microbatches: a tree of arrays whose leading axis, of length `k >= 1`, counts the micro-batches.

    Returns:
      `params -> L(params)`, a scalar in float32 at least.

    Raises:
      ValueError: if the leading axes differ or there are none.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, batch): return jnp.mean((batch - w) ** 2)
      >>> value_fn = gen_optax.mean_value_fn(loss_fn, jnp.array([[1.0, 1.0], [3.0, 3.0]]))
      >>> float(value_fn(1.0))
      2.0
    """
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(microbatches)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "microbatches must be arrays with one leading axis in common, the number of micro-batches (for example "
            f"batch.reshape(k, -1, *batch.shape[1:])), got leading axes {sorted(lengths)}."
        )

    def value_fn(params):
        losses = jax.lax.map(lambda batch: _loss.scalar(lambda p: loss_fn(p, batch))(params), microbatches)
        return jnp.mean(losses.astype(jnp.promote_types(losses.dtype, jnp.float32)))

    return value_fn
