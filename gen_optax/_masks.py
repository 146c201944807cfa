"""Whole parameters for a loss that is probed where some of them are masked."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax


def unmasked_value_fn(value_fn: Callable[..., Any], params: optax.Params) -> Callable[..., Any]:
    """A `value_fn` that accepts masked parameters, as `optax.masked` and `optax.partition` hand them to what is inside.

    For training a part of the parameters with GeN inside of these wrappers. It then sees, probes and remembers that
    part alone; the frozen parameters are taken from `params` and never copied.

    Args:
      value_fn: the loss, a function of the whole parameters and of whatever else.
      params: the whole parameters, those that `update` is given.

    Returns:
      `value_fn` with each `optax.MaskedNode` in its first argument replaced by what `params` has in its place.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def loss_fn(params): return (params["a"] * params["b"] - 6.0) ** 2
      >>> tx = optax.partition({"train": gen_optax.gen_sgd(), "freeze": optax.set_to_zero()},
      ...                      {"a": "freeze", "b": "train"})
      >>> params = {"a": jnp.array(2.0), "b": jnp.array(1.0)}
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...   value, grads = jax.value_and_grad(loss_fn)(params)
      ...   value_fn = gen_optax.unmasked_value_fn(loss_fn, params)
      ...   updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
      ...   return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...   params, state = step(params, state)
      >>> print(params["a"], jnp.round(params["b"], 2))
      2.0 3.0
    """

    @functools.wraps(value_fn, updated=())
    def with_frozen(trainable: optax.Params, *args: Any, **kwargs: Any) -> Any:
        whole = jax.tree.map(lambda t, p: p if is_masked(t) else t, trainable, params, is_leaf=is_masked)
        return value_fn(whole, *args, **kwargs)

    return with_frozen


def is_masked(x: Any) -> bool:
    """Whether a node of a tree stands for a masked part."""
    return isinstance(x, optax.MaskedNode)
