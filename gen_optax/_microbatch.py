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
    _num_microbatches(microbatches)

    def value_fn(params):
        losses = jax.lax.map(lambda batch: _loss.scalar(lambda p: loss_fn(p, batch))(params), microbatches)
        return jnp.mean(losses.astype(jnp.promote_types(losses.dtype, jnp.float32)))

    return value_fn


def mean_value_and_grad(
    loss_fn: Callable[..., Any], microbatches: Any, has_aux: bool = False
) -> Callable[[optax.Params], tuple[Any, optax.Updates]]:
    """Accumulates loss and gradient over micro-batches, one at a time.

    The gradient of :func:`mean_value_fn`. Differentiating that function itself would keep what each micro-batch needs
    for its backward pass; this adds up gradients as they come.

    Args:
      loss_fn: `loss_fn(params, microbatch)` returns the mean loss of one micro-batch, a real scalar, or, with
        `has_aux`, `(loss, aux)`.
      microbatches: a tree of arrays whose leading axis, of length `k >= 1`, counts the micro-batches.
      has_aux: whether `loss_fn` returns an auxiliary output as well.

    Returns:
      `params -> (value, grads)`, or `params -> ((value, aux), grads)` with one leading axis of length `k` on `aux`. The
      value and the sums are in float32 at least, the gradients in the dtypes of the parameters.

    Raises:
      ValueError: if the leading axes differ or there are none.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, batch): return jnp.mean((batch - w) ** 2)
      >>> value, grad = gen_optax.mean_value_and_grad(loss_fn, jnp.array([[1.0, 1.0], [3.0, 3.0]]))(1.0)
      >>> print(value, grad)
      2.0 -2.0
    """
    k = _num_microbatches(microbatches)

    def of_one(params, batch):
        out = loss_fn(params, batch)
        loss, aux = out if has_aux else (out, None)
        loss = _loss.as_scalar(loss, "loss_fn must return")
        return loss.astype(jnp.promote_types(loss.dtype, jnp.float32)), aux

    def value_and_grad(params):
        def add(sums, batch):
            (value, aux), grads = jax.value_and_grad(of_one, has_aux=True)(params, batch)
            return jax.tree.map(jnp.add, sums, grads), (value, aux)

        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.promote_types(jnp.result_type(p), jnp.float32)), params)
        sums, (values, aux) = jax.lax.scan(add, zeros, microbatches)
        grads = jax.tree.map(lambda s, p: (s / k).astype(jnp.result_type(p)), sums, params)
        value = jnp.mean(values)
        return ((value, aux) if has_aux else value), grads

    return value_and_grad


def _num_microbatches(microbatches: Any) -> int:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(microbatches)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "microbatches must be arrays with one leading axis in common, the number of micro-batches (for example "
            f"batch.reshape(k, -1, *batch.shape[1:])), got leading axes {sorted(lengths)}."
        )
    return lengths.pop()[0]
