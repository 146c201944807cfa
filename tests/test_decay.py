"""The decay over a horizon: outside of the average, 0 for good after it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax

HALF = gen_optax.algorithm_1(init_learning_rate=0.5)


def decay_over(t, horizon):
    """1 for three quarters of the horizon, then linear to 0."""
    return min(1.0, max(0.0, 4 * (1 - t / horizon)))


@pytest.mark.parametrize("decay", [None, optax.cosine_decay_schedule(1.0, 10), lambda count: 0.5])
def test_the_decay_stays_outside_the_smoothing(decay):
    """Updates of 1, a rate that no probe moves: what is applied is eta s(t), held, then falling to 0 for good."""
    schedule = (lambda t: decay_over(t, 10)) if decay is None else decay
    num_steps = 10 if decay is None else None
    tx = gen_optax.scale_by_gen(controller=HALF, probe=gen_optax.exact(), num_steps=num_steps, decay=decay)
    state = tx.init(jnp.zeros(()))
    update = jax.jit(lambda s: tx.update(jnp.ones(()), s, jnp.zeros(()), value_fn=lambda w: 0 * w))
    for t in range(13):
        updates, state = update(state)
        np.testing.assert_allclose(updates, 0.5 * float(schedule(t)), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(state.applied_learning_rate, updates)
        assert state.learning_rate == 0.5


def test_the_last_counts_do_not_wrap_around():
    tx = gen_optax.scale_by_gen(controller=HALF, probe=gen_optax.exact(), num_steps=10)
    last = np.iinfo(np.int32).max
    state = tx.init(jnp.zeros(()))._replace(count=jnp.int32(last))
    updates, state = tx.update(jnp.ones(()), state, jnp.zeros(()), value_fn=lambda w: 0 * w)
    assert updates == 0
    assert state.count == last


def rates(decay, steps, **state):
    """What is applied, and the notices, with a rate that no probe moves."""
    tx = gen_optax.scale_by_gen(controller=HALF, probe=gen_optax.exact(), decay=decay)
    state, seen = tx.init(jnp.zeros(()))._replace(**state), []
    update = jax.jit(lambda s: tx.update(jnp.ones(()), s, jnp.zeros(()), value_fn=lambda w: 0 * w))
    for _ in range(steps):
        state = update(state)[1]
        seen.append(float(state.applied_learning_rate))
    return seen, int(state.info.notices)


def test_a_decay_that_is_no_number_says_so():
    applied, notices = rates(lambda t: jnp.nan + 0.0 * t, 3)
    assert applied == [0.0] * 3
    assert notices == gen_optax.Notice.HORIZON_PASSED


@pytest.mark.parametrize("below", [lambda t: 1 - t / 4, lambda t: jnp.where(t < 4, 1.0, jnp.nan)], ids=["0", "NaN"])
def test_a_decay_ends_at_zero(below):
    """One that goes on below would climb the loss."""
    applied, notices = rates(below, 8)
    assert applied[4:] == [0.0] * 4
    assert min(applied[:4]) > 0
    assert notices == gen_optax.Notice.HORIZON_PASSED


def test_a_run_resumed_past_its_horizon_says_so():
    count = jnp.int32(1000)
    for decay in (lambda t: jnp.clip(1 - t / 500, 0, 1), lambda t: jnp.clip(1 - t / 1000, 0, 1)):
        assert rates(decay, 1, count=count)[1] == gen_optax.Notice.HORIZON_PASSED


def test_a_warm_up_may_be_zero_for_some_steps():
    applied, notices = rates(lambda t: jnp.clip((t - 5) / 4, 0, 1), 12)
    assert applied[:6] == [0.0] * 6
    assert applied[-1] == 0.5
    assert notices == 0


def test_a_decay_of_nearly_one_has_not_begun():
    """The rate follows the direction of the run with either."""

    def wish(decay):
        tx = gen_optax.gen(optax.sgd(1.0), controller=gen_optax.balance(1e-3, search_probes=0), decay=decay)

        def step(carry, x):
            w, state = carry
            updates, state = tx.update(w - x, state, w, value_fn=lambda w: jnp.sum((w - x) ** 2) / 2)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros(8)
        data = jax.random.normal(jax.random.key(0), (256, 8)) + 3
        return jax.lax.scan(step, (w, tx.init(w)), data)[0][1][1].controller.wish

    assert wish(lambda t: 1.0) > 0.5
    np.testing.assert_allclose(wish(lambda t: 0.999999), wish(lambda t: 1.0), rtol=1e-3)
    assert wish(lambda t: 0.9) == 0
