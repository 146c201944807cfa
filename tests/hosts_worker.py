"""One of the processes of `test_hosts.py`: `hosts_worker.py PROCESS_ID NUM_PROCESSES PORT`.

The training loop is that of `docs/guides/hosts.md`; nothing in it asks how many processes there are. Prints JSON.
"""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from processes import join, leave

import gen_optax

NUM_STEPS, BATCH_SIZE = 12, 32


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def start():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in [("in", (8, 32)), ("out", (32, 2))]}


def main(process_id, num_processes, port):
    join(process_id, num_processes, port)
    assert jax.device_count() == num_processes, "one device each"
    mesh = jax.make_mesh((num_processes,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    tx = gen_optax.gen(optax.adamw(1.0), num_steps=NUM_STEPS, every=2)

    params = jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, x), start())
    state = jax.jit(tx.init, out_shardings=everywhere)(params)

    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        return optax.apply_updates(params, updates), state, gen_optax.metrics(state)

    step = jax.jit(step, out_shardings=everywhere)
    rates, statuses = [], []
    rng = np.random.default_rng(1)
    for _ in range(NUM_STEPS):
        x = rng.normal(size=(BATCH_SIZE, 8)).astype(np.float32)
        batch = {"x": x, "y": np.stack([np.sin(x.sum(1)), np.cos(x[:, 0])], 1)}
        mine = jax.tree.map(lambda a: np.split(a, num_processes)[process_id], batch)  # each host loads its own part
        batch = jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), mine)
        params, state, metrics = step(params, state, batch)
        rates.append(float(metrics["learning_rate"]))
        statuses.append(int(metrics["status"]))
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(params)])
    print(json.dumps({"pid": os.getpid(), "rates": rates, "statuses": statuses, "params": flat.tolist()}), flush=True)
    leave(num_processes)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
