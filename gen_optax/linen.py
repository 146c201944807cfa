"""GeN in the training state of flax linen.

`flax.training.train_state.TrainState` keeps every keyword argument of `apply_gradients` to itself, so that a loss never
reaches the optimizer. The `TrainState` here hands on what is not one of its fields, and is flax's in everything else.

What a forward pass needs beside the parameters, a dropout key or batch statistics, belongs in the closure of the loss:
every candidate of a probe then sees the same key and the same statistics. The statistics that a forward pass returns
are its auxiliary output, which a probe drops; those of the step are replaced in the state:

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = state.apply_fn(variables, x, mutable=["batch_stats"], rngs={"dropout": key})
        return cross_entropy(logits, y), new["batch_stats"]

    (value, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, value=value, value_fn=loss_fn, batch_stats=batch_stats)
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import optax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from gen_optax import _loss, _loss_context, _statistics
from gen_optax._average import averaged_params


class TrainState(train_state.TrainState):
    """flax's `TrainState`, whose `apply_gradients` also passes arguments on to the optimizer.

    Takes its place with any optax optimizer, those that want no extra arguments included. Subclass it for more fields,
    such as `batch_stats`, just as flax's.

    Args:
      step: calls of `apply_gradients` so far.
      apply_fn: usually `model.apply`.
      params: what `tx` updates and `apply_fn` uses.
      tx: an optax transformation.
      opt_state: its state.

    Examples:
      >>> import flax.linen as nn
      >>> import gen_optax
      >>> import gen_optax.linen
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model, x = nn.Dense(1), jnp.eye(3)
      >>> y = jnp.array([[1.0], [2.0], [3.0]])
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> state = gen_optax.linen.TrainState.create(apply_fn=model.apply, params=params, tx=gen_optax.gen_adam())
      >>> def loss_fn(params, x, y): return jnp.mean((model.apply({"params": params}, x) - y) ** 2)
      >>> @jax.jit
      ... def train_step(state, x, y):
      ...   value, grads = jax.value_and_grad(loss_fn)(state.params, x, y)
      ...   return state.apply_gradients(grads=grads, value=value, value_fn=loss_fn, x=x, y=y), value
      >>> for _ in range(200):
      ...   state, value = train_step(state, x, y)
      >>> bool(value < 1e-2)
      True
    """

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """The state after one step of the optimizer.

        Args:
          grads: the gradient, a tree like `params`.
          **kwargs: those that name a field of the state replace it; the others go to `tx.update`, where GeN wants
            `value_fn`, knows what to do with `value` and `grad`, and hands `value_fn` what it names: see
            :func:`gen_optax.scale_by_gen`. `value_fn` takes a tree like `params`.

        Returns:
          The state with `step` one higher, `params` and `opt_state` updated, and the named fields replaced.

        Raises:
          TypeError: if `kwargs` holds one of `step`, `params` and `opt_state`, which this method sets itself.
          ValueError: whatever `tx` raises; GeN does without `value_fn`.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        extra_args = {name: value for name, value in kwargs.items() if name not in fields}

        params = self.params
        overwritten = {}
        if isinstance(grads, Mapping) and OVERWRITE_WITH_GRADIENT in grads:
            # The scales of float8 layers: their "gradient" is their next value, and tx knows nothing of them.
            overwritten = {OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
            extra_args = _without_overwritten(_loss_context.completed(extra_args), params)
            grads, params = grads["params"], params["params"]

        # What looks like a collection of variables; an array may be for another part of a chain.
        if ignored := [name for name in _loss.ignored(extra_args) if isinstance(extra_args[name], Mapping)]:
            warnings.warn(
                f"apply_gradients was given {', '.join(ignored)}, which {type(self).__name__} has no field for, and "
                "value_fn no argument. GeN ignores it. To keep it, give your subclass of TrainState a field of that "
                "name.",
                stacklevel=2,
            )
        tx = self.tx
        if isinstance(tx, optax.GradientTransformation):  # optax.MultiSteps is none, and takes extra arguments
            tx = optax.with_extra_args_support(tx)
        updates, opt_state = tx.update(grads, self.opt_state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        return self.replace(
            step=self.step + 1,
            params={"params": params, **overwritten} if overwritten else params,
            opt_state=opt_state,
            **replaced,
        )

    @property
    def averaged_params(self) -> Any:
        """The parameters to evaluate, those of :func:`gen_optax.averaged_params`."""
        params = self.params
        if isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params:
            return {**params, "params": averaged_params(self.opt_state, params["params"])}
        return averaged_params(self.opt_state, params)


def update_batch_stats(
    apply_fn: Callable[..., Any], variables: Mapping[str, Any], batches: Iterable[Any]
) -> dict[str, Any]:
    """Variables with batch statistics that are taken anew: the mean over batches, forward passes in training mode.

    For parameters that the running statistics were not taken with, such as the average of the iterates. Some tens of
    training batches are enough. Layers that are not in training mode keep their statistics, and so do those whose
    statistics are no mean over batches, such as the vector of a spectral norm.

    Args:
      apply_fn: `apply_fn(variables, batch)` returns `(outputs, {"batch_stats": ...})` in training mode.
      variables: `{"params": ..., "batch_stats": ...}`, and other collections if there are any.
      batches: what `apply_fn` takes second, one after the other, all of one shape.

    Returns:
      The variables, with new `batch_stats`.

    Raises:
      ValueError: if there is no batch, or no layer follows the batches.

    Examples:
      >>> import flax.linen as nn
      >>> import gen_optax.linen
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model = nn.BatchNorm()
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
      >>> variables = model.init(jax.random.key(0), batches[0], use_running_average=True)
      >>> def apply_fn(variables, x):
      ...   return model.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> variables = gen_optax.linen.update_batch_stats(apply_fn, variables, batches)
      >>> print(jnp.round(variables["batch_stats"]["mean"], 2), jnp.round(variables["batch_stats"]["var"], 2))
      [4.] [1.]
    """

    def forward(statistics, batch):
        return apply_fn({**variables, "batch_stats": statistics}, batch)[1]["batch_stats"]

    return {**variables, "batch_stats": _statistics.mean_over(forward, variables["batch_stats"], batches)}


def _without_overwritten(extra_args: Mapping[str, Any], whole: Any) -> dict[str, Any]:
    """The arguments for a `tx` that sees `whole["params"]` only, while the user's loss and gradient know all of it."""
    changed: dict[str, Any] = {}
    for name in ("value_fn", "obj_fn"):
        if extra_args.get(name) is not None:
            changed[name] = _of_params(extra_args[name], whole)
    grad = extra_args.get("grad")
    if isinstance(grad, Mapping) and OVERWRITE_WITH_GRADIENT in grad:
        changed["grad"] = grad["params"]
    return {**extra_args, **changed}


def _of_params(value_fn: Callable[..., Any], whole: Any) -> Callable[..., Any]:
    """The loss as a function of the parameters alone."""

    @functools.wraps(value_fn)  # GeN reads its signature
    def of_params(params, *args, **kwargs):
        variables = {"params": params, OVERWRITE_WITH_GRADIENT: whole[OVERWRITE_WITH_GRADIENT]}
        return value_fn(variables, *args, **kwargs)

    return of_params
