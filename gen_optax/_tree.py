"""Algebra of parameter trees: floating-point leaves only, in float32 at least, rounded once."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def step_along(params: optax.Params, updates: optax.Updates, step_size: jax.typing.ArrayLike) -> optax.Params:
    """`params + step_size * updates` as `optax.apply_updates` would leave it: in the dtype of the parameters.

    The sum is formed in float32 at least and rounded once. Integer leaves stay where they are.
    """

    def move(p, u):
        if not is_inexact(p):
            return p
        p = jnp.asarray(p)
        dtype = jnp.promote_types(p.dtype, jnp.float32)
        return (p.astype(dtype) + jnp.asarray(step_size, real(dtype)) * u).astype(p.dtype)

    return jax.tree.map(move, params, updates)


def scale(updates: optax.Updates, factor: jax.Array) -> optax.Updates:
    """`factor * updates` in the dtypes of the updates; the product is formed in float32 at least.

    A factor of 0 makes everything 0, infinities and NaN as well.
    """

    def times(u):
        if not is_inexact(u):
            return u
        u = jnp.asarray(u)
        dtype = jnp.promote_types(u.dtype, jnp.float32)
        return jnp.where(factor == 0, 0, factor.astype(real(dtype)) * u.astype(dtype)).astype(u.dtype)

    return jax.tree.map(times, updates)


def difference(new: optax.Params, old: optax.Params) -> optax.Updates:
    """`new - old` in float32 at least; zero for integer leaves, and where both are the same infinity."""

    def minus(x, y):
        if not is_inexact(x):
            return jnp.zeros_like(x)
        dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
        x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        return jnp.where(x == y, 0, x - y)

    return jax.tree.map(minus, new, old)


def inner_product(a: Any, b: Any, factor: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """`Re sum(a * factor * b)` over the floating-point leaves, accumulated in float32 at least.

    Without a conjugate: JAX's gradient `g` of a real loss of complex `w` is such that the loss changes by
    `Re sum(g * dw)`. The factor goes to `b` first, where the product of the bare trees would overflow.
    """
    total = jnp.zeros((), jnp.float32)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if is_inexact(x):
            dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
            total += jnp.sum(jnp.real(jnp.asarray(x, dtype) * (factor * jnp.asarray(y, dtype))))
    return total


def largest(updates: optax.Updates) -> jax.Array:
    """`max|u|` in float32; NaN where an entry is."""
    found = jnp.zeros((), jnp.float32)
    for u in jax.tree.leaves(updates):
        if is_inexact(u) and jnp.size(u):
            found = jnp.maximum(found, jnp.max(jnp.abs(u)).astype(found.dtype))
    return found


def power_of_two(updates: optax.Updates) -> jax.Array:
    """The largest power of two that is at most `max|u|`, away from the ends of float32; 1 for a zero step."""
    size = largest(updates)
    _, exponent = jnp.frexp(size)
    return jnp.ldexp(jnp.ones_like(size), jnp.where(size > 0, jnp.clip(exponent - 1, -120, 120), 0))


def all_finite(updates: optax.Updates) -> jax.Array:
    """Whether no floating-point entry is NaN or infinite."""
    finite = jnp.ones((), jnp.bool_)
    for u in jax.tree.leaves(updates):
        if is_inexact(u):
            finite &= jnp.all(jnp.isfinite(u))
    return finite


def is_like(tree: Any, params: optax.Params) -> bool:
    """Whether a tree has as many leaves as `params`, and the floating-point ones the same shapes.

    Containers may differ: nnx variables around the arrays, or a dict in place of a `FrozenDict`.
    """
    found, expected = jax.tree.leaves(tree), jax.tree.leaves(params)
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(jnp.shape(x) == jnp.shape(p) for x, p in pairs if is_inexact(p))


def require_like(tree: Any, params: optax.Params, what: str) -> None:
    """Raises a ValueError that begins with `what` unless the tree is like `params`: its leaves would broadcast."""
    if is_like(tree, params):
        return
    found, expected = jax.tree_util.tree_leaves_with_path(tree), jax.tree_util.tree_leaves_with_path(params)
    if len(found) != len(expected):
        has, wants = ([f"params{jax.tree_util.keystr(path)}" for path, _ in leaves] for leaves in (found, expected))
        missing = [f"none at {path}" for path in wants if path not in has]
        unknown = [f"one at {path}, where params has none" for path in has if path not in wants]
        raise ValueError(
            f"{what} must be a tree like params, which has {len(expected)} leaves. It has {len(found)}, "
            f"{' and '.join([*missing, *unknown][:3])}."
        )
    for (_, x), (path, p) in zip(found, expected, strict=True):
        shape, wanted = jnp.shape(x), jnp.shape(p)
        if is_inexact(p) and shape != wanted:
            remedy = (
                f" The first axis looks like {shape[0]} per-example gradients: average over it first, "
                "jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)."
                if shape[1:] == wanted
                else ""
            )
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"{what} must have the shapes of params, got {shape} for {wanted} at {name}.{remedy}")


def is_inexact(x: Any) -> bool:
    """Whether an array (or Python number) is floating-point or complex: not an integer, nor a float0 gradient."""
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else jnp.result_type(x), jnp.inexact)


def inexact(tree: Any) -> list[Any]:
    """The floating-point and complex leaves."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x)]


def places(shape: tuple[int, ...]) -> jax.Array:
    """The number of each entry of an array of this shape, uint32, row by row."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def instances(state: Any, kinds: Any, who: str) -> list[Any]:
    """What `state` holds of some kinds of state of GeN, however deep; a ValueError of the function `who` if nothing."""

    def is_one(x):
        return isinstance(x, kinds)

    found = [leaf for leaf in jax.tree.leaves(state, is_leaf=is_one) if is_one(leaf)]
    if not found:
        raise ValueError(
            f"{who} found no state of scale_by_gen. Pass the optimizer state (or what holds it) of a gen_optax "
            f"optimizer, got {type(state).__name__}."
        )
    return found


def real(dtype: Any) -> Any:
    """The dtype of the real part."""
    return jnp.finfo(dtype).dtype
