"""Outside of `jit`: nothing is called or traced that does not run, and the numbers are those of the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state

import gen_optax

STEPS, SEARCH, EVERY = 40, 6, 4
BATCHES = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, 16, 4)), jnp.float32)


def loss_fn(w, x):
    return jnp.mean(jnp.tanh(x @ w - 1.0) ** 2) + jnp.sum(w**2) / 100


class Counting:
    """A loss that counts its calls by Python, among them those by which it is traced."""

    def __init__(self):
        self.calls = self.traces = 0

    def __call__(self, w, x):
        self.calls += 1
        self.traces += isinstance(w, jax.core.Tracer)
        return loss_fn(w, x)


def optimizer(controller, probe):
    return gen_optax.gen(optax.sgd(1.0, momentum=0.5), controller=controller, probe=probe, every=EVERY, num_steps=STEPS)


def trained(tx, given, update=None):
    """What is to be compared after each step; and how often the loss was called in it, and traced."""
    w, counting = jnp.zeros(4), Counting()
    state = tx.init(w)
    gradient, seen, calls = jax.jit(jax.value_and_grad(loss_fn)), [], []
    for x in BATCHES:
        value, grads = gradient(w, x)
        extra = {"value": value, "grad": grads} if given else {}
        counting.calls = counting.traces = 0
        updates, state = (update or tx.update)(grads, state, w, value_fn=counting, x=x, **extra)
        calls.append((counting.calls, counting.traces))
        w = optax.apply_updates(w, updates)
        seen.append((w, gen_state(state)))
    return jax.tree.map(lambda *x: np.stack(x), *seen), calls


BALANCE, PAPER = gen_optax.balance(search_probes=SEARCH), gen_optax.algorithm_1(init_learning_rate=0.1)
RTOL = 1e-3
# Calls of the loss at a due step, beside those that trace it: one a point, but one in all by vmap and by derivatives.
CASES = {
    "default": (BALANCE, gen_optax.retrospective(), True, 2),
    "default without value": (BALANCE, gen_optax.retrospective(), False, 3),
    "step, map": (PAPER, gen_optax.finite_difference(batching="map"), True, 2),
    "step, vmap": (PAPER, gen_optax.finite_difference(), True, 1),
    "step, exact": (BALANCE, gen_optax.exact(independent=True), True, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_called_where_it_is_due_and_nowhere_else(name):
    """Once to be traced, which tells the batch of a path; besides, at a due step as often as there are points."""
    controller, probe, given, passes = CASES[name]
    (_, states), calls = trained(optimizer(controller, probe), given)
    called, traced = np.transpose(calls)
    call, searches = 1 + np.arange(STEPS), controller == BALANCE
    due = (call % EVERY == 0) | searches & (call >= 2) & (call <= 1 + SEARCH)
    np.testing.assert_array_equal(np.diff(states.info.num_probes, prepend=0) > 0, due)
    ran, number = called - traced, states.info.num_probes
    if searches:
        assert 10 <= ran[0] <= controller.num_start_rates
        due[0] = True
    assert np.all(ran[~due] == 0)
    checks = np.where(given & searches & (number & (number - 1) == 0), 1, 0)  # whether value is the loss at params
    assert np.all(ran[1:] <= passes + checks[1:])
    assert np.all(called[1:][due[1:]] >= passes)
    assert np.all(traced <= 1 + due)


@pytest.mark.rounding
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_the_compiled_step(name):
    """To rounding: XLA fuses what is compiled as a whole. A probe magnifies that of the loss."""
    controller, probe, given, _ = CASES[name]
    tx = optimizer(controller, probe)
    eager, _ = trained(tx, given)

    def update(grads, state, params, value_fn, **extra):
        return compiled(grads, state, params, **extra)

    compiled = jax.jit(lambda grads, state, params, **extra: tx.update(grads, state, params, value_fn=loss_fn, **extra))
    jitted, _ = trained(tx, given, update)
    assert jax.tree.structure(eager) == jax.tree.structure(jitted)
    for field in ("status", "num_probes", "num_accepted"):
        np.testing.assert_array_equal(getattr(eager[1].info, field), getattr(jitted[1].info, field))
    np.testing.assert_allclose(eager[1].learning_rate, jitted[1].learning_rate, rtol=RTOL)
    np.testing.assert_allclose(eager[0], jitted[0], rtol=RTOL, atol=1e-5)
    assert len(set(eager[1].learning_rate)) > 5
    assert [x.dtype for x in jax.tree.leaves(eager)] == [x.dtype for x in jax.tree.leaves(jitted)]


def test_an_alarm_is_heard_outside_of_jit():
    """A loss that jumps makes a probe due at once."""
    tx = optimizer(BALANCE, gen_optax.retrospective())
    w = jnp.zeros(4)
    state = tx.init(w)
    for call in range(20):
        times = 100.0 if call == 17 else 1.0
        counting = Counting()
        value, grads = jax.value_and_grad(loss_fn)(w, BATCHES[0])
        updates, state = tx.update(grads, state, w, value=times * value, value_fn=counting, x=BATCHES[0])
        w = optax.apply_updates(w, updates)
        if call in (16, 17, 18):
            assert (counting.calls > counting.traces) == (call == 17)


def test_a_jitted_loss_is_known_by_its_batch():
    """Repeated batches are recognised, as without its `jit`."""

    def probes(wrap):
        tx = gen_optax.gen(optax.sgd(1.0))
        w = jnp.zeros(4)
        state, batches = tx.init(w), jax.random.normal(jax.random.key(0), (6, 8, 4))
        for call in range(24):
            batch = batches[call // 4]
            loss_fn = wrap(lambda w, batch=batch: jnp.mean((w - batch) ** 2))
            updates, state = tx.update(jax.grad(loss_fn)(w), state, w, value=loss_fn(w), value_fn=loss_fn)
            w = optax.apply_updates(w, updates)
        return int(gen_optax.metrics(state)["num_probes"])

    assert probes(jax.jit) == probes(lambda f: f) < 10


@pytest.mark.parametrize("call", [1, 12], ids=["first rate", "listening"])
def test_vmap_over_batches_from_one_state(call):
    """What the batches are to be told about is one state: where no `value` is given, they decide what is evaluated."""
    tx = gen_optax.gen(optax.sgd(1.0), controller=gen_optax.balance(search_probes=SEARCH), every=16)

    def step(w, state, x):
        return tx.update(jax.grad(loss_fn)(w, x), state, w, value_fn=loss_fn, x=x)

    w, compiled = jnp.zeros(4), jax.jit(step)
    state = tx.init(w)
    for x in BATCHES[: call - 1]:
        updates, state = compiled(w, state, x)
        w = optax.apply_updates(w, updates)
    present = [BATCHES[call], 100 * BATCHES[call]]
    expected = jax.tree.map(lambda *x: np.stack(x), *(compiled(w, state, x) for x in present))
    found = jax.vmap(lambda x: step(w, state, x))(jnp.stack(present))
    np.testing.assert_allclose(gen_state(found[1]).learning_rate, gen_state(expected[1]).learning_rate, rtol=RTOL)
    np.testing.assert_array_equal(gen_state(found[1]).info.num_probes, gen_state(expected[1]).info.num_probes)
    np.testing.assert_allclose(found[0], expected[0], rtol=RTOL, atol=1e-5)
