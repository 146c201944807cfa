"""`loss_context` around the training states of flax, on one device and on eight: flax hands on no loss itself."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import devices_worker as worker
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.linen import fp8_ops
from flax.training import train_state
from flax_models import NnxNet, assert_same, batch, counting, nnx_loss
from helpers import gen_state, settings_of
from jax.sharding import PartitionSpec as P

import gen_optax
import gen_optax.linen
import gen_optax.nnx

DENSE = nn.Dense(1)
QUICK = settings_of("three points", 0.1) | {"every": 1}


def train_step(state, x, y):
    """A step as a user of flax writes it, and the block."""

    def loss_fn(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    value, grads = jax.value_and_grad(loss_fn)(state.params)
    with gen_optax.loss_context(loss_fn, value):
        return state.apply_gradients(grads=grads), value


def create(tx):
    params = DENSE.init(jax.random.key(0), batch()[0])["params"]
    return train_state.TrainState.create(apply_fn=DENSE.apply, params=params, tx=tx).replace(step=jnp.int32(0))


def test_a_training_state_of_flax():
    """A new batch at each step, the state donated: the steps are those with the loss among the arguments of update."""
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(**QUICK))

    @jax.jit
    def by_argument(params, state, x, y):
        def loss_fn(params):
            return jnp.mean((DENSE.apply({"params": params}, x) - y) ** 2)

        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    state = create(tx)
    params, opt_state = jax.tree.map(jnp.copy, (state.params, state.opt_state))
    counted, traces = counting(train_step)
    step = jax.jit(counted, donate_argnums=0)
    for seed in range(4):
        state, _ = step(state, *batch(seed))
        params, opt_state = by_argument(params, opt_state, *batch(seed))
    assert_same((state.params, state.opt_state), (params, opt_state))
    assert gen_state(state.opt_state).info.num_probes == 4
    assert len(traces) == 1


def test_a_training_state_in_a_scan():
    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(batch, range(60)))
    run = jax.jit(lambda state: jax.lax.scan(lambda s, b: train_step(s, *b), state, batches), donate_argnums=0)
    state, values = run(create(gen_optax.gen_adam()))
    assert gen_state(state.opt_state).learning_rate > 0
    assert jnp.mean(values[-10:]) < 0.5 * values[0]


def test_float8_scales_stay_out_of_the_parameters():
    """`gen_optax.linen.TrainState` gives the loss of a block all that the loss knows, as it does with an argument."""
    name = fp8_ops.OVERWRITE_WITH_GRADIENT
    variables = {"params": {"w": jnp.ones(2)}, name: {"scale": jnp.full(2, 2.0)}}

    def loss_fn(variables):
        return jnp.sum((variables["params"]["w"] * jax.lax.stop_gradient(variables[name]["scale"])) ** 2)

    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(**QUICK))
    state = gen_optax.linen.TrainState.create(apply_fn=None, params=variables, tx=tx)

    @functools.partial(jax.jit, static_argnames="by_argument")
    def step(state, by_argument):
        value, grads = jax.value_and_grad(loss_fn)(state.params)
        if by_argument:
            return state.apply_gradients(grads=grads, value=value, value_fn=loss_fn)
        with gen_optax.loss_context(loss_fn, value):
            return state.apply_gradients(grads=grads)

    found, expected = (step(state, by_argument) for by_argument in (False, True))
    assert_same((found.params, found.opt_state), (expected.params, expected.opt_state))
    assert gen_state(found.opt_state).info.value == 8


def test_an_optimizer_of_nnx():
    def framework_step(model, optimizer, grads):
        optimizer.update(model, grads)

    @functools.partial(nnx.jit, static_argnames="by_argument")
    def step(model, optimizer, x, y, by_argument):
        value_fn = gen_optax.nnx.make_value_fn(functools.partial(nnx_loss, x=x, y=y), model)
        value, grads = nnx.value_and_grad(nnx_loss)(model, x, y)
        if by_argument:
            optimizer.update(model, grads, value=value, value_fn=value_fn)
        else:
            with gen_optax.loss_context(value_fn, value):
                framework_step(model, optimizer, grads)

    results = []
    for by_argument in (False, True):
        model = NnxNet(nnx.Rngs(0))
        tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(**QUICK))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for seed in range(3):
            step(model, optimizer, *batch(seed), by_argument)
        results.append(nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state)))
    assert_same(*results)
    assert gen_state(results[0][1]).info.num_probes == 3


# --- eight devices, in a process of their own ------------------------------------------------------------------------


def sharded_step(state, batch):
    """As `worker.plain_step`, with a framework in between."""

    def loss_fn(params):
        return worker.loss_fn(params, batch)

    value, grads = jax.value_and_grad(loss_fn)(state.params)
    with gen_optax.loss_context(loss_fn, value):
        return state.apply_gradients(grads=grads)


def under_jit():
    the_mesh = worker.mesh()
    params, batch = worker.problem()
    batch = worker.place(batch, the_mesh, {"x": P("data"), "y": P("data")})
    params = worker.place(params, the_mesh, worker.SHARDED)
    return train(jax.jit(sharded_step, donate_argnums=0), worker.optimizer("retrospective"), params, batch)


def under_shard_map():
    """A loss of one device's part of the batch: `axis_name` averages it."""
    params, batch = worker.problem()

    def step(state, batch):
        def loss_fn(params):
            return worker.loss_fn(params, batch)

        value, grads = jax.value_and_grad(lambda params: jax.lax.pmean(loss_fn(params), "data"))(state.params)
        with gen_optax.loss_context(loss_fn, value):
            return state.apply_gradients(grads=grads)

    specs = {"mesh": worker.mesh(), "in_specs": (P(), P("data")), "out_specs": P()}
    tx = worker.optimizer("retrospective", axis_name="data")
    return train(jax.jit(jax.shard_map(step, **specs)), tx, params, batch)


def train(step, tx, params, batch):
    """The learning rates."""
    state, rates = train_state.TrainState.create(apply_fn=None, params=params, tx=tx), []
    for _ in range(worker.NUM_STEPS):
        state = jax.block_until_ready(step(state, batch))  # simulated devices deadlock on two at once
        rates.append(float(gen_state(state.opt_state).learning_rate))
    return rates


@pytest.fixture(scope="module")
def rates():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-W", "error", __file__]
    done = subprocess.run(
        command, env=environment, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["jit", "shard_map"])
def test_eight_devices_agree_with_one(rates, way):
    expected = [rate for (rate,) in worker.one_device("retrospective")["rates"]]
    assert len(set(expected)) >= 3
    np.testing.assert_allclose(rates[way], expected, 2e-6)


if __name__ == "__main__":
    print(json.dumps({"jit": under_jit(), "shard_map": under_shard_map()}))
