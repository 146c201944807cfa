"""What controllers share: the user's bounds, and the emergency; and what a controller of one's own has to define."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import measurement, observed

import gen_optax
from gen_optax import ProbeStatus
from gen_optax._controller import Bounds, Controller

CONTROLLERS = [gen_optax.algorithm_1(smoothing=0.0), gen_optax.balance()]
by_name = pytest.mark.parametrize("controller", CONTROLLERS, ids=["algorithm_1", "balance"])


@pytest.mark.parametrize(
    ("bounds", "rate", "clipped"),
    [
        ((0.05, 0.2), 0.1, 0.1),
        ((0.05, 0.2), 0.01, 0.05),
        ((0.05, 0.2), 3.0, 0.2),
        ((0.05, 0.2), np.inf, 0.2),
        ((0.05, 0.2), 0.0, 0.0),  # not found yet
        ((None, 0.2), 3.0, 0.2),
        ((0.05, None), 0.01, 0.05),
        ((None, None), 1.2e-38, 1.2e-38),
        ((None, None), np.inf, float(np.finfo(np.float32).max)),
    ],
)
def test_bounds(bounds, rate, clipped):
    found = jax.jit(Bounds(*bounds).clip)(jnp.float32(rate))
    assert found == np.float32(clipped)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0.0, None), "min_learning_rate must be a positive number, got 0.0"),
        ((None, -1.0), "max_learning_rate must be a positive number, got -1.0"),
        ((0.2, 0.1), "min_learning_rate must not exceed max_learning_rate, got 0.2 and 0.1"),
    ],
)
def test_bounds_that_are_none(bounds, message):
    with pytest.raises(ValueError, match=message):
        Bounds(*bounds)


@by_name
@pytest.mark.parametrize(
    ("of_loss", "applied"),
    [
        (lambda w: jnp.sum((w - 10.0) ** 2) / 2, 0.2),  # the minimiser is far above
        (lambda w: jnp.sum((w - 0.01) ** 2) / 2, 0.05),  # ... far below
        (lambda w: jnp.where(w[0] > 0.01, jnp.nan, -jnp.sum(w)), 0.05),  # the step overshoots
    ],
)
def test_a_training_run_stays_within_its_bounds(controller, of_loss, applied):
    """From the first step on, whatever the controller wants; and it comes to them."""
    probe = gen_optax.finite_difference(independent=True)
    options = {"min_learning_rate": 0.05, "max_learning_rate": 0.2, "every": 1, "probe": probe}
    tx = gen_optax.scale_by_gen(controller=controller, **options)
    update = jax.jit(lambda s, w: tx.update(jnp.ones(2), s, w, value=of_loss(w), value_fn=of_loss))
    w, rates = jnp.zeros(2), []
    state = tx.init(w)
    for _ in range(12):
        updates, state = update(state, w)
        assert np.all(np.isin(updates, (0, state.learning_rate)))
        rates.append(float(state.learning_rate))
    assert np.all((np.float32(0.05) <= rates) & (rates <= np.float32(0.2)))
    assert rates[-1] == np.float32(applied)


@pytest.mark.parametrize(
    ("status", "factor", "falls"),
    [
        ("OVERSHOOT", 0.5, 0.1),  # its parabola is none
        ("OVERSHOOT", np.nan, 0.1),
        ("JUMP", 0.7, 0.7),  # to where the loss was least
        ("JUMP", 0.3, 0.5),
        ("JUMP", -3.0, 0.5),
        ("JUMP", np.nan, 0.5),
        ("JUMP", np.inf, 1.0),  # a slope without curvature: no minimum near
        ("JUMP", 1.5, 1.0),  # never up
        *((status.name, 0.3, None) for status in ProbeStatus if status.name not in ("OVERSHOOT", "JUMP")),
    ],
)
def test_emergency(status, factor, falls):
    happened, by = Controller.emergency(jnp.float32(factor), jnp.int32(ProbeStatus[status]))
    assert happened == (falls is not None)
    assert falls is None or by == np.float32(falls)


@by_name
@pytest.mark.parametrize(
    ("slope", "curvature"),
    [(0.4, 1.0), (0.01, 1.0), (-1.0, 2.0), (3.0, 2.0), (np.nan, 1.0), (100.0, 140.0), (0.9, 1.2), (100.0, 300.0)],
)
def test_a_jump_is_not_smoothed(controller, slope, curvature):
    """The rate falls to where the parabola is least, in the eyes of the controller; by 2 at most, and never up."""
    state, sigma = controller.init(jnp.float32)[1], 1.0
    if state != ():
        state, sigma = state._replace(age=jnp.int32(1000)), controller.sigma
    rate, _, status = observed(controller, measurement(slope, curvature, jumped=True), 1.0, state)
    assert status == ProbeStatus.JUMP
    assert rate == pytest.approx(np.clip(np.nan_to_num(sigma * slope / curvature), 0.5, 1.0))


@hypothesis.given(
    slope=st.floats(width=32, allow_nan=False),
    curvature=st.floats(width=32),
    noise=st.sampled_from([0.0, 1e-6]),
    rate=st.floats(2.0**-120, 2.0**120, width=32),
    end_value=st.sampled_from([1.0, 3.0, np.inf]),
    flags=st.tuples(st.booleans(), st.booleans()),
    controller=st.sampled_from(
        [gen_optax.algorithm_1(smoothing=g, clamp=m) for g, m in ((0.0, None), (0.9, 2.0))]
        + [gen_optax.balance(), gen_optax.balance(sigma=1.0, memory=1e9, max_change=1e6)]
    ),
    age=st.sampled_from([0, 10, 1000]),
)
@hypothesis.settings(max_examples=300)
def test_no_measurement_whatever_breaks_the_rate(slope, curvature, noise, rate, end_value, flags, controller, age):
    """Finite and positive after any measurement, and after the next one; and so is what the controller remembers."""
    measured = measurement(slope, curvature, noise=noise, end_value=end_value, jumped=flags[0], out_of_turn=flags[1])
    state = controller.init(jnp.float32)[1]
    if state != ():
        state = state._replace(age=jnp.int32(age))
    for _ in range(2):
        rate, state, _ = observed(controller, measured, rate, state)
        assert 0 <= rate <= np.inf  # not NaN
        rate = Bounds(None, None).clip(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny))  # as update does
        assert 0 < rate < np.inf
        if not measured.out_of_turn:
            assert all(np.isfinite(x) for x in jax.tree.leaves(state))


@by_name
def test_a_known_rate_never_becomes_0(controller):
    """Which means that none was found: overshoot after overshoot, it ends at the least normal number."""
    probe = gen_optax.finite_difference(independent=True)
    tx = gen_optax.scale_by_gen(controller=controller, probe=probe, every=1)
    w, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    known = {"age": jnp.int32(1000)} if state.controller != () else {}
    state = state._replace(learning_rate=jnp.float32(5e-37))
    if known:
        state = state._replace(controller=state.controller._replace(**known))
    update = jax.jit(
        lambda s: tx.update(1e37 * jnp.ones(2), s, w, value_fn=lambda w: jnp.where(w[0] > 0, jnp.inf, 1.0))
    )
    for _ in range(4):
        updates, state = update(state)
        assert state.learning_rate > 0
        assert not np.any(updates)
    assert state.learning_rate < 5e-37
    assert state.info.num_probes == 4


def test_a_controller_of_ones_own_needs_two_methods():
    """All else has a default: probes at every 8th call on the step to come, no search."""

    class Shrinks(gen_optax.Controller):
        def init(self, dtype):
            return jnp.asarray(1.0, dtype), jnp.zeros((), jnp.int32)

        def observe(self, learning_rate, state, measurement, status, context):
            return learning_rate / 2, state + 1

    tx = gen_optax.scale_by_gen(controller=Shrinks())
    w = jnp.ones(2)
    state, rates = tx.init(w), []
    update = jax.jit(lambda s: tx.update(-w, s, w, value_fn=lambda w: jnp.sum(w**2)))
    for _ in range(17):
        updates, state = update(state)
        rates.append(float(state.learning_rate))
        np.testing.assert_array_equal(updates, -state.learning_rate)
    assert rates == [1.0] * 7 + [0.5] * 8 + [0.25] * 2
    assert (state.controller, state.info.num_probes) == (2, 2)
