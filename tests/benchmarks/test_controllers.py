"""The controllers of others, each against its recurrence in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen_optax
from benchmarks.controllers import CDAT, LQA
from gen_optax import ProbeStatus

CURVATURES = np.array([1.0, 3.0, 10.0])


def sequence(steps=40):
    """Minima of a parabola that moves from step to step, as those of batches do."""
    return np.random.default_rng(0).normal(size=(steps, 3))


def trace(controller):
    """Learning rates of gradient descent on the parabolas, by gen_optax in float32."""
    tx = gen_optax.scale_by_gen(controller=controller)

    def loss(w, minimum):
        return 1 + jnp.sum(CURVATURES * (w - minimum) ** 2) / 2

    @jax.jit
    def step(w, state, minimum):
        value, grad = jax.value_and_grad(loss)(w, minimum)
        updates, state = tx.update(-grad, state, w, value=value, value_fn=lambda w: loss(w, minimum))
        return w + updates, state

    w, rates = jnp.ones(3), []
    state = tx.init(w)
    for minimum in sequence():
        w, state = step(w, state, minimum)
        rates.append(float(state.applied_learning_rate))
    return np.array(rates)


def recurrence(rule):
    """The same in float64; `rule(b, A)` is the learning rate."""
    w, rates = np.ones(3), []
    for minimum in sequence():
        grad = CURVATURES * (w - minimum)
        rate = rule(grad @ grad, grad @ (CURVATURES * grad))
        w = w - rate * grad
        rates.append(rate)
    return np.array(rates)


@pytest.mark.rounding
def test_lqa_steps_to_the_minimum_of_each_parabola():
    expected = recurrence(lambda b, a: b / a)
    np.testing.assert_allclose(trace(LQA()), expected, rtol=1e-3)  # differences of rounded losses


@pytest.mark.parametrize(("sigma", "smoothing"), [(2.0, 0.9), (1.5, 0.5)])
def test_cdat_divides_two_means(sigma, smoothing):
    means = np.zeros(2)

    def rule(b, a):
        means[:] = smoothing * means + (1 - smoothing) * np.array([b, a])
        return sigma * max(means[0], 0) / abs(means[1])

    expected = recurrence(rule)
    np.testing.assert_allclose(trace(CDAT(sigma=sigma, smoothing=smoothing)), expected, rtol=1e-4)


@pytest.mark.parametrize("controller", [LQA(), CDAT()])
def test_the_rate_stays_where_there_is_no_minimum_ahead(controller):
    rate, state = controller.init(jnp.float32)
    for slope, curvature, status in (
        (1.0, -1.0, ProbeStatus.NO_CURVATURE),
        (-1.0, 1.0, ProbeStatus.ASCENT),
        (jnp.nan, jnp.nan, ProbeStatus.NOT_FINITE),
    ):
        measurement = gen_optax.Measurement(*map(jnp.float32, (1.0, slope, curvature, 1.0, rate)))
        moved, after = controller.observe(rate, state, measurement, jnp.int32(status), None)
        assert moved == rate == jnp.float32(1e-3)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, after, state))


def test_lqa_falls_back_from_a_step_that_overshoots():
    tx = gen_optax.scale_by_gen(controller=LQA(init_learning_rate=1.0))
    w = jnp.ones(3)
    updates, state = tx.update(-w, tx.init(w), w, value_fn=lambda w: jnp.where(w[0] > 0.5, jnp.sum(w**2), jnp.inf))
    assert not updates.any()
    assert state.learning_rate == pytest.approx(0.1)
