"""GeN for flax nnx: a loss over a model as a function of the model's parameters.

An nnx model changes under its own forward pass: batch statistics move, random streams count on. A probe must do none
of that, and cannot, where it runs inside of `jax.vmap` or `jax.lax.cond`. So `make_value_fn` takes the model apart once
and builds a new one for every evaluation, in whatever trace that happens.

When it is called matters. It notes the random streams and the batch statistics as they are at that moment, and
`value`, the loss of the forward pass that gave the gradient, was measured with those from *before* that pass:

    value_fn = gen_optax.nnx.make_value_fn(loss_fn, model)           # first: the dropout masks to come
    value, grads = nnx.value_and_grad(loss_fn)(model, x, y)          # then the pass that uses them up
    optimizer.update(model, grads, value=value, value_fn=value_fn, x=x, y=y)

The other way round the probe would compare losses under different masks and take the difference for the effect of the
step.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax
from flax import nnx

from gen_optax import _statistics


def make_value_fn(
    loss_fn: Callable[..., Any], model: Any, wrt: nnx.filterlib.Filter = nnx.Param, **arguments: Any
) -> Callable[..., Any]:
    """A loss over an nnx model as a `value_fn` over the parameters that `nnx.Optimizer` updates.

    Call it inside of the training step and before the forward pass of the gradient: the random streams and batch
    statistics are those of this moment, in every evaluation, and no evaluation moves those of the model. Every
    candidate of a probe then has the dropout masks of the gradient. Whether the model is in training mode is noted as
    well.

    Args:
      loss_fn: `loss_fn(model, ...)` returns the loss, a real scalar, or `(loss, aux)`.
      model: the model, or any nnx object that `loss_fn` takes first.
      wrt: which of its variables are the parameters: the filter that `nnx.Optimizer` was given.
      **arguments: arguments of `loss_fn` by name, bound to it here. nnx objects among them (an `nnx.Rngs`, for example)
        are, like the model, noted as they are and never changed.

    Returns:
      `value_fn(params, ...)`, for a state `params` as `nnx.state(model, wrt)`, pure or not, with what `loss_fn`
      returns. It has the remaining arguments of `loss_fn`, so that GeN finds them by name among those of `update`.

    Raises:
      ValueError: from `value_fn`, if `params` is not of the structure that `wrt` selects.

    Examples:
      >>> from flax import nnx
      >>> import gen_optax
      >>> import gen_optax.nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(1)))
      >>> optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=nnx.Param)
      >>> def loss_fn(model, x, y): return jnp.mean((model(x) - y) ** 2)
      >>> @nnx.jit
      ... def train_step(model, optimizer, x, y):
      ...   value_fn = gen_optax.nnx.make_value_fn(loss_fn, model)
      ...   value, grads = nnx.value_and_grad(loss_fn)(model, x, y)
      ...   optimizer.update(model, grads, value=value, value_fn=value_fn, x=x, y=y)
      ...   return value
      >>> x, y = jnp.eye(3), jnp.array([[1.0], [2.0], [3.0]])
      >>> values = [float(train_step(model, optimizer, x, y)) for _ in range(100)]
      >>> values[-1] < values[0]
      True
    """
    selects = nnx.filterlib.to_predicate(wrt)

    def is_param(path, variable):
        return path[0] == 0 and selects(path[1:], variable)

    # Both are taken apart together, so that what they share stays shared; the model first, so that it is the model's.
    graphdef, *states = nnx.split((model, arguments), is_param, ...)
    selected, rest = nnx.as_pure(states)  # variables would follow the model
    structure: Any = jax.tree.structure(selected.get(0, nnx.State({})))

    def value_fn(params: optax.Params, *args: Any, **kwargs: Any) -> Any:
        params = nnx.as_pure(params)
        if jax.tree.structure(params) != structure:
            raise ValueError(
                f"value_fn was given parameters of another structure than wrt={wrt!r} selects from the model. Pass "
                "make_value_fn the wrt of nnx.Optimizer.\n"
                f"    selected: {structure}\n    given:    {jax.tree.structure(params)}"
            )
        built, bound = nnx.merge(graphdef, nnx.State({0: params}), rest)
        return loss_fn(built, *args, **{**kwargs, **bound})  # to **kwargs, GeN hands all arguments of update

    parameters = list(inspect.signature(loss_fn).parameters.values())
    free = [p for p in parameters[1:] if p.name not in arguments]
    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)
    value_fn.__signature__ = inspect.Signature([first, *free])  # type: ignore[attr-defined]
    return value_fn


def update_batch_stats(forward: Callable[..., Any], model: Any, batches: Iterable[Any]) -> None:
    """Takes the batch statistics of a model anew, in place: the mean over batches, forward passes in training mode.

    For parameters that the running statistics were not taken with, such as the average of the iterates:

        params = nnx.state(model, nnx.Param)
        nnx.update(model, gen_optax.averaged_params(optimizer.opt_state, params))
        gen_optax.nnx.update_batch_stats(lambda model, x: model(x), model, batches)

    Some tens of training batches are enough. Layers that are not in training mode keep their statistics, and so do
    those whose statistics are no mean over batches, such as the vector of a spectral norm. Take the averaged model for
    evaluation only, and train on with the other.

    Args:
      forward: `forward(model, batch)`, a forward pass. What it returns is dropped.
      model: the model, in training mode.
      batches: what `forward` takes second, one after the other, all of one shape.

    Raises:
      ValueError: if there is no batch, or no layer follows the batches.

    Examples:
      >>> from flax import nnx
      >>> import gen_optax.nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
      >>> gen_optax.nnx.update_batch_stats(lambda model, x: model(x), model, batches)
      >>> print(jnp.round(model.mean[...], 2), jnp.round(model.var[...], 2))
      [4.] [1.]
    """
    graphdef, *states = nnx.split(model, nnx.BatchStat, ...)
    statistics, rest = nnx.as_pure(states)

    def moved(statistics, batch):
        built = nnx.merge(graphdef, statistics, rest)
        forward(built, batch)
        return nnx.as_pure(nnx.state(built, nnx.BatchStat))

    nnx.update(model, _statistics.mean_over(moved, statistics, batches))
