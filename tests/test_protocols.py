"""A controller and a probe of a user's own, by the public names alone: jitted, in a scan and one call at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state, train

import gen_optax
from gen_optax import Measurement, ProbeStatus


class Cautious(gen_optax.Controller):
    """Goes where the minimum is, by a factor of two at most; where there is none, down. Counts the probes."""

    every = 2

    def init(self, dtype):
        return jnp.array(0.01, dtype), {"seen": jnp.zeros((), jnp.int32)}

    def observe(self, learning_rate, state, measurement, status, context):
        accepted = status == ProbeStatus.ACCEPTED
        factor = measurement.slope / jnp.where(accepted, measurement.curvature, 1)
        factor = jnp.where(accepted, jnp.clip(factor, 0.5, 2), 0.5)
        return learning_rate * factor, {"seen": state["seen"] + 1}


class Starting(Cautious):
    """Tries a few rates first and begins at the best of them."""

    def init(self, dtype):
        return jnp.zeros((), dtype), {"seen": jnp.zeros((), jnp.int32)}

    def starting(self, state):
        return state["seen"] == 0

    num_start_rates = 4

    def start_rate(self, k, tried, losses, context):
        return jnp.array([0.01, 0.1, 1.0, 10.0])[k]

    def start(self, learning_rate, state, tried, losses, context):
        best = tried[jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))]
        return best, {"seen": state["seen"] + 1}, jnp.int32(ProbeStatus.NONE)


class ThreePoints(gen_optax.Probe):
    """Algorithm 1's losses on both sides of the parameters, by hand."""

    direction = gen_optax.Step()

    def points(self, state, context):
        return self.direction.factor(context) * jnp.array([-1.0, 0.0, 1.0])

    def measure(self, state, losses, context):
        minus, centre, plus = losses[:3]
        return self.direction.measurement(state, context, centre, plus, (minus - plus) / 2, plus - 2 * centre + minus)


class IndependentPoints(ThreePoints):
    """The same for a controller that wants another batch."""

    direction = gen_optax.Step(independent=True)


class PathPoints(ThreePoints):
    """The same behind the parameters and ahead of them, on paths of 4 steps."""

    direction = gen_optax.Path(window=4)

    def measure(self, state, losses, context):
        minus, centre, plus = losses[:3]
        return self.direction.measurement(state, context, minus, centre, (minus - plus) / 2, plus - 2 * centre + minus)


class Derivatives(gen_optax.Probe):
    """The exact parabola, with no points at all, and a Measurement by hand."""

    direction = gen_optax.Step()

    def measure(self, state, losses, context):
        value, slope, curvature = gen_optax.directional_derivatives(context.loss, context.params, context.updates)
        h = context.learning_rate
        return Measurement(value, h * slope, h * h * curvature, value, h)


def bowl(w):
    return jnp.sum(jnp.array([1.0, 3.0]) * (w - 1.0) ** 2)


def run(tx, how, steps=8):
    """Learning rates, losses and the last state."""
    w = jnp.array([3.0, -1.0])
    if how == "scan":
        _, state, losses, states = train(tx, w, bowl, steps)
        return gen_state(states).learning_rate, losses, gen_state(state)

    def step(w, state):
        value, grad = jax.value_and_grad(bowl)(w)
        updates, state = tx.update(grad, state, w, value=value, value_fn=bowl)
        return optax.apply_updates(w, updates), state, value

    step = jax.jit(step) if how == "jit" else step
    state, rates, losses = tx.init(w), [], []
    for _ in range(steps):
        w, state, value = step(w, state)
        rates.append(gen_state(state).learning_rate)
        losses.append(value)
    return np.array(rates), np.array(losses), gen_state(state)


OWN = {
    "a controller": {"controller": Cautious()},
    "a controller that starts": {"controller": Starting()},
    "a probe": {"controller": gen_optax.algorithm_1(), "probe": ThreePoints()},
    "a probe, and the default": {"probe": IndependentPoints()},
    "a probe that looks back, and the default": {"probe": PathPoints()},
    "both": {"controller": Cautious(), "probe": ThreePoints()},
    "both, looking back": {"controller": Cautious(), "probe": PathPoints()},
    "both, and a start": {"controller": Starting(), "probe": Derivatives()},
}


@pytest.mark.parametrize("name", OWN)
def test_jitted_in_a_scan_and_one_call_at_a_time(name):
    tx = gen_optax.gen(optax.sgd(1.0), **OWN[name])
    rates, losses, state = run(tx, "scan")
    assert state.info.num_accepted > 0
    assert losses[-1] < losses[0]
    for how in ("jit", "eagerly"):
        found, lost, end = run(tx, how)
        np.testing.assert_allclose(found, rates, rtol=1e-4)
        np.testing.assert_allclose(lost, losses, rtol=1e-3, atol=1e-5)
        assert jax.tree.structure(end) == jax.tree.structure(state)
        assert end.info.num_probes == state.info.num_probes


@pytest.mark.parametrize(
    ("own", "ours"),
    [
        (ThreePoints(), gen_optax.finite_difference()),
        (PathPoints(), gen_optax.retrospective()),
        (Derivatives(), gen_optax.exact()),
    ],
)
def test_a_probe_by_hand_measures_what_ours_does(own, ours):
    options = {"controller": gen_optax.algorithm_1(init_learning_rate=0.1, smoothing=0.5), "every": 2}
    found, _, state = run(gen_optax.gen_sgd(probe=own, **options), "jit")
    expected, _, right = run(gen_optax.gen_sgd(probe=ours, **options), "jit")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose([*state.info], [*right.info], rtol=1e-3, atol=1e-4)


def test_a_controller_by_hand_moves_the_rate_by_its_own_rule():
    """On a quadratic of one curvature, A = 2: the minimum is at 1/2, and the rate doubles until it is there."""
    tx = gen_optax.scale_by_gen(controller=Cautious(), probe=gen_optax.exact(), every=1)
    w, state = jnp.ones(2), tx.init(jnp.ones(2))
    for rate in (0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5):
        _, state = tx.update(-2 * w, state, w, value_fn=lambda w: jnp.sum(w**2))
        np.testing.assert_allclose(state.learning_rate, rate, rtol=1e-5)
    _, state = tx.update(2 * w, state, w, value_fn=lambda w: jnp.sum(w**2))  # uphill
    np.testing.assert_allclose(state.learning_rate, 0.25, rtol=1e-5)
    assert state.controller["seen"] == 8


def test_settings_of_a_user_are_those_of_gen():
    """The controller's number of calls between probes and its probe, unless given."""
    assert run(gen_optax.gen_sgd(controller=Cautious()), "jit")[2].info.num_probes == 4
    assert run(gen_optax.gen_sgd(controller=Cautious(), every=4), "jit")[2].info.num_probes == 2
    bounded = run(gen_optax.gen_sgd(controller=Cautious(), max_learning_rate=0.015), "jit")
    assert bounded[0].max() == np.float32(0.015)


class Refusing(Cautious):
    def check(self, probe):
        if not probe.direction.independent:
            raise ValueError("not that one")


def test_a_controller_may_refuse_a_probe():
    with pytest.raises(ValueError, match="not that one"):
        gen_optax.scale_by_gen(controller=Refusing())
    gen_optax.scale_by_gen(controller=Refusing(), probe=gen_optax.retrospective())


class Walled(gen_optax.Probe):
    """A step to be refused: its end is infinite."""

    direction = gen_optax.Step()

    def measure(self, state, losses, context):
        one = jnp.ones(())
        return Measurement(one, one, one, jnp.inf, context.learning_rate)


@pytest.mark.parametrize("how", ["jit", "eagerly"])
def test_a_step_that_overshoots_is_not_taken_whoever_measured_it(how):
    tx = gen_optax.scale_by_gen(controller=Cautious(), probe=Walled(), every=1, value_fn=bowl)
    update = jax.jit(tx.update) if how == "jit" else tx.update
    updates, state = update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    assert state.info.status == ProbeStatus.OVERSHOOT
    np.testing.assert_array_equal(updates, 0)
