"""Golden traces of the default optimizer: eight small problems, step by step, as they were when they were stored.

    regression  noisy batches, momentum: the search (50 probes in a row), the hold, the decay, and steps of 0 after it
    network     a tanh network under adamw: the search and the hold, with an open end
    alarm       one batch is an outlier, and the step from it goes too far: probes out of turn, and a rate that falls
    wall        the loss is NaN beyond a wall: an overshoot, and steps taken back
    leap        the curvature jumps during the search: a step raises a finite loss beyond doubt, and is taken back
    uphill      steps turn uphill during the hold, and the rate falls
    echo        each batch is used four times in a row: probes wait for a new one
    blind       no `value` is handed to update: an outlier raises no alarm, and probes come at their turns only
    devices     a regression with an open end, its batches split over eight devices by `shard_map`

`python tests/golden.py` compares with `golden.npz`; `--write` renews that, once every phase is seen to be reached and
parameters that start a millionth elsewhere are seen to lead to the same statuses; `--into FILE` only runs the problems.
"""

import argparse
import functools
import os
import pathlib
import sys

if __name__ == "__main__":  # before jax starts, as the number of devices is set once
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec

import gen_optax

FILE = pathlib.Path(__file__).with_suffix(".npz")
FIELDS = {"rates": np.float32, "statuses": np.int8, "probes": np.int16, "norms": np.float32, "params": np.float32}
SEARCH, EVERY = 50, 16  # probes of the search, and calls between two probes after it
OUTLIER = 150  # the call whose batch is one; no turn of a probe
OVERSHOOT, JUMP = 3, 8  # statuses


def trace(loss_fn, base, params, batches, nudge=0.0, has_value=True, over=None, **options):
    """Of each step the rate, the status, the number of probes and the norm of the parameters; and these at the end."""
    tx = gen_optax.gen(base, **options)

    def whole_loss(params, batch):
        return loss_fn(params, batch) if over is None else jax.lax.pmean(loss_fn(params, batch), over)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(whole_loss)(params, batch)
        given = {"value": value} if has_value else {}
        updates, state = tx.update(grads, state, params, value_fn=loss_fn, batch=batch, **given)
        params = optax.apply_updates(params, updates)
        seen = [optax.tree.get(state, name) for name in ("learning_rate", "status", "num_probes")]
        return (params, state), (*seen, jnp.linalg.norm(ravel_pytree(params)[0]))

    def train(params, batches):
        (params, _), seen = jax.lax.scan(step, (params, tx.init(params)), batches)
        return *seen, ravel_pytree(params)[0]

    if over is not None:
        mesh, p = jax.make_mesh((8,), (over,), axis_types=(AxisType.Auto,)), PartitionSpec
        train = jax.shard_map(train, mesh=mesh, in_specs=(p(), p(None, over)), out_specs=p())
    params = jax.tree.map(lambda x: jnp.asarray(x * (1 + nudge), jnp.float32), params)
    batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batches)
    return {name: np.asarray(x, FIELDS[name]) for name, x in zip(FIELDS, jax.jit(train)(params, batches), strict=True)}


def linear_loss(w, batch):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2


def walled_loss(w, batch):
    return jnp.where(w[0] > batch["wall"], jnp.nan, linear_loss(w, batch))


def turning_loss(w, batch):
    """The same loss; its gradient is `turn` times as long, the other way if that is negative."""
    turned = batch["turn"] * w
    return linear_loss(turned + jax.lax.stop_gradient(w - turned), batch)


def network_loss(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params["in"] + params["bias"]) @ params["out"] - batch["y"]) ** 2) / 2


def linear(num_steps, seed, calls=(0, 0), times=1.0, **more):
    """Parameters and batches of a regression; those of some calls, the first and the last, are so many times larger."""
    rng, call = np.random.default_rng(seed), np.arange(1, num_steps + 1)
    x = rng.normal(size=(num_steps, 32, 8)) * np.logspace(0, -1, 8)
    y = x @ rng.normal(size=8) + 0.5 * rng.normal(size=(num_steps, 32))
    scale = np.where((calls[0] <= call) & (call <= calls[1]), times, 1.0)[:, None]
    return 3 * rng.normal(size=8), {"x": x * scale[..., None], "y": y * scale} | more


def network(num_steps, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_steps, 16, 4))
    y = np.sin(x @ rng.normal(size=(4, 2))) + 0.3 * rng.normal(size=(num_steps, 16, 2))
    params = {"in": rng.normal(size=(4, 12)) / 2, "bias": rng.normal(size=12) / 9, "out": rng.normal(size=(12, 2)) / 4}
    return params, {"x": x, "y": y}


def echoed(params, batches):
    return params, {name: np.repeat(x[::4], 4, axis=0) for name, x in batches.items()}


WALL = {"wall": np.where(np.arange(1, 301) <= SEARCH, 0.0, 3.0)}
TURN = {"turn": np.where((np.arange(1, 401) > 240) & (np.arange(1, 401) <= 320), -0.2, 1.0)}
sgd, momentum, adam, adamw = optax.sgd(1.0), optax.sgd(1.0, momentum=0.9), optax.adam(1.0), optax.adamw(1.0)
outlier = functools.partial(linear, 300, calls=(OUTLIER, OUTLIER), times=20.0)
PROBLEMS = {
    "regression": functools.partial(trace, linear_loss, momentum, *linear(320, 12), num_steps=300),
    "network": functools.partial(trace, network_loss, adamw, *network(400, 1)),
    "alarm": functools.partial(trace, linear_loss, sgd, *outlier(2), num_steps=300),
    "wall": functools.partial(trace, walled_loss, sgd, *outlier(23, **WALL), num_steps=300),
    "leap": functools.partial(trace, linear_loss, sgd, *linear(200, 4, (24, 200), 8.0), num_steps=200),
    "uphill": functools.partial(trace, turning_loss, sgd, *linear(400, 7, **TURN)),
    "echo": functools.partial(trace, linear_loss, adam, *echoed(*linear(400, 8)), num_steps=400),
    "blind": functools.partial(trace, linear_loss, adam, *outlier(6), has_value=False, num_steps=300),
    "devices": functools.partial(trace, linear_loss, momentum, *linear(300, 1), over="data", axis_name="data"),
}


def check(traces):
    """Asserts that every phase is reached."""
    late, jumped, overshot = {}, {}, {}  # by problem, the calls: of probes out of turn, of steps that were taken back
    for name, seen in traces.items():
        probed = np.flatnonzero(np.diff(seen["probes"], prepend=0)) + 1
        late[name] = {call for call in probed[SEARCH:] if call % EVERY}
        for calls, status in ((jumped, JUMP), (overshot, OVERSHOOT)):
            calls[name] = {call for call in probed if seen["statuses"][call - 1] == status}
        if name == "echo":
            assert set(probed[probed > 16] % 4) == {1}, "on new batches only"
            continue
        if not jumped[name] | overshot[name]:
            assert np.array_equal(probed[:SEARCH], 2 + np.arange(SEARCH)), f"{name}: the search"
        assert set(range(64, len(seen["rates"]) + 1, EVERY)) <= set(probed[SEARCH:]), f"{name}: the hold"
    search, norms = set(range(SEARCH + 9)), {name: seen["norms"] for name, seen in traces.items()}
    steps = {name: np.abs(np.diff(norms[name])) for name in norms}
    back = [np.isclose(norms["wall"][: call - 1], norms["wall"][call - 1], 1e-6).any() for call in overshot["wall"]]
    rates = traces["uphill"]["rates"]
    long = [seen["rates"] for seen in traces.values() if len(seen["rates"]) > 272]
    reached = {
        "a search and a hold without alarms": not late["devices"] | jumped["devices"],
        "the decay": steps["regression"][285:299].mean() < 0.3 * steps["regression"][200:225].mean(),
        "steps of 0 after it": not steps["regression"][299:].any(),
        "open ends": all(steps[name][-9:].all() for name in ("network", "uphill", "devices")),
        "alarms": late["alarm"] >= {OUTLIER, OUTLIER + 1},
        "a jump after the search": jumped["alarm"] - search,
        "alarms without value": late["blind"] and all(call % 4 == 0 for call in late["blind"]),
        "an overshoot": overshot["wall"],
        "steps taken back": back and all(back),
        "jumps during the search": jumped["leap"] & search,
        # The probe at call 272 moves a rate by at most 12 % by itself.
        "a wish that is fulfilled": any(abs(np.log(rates_of[271] / rates_of[270])) > 0.13 for rates_of in long),
        "steps uphill": rates[319] < 0.8 * rates[239],
    }
    assert all(reached.values()), reached


def differences(seen, stored):
    """The largest relative difference of rates, how many statuses differ, and the first call where anything does."""
    differs = np.any([seen[name] != stored[name] for name in FIELDS if name != "params"], axis=0)
    differs = np.append(differs, (seen["params"] != stored["params"]).any())
    rates, statuses = np.abs(seen["rates"] / stored["rates"] - 1), seen["statuses"] != stored["statuses"]
    return rates.max(), statuses.sum(), np.argmax(differs) + 1 if differs.any() else None


def save(file, traces):
    np.savez_compressed(file, **{f"{name} {key}": x for name, seen in traces.items() for key, x in seen.items()})


def load(file=FILE):
    with np.load(file) as arrays:
        return {name: {key: arrays[f"{name} {key}"] for key in FIELDS} for name in PROBLEMS}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="renew the stored traces")
    parser.add_argument("--into", help="write the traces to this file, and that is all")
    args = parser.parse_args()
    traces = {name: problem() for name, problem in PROBLEMS.items()}
    if args.into:
        return save(args.into, traces)
    if args.write:
        check(traces)
        for name, nudge in [(name, nudge) for name in PROBLEMS for nudge in (-1e-6, 1e-6)]:
            rates, statuses, _ = differences(PROBLEMS[name](nudge=nudge), traces[name])
            assert max(rates / 2e-4, statuses) < 1, f"{name} is chaotic: rates {rates:.1e}, statuses {statuses}"
        save(FILE, traces)
    found = {name: differences(traces[name], stored) for name, stored in load().items()}
    for name, (rates, statuses, first) in found.items():
        print(f"{name:10}  rates {rates:.1e}, statuses {statuses}, first at {first}")
    return int(any(first for *_, first in found.values()))


if __name__ == "__main__":
    sys.exit(main())
