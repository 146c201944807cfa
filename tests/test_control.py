"""From a measurement to the next learning rate: verdicts, target, smoothing, bounds, cold start."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, gen_state, network, network_loss, numpy_network_loss, random_quadratic, train

import gen_optax
from gen_optax import ProbeStatus, _control
from gen_optax._probe import Measurement


def measurement(slope, curvature, **fields):
    fields = {"value": 1.0, "r_squared": 1.0, "noise": 1e-6, "end_value": 1.0} | fields
    return Measurement(slope=jnp.float32(slope), curvature=jnp.float32(curvature), **jax.tree.map(jnp.float32, fields))


def next_rate(
    measured,
    rate=0.1,
    first_rate=0.0,
    step_size=None,
    independent=False,
    looks_back=False,
    planned=True,
    averages=(),
    num_probes=100,
    **settings,
):
    """What a known learning rate becomes: `(rate, averages, status)`."""
    settings = {
        "smoothing": 0.0,
        "smooth": "learning_rate",
        "max_change": None,
        "sigma": 1.0,
        "every": 1,
        "min_learning_rate": None,
        "max_learning_rate": None,
        "searches": False,
    } | settings
    status = _control.judge(measured, jnp.array(True))
    new, averages, _ = _control.advance(
        _control.Rule(**settings),
        jnp.float32(rate),
        jnp.float32(first_rate),
        averages,
        jnp.int32(num_probes),
        measured,
        jnp.float32(rate if step_size is None else step_size),
        status,
        independent,
        looks_back,
        jnp.array(planned),
    )
    return float(new), averages, status


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        (measurement(1.0, 2.0), "ACCEPTED"),
        (measurement(1.0, 2.0, value=np.nan), "NOT_FINITE"),
        (measurement(1.0, 2.0, value=-np.inf), "NOT_FINITE"),
        (measurement(np.nan, np.nan, end_value=np.nan), "OVERSHOOT"),
        (measurement(np.nan, np.nan, end_value=np.inf), "OVERSHOOT"),
        (measurement(np.nan, np.nan, value=np.nan, end_value=np.nan), "NOT_FINITE"),
        (measurement(np.nan, 2.0), "NOT_FINITE"),
        (measurement(1.0, np.inf), "NOT_FINITE"),
        (measurement(1.0, 2.0, r_squared=np.nan), "NOT_FINITE"),
        (measurement(0.0, 2.0, noise=0.0), "BELOW_ROUNDING"),
        (measurement(1e-7, 2.0), "BELOW_ROUNDING"),
        (measurement(-1e-7, 2.0), "BELOW_ROUNDING"),
        (measurement(-1.0, 2.0), "ASCENT"),
        (measurement(-1.0, -2.0), "ASCENT"),
        (measurement(1.0, -2.0), "NO_CURVATURE"),
        (measurement(1.0, 0.0, noise=0.0), "NO_CURVATURE"),
        (measurement(1.0, 1e-7), "NO_CURVATURE"),
        (measurement(1.0, 2.0, r_squared=0.98), "POOR_FIT"),
        (measurement(1.0, 2.0, r_squared=0.991), "ACCEPTED"),
    ],
)
def test_verdicts(measured, status):
    verdict = _control.judge(measured, jnp.array(True))
    assert ProbeStatus(int(verdict)).name == status
    assert verdict.dtype == jnp.int32
    assert _control.judge(measured, jnp.array(False)) == ProbeStatus.NOT_FINITE  # a step that holds NaN


@pytest.mark.parametrize("smooth", ["learning_rate", "log", "coefficients"])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
@pytest.mark.parametrize("max_change", [None, 2.0])
@hypothesis.given(
    log_ratio=st.floats(-2, 2), sigma=st.floats(0.5, 2), log_rate=st.floats(-12, 6), log_loss=st.floats(-20, 20)
)
def test_target_and_smoothing(smooth, gamma, max_change, log_ratio, sigma, log_rate, log_loss):
    """The formulas of DESIGN in float64; the first probe of "coefficients" is bias-corrected: the bare ratio."""
    rate, curvature = 10.0**log_rate, 10.0**log_loss
    hypothesis.assume(1e-36 < curvature / rate**2 < 1e36)
    slope = curvature * 10.0**log_ratio
    target = rate * sigma * slope / curvature
    if max_change is not None:
        target = np.clip(target, rate / max_change, rate * max_change)
    expected = {
        "learning_rate": gamma * rate + (1 - gamma) * target,
        "log": rate**gamma * target ** (1 - gamma),
        "coefficients": target,
    }[smooth]
    run = rate_after(smooth, gamma, max_change)
    found, _ = run(
        *(jnp.float32(x) for x in (slope, curvature, rate, sigma)), ZEROS if smooth == "coefficients" else ()
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


ZEROS = _control.Averages(jnp.zeros(()), jnp.zeros(()))


@functools.cache
def rate_after(smooth, gamma, max_change, independent=False):
    def run(slope, curvature, rate, sigma, averages):
        measured = Measurement(jnp.ones(()), slope, curvature, jnp.ones(()), jnp.zeros(()), jnp.ones(()))
        rule = _control.Rule(gamma, smooth, max_change, sigma, 1, None, None, False)
        status = _control.judge(measured, jnp.array(True))
        known = rate, jnp.zeros(()), averages, jnp.int32(9), measured, rate
        return _control.advance(rule, *known, status, independent, looks_back=False, planned=jnp.array(True))[:2]

    return jax.jit(run)


@pytest.mark.parametrize(
    ("rate", "num_probes", "end_value", "lowest"),
    [
        (0.11, 10, 1.0, 0.1),  # from above it falls to the start
        (0.1, 10, 1.0, 0.1),
        (0.05, 10, 1.0, 0.05),  # below already, after an overshot: no further
        (0.1, 10, 2.1, 0.05),  # an overshot beyond doubt
        (0.1, 100, 1.0, 0.05),  # the search is over
    ],
)
def test_a_search_does_not_fall_below_its_start(rate, num_probes, end_value, lowest):
    settings = {"searches": True, "independent": True, "max_change": 2.0, "smooth": "log"}
    measured = measurement(-1.0, 2.0, end_value=end_value)
    found, _, status = next_rate(measured, rate=rate, first_rate=0.1, num_probes=num_probes, **settings)
    assert status == ProbeStatus.ASCENT
    np.testing.assert_allclose(found, lowest, rtol=1e-5)


@pytest.mark.parametrize(
    ("slope", "num_probes", "end_value", "factor"),
    [
        (-5.0, 10, 1.0, 1.0),  # little curvature: this batch would have lost by any step
        (-3.0, 10, 1.0, 0.5),
        (-5.0, 100, 1.0, 0.5),  # the search is over
        (-5.0, 10, 2.1, 0.5),  # an overshot beyond doubt
    ],
)
@pytest.mark.parametrize("curvature", [2.0, -2.0])
def test_a_blind_ascent_does_not_stop_the_search(slope, curvature, num_probes, end_value, factor):
    settings = {"searches": True, "independent": True, "max_change": 2.0, "smooth": "log"}
    measured = measurement(slope, curvature, end_value=end_value)
    found, _, status = next_rate(measured, rate=0.1, first_rate=0.001, num_probes=num_probes, **settings)
    assert status == ProbeStatus.ASCENT
    np.testing.assert_allclose(found, 0.1 * factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("end_value", "looks_back", "planned", "num_probes", "falls"),
    [
        (2.1, True, True, 10, True),  # a rate that is being found
        (1.9, True, True, 10, False),  # a fresh batch may lose by chance
        (2.1, True, True, 100, False),  # small losses of a few examples may double in several steps
        (2.1, True, False, 100, True),  # an alarm, and it was right
        (2.1, False, True, 100, True),  # the step to come, alone
    ],
)
def test_an_overshot_beyond_doubt_is_not_smoothed(end_value, looks_back, planned, num_probes, falls):
    settings = {"independent": True, "smoothing": 0.9, "smooth": "log", "max_change": 2.0, "searches": True}
    about = {"looks_back": looks_back, "planned": planned, "num_probes": num_probes, "first_rate": 1e-3}
    rate, *_ = next_rate(measurement(-1.0, 2.0, end_value=end_value), **settings, **about)
    weight = 0.4 if num_probes == 10 else 0.1
    assert rate == pytest.approx(0.05 if falls else 0.1 * 0.5**weight)


@pytest.mark.parametrize(("slope", "max_change", "falls_to"), [(0.3, 2.0, 0.3), (0.01, 2.0, 0.1), (0.01, 20.0, 0.05)])
def test_an_overshot_falls_below_the_clamp(slope, max_change, falls_to):
    """To where its parabola is least; a tenth at most, or what the user allows."""
    settings = {"independent": True, "smoothing": 0.9, "smooth": "log", "max_change": max_change, "sigma": 1.0}
    overshot = measurement(slope, 1.0, end_value=2.1)
    assert next_rate(overshot, rate=1.0, **settings)[0] == pytest.approx(falls_to)
    fine = measurement(slope, 1.0, end_value=1.9)
    cautious = max(np.exp(slope - 1), 1 / max_change) ** 0.1
    assert next_rate(fine, rate=1.0, **settings)[0] == pytest.approx(cautious)


@pytest.mark.parametrize("slope", [-1.0, 0.1, 5.0])
def test_a_probe_that_follows_an_alarm_answers_no_other_question(slope):
    """Its batch was chosen for its loss: what it says of the slope is biased."""
    settings = {"independent": True, "looks_back": True, "smooth": "log", "max_change": 2.0}
    assert next_rate(measurement(slope, 2.0), planned=False, **settings)[0] == pytest.approx(0.1)
    assert next_rate(measurement(slope, 2.0), planned=True, **settings)[0] != pytest.approx(0.1)
    settings |= {"smooth": "coefficients", "averages": _control.Averages(jnp.float32(1), jnp.float32(10))}
    np.testing.assert_array_equal(next_rate(measurement(slope, 2.0), planned=False, **settings)[1], (1, 10))


@pytest.mark.parametrize(("slope", "curvature", "num_probes"), [(-5.0, 2.0, 10), (-3.0, 2.0, 10), (1.0, 0.0, 100)])
def test_coefficients_wait_for_an_accepted_probe_like_other_averages(slope, curvature, num_probes):
    """Ascents, blind or not, and plateaus say nothing of b / A: the rate follows them as with any smoothing."""
    settings = {"searches": True, "independent": True, "max_change": 2.0, "smoothing": 0.9}
    about = {"rate": 0.1, "first_rate": 1e-3, "num_probes": num_probes, **settings}
    averages = _control.Averages(jnp.float32(3.0), jnp.float32(10.0))
    rates = [
        next_rate(measurement(slope, curvature), smooth=smooth, averages=kept, **about)[0]
        for smooth, kept in (("log", ()), ("coefficients", averages))
    ]
    assert rates[0] == rates[1]


def test_coefficients_are_averaged_per_unit_of_rate():
    """Measurements at changing rates: moving averages of b and A in float64, whose ratio is the rate."""
    rng = np.random.default_rng(0)
    gamma, rate, averages, m_b, m_a = 0.8, 0.3, ZEROS, 0.0, 0.0
    for _ in range(20):
        b, a = rng.uniform(1, 3), rng.uniform(1, 3)
        m_b, m_a = gamma * m_b + (1 - gamma) * b, gamma * m_a + (1 - gamma) * a
        rate, averages = rate_after("coefficients", gamma, None)(
            jnp.float32(b * rate), jnp.float32(a * rate**2), jnp.float32(rate), jnp.float32(1.5), averages
        )
        rate = float(rate)
        np.testing.assert_allclose(rate, 1.5 * m_b / m_a, rtol=1e-5)
    np.testing.assert_allclose(averages, (m_b, m_a), rtol=1e-5)


@pytest.mark.parametrize("status", [s for s in ProbeStatus if s not in (ProbeStatus.NONE, ProbeStatus.ACCEPTED)])
@pytest.mark.parametrize("smooth", ["learning_rate", "log", "coefficients"])
@pytest.mark.parametrize("independent", [False, True])
def test_only_an_accepted_fit_moves_the_rate(status, smooth, independent):
    """... but for an overshoot, and, on an independent batch, an ascent and a missing curvature."""
    measured = {
        "NOT_FINITE": measurement(np.nan, np.nan),
        "OVERSHOOT": measurement(np.nan, np.nan, end_value=np.nan),
        "BELOW_ROUNDING": measurement(1e-8, 1e-8),
        "ASCENT": measurement(-1.0, 1.0),
        "NO_CURVATURE": measurement(1.0, -1.0),
        "POOR_FIT": measurement(1.0, 100.0, r_squared=0.5),
    }[status.name]
    averages = _control.Averages(jnp.float32(10.0), jnp.float32(200.0)) if smooth == "coefficients" else ()
    rate, new, found = next_rate(
        measured, 0.1, independent=independent, averages=averages, smooth=smooth, max_change=4.0
    )
    assert found == status
    assert new == averages
    expected = {"OVERSHOOT": 0.01}
    if independent:
        expected |= {"ASCENT": 0.1 / 4, "NO_CURVATURE": 0.1 * 4}
    np.testing.assert_allclose(rate, expected.get(status.name, 0.1), rtol=1e-6)


@pytest.mark.parametrize("smooth", ["learning_rate", "log", "coefficients"])
@pytest.mark.parametrize("step_size", [1e-4, 0.1, 10.0])
def test_the_target_is_in_units_of_the_present_rate(smooth, step_size):
    """sigma b h = 4 and A h^2 = 2, whatever h, the rate as applied."""
    averages = ZEROS if smooth == "coefficients" else ()
    arguments = {"step_size": step_size, "independent": True, "averages": averages, "smooth": smooth, "sigma": 2.0}
    assert next_rate(measurement(2.0, 2.0), **arguments)[0] == pytest.approx(0.1 * 2)


@pytest.mark.parametrize("slopes", [(1.0, 1.0), (0.8, 1.2), (0.6, 1.4)])
def test_noise_of_the_slope_averages_out_at_balance(slopes):
    """On an independent batch: sigma rho is 1 on average, so the rate ends where it began, however far it scatters."""
    rate = 0.1
    for slope in slopes:
        settings = {"independent": True, "smooth": "log", "smoothing": 0.5, "max_change": 2.0, "sigma": 2.0}
        rate, *_ = next_rate(measurement(slope, 2.0), rate=rate, **settings)
    assert rate == pytest.approx(0.1)


@pytest.mark.parametrize(("slope", "log_factor"), [(0.9, -0.1), (1.2, 0.2), (1.8, np.log(2)), (0.1, -np.log(2))])
def test_the_logarithm_follows_the_excess_over_balance(slope, log_factor):
    """sigma rho - 1 within the clamp, times 1 - gamma."""
    settings = {"independent": True, "smooth": "log", "smoothing": 0.5, "max_change": 2.0, "sigma": 2.0}
    rate, *_ = next_rate(measurement(slope, 2.0), **settings)
    assert rate == pytest.approx(0.1 * np.exp(0.5 * log_factor))


@pytest.mark.parametrize(
    ("probe", "horizon", "sigma"),
    [
        (gen_optax.retrospective(), {"num_steps": 100}, 1.8),
        (gen_optax.retrospective(), {"decay": optax.constant_schedule(1.0)}, 1.8),
        (gen_optax.retrospective(), {}, 1.6),
        (gen_optax.finite_difference(independent=True), {"num_steps": 100}, 1.6),
        (gen_optax.finite_difference(), {}, 1.0),
    ],
)
def test_sigma_unless_given(probe, horizon, sigma):
    """As it is when given."""

    def rates(**settings):
        tx = gen_optax.scale_by_gen(probe=probe, every=1, **horizon, **settings)

        def step(carry, batch):
            (w, state), (of_gradient, of_probe) = carry, batch
            x = of_probe if probe.independent and not probe.looks_back else of_gradient
            updates, state = tx.update(of_gradient - w, state, w, value_fn=lambda w, x: jnp.sum((w - x) ** 2), x=x)
            return (optax.apply_updates(w, updates), state), state.learning_rate

        w = jnp.ones(1000)
        batches = jax.random.normal(jax.random.key(0), (60, 2, 1000))  # beyond the search, in which sigma is at most 1
        return jax.lax.scan(step, (w, tx.init(w)), batches)[1][-1]

    assert rates() == rates(sigma=sigma)
    assert rates() != rates(sigma=sigma + 0.1)


@pytest.mark.parametrize(("num_probes", "sigma", "factor"), [(1, 2, 1.0), (49, 2, 1.0), (1, 1, 1), (50, 2, 2)])
def test_the_search_for_a_rate_is_greedy(num_probes, sigma, factor):
    arguments = {"independent": True, "num_probes": num_probes, "sigma": sigma, "searches": True, "first_rate": 0.01}
    assert next_rate(measurement(2.0, 2.0), **arguments)[0] == pytest.approx(0.1 * factor)


@hypothesis.given(
    slope=st.floats(width=32, allow_nan=False),
    curvature=st.floats(width=32),
    rate=st.floats(2.0**-120, 2.0**120, width=32),
    settings=st.tuples(
        st.sampled_from(["learning_rate", "log", "coefficients"]),
        st.sampled_from([0.0, 0.9]),
        st.sampled_from([None, 2.0]),
        st.booleans(),
    ),
)
@hypothesis.settings(max_examples=300)
def test_no_measurement_whatever_breaks_the_rate(slope, curvature, rate, settings):
    """Finite and positive after any measurement, and after the next one; averages finite."""
    run = rate_after(*settings)
    averages = ZEROS if settings[0] == "coefficients" else ()
    rate = jnp.float32(rate)
    for _ in range(2):
        rate, averages = run(jnp.float32(slope), jnp.float32(curvature), rate, jnp.float32(1.0), averages)
        assert 0 < rate < np.inf
        assert all(np.isfinite(averages))


def test_a_vanishing_curvature_does_not_send_the_rate_to_infinity():
    """b / A beyond the range of float32 is no minimum in sight, also where no clamp is set."""
    rate, _, _ = next_rate(measurement(1e20, 1e-25, noise=0.0))
    assert rate == pytest.approx(0.1)


@pytest.mark.parametrize("smooth", ["learning_rate", "log", "coefficients"])
def test_bounds(smooth):
    averages = ZEROS if smooth == "coefficients" else ()
    bounds = {"min_learning_rate": 0.05, "max_learning_rate": 0.2, "averages": averages, "smooth": smooth}
    assert next_rate(measurement(100.0, 1.0), **bounds)[0] == np.float32(0.2)
    assert next_rate(measurement(0.01, 1.0), **bounds)[0] == np.float32(0.05)
    assert next_rate(measurement(np.nan, np.nan, end_value=np.nan), **bounds)[0] == np.float32(0.05)
    assert next_rate(measurement(np.nan, np.nan), 0.1, **bounds)[0] == np.float32(0.1)
    assert next_rate(measurement(1.0, 1.0), 3.0, **bounds)[0] == np.float32(0.2)


def decay_over(t, horizon):
    """1 for three quarters of the horizon, then linear to 0."""
    return min(1.0, max(0.0, 4 * (1 - t / horizon)))


def numpy_algorithm_1(params, x, y, steps, rate, every, gamma, momentum, horizon=None):
    """Algorithm 1 in float64: the rates after each step. Decay outside the smoothing."""
    w, velocity, rates = params, [np.zeros_like(p) for p in params], []
    for t in range(steps):
        loss, gradient = numpy_network_loss(w, x, y)
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        if (t + 1) % every == 0:
            plus, minus = (
                numpy_network_loss([p - s * rate * v for p, v in zip(w, velocity, strict=True)], x, y)[0]
                for s in (1, -1)
            )
            slope, curvature = (minus - plus) / 2, plus - 2 * loss + minus
            if curvature > 0 and slope > 0:
                rate = gamma * rate + (1 - gamma) * rate / 2 * (minus - plus) / curvature
        rates.append(rate)
        scale = 1.0 if horizon is None else decay_over(t, horizon)
        w = [p - scale * rate * v for p, v in zip(w, velocity, strict=True)]
    return np.array(rates), w


@pytest.mark.parametrize(("every", "gamma", "horizon"), [(8, 0.9, None), (1, 0.9, 50), (3, 0.5, 30), (2, 0.0, None)])
def test_algorithm_1_over_50_steps(every, gamma, horizon):
    """The smoothed rate and the parameters of a network, against float64 NumPy; also beyond the horizon."""
    params, batch = network()
    x, y = (np.asarray(batch[k], np.float64) for k in "xy")
    rates, w = numpy_algorithm_1(flat(params), x, y, 50, 1e-3, every, gamma, 0.9, horizon)
    options = dict(
        init_learning_rate=1e-3,
        every=every,
        smoothing=gamma,
        smooth="learning_rate",
        max_change=None,
        sigma=1.0,
        num_steps=horizon,
    )
    with jax.enable_x64(True):
        params, batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, batch))
        for probe in (gen_optax.finite_difference(), gen_optax.finite_difference(batching="map")):
            tx = optax.chain(optax.sgd(1.0, 0.9), gen_optax.scale_by_gen(probe=probe, **options))
            found, _, _, states = train(tx, params, network_loss, 50, **batch)
            np.testing.assert_allclose(gen_state(states).learning_rate, rates, rtol=1e-6)
            for a, b in zip(flat(found), w, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert rates[-1] > 2e-3


def test_algorithm_1_in_float32():
    params, batch = network()
    x, y = (np.asarray(batch[k], np.float64) for k in "xy")
    rates, _ = numpy_algorithm_1(flat(params), x, y, 50, 1e-2, 8, 0.9, 0.9)
    tx = gen_optax.gen_sgd(
        0.9,
        init_learning_rate=1e-2,
        probe=gen_optax.finite_difference(),
        every=8,
        smoothing=0.9,
        smooth="learning_rate",
        max_change=None,
        sigma=1.0,
    )
    _, _, _, states = train(tx, params, network_loss, 50, **batch)
    np.testing.assert_allclose(gen_state(states).learning_rate, rates, rtol=1e-2)


def test_exact_line_search_steepest_descent():
    """SGD, exact probes at every step, gamma = 0: the trajectory of steepest descent in float64."""
    problem = random_quadratic(3, condition=10.0)
    w = np.zeros(6)
    trajectory = []
    for _ in range(15):
        g = problem.gradient(w)
        w = w - g @ g / (g @ problem.hessian @ g) * g
        trajectory.append(problem.value(w))
    tx = gen_optax.gen_sgd(
        init_learning_rate=1.0,
        probe=gen_optax.exact(),
        every=1,
        smoothing=0.0,
        smooth="learning_rate",
        max_change=None,
        sigma=1.0,
    )
    with jax.enable_x64(True):
        found, _, losses, _ = train(tx, jnp.zeros(6), problem.value_fn, 15)
    np.testing.assert_allclose(losses[1:], trajectory[:-1], rtol=1e-8)
    np.testing.assert_allclose(found, w, rtol=1e-8)


@pytest.mark.parametrize("decay", [None, optax.cosine_decay_schedule(1.0, 10), lambda count: 0.5])
def test_the_decay_stays_outside_the_smoothing(decay):
    """Updates of 1, a rate that no probe moves: what is applied is eta s(t), held, then falling to 0 for good."""
    schedule = (lambda t: decay_over(t, 10)) if decay is None else decay
    tx = gen_optax.scale_by_gen(0.5, gen_optax.exact(), num_steps=10, decay=decay)
    state = tx.init(jnp.zeros(()))
    update = jax.jit(lambda s: tx.update(jnp.ones(()), s, jnp.zeros(()), value_fn=lambda w: 0 * w))
    for t in range(13):
        updates, state = update(state)
        np.testing.assert_allclose(updates, 0.5 * float(schedule(t)), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(state.applied_learning_rate, updates)
        assert state.learning_rate == 0.5


def test_the_last_counts_do_not_wrap_around():
    tx = gen_optax.scale_by_gen(0.5, gen_optax.exact(), num_steps=10)
    last = np.iinfo(np.int32).max
    state = tx.init(jnp.zeros(()))._replace(count=jnp.int32(last))
    updates, state = tx.update(jnp.ones(()), state, jnp.zeros(()), value_fn=lambda w: 0 * w)
    assert updates == 0
    assert state.count == last


@pytest.mark.parametrize("log_scale", [-12, -6, 0, 6, 12])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_cold_start_at_every_scale(log_scale, offset):
    """A first rate below the minimiser, although gradients (and so the right rates) span 24 orders of magnitude."""
    problem = random_quadratic(0)
    w = problem.centre + 1.0
    u = -problem.gradient(w) * 10.0**log_scale
    slope, curvature = problem.slope_and_curvature(w, u)
    rate = first_rate(*(jnp.asarray(x, jnp.float32) for x in (problem.hessian, problem.centre, offset, w, u)))
    assert 1e-4 < rate / (slope / curvature) <= 1


@jax.jit
def first_rate(hessian, centre, offset, w, u):
    def value_fn(w):
        return 0.5 * (w - centre) @ (hessian @ (w - centre)) + offset

    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), smoothing=0.99, sigma=1.0)
    return tx.update(u, tx.init(w), w, value_fn=value_fn)[1].learning_rate


@pytest.mark.parametrize("probe", [gen_optax.exact(), gen_optax.finite_difference(), gen_optax.retrospective()])
@pytest.mark.parametrize("direction", ["zero", "ascent", "NaN"])
def test_cold_start_waits_for_a_direction_that_descends(probe, direction):
    """No step before a rate is known, the search at each call until then, and training after it."""
    w = jnp.array([1.0, -2.0])
    tx = gen_optax.scale_by_gen(probe=probe)
    update = jax.jit(
        lambda u, s, w: tx.update(u, s, w, value=jnp.sum(w**2), grad=2 * w, value_fn=lambda w: jnp.sum(w**2))
    )
    state = tx.init(w)
    bad = {"zero": 0 * w, "ascent": w, "NaN": w * jnp.nan}[direction]
    for _ in range(3):
        updates, state = update(bad, state, w)
        assert state.learning_rate == 0
        if direction != "NaN":
            np.testing.assert_array_equal(updates, 0)
    for _ in range(100):
        updates, state = update(-2 * w, state, w)
        w = optax.apply_updates(w, updates)
    assert jnp.sum(w**2) < 0.5
    assert 0 < state.learning_rate < 2


def test_bounds_hold_from_the_first_step_on():
    tx = gen_optax.scale_by_gen(1.0, max_learning_rate=0.1, max_change=None)
    updates, _ = tx.update(-jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value_fn=lambda w: jnp.sum(w**2))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def test_cold_start_respects_bounds():
    w = jnp.ones(2)
    for bounds, low, high in (({"max_learning_rate": 1e-6}, 0.99e-6, 1.01e-6), ({"min_learning_rate": 0.9}, 0.89, 1.0)):
        tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **bounds)
        _, state = jax.jit(lambda w, tx=tx: tx.update(-w, tx.init(w), w, value_fn=lambda w: jnp.sum(w**2)))(w)
        assert low <= state.learning_rate <= high


def test_cold_start_survives_a_cliff():
    """A loss that is NaN beyond a tenth of the minimiser: the first rate stays on this side."""

    def value_fn(w):
        return jnp.where(jnp.abs(w - 1) < 0.1, jnp.sum(w**2), jnp.nan)

    w = jnp.ones(())
    tx = gen_optax.scale_by_gen(probe=gen_optax.exact())
    _, state = jax.jit(lambda w: tx.update(-2 * w, tx.init(w), w, value_fn=value_fn))(w)
    assert 0 < state.learning_rate < 0.05


@functools.partial(jax.jit, static_argnames="looks_back")
def watch(losses, rate, num_probes, measured, planned=True, looks_back=False):
    """By the default rule, while or after a search from 0.01."""
    rule = _control.Rule(0.95, "log", 2.0, 2.0, 8, None, None, searches=True)
    return _control.watch(rule, losses, jnp.float32(rate), jnp.float32(0.01), num_probes, measured, planned, looks_back)


def watched(losses, changes=None):
    """The rates after probes that saw these losses, one after the other; with `changes`, those by the steps judged."""
    rate, seen, rates = 0.1, _control.no_losses(changes is not None, jnp.float32), []
    for n, loss in enumerate(losses):
        end = loss if changes is None else loss + changes[n]
        measured = measurement(1.0, 2.0, value=loss, end_value=end)
        rate, seen = watch(seen, rate, n, measured, looks_back=changes is not None)
        rates.append(float(rate))
    return rates


def noisy(level, seed=0, spread=0.1):
    return level + spread * np.random.default_rng(seed).standard_normal(np.shape(level))


FALLING = 0.3 + 2 * np.exp(-np.arange(300) / 60)
LOST = np.concatenate([2.3 - np.arange(80) / 80, np.full(60, 2.0)])  # falls to 1.3 and comes back to 2


@pytest.mark.parametrize("unit", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("offset", [0.0, -50.0])
def test_a_loss_that_loses_what_it_had_gained_lowers_the_rate(unit, offset):
    rates = watched(unit * (noisy(LOST) + offset))
    assert rates[79] == np.float32(0.1)
    assert sorted(set(rates), reverse=True) == [np.float32(0.1 / 2**n) for n in range(4)]  # it goes on to rise


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_falls_leaves_the_rate(seed):
    assert watched(noisy(FALLING, seed))[-1] == np.float32(0.1)


@hypothesis.given(st.integers(20, 200), st.floats(0, 30))
@hypothesis.settings(deadline=None, max_examples=20)
def test_one_outlier_of_any_size_leaves_the_rate(place, log_size):
    losses = FALLING.copy()
    losses[place] += 10**log_size
    assert watched(losses[: place + 1])[-1] == np.float32(0.1)


def test_a_ripple_leaves_the_rate():
    assert watched(FALLING + 0.02 * np.sin(np.arange(300)))[-1] == np.float32(0.1)


def test_setbacks_do_not_count_while_a_rate_is_searched_for():
    assert watched(LOST[-100:-50])[-1] == np.float32(0.1)
    assert watched(LOST[-100:])[-1] < np.float32(0.1)


@pytest.mark.parametrize(("loss", "planned"), [(np.nan, True), (np.inf, True), (9.0, False)])
def test_losses_that_are_not_finite_or_of_a_bad_batch_do_not_count(loss, planned):
    seen = _control.Losses(*map(jnp.float32, (2.0, 1.0, 0.01, 1.0)), (), ())
    rate, after = watch(seen, 0.1, 100, measurement(1.0, 2.0, value=loss), planned)
    assert rate == np.float32(0.1)
    assert after == seen


@pytest.mark.parametrize("unit", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize(
    ("changes", "falls"),
    [
        (np.diff(LOST, append=LOST[-1]), True),  # as the loss fell and rose, so the steps changed it
        (noisy(np.zeros(140), seed=1, spread=1.0), True),  # who is to tell what rose by a third of that?
        (np.full(140, -0.001), False),  # the steps went on to lower a loss that rose by itself
        (noisy(np.zeros(140), seed=1, spread=0.001), False),
        (np.full(140, np.inf), False),
    ],
)
def test_a_loss_that_rises_by_more_than_the_steps_did_leaves_the_rate(changes, falls, unit):
    assert (watched(unit * noisy(LOST), unit * changes)[-1] < np.float32(0.1)) == falls


@pytest.mark.parametrize(
    ("probe", "falls"),
    [(None, False), (gen_optax.finite_difference(independent=True), True)],
    ids=["default", "single"],
)
def test_a_level_that_jumps_is_no_setback_where_all_steps_are_seen(probe, falls):
    """The loss of every batch jumps by a constant, 0.4 of what it had gained: nothing else that is measured changes."""
    problem = random_quadratic(0, condition=10.0)
    start = jnp.asarray(problem.centre, jnp.float32) + 1.0

    def rates(jump):
        tx = gen_optax.gen(optax.sgd(1.0), probe=probe)

        def step(carry, t):
            w, state = carry
            here = jnp.where(t < 200, 0.0, jump)
            value_fn = lambda w: problem.value_fn(w) + here  # noqa: E731
            value, grads = jax.value_and_grad(value_fn)(w)
            updates, state = tx.update(grads, state, w, value=value, value_fn=value_fn)
            return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)["learning_rate"]

        return np.asarray(jax.lax.scan(step, (start, tx.init(start)), jnp.arange(400))[1])

    calm, upset = rates(0.0), rates(0.4 * problem.value(start))
    np.testing.assert_array_equal(calm[:200], upset[:200])
    if falls:  # once, and training goes on
        assert 0.4 * calm[200:].min() < upset[200:].min() < 0.7 * calm[200:].min()
    else:
        assert upset[200:].min() > 0.7 * calm[200:].min()


def test_algorithm_1_knows_no_setback():
    state = gen_optax.scale_by_gen(init_learning_rate=1e-3, max_change=None).init(jnp.zeros(3))
    assert gen_state(state).losses == ()


SEARCH = {"rate": 0.1, "first_rate": 1e-3, "searches": True, "independent": True, "smooth": "log", "smoothing": 0.95}
SEARCH |= {"max_change": 2.0, "every": 16}


def test_while_a_rate_is_being_found_it_rises_with_care_and_falls_at_once():
    """Up by the cube root of the factor to the target, as far as the clamp; on the own batch by the factor itself."""
    about = SEARCH | {"num_probes": 8}  # of weight 1/2
    for ratio, factor in ((0.5, 0.5), (0.8, 0.8), (1.0, 1.0), (1.728, 1.2), (3.375, 1.5), (8.0, 2.0), (1e3, 2.0)):
        found = next_rate(measurement(slope=ratio, curvature=1.0), **about)[0]
        np.testing.assert_allclose(found, 0.1 * factor**0.5, rtol=1e-5)
    own = next_rate(measurement(slope=1.728, curvature=1.0), **(about | {"independent": False}))[0]
    np.testing.assert_allclose(own, 0.1 * 1.728**0.5, rtol=1e-5)
    later = next_rate(measurement(slope=1.728, curvature=1.0), **(about | {"num_probes": 5000}))[0]
    assert later > 0.1 * 1.2**0.05


def test_negative_curvature_raises_no_rate_that_is_being_found():
    """But curvature that its rounding hides does: a plane has no minimum either."""
    concave, plane = measurement(slope=1.0, curvature=-1.0), measurement(slope=1.0, curvature=0.0)
    assert next_rate(concave, num_probes=8, **SEARCH)[0] == np.float32(0.1)
    assert next_rate(plane, num_probes=8, **SEARCH)[0] > 0.1
    assert next_rate(concave, num_probes=60, **SEARCH)[0] > 0.1


def test_the_first_probe_after_the_search_stands_for_16():
    """So it weighs as much as a probe may."""
    eightfold = measurement(slope=8.0, curvature=1.0)
    last, after = (next_rate(eightfold, num_probes=n, **SEARCH)[0] for n in (49, 50))
    np.testing.assert_allclose([last, after], [0.1 * 2 ** (4 / 49), 0.1 * 2**0.5], rtol=1e-5)
