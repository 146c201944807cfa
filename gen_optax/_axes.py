"""Devices that hold a part each: averages over the axes of `shard_map` and `pmap`, and what the types reveal of them.

Under `jit` with shardings every value is a global one, and nothing here has anything to do. Inside `shard_map` and
`pmap` a loss is that of one device's part of the batch. A learning rate made from it would differ from device to
device, and the parameters would drift apart without a sign: hence the averages over `axis_name`, and hence an error
where it was forgotten. `shard_map` types every value with the axes over which it varies (unless `check_vma=False`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gen_optax import _tree


def mean(x: jax.Array, axis_name: Any) -> jax.Array:
    """The average over the axes; `x` itself without any."""
    return jax.lax.pmean(x, axis_name) if _names(axis_name) else x


def maximum(x: jax.Array, axis_name: Any) -> jax.Array:
    """The maximum over the axes."""
    return jax.lax.pmax(x, axis_name) if _names(axis_name) else x


def everywhere(condition: jax.Array, axis_name: Any) -> jax.Array:
    """Whether a condition holds on all devices: what one of them cannot do, none does."""
    return jax.lax.pmin(condition.astype(jnp.int32), axis_name) == 1 if _names(axis_name) else condition


def inner_product(a: Any, step: Any, axis_name: Any, factor: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """`Re sum(a * factor * step)` of the whole trees, the same on all devices.

    Where a leaf of `step` is typed as varying over an axis, each device holds a shard of it, and the shards' products
    add up. Else each device holds all of it, and `a` may be a gradient of its own part of the batch: they average.
    """
    if not _names(axis_name):
        return _tree.inner_product(a, step, factor)
    total = jnp.zeros((), jnp.float32)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(step), strict=True):
        total += num_shards(y, axis_name) * _tree.inner_product([x], [y], factor)
    return jax.lax.pmean(total, axis_name)


def sum_of_shards(x: jax.Array, p: Any, axis_name: Any) -> jax.Array:
    """The sum of `x`, made of a part of `p`, over the devices that hold the other parts."""
    names = _split_over(p, axis_name)
    return jax.lax.psum(x, names) if names else x


def shard(p: Any, axis_name: Any) -> Any:
    """The number of the part of `p` that this device holds, from zero; 0 where it holds all of it."""
    number = 0
    for name in _split_over(p, axis_name):
        number = number * jax.lax.psum(1, name) + jax.lax.axis_index(name)
    return number


def whole(x: jax.Array) -> jax.Array:
    """`x` on every device of a mesh with explicit axes, which are types: arrays split in different ways do not mix."""
    sharding: Any = getattr(jax.typeof(x), "sharding", None)
    reshard = getattr(jax.sharding, "reshard", None)
    if reshard is None or not any(name is not None for name in getattr(sharding, "spec", ())):  # or an old jax
        return x
    return reshard(x, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def num_shards(x: Any, axis_name: Any) -> int:
    """Over how many devices of the axes `x` is known to be split."""
    return math.prod(jax.lax.psum(1, name) for name in _split_over(x, axis_name))


def varying(x: Any) -> frozenset[Any]:
    """The axes over which `x` is typed as varying: none outside `shard_map`, nor with `check_vma=False`."""
    return varying_of(jax.typeof(x))


def varying_of(aval: Any) -> frozenset[Any]:
    """The same of an abstract value."""
    types = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", frozenset()) if types is None else types.varying


def vary(x: jax.Array, names: frozenset[Any], axis_name: Any) -> jax.Array:
    """`x` typed as varying over `names`, but for the axes of `axis_name`, over which there is an average."""
    for name in sorted(names - set(_names(axis_name)), key=str):
        x = jnp.where(jax.lax.axis_index(name) < 0, jnp.zeros_like(x), x)
    return x


def require_axis_name(axis_name: Any) -> None:
    """Raises a ValueError without `axis_name` where no type will show that devices disagree."""
    if axis_name is not None:
        return
    names = jax.sharding.get_abstract_mesh().manual_axes
    untyped = tuple(name for name in names if name not in varying(jax.lax.axis_index(name)))
    if untyped:
        shown = repr(untyped[0] if len(untyped) == 1 else untyped)
        raise ValueError(
            f"scale_by_gen is updated inside pmap or shard_map(check_vma=False), over the axis {shown}, without "
            "axis_name: a learning rate from one device's losses would differ from those of the others. Average "
            f"them, scale_by_gen(..., axis_name={shown}), and name a vmap over parts of the batch there, too; or pass "
            "axis_name=() where value_fn returns an average already, or where each device trains a model of its own."
        )


def require_agreement(tree: Any, learning_rate: jax.Array, axis_name: Any) -> None:
    """Raises a ValueError where a number that the learning rate depends on differs between devices that share it."""
    for x in jax.tree.leaves(tree):
        apart = varying(x) - varying(learning_rate)
        if apart:
            names = tuple(sorted(map(str, apart)))
            shown = repr(names[0]) if len(names) == 1 else repr(names)
            raise ValueError(
                f"The loss, or a slope of it, differs between the devices along the mesh axes {names}, averaged over "
                f"axis_name={axis_name!r}; the learning rate would too. Pass scale_by_gen(..., axis_name={shown}), or "
                "return a loss that is averaged over them. Where each device trains a model of its own, its optimizer "
                f"state has to vary as well: jax.lax.pcast(state, {shown}, to='varying')."
            )


def _split_over(x: Any, axis_name: Any) -> tuple[Any, ...]:
    """Those of the axes over which `x` is known to be split, in one order."""
    return tuple(sorted(varying(x) & set(_names(axis_name)), key=str))


def _names(axis_name: Any) -> tuple[Any, ...]:
    if axis_name is None:
        return ()
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
