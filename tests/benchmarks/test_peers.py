"""The peers that optax does not have, beside their papers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from benchmarks import methods, peers, runner

CURVATURES = np.array([1.0, 9.0, 0.1])
START = np.array([2.0, -1.0, 3.0])


def loss(y):
    return 0.5 * (CURVATURES * y**2).sum() + 0.1


def by_hand(steps, *, decay, warmup, annealing, power, norm_decay):
    """ScheduleFree+ in float64: the points where gradients are taken, averages and rates."""
    x = y = z = START
    m = v = np.zeros(3)
    norm = weights = 0.0
    highest = 1e-8
    seen = []
    for t in range(steps):
        share = min(t / annealing, 1)
        beta = 1 - np.exp((1 - share) * np.log(1 - 0.9) + share * np.log(1 - 0.965))
        g = CURVATURES * y
        norm = norm_decay * norm + (1 - norm_decay) * np.abs(g).sum() * np.sqrt(np.pi / 2)
        rate = max(0.0, loss(y) + beta * g @ (z - x)) / (norm / (1 - norm_decay ** (t + 1)))
        rate *= min(1, (t + 1) / warmup)
        highest = max(rate, highest)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
        z = z - rate**2 * decay * y - rate * step
        c = 1.0
        if t >= warmup:
            weight = (t + 1) ** power * highest**2
            weights += weight
            c = weight / weights
        x = (1 - c) * x + c * z
        y = beta * x + (1 - beta) * z
        seen.append((y, x, rate))
    return [np.array(column) for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("power", [0.0, 2.0])
@pytest.mark.parametrize("norm_decay", [0.0, 0.9])
def test_schedule_free_plus(power, norm_decay):
    tx = peers.schedule_free_plus(
        weight_decay=0.5, warmup_steps=3, annealing_steps=6, power=power, norm_decay=norm_decay
    )
    points, averages, rates = by_hand(12, decay=0.5, warmup=3, annealing=6, power=power, norm_decay=norm_decay)
    y = {"w": jnp.asarray(START, jnp.float32)}
    state = tx.init(y)
    for point, average, rate in zip(points, averages, rates, strict=True):
        value, grads = jax.value_and_grad(lambda p: loss(p["w"]))(y)
        updates, state = tx.update(grads, state, y, value=value)
        y = jax.tree.map(jnp.add, y, updates)
        np.testing.assert_allclose(y["w"], point, rtol=1e-4)
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-4)
        assert state.learning_rate == pytest.approx(rate, rel=1e-4)
    assert not np.allclose(points, averages)


def test_schedule_free_plus_stands_still_where_polyak_has_no_step():
    tx = peers.schedule_free_plus()
    y = jnp.ones(2)
    for grads, value in ((jnp.zeros(2), 1.0), (jnp.ones(2), -1.0)):
        updates, state = tx.update(grads, tx.init(y), y, value=jnp.float32(value))
        np.testing.assert_array_equal(updates, 0)
        np.testing.assert_array_equal(state.average, y)


def test_schedule_free_plus_is_evaluated_at_its_average():
    method = methods.build(methods.parse("schedule_free_plus:warmup=0.05"), toy(), 40)
    workload = toy()
    state, step = runner.start(workload, method, *workload.init(jax.random.key(0)))
    first, batches = None, runner.batches_for(workload, method, 0, 16)
    for _ in range(40):
        state, scalars = step(state, *next(batches), jax.random.key(1))
        first = scalars["loss"] if first is None else first
    assert scalars["loss"] < 0.8 * first
    assert scalars["learning_rate"] > 0
    point = method.eval_params(state.optimizer, state.params)
    np.testing.assert_array_equal(point["w1"], state.optimizer.average["w1"])
    assert not np.array_equal(point["w1"], state.params["w1"])
