"""Cases for `test_devices.py`, which runs this file in a process of its own: the number of devices is set once.

Prints a line of JSON per case: its name, and what it returned or its traceback.
"""

import functools
import json
import math
import re
import sys
import traceback
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import gen_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gen_optax
from gen_optax import _alignment

NUM_STEPS, EVERY = 5, 2
GIVEN = {"controller": gen_optax.algorithm_1(init_learning_rate=0.1, smoothing=0.5)}  # no search for a rate is compiled
OPTIONS: dict[str, dict[str, Any]] = {
    "cold start": {"controller": gen_optax.balance(sigma=1.6)},
    "alignment": {"controller": gen_optax.balance(1e-2, search_probes=0)},
    "retrospective": {**GIVEN, "probe": gen_optax.retrospective()},
    "three points": {**GIVEN, "probe": gen_optax.finite_difference()},
    "free slope": {**GIVEN, "probe": gen_optax.finite_difference(free_slope=True, batching="map")},
    "exact": {**GIVEN, "probe": gen_optax.exact()},
}


def problem():
    """`(params, batch)`: a network whose every dimension can be split by eight."""
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.normal(size=(16, 64)) / 4, jnp.float32),
        "bias": jnp.zeros(64),
        "out": jnp.asarray(rng.normal(size=(64, 8)) / 8, jnp.float32),
    }
    x = rng.normal(size=(64, 16))
    return params, {
        "x": jnp.asarray(x, jnp.float32),
        "y": jnp.asarray(np.sin(x @ rng.normal(size=(16, 8))), jnp.float32),
    }


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def optimizer(options, **more):
    return gen_optax.gen(optax.adamw(1.0), **({"every": EVERY} | OPTIONS[options] | more))


def plain_step(tx, loss=None):
    """A training step that knows nothing of devices."""
    loss = loss or loss_fn

    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def train(step, params, state, batch):
    """Rates and statuses of each step, and the parameters and their average at the end."""
    rates, statuses = [], []
    for _ in range(NUM_STEPS):
        params, state = jax.block_until_ready(step(params, state, batch))  # simulated devices deadlock on two at once
        gen = gen_state(state)
        rates.append(np.asarray(gen.learning_rate).ravel().tolist())
        statuses.append(np.asarray(gen.info.status).ravel().tolist())
    found = {"rates": rates, "statuses": statuses, "params": flat(params)}
    if gen.count.ndim == 0:  # not a copy for each device, as in `pmap`
        found["average"] = flat(gen_optax.averaged_params(state, params))
    return found


def flat(params):
    return np.concatenate([np.asarray(params[name]).ravel() for name in sorted(params)]).tolist()


def one_device(options):
    params, batch = problem()
    tx = optimizer(options)
    return train(jax.jit(plain_step(tx)), params, tx.init(params), batch)


def mesh(shape=(8,), names=("data",), explicit=False):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Explicit if explicit else AxisType.Auto,) * len(shape))


def place(tree, the_mesh, specs):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(the_mesh, spec)), tree, specs)


REPLICATED = {"in": P(), "bias": P(), "out": P()}
SHARDED = {"in": P(None, "data"), "bias": P("data"), "out": P("data")}
TENSOR = {"in": P(None, "model"), "bias": P("model"), "out": P("model", None)}
LAYOUTS = {
    "data parallel": (((8,), ("data",)), REPLICATED),
    "fully sharded": (((8,), ("data",)), SHARDED),
    "tensor parallel": (((2, 4), ("data", "model")), TENSOR),
}


def like_params(state, params, specs):
    """Specs for an optimizer state: what is shaped like a parameter is placed like it."""
    shapes = {params[name].shape: specs[name] for name in params}
    return jax.tree.map(lambda x: shapes.get(x.shape, P()), state)


def resharded_loss(params, batch):
    """With explicit axes a loss says itself where its weights are whole."""
    return loss_fn(jax.tree.map(lambda p: jax.sharding.reshard(p, P()), params), batch)


def under_jit(options, layout, explicit=False):
    """The step of one device, its arguments placed on eight."""
    (shape, names), specs = LAYOUTS[layout]
    the_mesh = mesh(shape, names, explicit)
    params, batch = problem()
    with jax.set_mesh(the_mesh):
        params = place(params, the_mesh, specs)
        batch = place(batch, the_mesh, {"x": P("data"), "y": P("data")})
        tx = optimizer(options)
        state = jax.jit(tx.init)(params)
        step = jax.jit(plain_step(tx, resharded_loss if explicit else loss_fn))
        result = train(step, params, state, batch)
        after, state = step(params, state, batch)
        path, average = gen_state(state).probe, gen_state(state).average
        kept = [after] + ([path.anchor] if path else []) + ([average.mean] if average else [])
        same = jax.tree.map(
            lambda x, *ys: all(x.sharding.is_equivalent_to(y.sharding, x.ndim) for y in ys), params, *kept
        )
        result["kept"] = all(jax.tree.leaves(same))
    return result


def mean_over(names):
    return lambda params, batch: jax.lax.pmean(loss_fn(params, batch), names)


def under_shard_map(options, names=("data",), shape=(8,), averaged=True, **more):
    """`averaged`: the loss is a mean over the axes already, inside of `value_fn`."""
    params, batch = problem()
    axis = names if len(names) > 1 else names[0]
    tx = optimizer(options, **({"axis_name": axis} | more))
    over = mean_over(axis)

    def step(params, state, batch):
        value, grads = jax.value_and_grad(over)(params, batch)
        loss = over if averaged else loss_fn
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    specs = {"mesh": mesh(shape, names), "in_specs": (P(), P(), P(names)), "out_specs": P()}
    return train(jax.jit(jax.shard_map(step, **specs)), params, tx.init(params), batch)


def local_step(tx, value_is_local, grad_is_local):
    """As under `pmap`: gradients are averaged by hand; what GeN is told may be local or averaged."""

    def step(params, state, batch):
        value, local = jax.value_and_grad(loss_fn)(params, batch)
        grads = jax.lax.pmean(local, "data")
        value = value if value_is_local else jax.lax.pmean(value, "data")
        updates, state = tx.update(
            grads, state, params, value=value, grad=local if grad_is_local else grads, value_fn=loss_fn, batch=batch
        )
        return optax.apply_updates(params, updates), state

    return step


def unchecked(options, value_is_local=True, grad_is_local=False, **more):
    """`shard_map` without types, over local losses."""
    params, batch = problem()
    tx = optimizer(options, **({"axis_name": "data"} | more))
    step = local_step(tx, value_is_local, grad_is_local)
    specs = {"mesh": mesh(), "in_specs": (P(), P(), P("data")), "out_specs": P(), "check_vma": False}
    return train(jax.jit(jax.shard_map(step, **specs)), params, tx.init(params), batch)


def under_pmap(options, **more):
    params, batch = problem()
    tx = optimizer(options, **({"axis_name": "data"} | more))
    step = jax.pmap(local_step(tx, True, False), axis_name="data", in_axes=(None, None, 0), out_axes=None)
    batch = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
    return train(step, params, tx.init(params), batch)


def gathered_loss(params, batch):
    """Each device holds a slice of every parameter and gathers the rest where it needs it."""
    dims = {"in": 1, "bias": 0, "out": 0}
    whole = {k: jax.lax.all_gather(params[k], "data", axis=dim, tiled=True) for k, dim in dims.items()}
    return jax.lax.pmean(loss_fn(whole, batch), "data")


def manually_sharded(options):
    """Fully sharded by hand: updates, gradients and parameters are slices, and only their types say so."""
    params, batch = problem()
    tx = optimizer(options, axis_name="data")
    state = tx.init(params)
    specs = {name: P(*(None,) * (name == "in"), "data") for name in params}
    state_specs = like_params(state, params, specs)
    step = jax.shard_map(
        plain_step(tx, gathered_loss),
        mesh=mesh(),
        in_specs=(specs, state_specs, P("data")),
        out_specs=(specs, state_specs),
    )
    return train(jax.jit(step), params, state, batch)


def alignment_of_shards():
    """The alignment of one array, whole and sharded by hand: some shards turn round, and the others do not."""
    turned = jnp.repeat(jnp.array([1.0, 1, -1, 1, -1, 1, 1, 1]), 8)[:, None] * jnp.ones((64, 300))
    points = [0 * turned, jnp.ones((64, 300)), jnp.ones((64, 300)) + turned]
    calls = (_alignment._FIRST, 3 * _alignment._FIRST // 2, 2 * _alignment._FIRST)

    def cosine(*points, axis_name=None):
        state = _alignment.init(points[0])
        for call, params in zip(calls, points, strict=True):
            call, rate = jnp.int32(call), jnp.float32(1)
            context = types.SimpleNamespace(
                params=params, updates=0 * params, call=call, learning_rate=rate, axis_name=axis_name
            )
            _, found, state = _alignment.update(state, _alignment.look(state, context), context)
        return found

    by_hand = jax.shard_map(functools.partial(cosine, axis_name="data"), mesh=mesh(), in_specs=P("data"), out_specs=P())
    return {"whole": float(cosine(*points)), "sharded": float(by_hand(*points))}


def one_model_per_device(options):
    """Eight models on the same data, each with a learning rate of its own; the first is that of `problem`."""
    params, batch = problem()
    tx = optimizer(options)
    params = jax.tree.map(lambda x: x * jnp.linspace(1, 0.5, 8).reshape(8, *[1] * x.ndim), params)
    state = jax.vmap(tx.init)(params)

    def step(params, state, batch):
        params, state = jax.tree.map(lambda x: x[0], (params, state))
        return jax.tree.map(lambda x: x[None], plain_step(tx)(params, state, batch))

    specs = {"mesh": mesh(), "in_specs": (P("data"), P("data"), P()), "out_specs": P("data")}
    result = train(jax.jit(jax.shard_map(step, **specs)), params, state, batch)
    first = [[r[0]] for r in result["rates"]]
    return {"rates": first, "distinct": len(set(map(tuple, zip(*result["rates"], strict=True))))}


def nan_on_one_device(options, in_gradient=False):
    """One device's part of the batch is NaN: all of them have to draw the same conclusion."""
    params, batch = problem()
    tx = optimizer(options, axis_name="data", every=1)

    def poisoned(params, batch):
        device = jax.lax.axis_index("data")
        return jnp.where(device == 3, jnp.nan if not in_gradient else 1.0, 1.0) * loss_fn(params, batch)

    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        grads = jax.lax.pmean(grads, "data")
        if in_gradient:  # a slice of the step is NaN where parameters are sharded
            bad = jax.lax.axis_index("data") == 3
            grads = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), grads)
            if options == "retrospective":  # the one that was taken
                params = jax.tree.map(lambda p: jnp.where(bad & (gen_state(state).count > 0), jnp.nan, p), params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=poisoned, batch=batch)
        return jax.tree.map(lambda x: x[None], (optax.apply_updates(params, updates), state))

    specs = {"mesh": mesh(), "in_specs": (P(), P(), P("data")), "out_specs": P("data"), "check_vma": False}
    sharded = jax.jit(jax.shard_map(step, **specs))
    state = tx.init(params)
    for _ in range(2):
        _, stacked = jax.block_until_ready(sharded(params, state, batch))
        state = jax.tree.map(lambda x: x[0], stacked)
    gen = gen_state(stacked)
    return {"rates": np.asarray(gen.learning_rate).tolist(), "statuses": np.asarray(gen.info.status).tolist()}


def message(function):
    try:
        function()
    except Exception as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": None, "message": ""}


COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\]")
BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


def collectives(function, *args):
    """`[(kind, bytes), ...]` of the compiled program, branches and loop bodies included once each."""
    found = []
    for shapes, kind, _ in COLLECTIVE.findall(function.lower(*args).compile().as_text()):
        size = sum(
            BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in ARRAY.findall(shapes)
        )
        found.append((kind, size))
    return found


def communication(layout, options):
    """The collectives of a step with GeN and of the base optimizer's alone."""
    return {"gen": collectives_of_step(layout, optimizer(options)), **without_gen(layout)}


@functools.cache
def without_gen(layout):
    forward = collectives(jax.jit(loss_fn), *placed_problem(layout))
    return {"base": collectives_of_step(layout, optax.adamw(0.1)), "forward": forward}


def placed_problem(layout):
    (shape, names), specs = LAYOUTS[layout]
    the_mesh = mesh(shape, names)
    params, batch = problem()
    return place(params, the_mesh, specs), place(batch, the_mesh, {"x": P("data"), "y": P("data")})


def collectives_of_step(layout, tx):
    (shape, names), specs = LAYOUTS[layout]
    the_mesh = mesh(shape, names)
    tx = optax.with_extra_args_support(tx)
    params, _ = problem()
    state = tx.init(params)
    shardings = (specs, like_params(state, params, specs))
    shardings = jax.tree.map(lambda spec: NamedSharding(the_mesh, spec), shardings)
    step = jax.jit(plain_step(tx), in_shardings=(*shardings, None), out_shardings=shardings)
    placed = placed_problem(layout)
    return collectives(step, placed[0], state, placed[1])


FULLY = ("cold start", "alignment", "exact")
CASES = {
    **{f"one device, {o}": functools.partial(one_device, o) for o in OPTIONS},
    **{f"jit, data parallel, {o}": functools.partial(under_jit, o, "data parallel") for o in OPTIONS},
    **{f"jit, fully sharded, {o}": functools.partial(under_jit, o, "fully sharded") for o in FULLY},
    "jit, tensor parallel, cold start": functools.partial(under_jit, "cold start", "tensor parallel"),
    "jit, tensor parallel, alignment": functools.partial(under_jit, "alignment", "tensor parallel"),
    "jit, explicit axes, cold start": functools.partial(under_jit, "cold start", "data parallel", explicit=True),
    **{
        f"jit, explicit axes, fully sharded, {o}": functools.partial(under_jit, o, "fully sharded", explicit=True)
        for o in ("cold start", "alignment", "retrospective")
    },
    "shard_map, averaged loss, free slope": functools.partial(under_shard_map, "free slope"),
    "shard_map, averaged loss without axis_name, cold start": functools.partial(
        under_shard_map, "cold start", axis_name=None
    ),
    "shard_map, local loss, exact": functools.partial(under_shard_map, "exact", averaged=False),
    "shard_map, two axes, cold start": functools.partial(
        under_shard_map, "cold start", ("replica", "data"), (2, 4), averaged=False
    ),
    "shard_map, unchecked, free slope": functools.partial(unchecked, "free slope", False, True),
    "shard_map, local loss, alignment": functools.partial(under_shard_map, "alignment", averaged=False),
    "alignment of shards": alignment_of_shards,
    "pmap, alignment": functools.partial(under_pmap, "alignment"),
    "pmap, retrospective": functools.partial(under_pmap, "retrospective"),
    **{
        f"shard_map, sharded by hand, {o}": functools.partial(manually_sharded, o)
        for o in ("cold start", "alignment", "retrospective", "free slope", "exact")
    },
    **{
        f"one model per device, {name}": functools.partial(one_model_per_device, name)
        for name in ("retrospective", "cold start", "alignment")
    },
    "NaN in a loss": functools.partial(nan_on_one_device, "three points"),
    "NaN in a step": functools.partial(nan_on_one_device, "three points", True),
    "NaN in a step, retrospective": functools.partial(nan_on_one_device, "retrospective", True),
    **{
        f"forgotten, {name}": functools.partial(message, functools.partial(function, axis_name=None))
        for name, function in {
            "shard_map": functools.partial(under_shard_map, "retrospective", averaged=False),
            "shard_map, cold start": functools.partial(under_shard_map, "cold start", averaged=False),
            "one of two axes": functools.partial(under_shard_map, "exact", ("replica", "data"), (2, 4), averaged=False),
            "unchecked": functools.partial(unchecked, "three points"),
            "pmap": functools.partial(under_pmap, "three points"),
        }.items()
    },
    "unchecked, declared": functools.partial(message, functools.partial(unchecked, "three points", axis_name=())),
    **{
        f"collectives, {layout}, {o}": functools.partial(communication, layout, o)
        for layout, options in {
            "data parallel": ("cold start", "retrospective", "three points", "exact"),
            "fully sharded": ("retrospective", "three points", "exact"),
            "tensor parallel": ("retrospective", "three points"),
        }.items()
        for o in options
    },
}


def main():
    _alignment._FIRST = 2  # stretches from call 2 to 3 and from 3 to 4
    for name in sys.argv[1:] or CASES:
        try:
            result = CASES[name]()
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps([name, result]), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
