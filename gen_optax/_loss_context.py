"""A loss for an `update` that somebody else calls: a block around the call hands it over.

A training framework calls `tx.update(grads, state, params)` and has no place for a loss among the arguments. A context
variable carries it past the framework. It belongs to one thread and one asyncio task, and the block takes it back, so
that no tracer outlives its trace. It is read while `update` is traced, and so leaves nothing in the compiled program.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax import _flow


class _Given(NamedTuple):
    """What a block hands over."""

    value_fn: Callable[..., Any]
    value: Any
    is_traced: bool  # the block was opened while a function was traced


_innermost: contextvars.ContextVar[_Given | None] = contextvars.ContextVar("gen_optax.loss_context", default=None)

BLOCK = """
    with gen_optax.loss_context(loss_fn, value):
        state = state.apply_gradients(grads=grads)  # or whatever calls update"""


@contextlib.contextmanager
def loss_context(value_fn: Callable[..., Any], value: jax.typing.ArrayLike | None = None) -> Iterator[None]:
    """Hands the loss to every GeN `update` that runs inside of a `with` block and is given no loss itself.

    For frameworks that call `update` themselves, without a loss. Open the block in the training step, around the
    framework's call and inside of the function that is compiled, with the batch of this step in the loss:

        @jax.jit
        def train_step(state, batch):
            def loss_fn(params):
                return mean_loss(state.apply_fn(params, batch))

            value, grads = jax.value_and_grad(loss_fn)(state.params)
            with gen_optax.loss_context(loss_fn, value):
                return state.apply_gradients(grads=grads)

    What `update` is given as an argument wins over the block, and the block over `value_fn` of :func:`gen_optax.gen`.
    Blocks nest, and the inner one counts. Threads and asyncio tasks do not see each other's. Transformations other than
    GeN do not see the loss at all.

    The block is read when `update` is traced. So it has to be opened in every trace in which `update` runs, and an
    error says so where it was opened outside of the function that is compiled: that program would keep the one loss
    and the one batch for good. A program that was compiled before the block was opened does not see it.

    A framework may have clipped or scaled the gradient, so :func:`gen_optax.gen` does not take it for that of
    `value_fn`, as it does where `update` is given `value`. `finite_difference(free_slope=True)` needs `grad` among the
    arguments of `update`.

    Args:
      value_fn: as in :func:`gen_optax.scale_by_gen`: `value_fn(params, **kwargs)` returns the loss, a real scalar, or
        `(loss, aux)`. Its keyword arguments are taken by name from those that `update` is given.
      value: optional, `value_fn(params)`, a scalar; saves a forward pass. It counts for this `value_fn` only.

    Returns:
      A context manager, which gives nothing to `as`.

    Raises:
      TypeError: if `value_fn` is no function.
      ValueError: from `update`, if the block was opened outside of the function that is traced around `update`, or in
        one that is traced no more.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = gen_optax.gen_adam()
      >>> def framework_step(grads, state, w):
      ...   updates, state = tx.update(grads, state, w)
      ...   return optax.apply_updates(w, updates), state
      >>> @jax.jit
      ... def train_step(w, state, batch):
      ...   def loss_fn(w): return jnp.mean((w - batch) ** 2)
      ...   value, grads = jax.value_and_grad(loss_fn)(w)
      ...   with gen_optax.loss_context(loss_fn, value):
      ...     return framework_step(grads, state, w)
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> for _ in range(200):
      ...   w, state = train_step(w, state, jnp.array([[2.9, 1.1], [3.1, 0.9]]))
      >>> print(jnp.round(w, 1))
      [3. 1.]
    """
    if not callable(value_fn):
        raise TypeError(
            f"loss_context takes a function of the parameters that returns the loss, got a {type(value_fn).__name__}. "
            f"The loss itself comes second:{BLOCK}"
        )
    token = _innermost.set(_Given(value_fn, value, _is_tracing()))
    try:
        yield
    finally:
        _innermost.reset(token)


def completed(extra_args: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of `update` with the loss of the innermost block, where they hold none and there is a block.

    Raises a ValueError where the block and `update` are known to belong to different traces.
    """
    given = _innermost.get()
    if given is None or _has(extra_args, "value_fn", "obj_fn"):
        return extra_args
    is_tracing = _is_tracing()
    if is_tracing and not given.is_traced:
        raise ValueError(
            "loss_context was opened outside of the function that is traced now (by jax.jit, jax.lax.scan, "
            "jax.lax.cond, ...) and in which update runs. What is compiled would keep this loss, with its batch, for "
            f"all later steps. Open it inside of that function, around the call that leads to update:{BLOCK}\n"
            "Or pass value_fn=loss_fn to update. One function for all steps goes to gen (or scale_by_gen) itself: "
            "gen_optax.gen(base, value_fn=loss_fn)."
        )
    if given.is_traced and not is_tracing:
        raise ValueError(
            "loss_context was opened while jax traced a function, and update runs outside of that trace: the values "
            f"that the loss holds are gone. Open it where update runs:{BLOCK}"
        )
    loss = {"value_fn": given.value_fn}
    return {**extra_args, **loss} if _has(extra_args, "value", "loss") else {**extra_args, **loss, "value": given.value}


def _has(extra_args: Mapping[str, Any], *names: str) -> bool:
    return any(extra_args.get(name) is not None for name in names)


def _is_tracing() -> bool:
    """Whether jax is tracing a function into a program; `vmap` and `grad` alone make none."""
    return not _flow.is_known(jnp.zeros(()))
