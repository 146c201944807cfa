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
