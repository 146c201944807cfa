"""The loss as a function of the parameters alone, and the loss along a step."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gen_optax import _loss_context, _tree
from gen_optax._masks import is_masked

Loss = Callable[[optax.Params], jax.Array]

# What these arguments of `update` tell is for GeN alone: `**kwargs` of a loss does not receive them.
_OWN = ("value", "loss", "grad", "value_fn", "obj_fn")

USAGE = """
    updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)"""
_NAMELESS = (
    "update hands arguments over by name: name the arguments, def value_fn(params, x, y), or close over the batch, "
    "value_fn=lambda params: loss_fn(params, x, y)."
)


def arguments(
    extra_args: Mapping[str, Any], default_value_fn: Callable[..., Any] | None, params: optax.Params = None
) -> tuple[Loss, jax.Array | None, Any]:
    """What `update` was given as `(loss, value, grad)`: the loss bound to its arguments, the others checked.

    `obj_fn` is a synonym of `value_fn`, and `loss` of `value`. Where there is no loss, that of `loss_context` counts.
    With `params`, `grad` is a tree like them: around masked ones its parts are left out, since `optax.masked` hands on
    extra arguments whole.
    """
    extra_args = _loss_context.completed(extra_args)
    given = {name: x for name, x in extra_args.items() if x is not None}
    for name, synonym in (("value", "loss"), ("value_fn", "obj_fn")):
        if name in given and synonym in given:
            raise ValueError(f"update was given both {name} and {synonym}, which mean the same to GeN. Pass one.")
    value_fn = given.get("value_fn", given.get("obj_fn", default_value_fn))
    if value_fn is None:
        raise ValueError(
            f"scale_by_gen evaluates the loss along the step: pass value_fn=loss_fn to update.{USAGE}\n"
            "Where a framework calls update, hand the loss over in one of two other ways. One function for all steps "
            "goes to gen (or scale_by_gen) itself:\n"
            "    tx = gen_optax.gen(base, value_fn=loss_fn)\n"
            f"A function of the batch at hand goes around the call, inside of the jitted step:{_loss_context.BLOCK}\n"
            "If you did pass value_fn to update, a wrapper around scale_by_gen drops the extra arguments, as "
            "optax.lookahead, optax.MultiSteps(...).gradient_transformation() and flax.training.train_state.TrainState "
            "do: open loss_context around it, give value_fn to scale_by_gen (or gen), leave the wrapper out, or take "
            "gen_optax.linen.TrainState."
        )
    if not callable(value_fn):
        raise TypeError(
            f"value_fn must be a function of the parameters that returns the loss, got a {type(value_fn).__name__}. "
            f"The loss itself goes into value:{USAGE}"
        )
    value, grad = given.get("value", given.get("loss")), jax.lax.stop_gradient(given.get("grad"))
    value = None if value is None else as_scalar(value, "value must be")
    if grad is not None and params is not None:
        if _has_masked_nodes(params):
            grad = jax.tree.map(lambda p, g: p if is_masked(p) else g, params, grad, is_leaf=is_masked)
        _tree.require_like(grad, params, "grad")
    known = {name: x for name, x in extra_args.items() if name in given or name not in ("value", "grad")}
    return _bind(value_fn, known), value, grad


def _bind(value_fn: Callable[..., Any], extra_args: Mapping[str, Any]) -> Loss:
    """`params -> scalar loss`, with the keyword arguments that `value_fn` asks for taken from `extra_args`.

    An error inside `value_fn` that has masked parameters, or those of an nnx model, for its likely cause says so.
    """
    loss = scalar(functools.partial(value_fn, **_select(value_fn, extra_args)))

    def noting(params: optax.Params) -> jax.Array:
        try:
            return loss(params)
        except Exception as error:
            if _has_masked_nodes(params):
                error.add_note(
                    "gen_optax: the parameters handed to value_fn hold optax.MaskedNode, because scale_by_gen sits "
                    "inside optax.masked or optax.partition. Pass update a loss that fills in the frozen ones: "
                    "value_fn=gen_optax.unmasked_value_fn(loss_fn, params)."
                )
            if _is_nnx_state(params) and "State" in str(error):
                error.add_note(
                    "gen_optax: value_fn was handed the parameters of an nnx model, an nnx.State, in place of the "
                    "model. Make a loss over the state of your loss over the model, before the forward pass of the "
                    "gradient: value_fn=gen_optax.nnx.make_value_fn(loss_fn, model)."
                )
            if starred := _starred(value_fn):
                error.add_note(
                    f"gen_optax: value_fn was handed the parameters alone, and nothing for *{starred}. {_NAMELESS}"
                )
            raise

    return noting


def ignored(extra_args: Mapping[str, Any]) -> list[str]:
    """The names that neither GeN nor the loss that comes with them makes use of."""
    value_fn = extra_args.get("value_fn") or extra_args.get("obj_fn")
    if not callable(value_fn):
        return []
    try:
        return sorted(extra_args.keys() - {*_OWN, *_bound(value_fn)} - _select(value_fn, extra_args).keys())
    except ValueError:  # the optimizer may need no loss
        return []


def scalar(value_fn: Callable[..., Any]) -> Loss:
    """`value_fn` checked to return a real scalar; of a tuple `(loss, aux)`, the loss."""

    def loss(params: optax.Params) -> jax.Array:
        value = value_fn(params)
        return as_scalar(value[0] if isinstance(value, tuple) else value, "value_fn must return")

    return loss


def as_scalar(value: Any, what: str) -> jax.Array:
    """The loss as an array of its own dtype, or a ValueError that begins with `what`."""
    if isinstance(value, tuple | list | dict):
        remedy = "Of (loss, aux), pass loss alone, or has_aux=True to mean_value_and_grad."
        raise ValueError(f"{what} a real scalar loss, got a {type(value).__name__}. {remedy}")
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        remedy = "It has to be floating-point." if value.shape == () else "Reduce it first, for example with jnp.mean."
        raise ValueError(
            f"{what} a real scalar loss (or a tuple (loss, aux) from value_fn), got shape {value.shape} and dtype "
            f"{value.dtype}. {remedy}"
        )
    return value


def probe_losses(
    value_fn: Callable[..., Any],
    params: optax.Params,
    updates: optax.Updates,
    step_sizes: jax.typing.ArrayLike,
    batching: Literal["vmap", "map"] = "vmap",
) -> jax.Array:
    """Measures the loss at several step sizes along a step: `L_j = value_fn(params + t_j * updates)`.

    Args:
      value_fn: `params -> loss`, a real scalar, or `(loss, aux)`. It has to be the same function at every point: one
        batch, one dropout key.
      params: the parameters `w`.
      updates: the step `u`, a tree like `params`, with the sign it is applied with.
      step_sizes: the steps `t_j`, shape `(n,)`, in units of the learning rate.
      batching: `"vmap"` evaluates all points at once and holds `n` copies of the parameters, `"map"` one after the
        other and holds one.

    Returns:
      The losses, shape `(n,)`, in the dtype that `value_fn` returns.

    Raises:
      ValueError: if `value_fn` returns no real scalar, if `step_sizes` is not one-dimensional, if `batching` is
        unknown.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> gen_optax.probe_losses(lambda w: jnp.sum(w**2), jnp.ones(2), -jnp.ones(2), jnp.array([0.0, 0.5, 1.0]))
      Array([2. , 0.5, 0. ], dtype=float32)
    """
    step_sizes = jnp.asarray(step_sizes)
    if step_sizes.ndim != 1:
        raise ValueError(f"step_sizes must have one dimension, got shape {step_sizes.shape}.")
    loss = scalar(value_fn)

    def along(step_size):
        return loss(_tree.step_along(params, updates, step_size))

    if batching == "vmap":
        return jax.vmap(along)(step_sizes)
    if batching == "map":
        return jax.lax.map(along, step_sizes)
    raise ValueError(f'batching must be "vmap" or "map", got {batching!r}.')


def directional_derivatives(
    value_fn: Callable[..., Any], params: optax.Params, updates: optax.Updates
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Differentiates the loss twice along a step.

    With the gradient `G` and the Hessian `H` of the loss at `w`,

    .. math::
      b = -G^\top u, \qquad A = u^\top H u,

    computed by forward-mode differentiation of forward-mode differentiation: no step size, no cancellation, no
    parameter-sized residuals. Functions that define a reverse rule only (`jax.custom_vjp`) cannot be differentiated
    this way; use :func:`gen_optax.finite_difference` for them.

    Args:
      value_fn: `params -> loss`, a real scalar, or `(loss, aux)`.
      params: the parameters `w`.
      updates: the step `u`, a tree like `params`, with the sign it is applied with.

    Returns:
      A tuple `(value, slope, curvature)` of the loss, `b` (positive on a descending step) and `A`, scalars in the dtype
      that `value_fn` returns.

    Raises:
      ValueError: if `value_fn` returns no real scalar.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> value, slope, curvature = gen_optax.directional_derivatives(
      ...     lambda w: jnp.sum(w**2), jnp.ones(2), -jnp.ones(2))
      >>> print(value, slope, curvature)
      2.0 4.0 4.0

    References:
      Roulet et al., `Stepping on the edge <https://arxiv.org/abs/2407.06183>`_, 2024: curvature along the step by
      forward-mode differentiation.
    """
    loss = scalar(value_fn)
    point, tangent = _moving(params, updates)

    def ascent(moved):
        return jax.jvp(lambda m: loss(_replace(params, m)), (moved,), (tangent,))

    (value, slope), (_, curvature) = jax.jvp(ascent, (point,), (tangent,))
    return value, -slope, curvature


def _moving(params: optax.Params, updates: optax.Updates) -> tuple[list[jax.Array], list[jax.Array]]:
    """The leaves that a step can move and their steps, in the dtype of the leaves, as `jax.jvp` wants them."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)
    moving = [(jnp.asarray(p), jnp.asarray(u)) for p, u in pairs if _tree.is_inexact(p)]
    return [p for p, _ in moving], [u.astype(p.dtype) for p, u in moving]


def _replace(params: optax.Params, moved: list[jax.Array]) -> optax.Params:
    """The parameters with the leaves of `_moving` replaced."""
    moved_leaves = iter(moved)
    return jax.tree.map(lambda p: next(moved_leaves) if _tree.is_inexact(p) else p, params)


def _select(value_fn: Callable[..., Any], extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """The extra arguments that `value_fn` names, its first parameter excepted; all but GeN's own for `**kwargs`.

    What `functools.partial` has bound by name stays bound.
    """
    bound = _bound(value_fn)
    try:
        first, *parameters = inspect.signature(value_fn).parameters.values()
    except (TypeError, ValueError):  # a callable without a readable signature, or without parameters
        return {}
    nameless = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]
    if nameless:
        raise ValueError(f"value_fn takes {', '.join(nameless)} by position only. {_NAMELESS}")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in bound]
    missing = [p.name for p in named if p.default is p.empty and p.name not in extra_args]
    if missing:
        raise ValueError(
            f"value_fn needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}, which update was not given. "
            f"Pass {missing[0]}=... to update, or close value_fn over it:{USAGE}"
        )
    wanted = {p.name for p in named}
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        wanted |= extra_args.keys() - {first.name, *_OWN, *bound}
    return {name: x for name, x in extra_args.items() if name in wanted}


def _starred(value_fn: Callable[..., Any]) -> str | None:
    """The name of `*args` behind the parameters."""
    try:
        _, *parameters = inspect.signature(value_fn).parameters.values()
    except (TypeError, ValueError):
        return None
    return next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)


def _bound(value_fn: Callable[..., Any]) -> dict[str, Any]:
    """What `functools.partial` has bound by name, inside of `jit` and other wrappers as well."""
    inner = inspect.unwrap(value_fn)
    return inner.keywords if isinstance(inner, functools.partial) else {}


def _has_masked_nodes(tree: Any) -> bool:
    return any(is_masked(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_masked))


def _is_nnx_state(params: Any) -> bool:
    """Told by the name of its module, as flax need not be installed."""
    return type(params).__name__ == "State" and type(params).__module__.startswith("flax.nnx")
